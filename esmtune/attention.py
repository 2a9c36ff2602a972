"""Attention among the tokens of each sequence, by the way that is fastest where it is computed; rotary positions."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.spans import Spans, sent
from esmtune.ways import WAYS, runs

# Kernels that are faster than PyTorch's fused one on a processor, by its units, dtype and direction, up to how many
# tokens. With AVX512-BF16 tiles take .17 to 1.07 of its time with the backward pass on an Intel Xeon, the most at
# 1,000 tokens: benchmarks/results/attention-bfloat16.json. Forward they take 1.04 to 3.1 of it; on an AMD EPYC .53 to
# 1.9, but scores that are rounded put single residues of an embedding off by twice as much (docs/LOG.md). With AMX
# plain products were measured on another machine, not in benchmarks/: forward and backward on two cores, length 317
# 6.2 ms against 13.4 (heads of 16) and 8.2 against 16.2 (heads of 64), length 1,000 123 against 79; lines through
# these in logarithms cross at 640. In float32 nothing was faster: benchmarks/results/attention-float32.json. Up to
# 100 tokens plain products take .61 to 1.07 of the time of tiles, but keep more for the gradient (docs/LOG.md).
FASTER = {
    ("amx", torch.bfloat16, "backward"): ("products", 512),
    ("avx512_bf16", torch.bfloat16, "backward"): ("tiled", 2048),
}

# On any other device the first of these that is to be had there and computes right numbers (`passes`). The order on
# CUDA is by what the kernels do, not yet by measurement (docs/decisions/0014-ways-of-attention.md).
PREFERRED = {"cuda": ("varlen", "flash", "nested", "padded", "plain")}
SAFE = ("padded", "plain", "runs")

# How far a result may be from float64 on the CPU, as a share of its largest value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
TRIED = (2, 70, 3, 3, 70, 129)  # lengths on which a way is tried
BROKEN = (RuntimeError, NotImplementedError, TypeError, ValueError, ImportError)  # what a missing kernel may raise

_only: ContextVar[str | None] = ContextVar("only", default=None)


def attend(
    q: Float[Tensor, "tokens heads k"],
    k: Float[Tensor, "tokens heads k"],
    v: Float[Tensor, "tokens heads k"],
    spans: Spans,
) -> Float[Tensor, "tokens heads k"]:
    """Let each token look at its own sequence only, in the precision of matrix products.

    Raises:
        RuntimeError: on a device where no way of attention computes right numbers.
    """
    if not spans.lengths:
        return q + k + v  # nothing, but part of the graph: a process without work still takes part in the step
    device = q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else v.dtype
    name = _only.get()
    if name is None and device == "cpu":
        direction = "backward" if q.requires_grad or k.requires_grad or v.requires_grad else "forward"
        kernel, end = FASTER.get((_units(), dtype, direction), ("fused", 0))
        return runs(q, k, v, spans, kernel=kernel, of=range(end + 1), dtype=dtype)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    name = name or choose(q.device, dtype, q.shape[2], hides=spans.visible is not None)
    return WAYS[name].compute(q, k, v, spans)


def _units() -> str:
    """What a processor has for products in bfloat16: the best of it, or nothing."""
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else ""


@contextmanager
def only(way: str) -> Iterator[None]:
    """Compute attention in one way alone for a while, right or wrong.

    >>> with only("plain"):
    ...     x = torch.ones(2, 1, 4)
    ...     attend(x, x, x, Spans((2,), torch.device("cpu"))).shape
    torch.Size([2, 1, 4])
    """
    before = _only.set(way)
    try:
        yield
    finally:
        _only.reset(before)


def choose(device: torch.device, dtype: torch.dtype, head: int, *, hides: bool = False) -> str:
    """The name of the fastest way on a device other than the CPU that computes right numbers there.

    `head` counts the channels of a head; with `hides`, some tokens must not be looked at.

    Raises:
        RuntimeError: if there is none.
    """
    for name in PREFERRED.get(device.type, SAFE):
        way = WAYS[name]
        if (way.hides or not hides) and not way.missing(device.type, dtype) and passes(name, device, dtype, head):
            return name
    raise RuntimeError(
        f"no way of attention computes right numbers on {device} in {dtype}. `esmtune doctor` shows what is wrong; "
        "--accelerator cpu computes without it."
    )


@cache
def passes(name: str, device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether a way agrees with float64 on the CPU, forward and backward; found out once, in milliseconds.

    Some kernels are wrong without a word, so none is taken on trust. One that is wrong is warned of.
    """
    try:
        wrong = error(name, device, dtype, head)
    except BROKEN as problem:
        if isinstance(problem, torch.OutOfMemoryError):
            raise
        reason = reason_of(problem).rstrip(".")
    else:
        if wrong <= TOLERANCE[dtype]:
            return True
        reason = f"its numbers are off by {wrong:.1g} of the largest, where {TOLERANCE[dtype]:.1g} is rounding"
    warnings.warn(
        f"attention {name!r} is not used on {device} in {dtype}, heads of {head}: {reason}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def reason_of(problem: BaseException) -> str:
    """The first line of what was raised, or else what it is called."""
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def error(name: str, device: torch.device, dtype: torch.dtype, head: int) -> float:
    """How far a way is from float64 on the CPU, in outputs and gradients: the largest share of the largest value."""
    # Also where the caller wants no gradients, or products in another precision.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        generator, shape = torch.Generator().manual_seed(0), (sum(TRIED), 3, head)
        inputs = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]  # the last is a gradient
        found = _computed(name, device, dtype, inputs)
        right = _computed("plain", torch.device("cpu"), torch.float64, inputs)
    return max(difference(a, b) for a, b in zip(found, right, strict=True))


def _computed(name: str, device: torch.device, dtype: torch.dtype, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients, in float64 on the CPU."""
    q, k, v = (x.to(device, dtype).requires_grad_() for x in inputs[:3])
    y = WAYS[name].compute(q, k, v, Spans(TRIED, device))
    gradients = torch.autograd.grad(y, (q, k, v), inputs[3].to(device, dtype))
    return [x.detach().cpu().double() for x in (y, *gradients)]


def difference(found: Tensor, right: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite where there are no numbers."""
    share = ((found - right).abs().max() / right.abs().max()).item()
    return share if share == share else float("inf")


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
    position = torch.cat([torch.arange(0), *(torch.arange(n) for n in lengths)])
    position = sent(position, frequency.device)
    return angles.cos().to(dtype)[position][:, None], angles.sin().to(dtype)[position][:, None]


def rotate(
    x: Float[Tensor, "tokens heads k"], cos: Float[Tensor, "tokens 1 half"], sin: Float[Tensor, "tokens 1 half"]
) -> Float[Tensor, "tokens heads k"]:
    """Turn each pair of channels (i, i + k/2) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
