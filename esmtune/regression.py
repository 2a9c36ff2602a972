"""Numbers: measured ones, and bounds on what could not be measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.distributions import Distribution, distribution
from esmtune.kinds import Task, Total, task, weighed
from esmtune.losses import check_errors, check_loss, class_loss, ranking, spacing
from esmtune.losses import loss as losses
from esmtune.metrics import Scores, regression_scores
from esmtune.normal_scores import curve, labels_at, scores_of
from esmtune.records import Censored, Label
from esmtune.resamples import Counts, Resampled, regression_resampled

SCALES = ("linear", "normal", "auto")
CLOSE = 0.3  # standard deviations of the labels: outputs that differ by less are in no certain order yet


@task("regression")
@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Real values, standardized by the mean and standard deviation of the training labels, or as normal scores.

    Of a bound, such as >10, an output on the right side is no error, and on the wrong side the error is that
    of the number itself. A ranking loss gives outputs an order and no unit: until `finished` finds one,
    scores in the label's unit are None. Targets have two columns, the value and the side on which the truth
    lies: 1 above it, -1 below it, 0 where it is the truth.

    >>> Regression.fit([1.0, 3.0]).predict(torch.zeros(1, 1))
    [2.0]
    >>> Regression.fit([1.0, 3.0]).targets([3.0, Censored(1.0, "<"), None]).tolist()
    [[1.0, 0.0], [-1.0, -1.0], [nan, nan]]
    """

    center: float
    spread: float
    loss_name: str = "squared"
    has_unit: bool = True  # whether center and spread make numbers in the label's unit of outputs
    ranking_weight: float = 0.0  # how much the order of the points counts beside the loss
    scale: str = "linear"  # as which labels are learned; while it is auto, as linear
    knots: tuple[float, ...] = ()  # the curve of normal scores

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "spearman"
    reads: ClassVar[Literal["number", "name", "names"]] = "number"

    @classmethod
    def fit(
        cls, labels: Sequence[Label], *, loss: str = "squared", ranking_weight: float = 0.0, scale: str = "linear"
    ) -> "Regression":
        """Take center and spread from the labels that are known, of a bound the number in it.

        `loss` is squared, absolute or huber; gaussian or quantile, which also learn how far off a prediction may be;
        or pairwise or listwise, which learn the order alone. With a `ranking_weight`, what a loss of numbers has to
        say of each point is joined by so many times what `losses.spacing` says of their order, of outputs and labels
        in `CLOSE` standard deviations of the labels. On the `scale` normal, labels are learned as their normal scores
        (`normal_scores`), of which predictions are the labels; linear leaves them as they are, but for center and
        spread; auto is decided by `linear.on_best_scale`, once features are known.

        Raises:
            ValueError: for a loss or scale that does not exist, or that do not go together, a weight that cannot be, no
                label, or labels that have no finite spread.
        """
        check_loss(loss, losses, ranking, distribution, others={"classes": [class_loss]})
        if not 0 <= ranking_weight < math.inf:
            raise ValueError(f"ranking_weight is {ranking_weight}, expected 0 or more.")
        if ranking_weight and loss in ranking:
            raise ValueError(f"the loss {loss} is of nothing but the order: leave out ranking_weight.")
        if scale not in SCALES:
            raise ValueError(f"scale is {scale!r}, expected one of {', '.join(SCALES)}.")
        if scale != "linear" and loss not in losses:
            raise ValueError(f"the loss {loss} goes with the scale linear alone, got {scale}: leave out scale.")
        values, _ = _values(labels)
        known = values[~np.isnan(values)]
        if not len(known):
            raise ValueError("there is no label to learn from: all are unknown.")
        with np.errstate(over="ignore", invalid="ignore"):  # said in the sentence below
            center, spread = float(known.mean()), float(known.std())
        if not math.isfinite(center + spread):
            raise ValueError(f"labels as large as {np.abs(known).max():.3g} have no finite spread: rescale them.")
        return cls(
            center=center, spread=spread or 1.0, loss_name=loss, has_unit=loss not in ranking,
            ranking_weight=ranking_weight, scale=scale, knots=curve(known) if scale == "normal" and spread else (),
        )  # fmt: skip

    @property
    def num_outputs(self) -> int:
        """One number, or as many as its loss learns."""
        return 1 if self.distribution is None else self.distribution.width

    @property
    def distribution(self) -> Distribution | None:
        """What several outputs mean, if the loss learns how far off a prediction may be."""
        return distribution[self.loss_name]() if self.loss_name in distribution else None

    @property
    def compares(self) -> bool:
        """Whether the order of points is any part of the loss."""
        return self.only_orders or self.ranking_weight > 0

    @property
    def only_orders(self) -> bool:
        """Whether the loss is one of ranking."""
        return self.loss_name in ranking

    @property
    def has_one_loss(self) -> bool:
        """Whether the loss is the same whatever the scale turns out to be, and for a head that is solved."""
        return self.scale != "auto" and not self.ranking_weight

    def pointwise(self) -> "Regression":
        """Without what compares points, unless there is nothing else."""
        return replace(self, ranking_weight=0.0)

    def plain(self) -> "Regression":
        """The same on the scale of the labels as they are."""
        return replace(self.pointwise(), scale="linear", knots=())

    def targets(self, labels: Sequence[Label]) -> Float[Tensor, "points 2"]:
        """Standardized labels and their sides, NaN where unknown."""
        values, sides = _values(labels)
        return torch.from_numpy(np.stack((self._standardized(values), sides), axis=1))

    def loss(
        self,
        outputs: Float[Tensor, "*points outputs"],
        targets: Float[Tensor, "*points 2"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """The chosen error, in standard deviations of training labels or of their normal scores, and of their order.

        What is said of an order is the mean over what is compared, times the weights of the known points: so a step
        weighs as much as it has points.
        """
        is_known = targets[..., 0].isfinite()
        count = int(is_known.sum())
        if self.compares and weights is not None:
            is_known = is_known & (weights > 0)
        x, (value, side) = outputs[..., 0][is_known], targets[is_known].unbind(-1)
        weight = None if weights is None else weights[is_known].to(x.dtype)
        if self.only_orders:
            return Total(_disorder(ranking[self.loss_name], x, value, side, weight), count)
        if self.distribution is None:
            number, bound = value.to(x.dtype), side.to(x.dtype)
            errors = losses[self.loss_name](x, number)
            check_errors(errors, x, self.loss_name)
            is_right = bound * (x - number) > 0  # which no output is that is no number
            errors = errors.where(~is_right, 0.0)
        else:
            errors = self.distribution.errors(outputs[is_known], value.to(x.dtype), side.to(x.dtype))
            check_errors(errors, x, self.loss_name)
            x = self.distribution.center(outputs[is_known])
        total = weighed(errors, weight)
        if self.ranking_weight:
            disorder = _disorder(spacing, x / CLOSE, value / CLOSE, side, weight)
            total = total + self.ranking_weight * CLOSE * disorder
        return Total(total, count)

    def predict(self, outputs: Float[Tensor, "points outputs"]) -> list[Label]:
        """Numbers in the label's unit."""
        return self._in_unit(self._middle(outputs)).tolist()

    def _standardized(self, values: Float[np.ndarray, "points"]) -> Float[np.ndarray, "points"]:
        """What is learned of labels."""
        return scores_of(values, self.knots) if self.knots else (values - self.center) / self.spread

    def _in_unit(self, learned: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
        """The labels of what is learned."""
        return labels_at(learned, self.knots) if self.knots else learned * self.spread + self.center

    def _middle(self, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points"]:
        """What is predicted, in standard deviations of the training labels or of their normal scores."""
        return outputs[..., 0].double() if self.distribution is None else self.distribution.center(outputs.double())

    def _saying(self, labels: Float[Tensor, "*points"]) -> Float[Tensor, "*points 1"]:
        """The outputs that say these labels."""
        return torch.from_numpy(self._standardized(labels.numpy(force=True)))[..., None]

    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """Correlations and errors, in the label's unit, over labels that are no bounds; weights do not matter."""
        values, sides = _values(labels)
        is_exact = sides == 0
        predictions = np.array(self.predict(outputs), dtype=np.float64)[is_exact]
        scores = regression_scores(values[is_exact], predictions)
        return scores if self.has_unit else scores | dict.fromkeys(("r2", "rmse", "mae"))

    def resampled(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The same of resamples."""
        values, sides = _values(labels)
        is_exact = sides == 0
        predictions = np.array(self.predict(outputs), dtype=np.float64)[is_exact]
        found = regression_resampled(values[is_exact], predictions, counts[is_exact])
        unknown = np.full(counts.shape[1], np.nan)
        return found if self.has_unit else found | dict.fromkeys(("r2", "rmse", "mae"), unknown)

    def baseline(self, count: int) -> Float[Tensor, "points outputs"]:
        """The mean of the training labels."""
        return torch.full((count, self.num_outputs), self._standardized(np.array([self.center])).item())

    def average(self, members: Float[Tensor, "members points outputs"]) -> Float[Tensor, "points outputs"]:
        """The mean of what the members say."""
        if len(members) > 1 and self.knots:
            return self._saying(self._in_unit(self._middle(members)).mean(0)).to(members)
        if self.distribution is None or len(members) == 1:
            return super().average(members)
        return self.distribution.average(members)

    def disagreement(self, members: Float[Tensor, "members points outputs"]) -> list[float]:
        """The standard deviation of what the members say, in the label's unit."""
        return self._in_unit(self._middle(members)).std(0, correction=0).tolist()

    def doubt(self, members: Float[Tensor, "members points outputs"]) -> list[float] | None:
        """How far off a prediction may be, in the label's unit: what is learned of it, and how far members are apart.

        Both are variances, and add up (Lakshminarayanan et al. 2017, https://doi.org/10.48550/arXiv.1612.01474).
        """
        if self.distribution is None:
            return super().doubt(members)
        own = self.distribution.spread(members.double()).square().mean(0)
        return ((own + self._middle(members).var(0, correction=0)).sqrt() * self.spread).tolist()

    def quantiles(self, outputs: Float[Tensor, "points outputs"]) -> Float[Tensor, "points quantiles"] | None:
        """The quantiles that were learned, in the label's unit and their order, if any were."""
        found = None if self.distribution is None else self.distribution.quantiles(outputs.double())
        return None if found is None else found * self.spread + self.center

    def refitted(self, labels: Sequence[Label]) -> "Regression":
        """With the center and spread of other labels."""
        if np.isnan(_values(labels)[0]).all():
            return self
        found = self.fit(labels, loss=self.loss_name, ranking_weight=self.ranking_weight, scale=self.scale)
        return replace(self, center=found.center, spread=found.spread, knots=found.knots)

    def translated(self, outputs: Float[Tensor, "points outputs"], other: Task) -> Float[Tensor, "points outputs"]:
        """Outputs standardized otherwise, as after a ranking loss each member's are, in this task's own standard.

        Of normal scores in float64: labels of many orders of magnitude are not told apart in float32.
        """
        assert isinstance(other, Regression)
        if (other.center, other.spread, other.knots) == (self.center, self.spread, self.knots):
            return outputs
        if self.knots or other.knots:
            return self._saying(other._in_unit(other._middle(outputs)))
        shift, scale = (other.center - self.center) / self.spread, other.spread / self.spread
        if self.distribution is not None:
            return self.distribution.moved(outputs.double(), shift, scale).to(outputs.dtype)
        return (outputs.double() * scale + shift).to(outputs.dtype)

    def finished(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> "Regression":
        """After a ranking loss, take center and spread from the least-squares line from outputs to labels.

        Where that line does not rise, outputs have not learned the order, and nothing gives them a unit.
        """
        values, sides = _values(labels)
        x, y = outputs[:, 0].double().numpy(force=True)[sides == 0], values[sides == 0]
        if not self.only_orders or len(set(y.tolist())) < 2 or not np.isfinite(x).all():
            return self
        slope = ((x - x.mean()) * (y - y.mean())).sum() / max(((x - x.mean()) ** 2).sum(), np.finfo(float).tiny)
        if not 0 < slope < math.inf:
            return self
        return replace(self, center=float(y.mean() - slope * x.mean()), spread=float(slope), has_unit=True)


def _values(labels: Sequence[Label]) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """The number in each label, and on which side of it the truth lies."""
    try:
        values = np.array(labels, dtype=np.float64)  # None becomes NaN; millions of residues pass here
        return values, np.where(np.isnan(values), np.nan, 0.0)
    except TypeError:
        bounds = {">": 1.0, "<": -1.0}
        pairs = [(x.value, bounds[x.side]) if isinstance(x, Censored) else (x, 0.0) for x in labels]
        values, sides = np.array(pairs, dtype=np.float64).T
        return values, np.where(np.isnan(values), np.nan, sides)


def _disorder(
    loss: Callable[..., Tensor], x: Tensor, value: Tensor, side: Tensor, weight: Tensor | None
) -> Float[Tensor, ""]:
    """How far outputs are from the order of their labels, by a loss of ranking, for all points together."""
    if not len(x):
        return x.sum()
    weight = torch.ones_like(x) if weight is None else weight
    infinity = torch.full_like(value, torch.inf)
    # What lies above 12 may be the next number above it, but not 12.
    lowest = torch.where(side > 0, value.nextafter(infinity), torch.where(side < 0, -infinity, value))
    highest = torch.where(side < 0, value.nextafter(-infinity), torch.where(side > 0, infinity, value))
    return loss(x, lowest, highest, weight) * weight.sum()
