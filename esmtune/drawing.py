"""Sequences drawn with replacement, as often as an interval of 95 % needs: what every bootstrap here draws and reads.

A group, such as a sequence with all its residues and replicates, is drawn as one; an interval goes from the 2.5th to
the 97.5th percentile (Efron and Tibshirani 1986, https://doi.org/10.1214/ss/1177013815).
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from esmtune.resamples import Counts, Resampled

RESAMPLES = 1000
FEWEST = 100  # resamples, where there are very many points
CELLS = 2_000_000  # points times resamples at a time
LEVEL = 0.95
LEAST = 10  # sequences, below which an interval would say more than is known

Interval = tuple[float, float]


def affordable(work: float, most: int = RESAMPLES) -> int:
    """How many resamples to take, where `work` is how many of them are affordable; not less than a hundred.

    >>> affordable(1e6), affordable(250.5), affordable(3.0)
    (1000, 250, 100)
    """
    return int(min(most, max(FEWEST, work)))


def draws(groups: Sequence[Hashable], resamples: int, seed: int) -> Iterator[Counts]:
    """How often each point is drawn, in as many resamples at a time as memory should hold.

    Args:
        groups: what is drawn together with each point.
        resamples: how many in all.
        seed: of the drawing.

    >>> [counts.shape for counts in draws(["a", "a", "b"], 4, seed=0)]
    [(3, 4)]
    """
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    member = np.array([number[group] for group in groups])
    step = max(1, min(resamples, CELLS // max(1, len(member))))
    random = np.random.default_rng(seed)
    for start in range(0, resamples, step):
        drawn = random.integers(len(number), size=(min(step, resamples - start), len(number)))
        yield np.stack([np.bincount(row, minlength=len(number)) for row in drawn], axis=1).astype(np.float64)[member]


def resampled(
    measures: Sequence[Callable[[Counts], Resampled]], groups: Sequence[Hashable], resamples: int, seed: int
) -> list[Resampled]:
    """What several measures come to in the same resamples."""
    parts = [[measure(counts) for measure in measures] for counts in draws(groups, resamples, seed)]
    return [
        {metric: np.concatenate([own[metric] for own in found]) for metric in found[0]}
        for found in zip(*parts, strict=True)
    ]


def interval_of(values: Float[np.ndarray, "resamples"]) -> Interval | None:
    """The middle 95 % of the values that are numbers; None if those are fewer than half.

    >>> [round(end, 6) for end in interval_of(np.arange(1001.0))]
    [25.0, 975.0]
    """
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values) or not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
