"""Two runs on the same records: how far their scores are apart, how sure that is, and whether they are wrong alike."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float

from esmtune.drawing import LEAST, affordable, interval_of, resampled
from esmtune.judgments import CHIEF
from esmtune.metrics import (
    Scores,
    classification_scores,
    multilabel_scores,
    ordinal_scores,
    regression_scores,
    sign_of,
)
from esmtune.phrases import interval, metric_name, number
from esmtune.points import Points
from esmtune.resamples import (
    Counts,
    Resampled,
    classification_resampled,
    multilabel_resampled,
    ordinal_resampled,
    regression_resampled,
)

WORK = 4e7  # resampled points of a run, beyond which there are fewer resamples
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs on the same records. A positive `difference` is in favor of the first, also where less is better."""

    target: str
    first: str
    second: str
    metric: str
    difference: float | None
    low: float | None  # ends of the 95 % interval
    high: float | None
    test: str  # Wilcoxon or McNemar
    p: float | None
    p_holm: float | None  # corrected for all pairs of this comparison
    text: str


def contests(names: Sequence[str], found: Sequence[Points], seed: int) -> tuple[dict[str, Scores], list[Pair]]:
    """The scores of each run on the same points, and every pair of runs."""
    scorer = scorer_of(found[0])
    scores = {name: scorer(points) for name, points in zip(names, found, strict=True)}
    drawn = _resampled(found, seed)
    pairs = [
        _pair((names[a], names[b]), (found[a], found[b]), (scores[names[a]], scores[names[b]]),
              None if drawn is None else (drawn[a], drawn[b]))
        for a, b in itertools.combinations(range(len(found)), 2)
    ]  # fmt: skip
    return scores, pairs


def scorer_of(points: Points) -> Callable[[Points], Scores]:
    """How points of a kind are scored: with the metrics that training has."""
    if points.reads == "number":
        return lambda p: regression_scores(p.labels, p.predictions)
    if points.reads == "names":
        return lambda p: multilabel_scores(p.labels, _sure(p))
    if points.target.kind == "ordinal":
        return lambda p: ordinal_scores(*_grades(p), grades=len(p.classes))
    return lambda p: _defined(p, classification_scores(p.indices(p.labels), _sure(p)))


def _defined(points: Points, scores: Scores) -> Scores:
    """Without probabilities there are no areas."""
    return (
        scores if points.probabilities is not None else {k: v for k, v in scores.items() if k not in ("auroc", "auprc")}
    )


def _sure(points: Points) -> Float[np.ndarray, "points classes"]:
    """Probabilities that agree with the predictions; 0 and 1 where there are none."""
    if points.probabilities is not None:
        return points.probabilities
    return np.eye(len(points.classes))[points.indices(points.predictions)]


def _grades(points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, said = points.indices(points.labels), points.indices(points.predictions)
    means = (
        said.astype(float) if points.probabilities is None else points.probabilities @ np.arange(len(points.classes))
    )
    return labels, said, means


def _resampled(found: Sequence[Points], seed: int) -> list[Resampled] | None:
    """The metrics of each run on the same resamples of sequences; None of too few."""
    records = found[0].record.tolist()
    if len(set(records)) < LEAST:
        return None
    measures = [partial(_metrics_of, points) for points in found]
    return resampled(measures, records, affordable(WORK / len(records)), seed)


def _metrics_of(points: Points, counts: Counts) -> Resampled:
    if points.reads == "number":
        return regression_resampled(points.labels, points.predictions, counts)
    if points.reads == "names":
        return multilabel_resampled(points.labels, _sure(points), counts)
    if points.target.kind == "ordinal":
        return ordinal_resampled(*_grades(points), counts)
    return classification_resampled(points.indices(points.labels), _sure(points), counts)


def _pair(
    names: tuple[str, str], found: tuple[Points, Points], scores: tuple[Scores, Scores],
    drawn: tuple[Resampled, Resampled] | None,
) -> Pair:  # fmt: skip
    metric = CHIEF.get(found[0].target.kind, next(iter(scores[0])))
    metric = metric if metric in scores[0] else next(iter(scores[0]))
    sign = sign_of(metric)
    a, b = scores[0].get(metric), scores[1].get(metric)
    difference = None if a is None or b is None else sign * (a - b)
    low = high = None
    if drawn is not None and difference is not None:
        low, high = interval_of(sign * (drawn[0][metric] - drawn[1][metric])) or (None, None)
    test, p = paired_test(*found)
    return Pair(
        target=found[0].target.name, first=names[0], second=names[1], metric=metric, difference=difference, low=low,
        high=high,
        test=test, p=p, p_holm=p, text="",
    )  # fmt: skip


def paired_test(first: Points, second: Points) -> tuple[str, float | None]:
    """Whether two runs are wrong alike: the test's name and its p; None of too few sequences.

    Classes of sequences by McNemar's exact test; all else by Wilcoxon's signed ranks of the mean error of each
    sequence, since residues of one protein, and copies of it, are no independent witnesses.
    """
    from scipy.stats import binomtest, wilcoxon

    count = int(first.record.max()) + 1
    is_single = len(np.unique(first.record)) == len(first)
    is_class = first.reads == "name" and first.target.kind != "ordinal" and is_single
    name = "McNemar" if is_class else "Wilcoxon"
    if len(np.unique(first.record)) < LEAST:
        return name, None
    if is_class:
        only_first = int(((first.errors == 0) & (second.errors > 0)).sum())
        only_second = int(((first.errors > 0) & (second.errors == 0)).sum())
        both = only_first + only_second
        return name, float(binomtest(only_first, both).pvalue) if both else 1.0
    weights = np.maximum(1, np.bincount(first.record, minlength=count))
    apart = np.bincount(first.record, first.errors - second.errors, minlength=count) / weights
    return name, float(wilcoxon(apart).pvalue) if apart.any() else 1.0  # pyright: ignore[reportAttributeAccessIssue]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, step by step (Holm 1979); unknown ones stay so and do not count.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        found[place] = largest
    return found


def corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """The pairs with p corrected for their number, and what came of each in words."""
    known = (replace(pair, p_holm=p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True))
    return tuple(replace(pair, text=_sentence(pair)) for pair in known)


def _sentence(pair: Pair) -> str:
    """What came of a pair, in words."""
    chief = metric_name(pair.metric)
    if pair.difference is None:
        return f"{chief} of {pair.first} or {pair.second} is not defined on these records."
    better, worse = (pair.first, pair.second) if pair.difference >= 0 else (pair.second, pair.first)
    ends = (
        (pair.low, pair.high)
        if pair.difference >= 0 or pair.low is None or pair.high is None
        else (-pair.high, -pair.low)
    )
    known = f" {interval(ends)}" if pair.low is not None else ""
    said = f"{chief} of {better} is better than that of {worse} by {number(abs(pair.difference))}{known}"
    if pair.difference == 0:
        said = f"{chief} of {pair.first} and {pair.second} is the same"
    if pair.p_holm is None:
        return f"{said}; there are too few sequences to tell that from chance."
    is_apart = pair.low is not None and pair.high is not None and (pair.low > 0 or pair.high < 0)
    is_unlike = pair.p_holm < SIGNIFICANT
    if is_apart and is_unlike:
        verdict = "more than chance"
    elif is_apart or is_unlike:
        verdict = "interval and test do not agree whether that is more than chance"
    else:
        verdict = "no more than chance would give"
    return f"{said}: {verdict} ({pair.test}'s test of the errors, p {pair.p_holm:.2g})."
