"""Attention among the tokens of each sequence, when sequences lie end to end."""

from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor


def attend(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    lengths: tuple[int, ...],
    visible: Bool[Tensor, "tokens"] | None = None,
) -> Float[Tensor, "tokens heads k"]:
    """Let each token look at its own sequence only; neighbors of equal length share one call.

    `visible` is given only when there is something that must not be looked at (`<pad>`).
    Splitting and concatenating, not writing into slices, keeps the backward pass free of
    full-size zero fills.
    """
    if not lengths:
        return q + k + v  # nothing, but part of the graph: a process without work still takes part in the step
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    masks = [None] * len(runs) if visible is None else visible.split(sizes)
    blocks = []
    for (length, count), mask, *qkv in zip(runs, masks, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        qkv = [rearrange(y, "(n length) heads k -> n heads length k", n=count, length=length) for y in qkv]
        if mask is not None:
            mask = rearrange(mask, "(n length) -> n 1 1 length", n=count)
        y = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        blocks.append(rearrange(y, "n heads length k -> (n length) heads k"))
    return torch.cat(blocks)


def rotary_frequencies(head_dim: int) -> Float[Tensor, "half"]:
    """How fast each pair of channels turns, in radians per position, unless the weights bring their own."""
    return 10_000 ** (-torch.arange(0, head_dim, 2) / head_dim)


def rotary_angles(
    lengths: tuple[int, ...], frequency: Float[Tensor, "half"], dtype: torch.dtype
) -> tuple[Float[Tensor, "tokens 1 half"], Float[Tensor, "tokens 1 half"]]:
    """Cosines and sines of position times frequency (Su et al. 2021, https://doi.org/10.48550/arXiv.2104.09864).

    The angles are computed in the precision of `frequency`, never in less than float32.
    """
    angles = torch.arange(max(lengths, default=0), device=frequency.device)[:, None] * frequency
    position = torch.cat([torch.arange(0), *(torch.arange(n) for n in lengths)]).to(frequency.device)
    return angles.cos().to(dtype)[position][:, None], angles.sin().to(dtype)[position][:, None]


def rotate(
    x: Float[Tensor, "tokens heads k"], cos: Float[Tensor, "tokens 1 half"], sin: Float[Tensor, "tokens 1 half"]
) -> Float[Tensor, "tokens heads k"]:
    """Turn each pair of channels (i, i + k/2) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
