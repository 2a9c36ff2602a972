"""Intervals and sets of classes beside predictions: at which levels there are any, and their columns."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.calibration import Bounds, Calibration, supports
from esmtune.conformal import rank
from esmtune.labels import set_written, written
from esmtune.nearness import BIN_NAMES
from esmtune.records import Label, Target
from esmtune.tasks import Task

USUAL_LEVEL = 0.9  # of the intervals in predictions.csv


def is_possible(found: Calibration, level: float) -> bool:
    """Whether there are enough calibration points for a level."""
    return rank(found.records, level) is not None


def check_level(
    task: Task, targets: Sequence[Target], calibrations: Sequence[Calibration], level: float, *, conditional: bool
) -> list[str]:
    """Refuse a level for which there is no interval; returns what is to be known of it, as sentences.

    Raises:
        ValueError: if a predictor was not calibrated, no target can be, or the level takes more points.
    """
    if not 0 < level < 1:
        raise ValueError(f"interval is {level}, expected a share between 0 and 1, such as 0.9.")
    parts = list(zip(targets, task.parts(), strict=True))
    possible = [target.name for target, (_, part, _) in parts if supports(part)]
    if not possible:
        kinds = ", ".join(dict.fromkeys(target.kind for target in targets))
        raise ValueError(f"there are no intervals or sets of a {kinds} task: they are of numbers, classes and grades.")
    if not calibrations:
        raise ValueError(
            "this predictor is not calibrated: no records were kept for it. Train it with 40 validation sequences or "
            "more, with --calibration-fraction 0.5, or with rows whose split is calibration."
        )
    said = [f"No intervals for {target.name!r}." for target, (_, part, _) in parts if not supports(part)]
    for found in calibrations:
        part = next(part for target, (_, part, _) in parts if target.name == found.target)
        if conditional and part.reads != "name" and any(not s.group for s in found.strata):
            raise ValueError(
                f"{found.target!r} was calibrated on records of which nobody knew how near they are to those of "
                "training, as it is with fewer than 20 training sequences: leave out --conditional."
            )
        found.check(level, conditional=conditional)
        if conditional and part.reads != "name":
            bins = [name for name in BIN_NAMES if name not in found.enough(level)]
            if bins:
                said.append(
                    f"No intervals where the identity to training is {', '.join(bins)}: too few calibration points."
                )
            continue
        few = found.too_few(level) if conditional else []
        unseen = sorted(set(getattr(part, "classes", ())) - {s.group for s in found.strata}) if conditional else []
        if few or unseen:
            names = ", ".join(sorted({*few, *unseen}))
            said.append(f"Classes with too few calibration points for {level:g}, which are in every set: {names}.")
    return said


def bound_columns(
    task: Task, targets: Sequence[Target], calibrations: Sequence[Calibration],
    answers: Float[Tensor, "members points outputs"], counts: Sequence[int], level: float, *, conditional: bool = False,
    bins: Sequence[str] = (),
) -> pl.DataFrame:  # fmt: skip
    """Intervals or sets of points in the form of the labels: `lower` and `upper`, or `set`, a row a sequence.

    With `conditional` they hold for each class by itself, and of numbers for each of the `bins` of identity to the
    training sequences: where a sequence's bin has too few calibration points, it has no interval.

    The classes of a set are joined by `;`, per residue by `,`, or are a JSON list where a name has that sign. Of
    several targets each column ends in its name. What is not finite has none.
    """
    columns: list[pl.Series] = []
    for target, (name, part, place) in zip(targets, task.parts(), strict=True):
        found = next((c for c in calibrations if c.target == target.name), None)
        if found is None:
            continue
        members = answers[..., place]
        finite, groups = members.isfinite().all(-1).all(0), None
        if conditional and part.reads != "name":
            groups = [name for name, count in zip(bins, counts, strict=True) for _ in range(count)]
            enough = found.enough(level)
            finite &= torch.tensor([name in enough for name in groups], dtype=torch.bool)
            groups = [name if name in enough else min(enough) for name in groups]  # any: it is not looked at
        bounds = found.bounds(
            part, torch.where(finite[:, None], members, 0.0), level, groups=groups, conditional=conditional
        )
        end = f"_{name}" if name else ""
        for column, values in _texts(bounds, target, getattr(part, "classes", ())).items():
            known = [value if is_finite else None for value, is_finite in zip(values, finite.tolist(), strict=True)]
            columns.append(_series(f"{column}{end}", known, target, counts, part.reads))
    return pl.DataFrame(columns)


def _texts(bounds: Bounds, target: Target, classes: Sequence[str]) -> dict[str, list[Label]]:
    if bounds.sets is None:
        return {"lower": bounds.lower or [], "upper": bounds.upper or []}
    between = ";" if target.form == "one" else ","
    return {"set": [set_written(names, classes, between) for names in bounds.sets]}


def _series(name: str, values: Sequence[Label], target: Target, counts: Sequence[int], reads: str) -> pl.Series:
    number = reads == "number"
    if target.form == "one":
        return pl.Series(name, values, dtype=pl.Float64 if number else pl.String)
    plain = replace(target, form="separated" if target.form == "letters" and name.startswith("set") else target.form)
    given = iter(values)
    cells = [written(plain, [next(given) for _ in range(count)]) for count in counts]
    if target.form == "list":
        return pl.Series(name, cells, dtype=pl.List(pl.Float64 if number else pl.String))
    return pl.Series(name, cells, dtype=pl.String)
