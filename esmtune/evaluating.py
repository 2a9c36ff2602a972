"""Evaluate: a predictor and labeled rows in, scores beside baselines out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esmtune.config import SPLIT_METHODS, Accelerator, Precision
from esmtune.curation import curate_labeled
from esmtune.datasets import SPLITS, find_columns
from esmtune.events import Notice, Watcher, counted_as, silent
from esmtune.labels import as_text
from esmtune.loading import computed_by, ready, tokens_for, training_of
from esmtune.nearness import nearness_of
from esmtune.partition import asked_split
from esmtune.readers import read
from esmtune.records import Dataset, Split, Table, Target
from esmtune.runs import Run
from esmtune.sequence_findings import nucleotides_in
from esmtune.targets import names_of
from esmtune.writers import check_out, write_json

HELD_OUT = " --subset test scores those that were held out; --split RUN/split.csv tells which where no column does."

if TYPE_CHECKING:
    from esmtune.ensembles import Ensemble
    from esmtune.predictor import Predictor


def evaluate(
    run: "str | Path | Run | Predictor | Ensemble",
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    target: str | Sequence[str] | None = None,
    sequence: str | None = None,
    id: str | None = None,
    split: str | None = None,
    mask: str | None = None,
    subset: Split | None = None,
    skip_bad_rows: bool = False,
    encoder: str | None = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    tokens_per_batch: int | None = None,
    watch: Watcher = silent,
) -> dict[str, Any]:
    """Score a predictor on labeled rows, beside baselines that learned from its training rows.

    These are the mean or majority, and all others where `run` is a run whose data lie where they lay; the one on
    embeddings where a cache has those of the training rows. `subset` takes the rows of one split, which `split` tells:
    a column, or the split.csv of a run. Returns `scores`, `baselines`, the number of `records`, where the training
    sequences are known the number of records that were `trained_on`, and with ten sequences or more `intervals`,
    `baseline_intervals` and `gain`.

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with the data or the run.
    """
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="scores")
    if split is not None and subset is None:
        raise ValueError(f"split {split!r} tells subsets: say which is to be scored, --subset test.")
    table = read(data)
    column, file = asked_split(split, table)
    if file in SPLIT_METHODS:
        raise ValueError(f"split {split!r} draws a split, and here one is read: name a column, or RUN/split.csv.")
    predictor = ready(run, encoder, accelerator, precision, watch)
    task, targets = predictor.task, predictor.spec.targets
    asked = (target,) if isinstance(target, str) else target
    columns = find_columns(
        table, target=asked or _usual_target(targets, table), sequence=sequence, id=id, split=column, mask=mask
    )
    dataset = curate_labeled(
        table,
        columns,
        targets=targets,
        classes={t.name: getattr(part, "classes", ()) for t, (_, part, _) in zip(targets, task.parts(), strict=True)},
        subset=subset,
        file=file,
        max_length=predictor.spec.max_length,
        skip_bad_rows=skip_bad_rows,
    )
    sequences = [r.sequence for r in dataset.records]
    for text in [*dataset.notices, *nucleotides_in(sequences)]:
        watch(Notice(text))

    from esmtune.masking import guessed

    training = training_of(run)
    learned = 0 if subset or training else _training_rows(table, columns.split)
    if learned:
        watch(
            Notice(f"All rows are scored, {learned:,} of which the column {columns.split!r} says train for.{HELD_OUT}")
        )
    tokens = tokens_for(predictor, sequences, tokens_per_batch, watch)
    answers = predictor.answers(sequences, hide=True, tokens_per_batch=tokens, watch=watch)
    outputs = task.average(answers)
    labels = guessed([label for r in dataset.records for label in r.labels], sequences, predictor.masks)
    result: dict[str, Any] = {
        "encoder": predictor.spec.encoder.name,
        "records": len(dataset.records),
        "scores": task.scores(outputs, labels),
    }
    result |= _trained_on(training, dataset, subset, watch)
    from esmtune.standards import judged

    result |= judged(run.path if isinstance(run, Run) else run, predictor, dataset, labels, outputs, watch)

    def scores(places: list[int]) -> Any:
        return task.scores(outputs[places], [labels[place] for place in places])

    result |= _by_nearness(training, predictor, sequences, scores)
    if out is not None:
        write_json(result, Path(out))
    watch(computed_by(predictor))
    return result


def _trained_on(training: Sequence[str], dataset: Dataset, subset: Split | None, watch: Watcher) -> dict[str, int]:
    """How many records have a sequence that was trained on; says so where there are any."""
    if not training:
        return {}
    known, count = set(training), len(dataset.records)
    seen = sum(r.sequence in known for r in dataset.records)
    if seen:
        rows = f"{seen:,} of {counted_as(count, 'row')} {'has' if seen == 1 else 'have'} a sequence"
        advice = HELD_OUT if subset in (None, "train") else ""
        watch(Notice(f"LEAK: {rows} that the predictor was trained on: their scores measure memory.{advice}"))
    return {"trained_on": seen}


def _training_rows(table: Table, column: str | None) -> int:
    """How many rows of a table are for training, as a column says."""
    cells = [] if column is None else table.frame[column].to_list()
    return sum(SPLITS.get(as_text(cell).lower()) == "train" for cell in cells)


def _by_nearness(
    training: Sequence[str],
    predictor: "Predictor | Ensemble",
    sequences: Sequence[str],
    scores: Callable[[list[int]], Any],
) -> dict[str, Any]:
    """Scores by how near records are to the training sequences, where these are known."""
    near = nearness_of(training, sequences)
    if near is None:
        return {}
    counts = np.cumsum([0, *predictor.points(sequences)]).tolist()

    def of_records(within: np.ndarray) -> Any:
        return scores([p for n in np.flatnonzero(within).tolist() for p in range(counts[n], counts[n + 1])])

    every = np.ones(len(sequences), dtype=bool)
    mutations = near.by_mutations(every, of_records)
    found = {"by_identity": near.by_identity(every, of_records)}
    return found | ({"by_mutations": mutations} if mutations else {})


def _usual_target(targets: Sequence[Target], table: Table) -> tuple[str, ...] | None:
    """The columns that a predictor was trained on, if they are there."""
    if targets[0].kind == "mlm":
        return ()
    names = tuple(name for target in targets for name in names_of(target))
    return names if all(name in table.frame.columns for name in names) else None
