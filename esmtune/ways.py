"""Ways of computing attention among the tokens of each sequence, when sequences lie end to end.

All give the same numbers but for rounding; which is fastest depends on the device, the lengths, the size of
a head, the precision and whether there is a backward pass. Add yours at the end.
"""

import importlib.util
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from esmtune.spans import Spans
from esmtune.tiles import tiled


def runs(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
    *,
    kernel: str = "fused",
    of: Container[int] = (),
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "tokens heads k"]:
    """Neighbors of equal length in one call: of PyTorch's fused attention, or of another kernel for the lengths `of`.

    Splitting and concatenating, not writing into slices, keeps the backward pass free of full-size zero fills. What is
    computed in a `dtype` of fewer bits has its keys centered first: that moves all scores of a query alike, of which a
    softmax knows nothing, and leaves less to round (as in SageAttention, https://doi.org/10.48550/arXiv.2410.02367).
    """
    dtype = dtype or v.dtype
    sizes = [length * count for length, count in spans.runs]
    masks = [None] * len(sizes) if spans.visible is None else spans.visible.split(sizes)
    blocks = []
    for (length, count), mask, *qkv in zip(
        spans.runs, masks, q.split(sizes), k.split(sizes), v.split(sizes), strict=True
    ):
        qkv = [rearrange(y, "(n length) heads k -> n heads length k", n=count, length=length) for y in qkv]
        if mask is not None:
            mask = rearrange(mask, "(n length) -> n 1 1 length", n=count)
        if dtype != k.dtype:
            qkv[1] = qkv[1] - qkv[1].detach().mean(-2, keepdim=True)
        taken = kernel if length in of and (mask is None or kernel != "tiled") else "fused"
        y = KERNELS[taken](*(y.to(dtype, memory_format=torch.contiguous_format) for y in qkv), visible=mask)
        blocks.append(rearrange(y, "n heads length k -> (n length) heads k"))
    return torch.cat(blocks)


def plain(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """Neighbors of equal length in one go, by two matrix products and a softmax."""
    return runs(q, k, v, spans, kernel="products", of=spans.lengths)


def by_tiles(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """Neighbors of equal length by products and a softmax that stay in a processor's cache."""
    return runs(q, k, v, spans, kernel="tiled", of=spans.lengths)


def padded(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """Sequences of similar length in one masked call: a few calls of ordinary kernels, whatever the lengths.

    Everything is contiguous before the call: fused attention on MPS was wrong without a word where it was not
    (https://github.com/pytorch/pytorch/issues/181133).
    """
    laid = spans.blocks
    sizes = [block.rows * block.length for block in laid.blocks]
    parts = (_Padding.apply(y, laid.into, laid.out).split(sizes) for y in (q, k, v))
    outputs = []
    for block, *qkv in zip(laid.blocks, *parts, strict=True):
        qkv = [rearrange(y, "(n length) heads k -> n heads length k", n=block.rows).contiguous() for y in qkv]
        outputs.append(rearrange(fused(*qkv, visible=block.visible), "n heads length k -> (n length) heads k"))
    return _Unpadding.apply(torch.cat(outputs), laid.out)


def varlen(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """PyTorch's own flash attention over variable lengths (Dao 2023, https://doi.org/10.48550/arXiv.2307.08691)."""
    from torch.nn.attention import varlen as kernel

    ends, longest = spans.offsets, spans.longest
    y = kernel.varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest)
    assert isinstance(y, Tensor)
    return y


def flash(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """The same by the flash-attn package, where it is installed."""
    kernel: Any = importlib.import_module("flash_attn")
    ends, longest = spans.offsets, spans.longest
    return kernel.flash_attn_varlen_func(
        q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest, deterministic=True
    )


def nested(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """PyTorch's nested tensors: a fused kernel over variable lengths in float32 too."""
    offsets = spans.offsets.long()
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            y.contiguous(), offsets, min_seqlen=min(spans.lengths), max_seqlen=spans.longest
        ).transpose(1, 2)
        for y in (q, k, v)
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()


def fused(
    q: Float[Tensor, "n heads length k"],
    k: Float[Tensor, "n heads length k"],
    v: Float[Tensor, "n heads length k"],
    visible: Bool[Tensor, "n 1 1 length"] | None = None,
) -> Float[Tensor, "n heads length k"]:
    """Attention within each row by PyTorch's fused kernel, which never holds all weights at once."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


def products(
    q: Float[Tensor, "n heads length k"],
    k: Float[Tensor, "n heads length k"],
    v: Float[Tensor, "n heads length k"],
    visible: Bool[Tensor, "n 1 1 length"] | None = None,
) -> Float[Tensor, "n heads length k"]:
    """Attention within each row as it is written down: softmax(q k / sqrt(size)) v, the softmax in float32 or more."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    exact = torch.promote_types(q.dtype, torch.float32)
    return torch.matmul(scores.softmax(-1, dtype=exact).to(v.dtype), v)


class _Padding(torch.autograd.Function):
    """Tokens to the places of padded blocks. Nothing comes back from padding: its weight is zero, no one reads it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, into: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(out)
        return x.index_select(0, into)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Unpadding(torch.autograd.Function):
    """Tokens back from their places in padded blocks."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, out: Tensor) -> Tensor:
        ctx.save_for_backward(out)
        ctx.places = len(y)
        return y.index_select(0, out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        empty = gradient.new_zeros(ctx.places, *gradient.shape[1:])
        return empty.index_copy_(0, ctx.saved_tensors[0], gradient), None


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of computing attention, and where it is to be had."""

    compute: Callable[[Tensor, Tensor, Tensor, Spans], Tensor]
    devices: tuple[str, ...] = ()  # none named: all
    dtypes: tuple[torch.dtype, ...] = ()  # none named: all
    package: str | None = None
    hides: bool = True  # whether it can leave tokens unseen (`<pad>`)

    def missing(self, device: str, dtype: torch.dtype) -> str:
        """Why it is not to be had on a kind of device; nothing where it is.

        >>> WAYS["varlen"].missing("cpu", torch.bfloat16)
        'on cuda only'
        """
        if self.devices and device not in self.devices:
            return f"on {', '.join(self.devices)} only"
        if self.dtypes and dtype not in self.dtypes:
            return f"in {', '.join(str(each).removeprefix('torch.') for each in self.dtypes)} only"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"needs the package {self.package}"
        return ""


KERNELS: dict[str, Callable[..., Tensor]] = {"fused": fused, "products": products, "tiled": tiled}
HALF = (torch.bfloat16, torch.float16)
WAYS = {
    "runs": Way(compute=runs),
    "plain": Way(compute=plain),
    "padded": Way(compute=padded),
    "tiled": Way(compute=by_tiles, devices=("cpu",)),
    "varlen": Way(compute=varlen, devices=("cuda",), dtypes=HALF, hides=False),
    "flash": Way(compute=flash, devices=("cuda",), dtypes=HALF, package="flash_attn", hides=False),
    "nested": Way(compute=nested, devices=("cuda",), dtypes=(*HALF, torch.float32), hides=False),
}
