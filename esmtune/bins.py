"""How wrong predictions are in parts of the points: those of a class, or with a number in a range."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from esmtune.phrases import share
from esmtune.points import Points

BINS = 5
DECIMALS = 15  # with which all numbers are told apart
MOST_NAMES = 15  # classes in a chart of errors


@dataclass(frozen=True)
class Bin:
    """A part of the points, and how wrong they are."""

    name: str
    count: int
    mean: float
    low: float | None
    high: float | None


def by_label(points: Points) -> tuple[list[Bin], str]:
    """Errors by what was measured: by classes, or by fifths of the numbers."""
    if points.reads == "number":
        return by_value(points, points.labels, None)
    if points.reads == "names":
        known, wrong = np.isfinite(points.labels), points.labels != points.predictions
        found = [
            bin_of(name, wrong[known[:, place] & (points.labels[:, place] == 1), place].astype(np.float64))
            for place, name in enumerate(points.classes)
        ]
    else:
        found = [bin_of(name, points.errors[points.labels == name]) for name in points.classes]
    found = [each for each in found if each is not None]
    if len(found) <= MOST_NAMES:
        return found, ""
    kept = sorted(found, key=lambda each: -each.count)[:MOST_NAMES]
    return kept, f"The {MOST_NAMES} commonest of {len(found)} classes."


def by_value(
    points: Points, values: Float[np.ndarray, "points"], edges: Float[np.ndarray, "edges"] | None, *,
    is_share: bool = False,
) -> tuple[list[Bin], str]:  # fmt: skip
    """Errors in bins of a number, which may be a share: between edges, or in fifths of the points."""
    known = np.isfinite(values)
    if not known.any():
        return [], ""
    if edges is None:
        edges = np.unique(np.quantile(values[known], np.linspace(0, 1, BINS + 1), method="nearest"))
        if len(edges) < 2:
            return [], ""
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    ends = list(map(share, edges)) if is_share else told_apart(edges)
    names = [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    found = [bin_of(name, points.errors[known & (place == number)]) for number, name in enumerate(names)]
    left = int((~known).sum())
    return [each for each in found if each is not None], f"{left:,} points without it are left out." if left else ""


def told_apart(values: Float[np.ndarray, "values"]) -> list[str]:
    """Numbers that differ, with as few digits as tell them apart: three, or whole numbers, where that will do.

    >>> told_apart(np.array([299.6, 299.9, 300.2])), told_apart(np.array([0.0, 1234.5, 3000.0]))
    (['299.6', '299.9', '300.2'], ['0', '1,234', '3,000'])
    """
    decimals = max(0, 2 - int(np.floor(np.log10(np.abs(values).max() or 1.0))))
    while True:
        texts = [f"{round(float(value), decimals) + 0.0:,.{decimals}f}" for value in values]  # no -0
        if len(set(texts)) == len(texts) or decimals > DECIMALS:
            return [text.rstrip("0").rstrip(".") if "." in text else text for text in texts]
        decimals += 1


def bin_of(name: str, errors: Float[np.ndarray, "points"]) -> Bin | None:
    """The mean error of some points with its 95 % interval: Wilson's of a share, else Student's.

    >>> found = bin_of("all", np.array([0.0, 1.0]))
    >>> found.mean, round(found.low, 3), round(found.high, 3)
    (0.5, 0.095, 0.905)
    """
    from scipy.stats import binomtest, t

    if not len(errors):
        return None
    mean, low, high = float(errors.mean()), None, None
    if set(np.unique(errors)) <= {0.0, 1.0}:
        ends = binomtest(int(errors.sum()), len(errors)).proportion_ci(method="wilson")
        low, high = float(ends.low), float(ends.high)
    elif len(errors) > 1:
        half = float(t.ppf(0.975, len(errors) - 1) * errors.std(ddof=1) / np.sqrt(len(errors)))
        low, high = max(0.0, mean - half), mean + half
    return Bin(name, len(errors), mean, low, high)
