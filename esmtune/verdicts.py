"""Whether chosen settings are better than the defaults, as far as the noise lets one tell."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from esmtune.metrics import sign_of

LEVEL = 0.9  # of the interval of their difference


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the chosen settings are better than the defaults, by pairs of trainings that did not choose them."""

    is_better: bool | None  # None: it cannot be told
    best: tuple[float, ...] = ()
    defaults: tuple[float, ...] = ()
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    text: str = ""


def verdict_of(
    metric: str, best: Sequence[float], defaults: Sequence[float], where: str, folds: int, what: str = "The best trial"
) -> Verdict:
    """Compare pairs by Student's t, with the variance of folds, which share rows to train on, corrected.

    Nadeau and Bengio 2003, Inference for the generalization error. https://doi.org/10.1023/A:1024068626366

    >>> verdict_of("spearman", [0.61, 0.66, 0.64], [0.60, 0.65, 0.65], "other folds", 3).is_better
    False
    """
    from scipy.stats import t

    if len(best) != len(defaults) or len(best) < 2:
        text = f"{what} cannot be compared with the defaults: one of them failed on {where}. Use the defaults."
        return Verdict(is_better=None, best=tuple(best), defaults=tuple(defaults), text=text)
    sign = sign_of(metric)
    differences = [sign * (one - other) for one, other in zip(best, defaults, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    correction = 1 / (folds - 1) if folds > 1 else 0.0  # test rows over training rows of a fold
    error = statistics.stdev(differences) * math.sqrt(1 / count + correction)
    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
    low, high = mean - reach, mean + reach
    figures = f"{mean:+.3f} {metric} [{low:+.3f}, {high:+.3f}], on {where}"
    if low > 0:
        text = f"{what} is better than the defaults: {figures}."
    elif high < 0:
        text = f"{what} is worse than the defaults: {figures}: use the defaults."
    else:
        text = f"{what} is no better than the defaults, as far as the noise lets one tell: {figures}: use the defaults."
    if sign < 0:
        text += f" ({metric} is better when lower; + is better here.)"
    return Verdict(
        is_better=low > 0, best=tuple(best), defaults=tuple(defaults), difference=mean, low=low, high=high, text=text
    )
