"""Attention by tiles that stay in a processor's cache: a few heads at a time, forward and backward."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CELLS = 2**20  # scores of a tile for each thread, 2 MiB in bfloat16; half to four times as many took as long
SAFE = 60.0  # scores of at most this size have exponentials whose sums and products are far from the ends of bfloat16


class _Tiled(torch.autograd.Function):
    """softmax(scale q k) v, whose weights are computed again for the gradient, so that no scores are kept.

    The idea of computing again is flash attention's (Dao et al. 2022, https://doi.org/10.48550/arXiv.2205.14135).
    Weights are exponentials as they are, divided by their sums only in what comes of them: half the time of a softmax.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        exact = torch.promote_types(q.dtype, torch.float32)
        y, sums = torch.empty_like(q), q.new_empty(*q.shape[:2], 1, dtype=exact)
        ctx.safe = _are_safe(q, k)
        for tile, weights, _ in _tiles(q):
            _weigh(q[tile], k[tile], weights, ctx.safe[tile])
            torch.bmm(weights, v[tile], out=y[tile])
            torch.sum(weights, -1, keepdim=True, dtype=exact, out=sums[tile])
        torch.div(y, sums, out=y)
        ctx.save_for_backward(q, k, v, y, sums)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, y, sums = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dy = (gradients[0] / sums).to(v.dtype)
        # Two columns more of each, and the product is the gradient of the weights less what a softmax takes off it:
        # that in two parts, for whatever is lost of it does not cancel over a row, and meets what all keys have alike.
        common = -(dy.to(sums) * y).sum(-1, keepdim=True)
        most = common.to(v.dtype)
        dy_more = torch.cat((dy, most, (common - most).to(v.dtype)), -1)
        v_more = torch.cat((v, torch.ones_like(v[..., :2])), -1)
        centered = k - k.mean(-2, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for tile, weights, scores in _tiles(q):
            _weigh(q[tile], k[tile], weights, ctx.safe[tile])
            torch.bmm(weights.mT, dy[tile], out=dv[tile])
            torch.bmm(dy_more[tile], v_more[tile].mT, out=scores)
            scores.mul_(weights)
            _scaled_product(scores, centered[tile], scale, dq[tile])
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


def _are_safe(q: Float[Tensor, "rows length k"], k: Float[Tensor, "rows length k"]) -> list[bool]:
    """Whether the scores of a row can have exponentials as they are: none is larger than its vectors' lengths allow."""
    if q.is_meta:  # there are no numbers
        return [True] * len(q)
    longest = [torch.linalg.vector_norm(x, dim=-1).amax(-1) for x in (q, k)]
    return (longest[0].float() * longest[1].float() * q.shape[-1] ** -0.5 <= SAFE).tolist()


def _weigh(q: Tensor, k: Tensor, weights: Tensor, safe: Sequence[bool]) -> None:
    """The exponentials of scores; of rows where they may be too large the softmax, whose sums are one.

    The product is one for all rows: in parts it might round otherwise, and so a row would know of its company.
    """
    _scaled_product(q, k.mT, q.shape[-1] ** -0.5, weights)
    start = 0
    for is_safe, run in groupby(safe):
        rows = weights[start : (start := start + len(list(run)))]
        if is_safe:
            torch.exp(rows, out=rows)
        else:
            torch.softmax(rows, -1, out=rows)


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
