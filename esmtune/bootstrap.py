"""How far metrics would be from these with other sequences: intervals by the bootstrap, and differences of pairs.

Sequences are drawn with replacement, each with all its residues and replicates, the same ones for all that is
compared; an interval goes from the 2.5th to the 97.5th percentile of what a metric comes to (Efron and Tibshirani
1986, https://doi.org/10.1214/ss/1177013815).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.kinds import Task
from esmtune.metrics import Scores
from esmtune.records import Label
from esmtune.resamples import Resampled

RESAMPLES = 1000
FEWEST = 100  # resamples, where there are very many points
WORK = 4e8  # resampled points, of all that is compared together, which take about ten seconds
CELLS = 2_000_000  # points times resamples at a time
LEVEL = 0.95
LEAST = 10  # sequences, below which an interval would say more than is known

Interval = tuple[float, float]


@dataclass(frozen=True)
class Bootstrap:
    """Metrics of everything that is compared, in each resample."""

    resamples: int
    metrics: Mapping[str, Resampled]

    def interval(self, name: str, metric: str) -> Interval | None:
        """The interval of a metric; None where fewer than half of the resamples define it."""
        return interval_of(self.metrics[name][metric])

    def difference(self, name: str, other: str, metric: str) -> Interval | None:
        """The interval of a difference, resample by resample."""
        return interval_of(self.metrics[name][metric] - self.metrics[other][metric])

    def undefined(self, name: str, scores: Scores) -> dict[str, int]:
        """How many resamples do not define a metric that all points together do."""
        defined = (metric for metric, value in scores.items() if value is not None)
        lost = {metric: int(np.isnan(self.metrics[name][metric]).sum()) for metric in defined}
        return {metric: count for metric, count in lost.items() if count}


def bootstrap(
    compared: Mapping[str, tuple[Task, Float[Tensor, "points outputs"]]], labels: Sequence[Label],
    groups: Sequence[Hashable], *, seed: int, resamples: int = RESAMPLES,
) -> Bootstrap | None:  # fmt: skip
    """Resample what is compared; None of fewer than ten groups.

    Args:
        compared: by name, outputs and the task that says what they mean.
        labels: of the points.
        groups: what is drawn together with each point, such as its sequence.
        seed: of the drawing.
        resamples: how many, of which there are fewer where there are very many points.

    >>> from esmtune.regression import Regression
    >>> labels = [float(x) for x in range(20)]
    >>> task = Regression.fit(labels)
    >>> found = bootstrap({"exact": (task, task.targets(labels)[:, :1])}, labels, range(20), seed=0)
    >>> found.interval("exact", "spearman")
    (1.0, 1.0)
    """
    known = [place for place, label in enumerate(labels) if label is not None]
    labels, groups, kept = [labels[i] for i in known], [groups[i] for i in known], torch.tensor(known)
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    if len(number) < LEAST:
        return None
    member = np.array([number[group] for group in groups])
    outputs = sum(task.num_outputs for task, _ in compared.values())
    resamples = int(min(resamples, max(FEWEST, WORK / (len(labels) * max(1, outputs)))))
    step = max(1, min(resamples, CELLS // len(labels)))
    random = np.random.default_rng(seed)
    parts: dict[str, list[Resampled]] = {name: [] for name in compared}
    for start in range(0, resamples, step):
        some = min(step, resamples - start)
        drawn = random.integers(len(number), size=(some, len(number)))
        counts = np.stack([np.bincount(row, minlength=len(number)) for row in drawn], axis=1).astype(np.float64)[member]
        for name, (task, answers) in compared.items():
            parts[name].append(task.resampled(answers[kept], labels, counts))
    joined = {
        name: {metric: np.concatenate([part[metric] for part in found]) for metric in found[0]}
        for name, found in parts.items()
    }
    return Bootstrap(resamples, joined)


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
