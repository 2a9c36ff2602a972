"""Losses that learn how far off a number may be, with several outputs a point. Add yours at the end.

What stands behind `@distribution` says what its outputs mean, in standard deviations of the training labels: their
`center`, which is what is predicted, their `spread`, a standard deviation, and the errors of points. As every loss of a
regression it knows of no unknown labels or weights, and takes no mean over a batch. `sides` are those of a regression's
targets: 1 where the truth lies above the number that is known, -1 where below, 0 where it is the truth.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from esmtune.registry import Registry

LEAST_VARIANCE = 1e-4  # of a prediction, over that of the training labels: the likelihood of less has no bound
PROBABILITIES = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)  # of the quantiles that are learned
QUARTILES = 1.3489795  # between the quartiles of a normal distribution, in standard deviations


class Distribution(ABC):
    """What several outputs say of one number."""

    width: ClassVar[int]  # outputs a point

    @abstractmethod
    def errors(
        self, outputs: Float[Tensor, "points outputs"], targets: Float[Tensor, "points"], sides: Float[Tensor, "points"]
    ) -> Float[Tensor, "points"]:
        """How wrong each point is."""

    @abstractmethod
    def center(self, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points"]:
        """What is predicted."""

    @abstractmethod
    def spread(self, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points"]:
        """How far off that may be, as a standard deviation."""

    @abstractmethod
    def average(self, members: Float[Tensor, "members points outputs"]) -> Float[Tensor, "points outputs"]:
        """What several members say together; their centers are averaged."""

    @abstractmethod
    def moved(
        self, outputs: Float[Tensor, "*points outputs"], shift: float, scale: float
    ) -> Float[Tensor, "*points outputs"]:
        """Outputs that say of `shift + scale * x` what these say of `x`."""

    def quantiles(self, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points quantiles"] | None:
        """The quantiles of `PROBABILITIES`, if they are what is learned."""
        return None


distribution: Registry[type[Distribution]] = Registry("loss")


@distribution("gaussian")
class Gaussian(Distribution):
    """A mean and the logarithm of a variance (Nix and Weigend 1994, https://doi.org/10.1109/ICNN.1994.374138).

    The error is minus the logarithm of the likelihood, without its constant. Its gradient is weighed by the standard
    deviation that is predicted, or what looks hard would never be learned (Seitzer et al. 2022,
    https://doi.org/10.48550/arXiv.2203.09168, with their beta of one half). Of a bound, outputs whose mean is on the
    right side have no error.

    >>> gaussian = Gaussian()
    >>> error = gaussian.errors(torch.tensor([[3.0, 0.0]]), torch.tensor([1.0]), torch.zeros(1))
    >>> round(error.item(), 2)
    2.0
    >>> round(gaussian.spread(torch.tensor([[3.0, 2 * math.log(2)]])).item(), 2)
    2.0
    """

    width: ClassVar[int] = 2

    def errors(
        self, outputs: Float[Tensor, "points 2"], targets: Float[Tensor, "points"], sides: Float[Tensor, "points"]
    ) -> Float[Tensor, "points"]:
        """Half the squared error over the variance, and half the variance's logarithm."""
        mean, logarithm = outputs[..., 0], _least(outputs[..., 1])
        surprise = ((mean - targets).square() / logarithm.exp() + logarithm) / 2
        weighed = surprise * (logarithm.detach() / 2).exp()
        surprise = surprise.detach() + weighed - weighed.detach()  # the value of one, the gradient of the other
        return surprise.where(~(sides * (mean - targets) > 0), 0.0)

    def center(self, outputs: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points"]:
        """The mean."""
        return outputs[..., 0]

    def spread(self, outputs: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points"]:
        """The root of the variance."""
        return (_least(outputs[..., 1]) / 2).exp()

    def average(self, members: Float[Tensor, "members points 2"]) -> Float[Tensor, "points 2"]:
        """The mean, and the mean variance: what lies between the members is said by their disagreement."""
        variance = _least(members[..., 1]).exp().mean(0)
        return torch.stack((members[..., 0].mean(0), _before_least(variance.log())), dim=-1)

    def moved(self, outputs: Float[Tensor, "*points 2"], shift: float, scale: float) -> Float[Tensor, "*points 2"]:
        """The mean moved, the variance scaled."""
        mean, logarithm = outputs[..., 0], _least(outputs[..., 1]) + 2 * math.log(scale)
        return torch.stack((shift + scale * mean, _before_least(logarithm)), dim=-1)


@distribution("quantile")
class Quantiles(Distribution):
    """The quantiles of `PROBABILITIES` (Koenker and Bassett 1978, https://doi.org/10.2307/1913643).

    The error is the pinball loss, twice its mean over the quantiles, so that the median's part is the absolute error.
    Quantiles that cross are put in order (Chernozhukov et al. 2010, https://doi.org/10.3982/ECTA7880); the median is
    predicted. Of a bound, a quantile on the right side has no error.

    >>> quantiles = Quantiles()
    >>> quantiles.errors(torch.full((1, 9), 3.0), torch.tensor([1.0]), torch.zeros(1)).tolist()  # too high by 2
    [2.0]
    >>> quantiles.center(torch.arange(9.0)[None]).tolist()
    [4.0]
    """

    width: ClassVar[int] = len(PROBABILITIES)

    def errors(
        self, outputs: Float[Tensor, "points 9"], targets: Float[Tensor, "points"], sides: Float[Tensor, "points"]
    ) -> Float[Tensor, "points"]:
        """What is too low costs the probability, what is too high one less that."""
        level = outputs.new_tensor(PROBABILITIES)
        below = targets[..., None] - self.quantiles(outputs)
        pinball = 2 * torch.maximum(level * below, (level - 1) * below)
        return pinball.where(~(sides[..., None] * below < 0), 0.0).mean(-1)

    def center(self, outputs: Float[Tensor, "*points 9"]) -> Float[Tensor, "*points"]:
        """The median."""
        return self.quantiles(outputs)[..., PROBABILITIES.index(0.5)]

    def spread(self, outputs: Float[Tensor, "*points 9"]) -> Float[Tensor, "*points"]:
        """That of the normal distribution with these quartiles."""
        found = self.quantiles(outputs)
        return (found[..., PROBABILITIES.index(0.75)] - found[..., PROBABILITIES.index(0.25)]) / QUARTILES

    def average(self, members: Float[Tensor, "members points 9"]) -> Float[Tensor, "points 9"]:
        """The mean of each quantile."""
        return self.quantiles(members).mean(0)

    def moved(self, outputs: Float[Tensor, "*points 9"], shift: float, scale: float) -> Float[Tensor, "*points 9"]:
        """All quantiles moved."""
        return shift + scale * outputs

    def quantiles(self, outputs: Float[Tensor, "*points 9"]) -> Float[Tensor, "*points 9"]:
        """The outputs in order."""
        return outputs.sort(-1).values


def _least(logarithm: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """The logarithm of a variance, softly no less than that of `LEAST_VARIANCE`."""
    least = math.log(LEAST_VARIANCE)
    return least + F.softplus(logarithm - least)


def _before_least(logarithm: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """What `_least` makes this of."""
    above = (logarithm - math.log(LEAST_VARIANCE)).clamp(min=1e-6)
    return math.log(LEAST_VARIANCE) + above + (-(-above).expm1()).log()
