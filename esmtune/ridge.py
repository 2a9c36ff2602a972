"""A linear map with a penalty on its size, found in one go; how large a penalty is told by held-out data.

Of squared errors this is ridge regression (Hoerl and Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634),
of cross-entropies penalized logistic regression.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(6, -4, -1))  # in units of squared errors of single points
CLOSE = tuple(10.0 ** (power / 2) for power in range(12, -7, -1))  # the same where each costs next to nothing
FOLDS = 5
STEPS = 60  # of L-BFGS at most; squared errors need about three

Loss = Callable[[Float[Tensor, "points outputs"], Int[Tensor, "points"]], tuple[Tensor, int]]


def solve(
    features: Float[Tensor, "points dim"], groups: Sequence[int], num_outputs: int, loss: Loss, *, seed: int
) -> tuple[Float[Tensor, "outputs dim"], Float[Tensor, "outputs"], float]:
    """Find weight and bias that make a loss and a penalty least together, in float64.

    Args:
        features: standardized; points of one group are side by side.
        groups: how many points each group has (the residues of one sequence); groups are never torn apart.
        num_outputs: how many numbers the map gives.
        loss: called with outputs and the points that they are of; gives a sum over points and their number.
        seed: of the drawing of folds.

    Returns:
        The weight, the bias, and the penalty under which held-out points were predicted best.

    >>> x = torch.arange(6.0)[:, None] - 2.5
    >>> y = 3 * x.double() + 1
    >>> weight, bias, _ = solve(x, [1] * 6, 1, lambda o, of: (((o - y[of]) ** 2).sum(), len(of)), seed=0)
    >>> round(weight.item(), 1), round(bias.item(), 1)
    (3.0, 1.0)
    """
    x, axes, sizes = own_axes(features.double())
    weight, bias, penalty = solve_in_axes(x, sizes, groups, num_outputs, loss, seed=seed)
    return weight @ axes, bias, penalty


def own_axes(
    x: Float[Tensor, "points dim"],
) -> tuple[Float[Tensor, "points axes"], Float[Tensor, "axes dim"], Float[Tensor, "axes"]]:
    """Data in their own axes, of which few data have few; the axes; and how large the data are along each."""
    _, sizes, axes = torch.linalg.svd(x, full_matrices=False)
    there = sizes > sizes.max() * 1e-10
    return x @ axes[there].T, axes[there], sizes[there]


def solve_in_axes(
    x: Float[Tensor, "points axes"], sizes: Float[Tensor, "axes"], groups: Sequence[int], num_outputs: int, loss: Loss,
    *, seed: int, held_out: int = FOLDS,
) -> tuple[Float[Tensor, "outputs axes"], Float[Tensor, "outputs"], float]:  # fmt: skip
    """Do the same in the data's own axes; of the folds so many are held out, each in turn."""
    fold = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)) % min(FOLDS, len(groups))
    fold = fold.repeat_interleave(torch.tensor(list(groups)))
    errors = torch.zeros(len(PENALTIES), dtype=torch.float64)
    for number in range(min(held_out, int(fold.max()) + 1) if len(groups) > 1 else 0):
        inside, outside = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
        with torch.no_grad():
            for place, (weight, bias) in enumerate(_path(x, inside, sizes, num_outputs, loss, PENALTIES)):
                errors[place] += loss(x[outside] @ weight.T + bias, outside)[0]
    best = int(errors.argmin())
    weight, bias = _path(x, torch.arange(len(x)), sizes, num_outputs, loss, PENALTIES[: best + 1])[-1]
    return weight, bias, PENALTIES[best]


def solve_squares(
    x: Float[Tensor, "points axes"], sizes: Float[Tensor, "axes"], y: Float[Tensor, "points outputs"],
    leverage: Float[Tensor, "points"],
) -> tuple[Float[Tensor, "outputs axes"], float]:  # fmt: skip
    """The same for squared errors, in closed form; the penalty is the one that predicts best each point left out.

    `x`, in its own axes, and `y` are centered; `leverage` is the share of each point in the center that was taken.
    Allen 1974, https://doi.org/10.1080/00401706.1974.10489157.

    >>> x = torch.arange(6.0, dtype=torch.float64)[:, None] - 2.5
    >>> weight, _ = solve_squares(x, x.norm(dim=0), 3 * x, torch.full((6,), 1 / 6))
    >>> round(weight.item(), 1)
    3.0
    """
    _, weight, penalty = min(left_out(x, sizes, y, leverage), key=lambda each: each[0].square().sum().item())
    return weight, penalty


def left_out(
    x: Float[Tensor, "points axes"], sizes: Float[Tensor, "axes"], y: Float[Tensor, "points outputs"],
    leverage: Float[Tensor, "points"],
) -> Iterator[tuple[Float[Tensor, "points outputs"], Float[Tensor, "outputs axes"], float]]:  # fmt: skip
    """For each penalty, how far each point is from what all the others predict; and the weight that all have, and it.

    Arguments are those of `solve_squares`.
    """
    squares, products = x.square(), x.T @ y
    for penalty in CLOSE:
        shrunk = 1 / (sizes.square() + penalty)
        weight = (products * shrunk[:, None]).T
        free = (1 - leverage - squares @ shrunk).clamp(min=1e-12)
        yield (y - x @ weight.T) / free[:, None], weight, penalty


def _path(
    x: Tensor, points: Tensor, sizes: Tensor, num_outputs: int, loss: Loss, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Solutions for falling penalties, each the beginning of the next."""
    seen = x[points]
    weight = torch.zeros(num_outputs, x.shape[1], dtype=torch.float64)
    bias = torch.zeros(num_outputs, dtype=torch.float64)
    solutions = []
    for penalty in penalties:
        scale = 1 / (sizes**2 + penalty).sqrt()  # as steep in every direction, for squared errors
        weight, bias = _minimum(seen, points, weight / scale, bias, scale, penalty, loss)
        solutions.append((weight, bias))
    return solutions


@torch.enable_grad()
def _minimum(
    x: Tensor, points: Tensor, start: Tensor, bias: Tensor, scale: Tensor, penalty: float, loss: Loss
) -> tuple[Tensor, Tensor]:
    scaled, shift = start.clone().requires_grad_(), (bias * len(points) ** 0.5).clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled, shift], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight = scaled * scale
        total, count = loss(x @ weight.T + shift / len(points) ** 0.5, points)
        value = (total + penalty * weight.square().sum()) / max(1, count)
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return (scaled * scale).detach(), (shift / len(points) ** 0.5).detach()
