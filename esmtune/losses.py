"""How wrong outputs are. Add yours at the end, decorated with the name users write.

There are three doors, and a loss behind any of them is one function. None of them knows of unknown labels
or weights of points, which the tasks see to, nor takes a mean over a batch, which the loop does once.

`@loss`, for numbers, takes outputs and targets of the same points, in standard deviations of the training
labels, and returns one number a point:

    @loss("log-cosh")
    def log_cosh(outputs, targets):
        return torch.log(torch.cosh(outputs - targets))

`@class_loss`, for classes, takes the logarithms of the probabilities of all outcomes and the shares they
should have had (1 for the true one and 0 for the others, unless labels are smoothed), and returns one number
for each row. For binary and multiclass labels the outcomes are the classes; for multilabel ones each class of
each point is a row with two outcomes, no and yes. If it has the keyword-only parameter `gamma` it is given
the option of that name.

`@ranking`, for the order of numbers, takes what `pairwise` takes and returns one number, the mean over all
that it compares.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.registry import Registry, missing

loss: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("loss")
class_loss: Registry[Callable[..., Tensor]] = Registry("loss")
ranking: Registry[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = Registry("loss")

GROUP = 2048  # points that are compared each with each: more are compared in groups of at most so many


def check_loss(name: str, *doors: Registry, others: Mapping[str, Sequence[Registry]]) -> None:
    """Refuse a loss that is behind none of these doors; of which labels those behind other doors are is told.

    Raises:
        ValueError: naming those that there are.
    """
    known = sorted(set().union(*doors))
    if name in known:
        return
    for labels, behind in others.items():
        if any(name in door for door in behind):
            raise ValueError(f"the loss {name!r} is of {labels}, which these labels are not. Take {', '.join(known)}.")
    raise ValueError(missing("loss", name, known))


def check_errors(errors: Tensor, points: Tensor, name: str) -> None:
    """Refuse what a loss returned if it is not one number a point: a mean would be spread over all of them unseen.

    Raises:
        ValueError: with both shapes.
    """
    if errors.shape != points.shape:
        raise ValueError(
            f"the loss {name!r} returned {tuple(errors.shape)}, expected one number a point, {tuple(points.shape)}: "
            "take no mean."
        )


def wanted_shares(
    truth: Int[Tensor, "cells"], outcomes: int, *, smoothing: float, like: Tensor
) -> Float[Tensor, "cells outcomes"]:
    """The shares that probabilities should have: 1 for what is true, less what smoothing gives to all outcomes alike.

    Szegedy et al. 2016, https://doi.org/10.1109/CVPR.2016.308.

    >>> wanted_shares(torch.tensor([1]), 2, smoothing=0.5, like=torch.zeros(1)).tolist()
    [[0.25, 0.75]]
    """
    return F.one_hot(truth, outcomes).to(like) * (1 - smoothing) + smoothing / outcomes


@loss("squared")
def squared(outputs: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Squared error: the mean is learned.

    >>> squared(torch.tensor([3.0]), torch.tensor([1.0])).tolist()
    [4.0]
    """
    return F.mse_loss(outputs, targets, reduction="none")


@loss("absolute")
def absolute(outputs: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Absolute error: the median is learned, outliers pull less.

    >>> absolute(torch.tensor([3.0]), torch.tensor([1.0])).tolist()
    [2.0]
    """
    return F.l1_loss(outputs, targets, reduction="none")


@loss("huber")
def huber(outputs: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """Half the squared error up to one standard deviation of the labels, absolute beyond.

    Huber 1964, https://doi.org/10.1214/aoms/1177703732.

    >>> huber(torch.tensor([3.0]), torch.tensor([1.0])).tolist()
    [1.5]
    """
    return F.huber_loss(outputs, targets, reduction="none", delta=1.0)


@class_loss("cross-entropy")
def cross_entropy(
    log_probabilities: Float[Tensor, "cells outcomes"], wanted: Float[Tensor, "cells outcomes"]
) -> Float[Tensor, "cells"]:
    """Minus the logarithm of the probability of what is true.

    >>> cross_entropy(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[1.0, 0.0]])).exp().tolist()
    [4.0]
    """
    return -(wanted * log_probabilities).sum(-1)


@class_loss("focal")
def focal(
    log_probabilities: Float[Tensor, "cells outcomes"], wanted: Float[Tensor, "cells outcomes"], *, gamma: float = 2.0
) -> Float[Tensor, "cells"]:
    """Cross-entropy times the probability missed, to the power of gamma: what is nearly right pulls less.

    Lin et al. 2017, https://doi.org/10.1109/ICCV.2017.324.

    >>> log_probabilities, wanted = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, 1.0]])
    >>> (focal(log_probabilities, wanted) / cross_entropy(log_probabilities, wanted)).tolist()  # 0.5 squared
    [0.25]
    """
    missed = -log_probabilities.expm1()
    missed = missed.clamp(min=torch.finfo(missed.dtype).tiny)  # the slope of a root at zero is infinite
    return -(wanted * missed**gamma * log_probabilities).sum(-1)


@ranking("pairwise")
def pairwise(
    outputs: Float[Tensor, "points"],
    lowest: Float[Tensor, "points"],
    highest: Float[Tensor, "points"],
    weights: Float[Tensor, "points"],
) -> Float[Tensor, ""]:
    """RankNet: minus the logarithm of the probability that two points come in their order.

    That is a logistic of the difference of their outputs (Burges et al. 2005,
    https://doi.org/10.1145/1102351.1102363). It is the mean over all pairs of points whose order is certain, where
    a pair weighs as much as the product of its points' weights. More than `GROUP` points are dealt out in
    turn to groups of at most so many, and compared within each.

    Args:
        outputs: Of points with a label and a weight above 0.
        lowest: The least that the label of each point can be: the label itself, unless it is a bound.
        highest: The most. A point surely lies above another if its `lowest` is above the `highest` of that.
        weights: Of each point.

    >>> labels, outputs = torch.tensor([1.0, 2.0, 2.0]), torch.zeros(3)
    >>> round(pairwise(outputs, labels, labels, torch.ones(3)).exp().item(), 4)  # two pairs, each a coin's toss
    2.0
    """
    return _over_pairs(outputs, lowest, highest, weights, limited=False)


def spacing(
    outputs: Float[Tensor, "points"],
    lowest: Float[Tensor, "points"],
    highest: Float[Tensor, "points"],
    weights: Float[Tensor, "points"],
) -> Float[Tensor, ""]:
    """What `pairwise` is, until outputs are as far apart as their labels surely are: no further are they driven.

    So beside errors of single points it asks for an order, and for no outputs but theirs. Arguments are those of
    `pairwise`, where outputs and labels are in the same unit.

    >>> labels = torch.tensor([1.0, 2.0])
    >>> near, apart, further = (spacing(x * labels, labels, labels, torch.ones(2)) for x in (0.0, 1.0, 9.0))
    >>> bool(near > apart), bool(apart == further)
    (True, True)
    """
    return _over_pairs(outputs, lowest, highest, weights, limited=True)


def _over_pairs(outputs: Tensor, lowest: Tensor, highest: Tensor, weights: Tensor, *, limited: bool) -> Tensor:
    """The mean over pairs of certain order of how improbable it is, by their difference or no more than the labels'."""
    groups = -(-len(outputs) // GROUP)
    errors, total = outputs[:0].sum(), weights[:0].sum()
    for place in range(groups):
        x, low, high, weight = (t[place::groups] for t in (outputs, lowest, highest, weights))
        pair = (low[:, None] > high[None]) * weight[:, None] * weight[None]
        apart = x[:, None] - x[None]
        if limited:
            apart = apart.minimum((low[:, None] - high[None]).to(apart))
        errors = errors - (pair * F.logsigmoid(apart)).where(pair > 0, 0).sum()
        total = total + pair.sum()
    return errors / total.where(total > 0, 1)


@ranking("listwise")
def listwise(
    outputs: Float[Tensor, "points"],
    lowest: Float[Tensor, "points"],
    highest: Float[Tensor, "points"],
    weights: Float[Tensor, "points"],
) -> Float[Tensor, ""]:
    """ListMLE: minus the logarithm of the probability that each point is drawn before all those surely below it.

    Where no two labels are equal this is the likelihood of their order by Plackett and Luce, as in Xia et al. 2008,
    https://doi.org/10.1145/1390156.1390306. Equal labels are no order: such points are each drawn against those
    below alone and never against each other, so it does not matter which of them comes first in a batch. It is
    the mean over points by their weights; a point of weight 2 counts as two wherever it stands. Arguments are
    those of `pairwise`.

    >>> labels = torch.tensor([3.0, 2.0, 1.0])
    >>> round((3 * listwise(torch.zeros(3), labels, labels, torch.ones(3))).exp().item(), 4)  # 3 * 2 * 1 orders
    6.0
    """
    order = highest.argsort(stable=True)
    below = (outputs + weights.log())[order].logcumsumexp(0)
    number = torch.searchsorted(highest[order], lowest)  # of points surely below
    is_above = number > 0
    errors = F.softplus(below[number[is_above] - 1] - outputs[is_above])
    return (weights[is_above] * errors).sum() / weights.sum()
