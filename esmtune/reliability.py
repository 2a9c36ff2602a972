"""How far the predictions of a run can be relied on: calibrated after training, counted on the test records."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from esmtune.calibration import Calibration, calibrate
from esmtune.classes import Classes
from esmtune.conformal import calibration_error, rank
from esmtune.discrimination import Discrimination, confidence_of, curves_of
from esmtune.members import Trained
from esmtune.nearness import Nearness, bin_of
from esmtune.partition import seen_elsewhere
from esmtune.records import Dataset, Label, of_target
from esmtune.scaling import Scaling, fit_scaling, scaled
from esmtune.tasks import Task

LEVELS = (0.5, 0.8, 0.9, 0.95)  # that every run with test records counts the coverage of


def mended(
    trained: Trained, data: Dataset, method: Literal["none", "temperature", "isotonic"], seed: int
) -> tuple[Trained, tuple[Scaling, ...], frozenset[str]]:
    """Mend the probabilities of classes by half of the calibration sequences, which are returned too.

    What the members say of the labeled points is mended with them.
    """
    held, members = _held_out(trained, data)
    points = [record.sequence for record in data.of(None) for _ in record.labels]
    names = list(dict.fromkeys(points[place] for place in held.nonzero()[0].tolist()))
    if method == "none" or len(names) < 2:
        return trained, (), frozenset()
    used = frozenset(random.Random(f"scaling {seed}").sample(names, len(names) // 2))
    places = [place for place in held.nonzero()[0].tolist() if points[place] in used]
    scalings = tuple(_fitted(trained.task, data, members, places, method))
    targets = [target.name for target in data.targets]
    change = partial(scaled, trained.task, targets, scalings=scalings)
    parts = {"draws": change(trained.draws), "answers": change(trained.answers)}
    by_fold = {"outputs": change(trained.outputs)} if trained.by_fold else {}
    new = replace(trained, **parts, **by_fold)
    if not trained.by_fold:
        new = replace(new, outputs=trained.task.average(together(new)))
    return new, scalings, used


def _fitted(
    task: Task, data: Dataset, members: Float[Tensor, "members points outputs"], places: Sequence[int],
    method: Literal["temperature", "isotonic"],
) -> Iterator[Scaling]:  # fmt: skip
    for place, (target, (_, part, own)) in enumerate(zip(data.targets, task.parts(), strict=True)):
        if isinstance(part, Classes):
            truth = part.targets([_labels(data, place)[p] for p in places])[:, 0]
            known = [p for p, is_known in zip(places, truth.isfinite().tolist(), strict=True) if is_known]
            if known:
                yield fit_scaling(
                    target.name, part, members[:, known][..., own], truth[truth.isfinite()].long().numpy(), method
                )


def calibrated(
    trained: Trained, data: Dataset, seed: int, used: frozenset[str] = frozenset(), near: Nearness | None = None
) -> tuple[Calibration, ...]:
    """Calibrate what a run trained, each target by itself, on its calibration records but those of `used` sequences.

    Classes are told apart, and numbers by how near their records are to those of training, where that is known.
    With folds each record is scored by the member that had not seen it, and all of these scores are pooled, as if the
    members together were no better than one (Vovk 2015, https://doi.org/10.1007/s10472-013-9368-4).
    """
    held, members = _held_out(trained, data)
    sequences = [r.sequence for r in data.of(None) for _ in r.labels]
    places = [place for place in held.nonzero()[0].tolist() if sequences[place] not in used]
    if not places:
        return ()
    records = data.of(None)
    identity = [np.nan] * len(records) if near is None else near.identity.tolist()
    bins = [bin_of(x) for r, x in zip(records, identity, strict=True) for _ in r.labels]
    found = []
    for place, (target, (_, part, own)) in enumerate(zip(data.targets, trained.task.parts(), strict=True)):
        labels = _labels(data, place)
        found.append(
            calibrate(
                target.name, part, members[:, places][..., own], [labels[p] for p in places],
                [sequences[p] for p in places], seed=seed,
                groups=[bins[p] for p in places] if part.reads == "number" else None,
            )
        )  # fmt: skip
    return tuple(calibration for calibration in found if calibration is not None)


def _held_out(trained: Trained, data: Dataset) -> tuple[np.ndarray, Float[Tensor, "members points outputs"]]:
    """Which points are for calibration, and what is said of all points by those that did not see these.

    Rows for calibration that the data name are none where their sequence was trained on or chose the weights.
    """
    records = data.of(None)
    if trained.by_fold and not any(r.split == "calibration" for r in records):
        return np.repeat(trained.calibrates, [len(r.labels) for r in records]), trained.outputs[None]
    seen = seen_elsewhere(records)
    given = [r.split == "calibration" and r.sequence not in seen for r in records for _ in r.labels]
    return np.array(given), together(trained)


def together(trained: Trained) -> Float[Tensor, "members points outputs"]:
    """What each member that is part of the predictor, or each draw of its dropout, says of the labeled points."""
    kept = [n for n, m in enumerate(trained.members) if m.name not in trained.collapsed]
    return trained.draws[kept].flatten(0, 1)


def reliability(
    trained: Trained, data: Dataset, calibrations: Sequence[Calibration], before: Mapping[str, float]
) -> dict[str, Any]:
    """Coverage and width of intervals on the test records at several levels, as `metrics.json` has them.

    `before` are the calibration errors before probabilities were mended, where they were.
    """
    records = data.of(None)
    points = [record for record in records for _ in record.labels]
    places = [place for place, record in enumerate(points) if record.split == "test"]
    sequences = [points[place].sequence for place in places]
    answers = together(trained)[:, places]
    of_targets: dict[str, Any] = {}
    for place, (target, (_, part, own)) in enumerate(zip(data.targets, trained.task.parts(), strict=True)):
        found = next((c for c in calibrations if c.target == target.name), None)
        if found is None:
            continue
        labels = _labels(data, place)
        known = [labels[p] for p in places]
        each = {f"{level:g}": coverage(found, part, answers[..., own], known, sequences, level) for level in LEVELS}
        levels = {level: figures for level, figures in each.items() if figures is not None}
        of_targets[target.name] = {"method": found.method, "records": found.records, "levels": levels}
        ece = before.get(target.name), _calibration_error(part, answers[..., own], known)
        if ece[1] is not None:
            of_targets[target.name] |= {"ece": ece[1]} | ({} if ece[0] is None else {"ece_before": ece[0]})
    if not of_targets:
        return {}
    return {"calibration": of_targets[data.targets[0].name] if len(data.targets) == 1 else {"targets": of_targets}}


def coverage(
    found: Calibration, part: Task, members: Float[Tensor, "members points outputs"], labels: Sequence[Label],
    sequences: Sequence[str], level: float,
) -> dict[str, float] | None:  # fmt: skip
    """Which share of known labels the intervals or sets hold, and their mean width or size.

    Each sequence counts as much as any other, however many points it has. None where no label is known or the
    level is not possible. A width of grades, and the size of a set, is a number of classes.
    """
    places = [place for place, label in enumerate(labels) if isinstance(label, float | str)]
    if not places or rank(found.records, level) is None:
        return None
    bounds = found.bounds(part, members[:, places], level)
    known = [labels[place] for place in places]
    names: list[str] = list(getattr(part, "classes", ()))
    if bounds.sets is not None:
        hit, width = [label in s for label, s in zip(known, bounds.sets, strict=True)], [len(s) for s in bounds.sets]
    else:
        order = {name: number for number, name in enumerate(names)}
        low, high, truth = (
            np.array([order[x] if names else x for x in column], dtype=np.float64)  # pyright: ignore[reportArgumentType]
            for column in (bounds.lower or [], bounds.upper or [], known)
        )
        hit, width = (low <= truth) & (truth <= high), high - low + bool(names)
    _, group, counts = np.unique([sequences[place] for place in places], return_inverse=True, return_counts=True)
    weights = 1 / counts[group]
    return {"coverage": float(np.average(hit, weights=weights)), "width": float(np.average(width, weights=weights))}


def calibration_errors(trained: Trained, data: Dataset) -> dict[str, float]:
    """The expected calibration error of the test records, of each target with classes."""
    places = [n for n, split in enumerate(r.split for r in data.of(None) for _ in r.labels) if split == "test"]
    answers, found = together(trained)[:, places], {}
    for place, (target, (_, part, own)) in enumerate(zip(data.targets, trained.task.parts(), strict=True)):
        labels = _labels(data, place)
        found[target.name] = _calibration_error(part, answers[..., own], [labels[p] for p in places])
    return {name: value for name, value in found.items() if value is not None}


def discriminations(trained: Trained, data: Dataset) -> dict[str, dict[str, Any]]:
    """Of labels of residues, how well their classes are told apart on what was held out, as curves.json has it.

    Of sequences the probabilities themselves stand in predictions.csv.
    """
    if data.level != "residue":
        return {}
    splits = [r.split for r in data.of(None) for _ in r.labels]
    judged = "test" if "test" in splits else "train" if trained.by_fold else "valid"
    places = [place for place, split in enumerate(splits) if split == judged]
    found = {}
    for place, (target, (_, part, own)) in enumerate(zip(data.targets, trained.task.parts(), strict=True)):
        labels = _labels(data, place)
        known = [p for p in places if labels[p] is not None]
        if not isinstance(part, Classes) or not known:
            continue
        outputs = trained.outputs[known][:, own]
        truth = np.array([labels[p] for p in known], dtype=object)
        probabilities = {name: np.array(column) for name, column in part.probabilities(outputs).items()}
        truths = {name: (truth == name, column) for name, column in probabilities.items()}
        right = np.array(part.predict(outputs), dtype=object) == truth
        sure = np.max(list(probabilities.values()), axis=0)
        found[target.name] = Discrimination(
            classes=len(truths), curves=curves_of(truths, is_exclusive=True), confidence=confidence_of(right, sure)
        ).spec()
    return found


def _calibration_error(
    part: Task, answers: Float[Tensor, "members points outputs"], labels: Sequence[Label]
) -> float | None:
    known = [place for place, label in enumerate(labels) if label is not None]
    if not isinstance(part, Classes) or not known:
        return None
    outputs = part.average(answers[:, known])
    confidence = np.array(list(part.probabilities(outputs).values()), dtype=np.float64).max(0)
    pairs = zip(part.predict(outputs), known, strict=True)
    return calibration_error(np.array([label == labels[place] for label, place in pairs], dtype=bool), confidence)


def _labels(data: Dataset, place: int) -> list[Label]:
    return of_target([label for r in data.of(None) for label in r.labels], place, data.targets)
