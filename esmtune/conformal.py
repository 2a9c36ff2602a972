"""Intervals and sets that hold the truth as often as asked, by scores of points that no training saw.

Split-conformal prediction (Papadopoulos et al. 2002, https://doi.org/10.1007/3-540-36755-1_29; Angelopoulos and Bates
2023, https://doi.org/10.1561/2200000101). A score says how far a label is from what was predicted; of `n` scores of
exchangeable points, that of one more is no larger than the k-th smallest, `k = ceil((n + 1) level)`, with a probability
of at least `level`. The share of many more points that this covers varies with the `n` points that were drawn: it has a
Beta distribution of `k` and `n + 1 - k`.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

SMALL = 1e-9  # so that (n + 1) * level is not rounded up for its last bit


def rank(count: int, level: float) -> int | None:
    """Which of so many scores, from the smallest, covers a share of `level`; None if it takes more scores.

    >>> rank(19, 0.9), rank(9, 0.9), rank(8, 0.9)
    (18, 9, None)

    Raises:
        ValueError: for a level that is no share between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the interval is {level}, expected a share between 0 and 1, such as 0.9.")
    place = math.ceil((count + 1) * level - SMALL)
    return place if place <= count else None


def highest_level(count: int) -> float:
    """The highest level that so many scores allow, cut to three digits.

    >>> highest_level(19), highest_level(1000)
    (0.95, 0.999)
    """
    return math.floor(1000 * count / (count + 1) + SMALL) / 1000


def threshold(scores: Float[np.ndarray, "points"], level: float) -> float:
    """The score that covers a share of `level`; infinite if there are too few scores for it.

    >>> threshold(np.arange(19.0), 0.9)
    17.0
    """
    place = rank(len(scores), level)
    return math.inf if place is None else float(np.partition(scores, place - 1)[place - 1])


def residuals(
    labels: Float[np.ndarray, "points"], centers: Float[np.ndarray, "points"], spreads: Float[np.ndarray, "points"]
) -> Float[np.ndarray, "points"]:
    """The absolute errors over the spreads that were expected; with spreads of 1, the absolute errors.

    Lei et al. 2018, https://doi.org/10.1080/01621459.2017.1307116.

    >>> residuals(np.array([1.0, 5.0]), np.array([2.0, 2.0]), np.array([1.0, 2.0])).tolist()
    [1.0, 1.5]
    """
    return np.abs(labels - centers) / spreads


def shortfalls(
    labels: Float[np.ndarray, "points"], lower: Float[np.ndarray, "points"], upper: Float[np.ndarray, "points"]
) -> Float[np.ndarray, "points"]:
    """How far labels lie outside of an interval, negative inside: conformalized quantile regression.

    Romano et al. 2019, https://doi.org/10.48550/arXiv.1905.03222.

    >>> shortfalls(np.array([1.0, 5.0]), np.array([2.0, 2.0]), np.array([6.0, 6.0])).tolist()
    [1.0, -1.0]
    """
    return np.maximum(lower - labels, labels - upper)


def misses(probabilities: Float[np.ndarray, "points classes"]) -> Float[np.ndarray, "points classes"]:
    """One less the probability of each class (Sadinle et al. 2019, https://doi.org/10.1080/01621459.2017.1395341).

    >>> misses(np.array([[0.25, 0.75]])).tolist()
    [[0.75, 0.25]]
    """
    return 1 - probabilities


def depths(probabilities: Float[np.ndarray, "points grades"]) -> Float[np.ndarray, "points grades"]:
    """How far each grade lies from the median one, in probability: grades that are near it lie side by side.

    Of an interval of quantiles the discrete kin (Chernozhukov et al. 2021, https://doi.org/10.1073/pnas.2107794118).

    >>> depths(np.array([[0.25, 0.5, 0.25]])).tolist()
    [[0.25, -0.25, 0.25]]
    """
    below = np.cumsum(probabilities, axis=1)
    return np.maximum(0.5 - below, below - probabilities - 0.5)


def sets(
    scores: Float[np.ndarray, "points classes"], thresholds: Float[np.ndarray, "#points #classes"]
) -> Bool[np.ndarray, "points classes"]:
    """Which classes each set holds: those with a score up to the threshold, and always the one with the lowest.

    >>> sets(np.array([[0.75, 0.25], [0.45, 0.55]]), np.array([[0.2, 0.2]])).tolist()
    [[False, True], [True, False]]
    """
    best = scores.argmin(axis=1)[:, None] == np.arange(scores.shape[1])
    return (scores <= thresholds) | best


def one_of_each(groups: Sequence[str], known: Bool[np.ndarray, "points"], seed: int) -> Int[np.ndarray, "groups"]:
    """Of each group of points one that is known, drawn by a seed.

    Residues of one sequence are not exchangeable with each other and with those of others, but sequences are: of one
    residue of each, the coverage is that of a random residue of another sequence (Dunn et al. 2023,
    https://doi.org/10.1080/01621459.2022.2060112, subsampling once).

    >>> one_of_each(["a", "a", "b"], np.array([False, True, True]), 0).tolist()
    [1, 2]
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(groups)).tolist()
    chosen: dict[str, int] = {}
    for place in order:
        if known[place]:
            chosen.setdefault(groups[place], place)
    return np.array(sorted(chosen.values()), dtype=np.int64)


def calibration_error(
    is_right: Bool[np.ndarray, "points"], confidence: Float[np.ndarray, "points"], bins: int = 15
) -> float:
    """How far the share of right predictions is from the probability that they were given, over bins of the latter.

    Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602.

    >>> calibration_error(np.array([True, False]), np.array([0.75, 0.75]))
    0.25
    """
    place = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    gaps = [
        abs(is_right[place == number].mean() - confidence[place == number].mean()) * (place == number).mean()
        for number in range(bins)
        if (place == number).any()
    ]
    return float(sum(gaps))
