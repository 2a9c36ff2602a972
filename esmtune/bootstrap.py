"""How far metrics would be from these with other sequences: intervals by the bootstrap, and differences of pairs.

Sequences are drawn with replacement, each with all its residues and replicates, the same ones for all that is
compared (`drawing`).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.drawing import LEAST, RESAMPLES, Interval, affordable, interval_of, resampled
from esmtune.kinds import Task
from esmtune.metrics import Scores
from esmtune.records import Label
from esmtune.resamples import Resampled

WORK = 4e8  # resampled points, of all that is compared together, which take about ten seconds


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
    if len(set(groups)) < LEAST:
        return None
    outputs = sum(task.num_outputs for task, _ in compared.values())
    resamples = affordable(WORK / (len(labels) * max(1, outputs)), resamples)
    measures = [partial(task.resampled, answers[kept], labels) for task, answers in compared.values()]
    found = resampled(measures, groups, resamples, seed)
    return Bootstrap(resamples, dict(zip(compared, found, strict=True)))
