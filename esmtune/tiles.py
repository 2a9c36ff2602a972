"""Attention by tiles that stay in a processor's cache: a few heads at a time, forward and backward."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CELLS = 2**20  # scores of a tile for each thread, 2 MiB in bfloat16; half to four times as many took as long


class _Tiled(torch.autograd.Function):
    """softmax(scale q k) v, whose weights are computed again for the gradient, so that no scores are kept.

    The idea of computing again is flash attention's (Dao et al. 2022, https://doi.org/10.48550/arXiv.2205.14135).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = torch.empty_like(q)
        for tile, scores, weights in _tiles(q):
            _weigh(q[tile], k[tile], scores, weights)
            torch.bmm(weights, v[tile], out=y[tile])
        ctx.save_for_backward(q, k, v)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v = ctx.saved_tensors
        dy, scale = gradients[0].contiguous(), q.shape[-1] ** -0.5
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for tile, scores, weights in _tiles(q):
            _weigh(q[tile], k[tile], scores, weights)
            torch.bmm(weights.mT, dy[tile], out=dv[tile])
            torch.bmm(dy[tile], v[tile].mT, out=scores)
            torch.ops.aten._softmax_backward_data.out(scores, weights, -1, scores.dtype, grad_input=scores)
            _scaled_product(scores, k[tile], scale, dq[tile])
            _scaled_product(scores.mT, q[tile], scale, dk[tile])
        return dq, dk, dv


def tiled(
    q: Float[Tensor, "n heads length k"],
    k: Float[Tensor, "n heads length k"],
    v: Float[Tensor, "n heads length k"],
    visible: Bool[Tensor, "n 1 1 length"] | None = None,
) -> Float[Tensor, "n heads length k"]:
    """Attention within each row, a few heads of a few rows at a time.

    Raises:
        AssertionError: if something is to be hidden, which it cannot do.
    """
    assert visible is None
    y = _Tiled.apply(*(x.contiguous().flatten(0, 1) for x in (q, k, v)))
    assert isinstance(y, Tensor)
    return y.view(q.shape)


def _weigh(q: Tensor, k: Tensor, scores: Tensor, weights: Tensor) -> None:
    _scaled_product(q, k.mT, q.shape[-1] ** -0.5, scores)
    torch.softmax(scores, -1, out=weights)


def _scaled_product(a: Tensor, b: Tensor, scale: float, into: Tensor) -> None:
    """A scale inside of the product costs no pass over its result, and no rounding."""
    torch.baddbmm(into, a, b, beta=0, alpha=scale, out=into)


def _tiles(q: Float[Tensor, "rows length k"]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Slices of rows, each with two buffers of its scores' shape, which are used again by the next."""
    rows, length, _ = q.shape
    size = max(1, CELLS * torch.get_num_threads() // length**2)
    buffers = q.new_empty(2, min(size, rows), length, length)
    for start in range(0, rows, size):
        count = min(size, rows - start)
        yield slice(start, start + count), buffers[0, :count], buffers[1, :count]
