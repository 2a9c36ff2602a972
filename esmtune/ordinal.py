"""Grades: classes that have an order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.classes import Named, counted
from esmtune.kinds import Total, task, weighed
from esmtune.labels import grades_of
from esmtune.metrics import Scores, ordinal_scores
from esmtune.records import Label
from esmtune.resamples import Counts, Resampled, ordinal_resampled


@task("ordinal")
@dataclass(frozen=True, kw_only=True)
class Ordinal(Named):
    """One of several grades, from the lowest to the highest.

    Output k is the logit of the grade being above the k-th, if it is no lower (Shi et al. 2023,
    https://doi.org/10.1007/s10044-023-01181-9); the probabilities of all grades follow, and add up to 1.

    >>> fitted = Ordinal.fit(["high", "low", "medium"], order="low,medium,high")
    >>> fitted.classes, fitted.predict(torch.tensor([[-1.0, 0.0], [2.0, 0.1]]))
    (('low', 'medium', 'high'), ['low', 'medium'])
    """

    name: ClassVar[str] = "ordinal"
    metric: ClassVar[str] = "qwk"

    @classmethod
    def fit(cls, labels: Sequence[Label], *, order: str = "") -> "Ordinal":
        """Take the grades and their shares from the labels that are known.

        Args:
            labels: Of all training points.
            order: All grades from the lowest to the highest, such as low,medium,high. Numbers go by their size
                unless it is given.

        Raises:
            ValueError: for fewer than two grades, for words without an order, or an order that names one twice or
                leaves one out.
        """
        counts = counted(labels)
        grades = grades_of(counts, order)
        if len(counts) < 2:
            raise ValueError(f"grades need two at least; there are {len(counts)}: {', '.join(counts)}.")
        return cls(classes=tuple(grades), shares=tuple(counts[name] / counts.total() for name in grades))

    @property
    def num_outputs(self) -> int:
        """A logit for every grade but the highest."""
        return len(self.classes) - 1

    def log_probabilities(self, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points grades"]:
        """The logarithm of the probability of each grade: of passing all below it, and stopping there."""
        passed = F.pad(F.logsigmoid(outputs).cumsum(-1), (1, 0))
        return passed + F.pad(F.logsigmoid(-outputs), (0, 1))

    def outputs_of(self, log_probabilities: Float[Tensor, "*points grades"]) -> Float[Tensor, "*points outputs"]:
        """The logits of going on: of all grades above, against the grade itself."""
        above = log_probabilities.flip(-1).logcumsumexp(-1).flip(-1)
        return above[..., 1:] - log_probabilities[..., :-1]

    def chosen(self, probabilities: Float[Tensor, "points grades"]) -> Int[Tensor, "points"]:
        """The median grade: the lowest that is reached with a probability of one half."""
        return (probabilities.cumsum(1)[:, :-1] < 0.5).sum(1)

    def loss(
        self,
        outputs: Float[Tensor, "*points outputs"],
        targets: Float[Tensor, "*points 1"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """Minus the logarithm of the probability of the true grade."""
        is_known = targets[..., 0].isfinite()
        truth = targets[is_known].long()
        errors = -self.log_probabilities(outputs[is_known]).gather(-1, truth)[..., 0]
        return Total(weighed(errors, None if weights is None else weights[is_known]), len(truth))

    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """Scores of the median grade, and the rank correlation of the mean one; weights do not matter."""
        truth, known = self._known(outputs, labels)
        found = self._probabilities(known)
        mean = found @ torch.arange(len(self.classes), dtype=torch.float64)
        return ordinal_scores(truth, self.chosen(found).numpy(), mean.numpy(), grades=len(self.classes))

    def resampled(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The same of resamples."""
        truth, known = self._known(outputs, labels)
        found = self._probabilities(known)
        mean = found @ torch.arange(len(self.classes), dtype=torch.float64)
        drawn = counts[self.targets(labels)[:, 0].isfinite().numpy()]
        return ordinal_resampled(truth, self.chosen(found).numpy(), mean.numpy(), drawn)
