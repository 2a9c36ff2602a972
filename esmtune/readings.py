"""What a predictor says, as columns of a table: of new sequences, and of the records of a run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from esmtune.labels import written
from esmtune.nearness import Nearness
from esmtune.records import Dataset, Label, Target, of_target

if TYPE_CHECKING:
    from esmtune.members import Trained
    from esmtune.tasks import Task


def readings(
    task: "Task", targets: Sequence[Target], answers: Any, counts: Sequence[int], *, details: bool
) -> pl.DataFrame:
    """What the answers of one or more members mean, a row a sequence, in the form of the labels.

    Columns are `prediction` and, with `details`, `probability_CLASS` and `spread`, a standard deviation: of what
    several members say, and what a loss learned of how far off a number may be. Of several
    targets each column ends in the target's name.
    """
    columns: list[pl.Series] = []
    for target, (name, part, place) in zip(targets, task.parts(), strict=True):
        end = f"_{name}" if name else ""
        members = answers[:, :, place]
        outputs = part.average(members)
        cells = _cells(target, part.predict(outputs), counts)
        if target.form == "columns":
            for label in target.name.split(","):
                holds = [None if cell is None else int(label in cell.split(";")) for cell in cells]
                columns.append(pl.Series(f"prediction_{label}", holds, dtype=pl.Int64))
        else:
            dtype = pl.Float64 if target.form == "one" and part.reads == "number" else None
            columns.append(pl.Series(f"prediction{end}", cells, dtype=dtype or _dtype(target, part.reads)))
        if details:
            plain = replace(target, form="separated" if target.form == "letters" else target.form)
            plain = replace(plain, form="one" if plain.form == "columns" else plain.form)
            numbers = part.probabilities(outputs).items()
            found = [(f"probability{end}_{label}", values) for label, values in numbers]
            doubt = part.doubt(members)
            found += [(f"spread{end}", doubt)] if doubt is not None else []
            for column, values in found:
                dtype = pl.Float32 if plain.form == "one" else _dtype(plain, "number")
                columns.append(pl.Series(column, _cells(plain, values, counts), dtype=dtype))
    return pl.DataFrame(columns)


def _cells(target: Target, values: Sequence[Label], counts: Sequence[int]) -> list[Any]:
    """Labels of points as cells of a table, one a sequence."""
    if target.form in ("one", "columns"):
        return [written(target, [value]) for value in values]
    given = iter(values)
    return [written(target, [next(given) for _ in range(count)]) for count in counts]


def _dtype(target: Target, reads: str) -> Any:
    if target.form == "list":
        return pl.List(pl.Float64 if reads == "number" else pl.String)
    return pl.String


def predictions_of(trained: "Trained", dataset: Dataset, near: Nearness | None = None) -> pl.DataFrame:
    """Every labeled record: id, split, label and prediction, of several members the spread, how near to training."""
    records = dataset.of(None)
    counts = [len(r.labels) for r in records]
    asked: dict[str, Any] = {"id": [r.id for r in records], "split": [r.split for r in records]}
    asked["length"] = [len(r.sequence) for r in records]
    labels = [label for r in records for label in r.labels]
    for place, target in enumerate(dataset.targets):
        several = len(dataset.targets) > 1
        own = of_target(labels, place, dataset.targets)
        asked[f"label_{target.name}" if several else "label"] = _cells(target, own, counts)
    frame = pl.DataFrame(asked, strict=False)
    kept = [n for n, m in enumerate(trained.members) if m.name not in trained.collapsed]
    details = dataset.level == "sequence"
    if trained.by_fold:
        answers = trained.outputs[None]
        frame = frame.with_columns(pl.Series("fold", trained.speakers, dtype=pl.Int64))
    else:
        answers = trained.draws[kept].flatten(0, 1)
    frame = frame.hstack(readings(trained.task, dataset.targets, answers, counts, details=details))
    frame = frame.hstack(_bounds_of_test(trained, dataset, counts))
    far = pl.Series("distance", trained.distances.double().numpy()).fill_nan(None).round(4)
    if far.is_not_null().any():
        frame = frame.with_columns(far)
    if near is None:
        return frame
    return frame.with_columns(pl.Series("identity", near.identity).fill_nan(None).round(4))


def _bounds_of_test(trained: "Trained", dataset: Dataset, counts: Sequence[int]) -> pl.DataFrame:
    """The usual intervals or sets of test records, and nothing of the others; no columns where there are none."""
    from esmtune.intervals import USUAL_LEVEL, bound_columns, is_possible
    from esmtune.reliability import together

    found = [c for c in trained.predictor.calibration if is_possible(c, USUAL_LEVEL)]
    is_test = pl.Series([r.split == "test" for r in dataset.of(None)], dtype=pl.Boolean)
    if not found or not is_test.any():
        return pl.DataFrame()
    bounds = bound_columns(trained.task, dataset.targets, found, together(trained), counts, USUAL_LEVEL)
    return bounds.select(pl.when(is_test).then(pl.col(name)).alias(name) for name in bounds.columns)
