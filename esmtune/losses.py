"""How wrong each point is. Add yours at the end, decorated with the name users write.

A loss takes outputs and targets of the same points and returns one number a point. It never
averages: the sum and the count are taken by the task, the mean once by the loop.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from esmtune.registry import Registry

loss: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("loss")


@loss("squared")
def squared(outputs: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Squared error: the mean is learned."""
    return F.mse_loss(outputs, targets, reduction="none")


@loss("absolute")
def absolute(outputs: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Absolute error: the median is learned, outliers pull less."""
    return F.l1_loss(outputs, targets, reduction="none")


@loss("huber")
def huber(outputs: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Squared error up to one standard deviation of the labels, absolute beyond."""
    return F.huber_loss(outputs, targets, reduction="none", delta=1.0)
