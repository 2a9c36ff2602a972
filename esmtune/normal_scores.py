"""Labels as normal scores: a rising curve on which the training labels look like draws of a normal distribution.

The n-th part of the labels in their order becomes that of the standard normal distribution (Blom 1958; Beasley et al.
2009, https://doi.org/10.1007/s10519-009-9281-0), so a long tail, or a heap of labels at one end, weighs no more in
squared errors than its share. The curve is kept by its height, in the label's unit, at evenly spaced scores.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

STEP = 0.1  # from knot to knot; the middle one stands at 0
KNOTS = 121  # up to a score of 6, beyond which the curve goes on in a line


def curve(labels: Float[np.ndarray, "points"]) -> tuple[float, ...]:
    """The heights of the curve through labels, none of which is unknown; where many are equal it is level.

    Beyond the largest and smallest label it goes on as steeply as over the last unit of scores before, or where that
    is level as steeply as on the whole: so there is no label without a score of its own.

    >>> heights = curve(np.arange(99.0))
    >>> round(heights[30], 1), round(heights[60], 1), len(heights)
    (-2.2, 49.0, 121)
    """
    order = np.sort(labels.astype(np.float64))
    scores = _quantiles((np.arange(len(order)) + 0.5) / len(order))
    grid = (np.arange(KNOTS) - KNOTS // 2) * STEP
    heights = np.interp(grid, scores, order)
    on_the_whole = (order[-1] - order[0]) / max(scores[-1] - scores[0], STEP)
    for end, is_beyond, inward in ((0, grid < scores[0], 1.0), (-1, grid > scores[-1], -1.0)):
        within = np.interp(scores[end] + inward, scores, order)
        slope = (within - order[end]) / inward or on_the_whole
        heights[is_beyond] = order[end] + slope * (grid[is_beyond] - scores[end])
    return tuple(heights.tolist())


def labels_at(scores: Float[Tensor, "*points"], heights: tuple[float, ...]) -> Float[Tensor, "*points"]:
    """The labels that scores stand for, in float64.

    >>> labels_at(torch.tensor([0.0, 4.0]), tuple(np.linspace(-30.0, 30.0, 61))).tolist()
    [0.0, 40.0]
    """
    place = scores.double() / STEP + len(heights) // 2
    below = place.floor().nan_to_num().clamp(0, len(heights) - 2).long()
    known = torch.tensor(heights, dtype=torch.float64, device=scores.device)
    rise = (known[below + 1] - known[below]) * (place - below)
    return known[below] + rise.where((known[below + 1] > known[below]) | place.isnan(), 0.0)


def scores_of(labels: Float[np.ndarray, "points"], heights: tuple[float, ...]) -> Float[np.ndarray, "points"]:
    """The scores of labels, NaN where a label is; where the curve is level, that of the middle of their ranks.

    >>> scores_of(np.array([0.0, 40.0]), tuple(np.linspace(-30.0, 30.0, 61))).round(6).tolist()
    [0.0, 4.0]
    """
    known, middle = np.asarray(heights), len(heights) // 2
    first, last = np.searchsorted(known, labels, "left"), np.searchsorted(known, labels, "right") - 1
    below = np.clip(first - 1, 0, len(known) - 2)
    rise = known[below + 1] - known[below]
    between = below + np.divide(labels - known[below], rise, out=np.zeros_like(labels), where=rise > 0)
    ends = torch.from_numpy((np.stack((first, last)).clip(0, len(known) - 1) - middle) * STEP)
    of_heap = _quantiles(torch.special.ndtr(ends).mean(0).numpy())
    return np.where(first <= last, of_heap, (between - middle) * STEP) + 0 * labels


def _quantiles(shares: Float[np.ndarray, "points"]) -> Float[np.ndarray, "points"]:
    """Of the standard normal distribution."""
    return torch.special.ndtri(torch.from_numpy(shares)).numpy()
