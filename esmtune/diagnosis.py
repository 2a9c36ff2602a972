"""Whether the devices of a machine compute right numbers, and how fast: each way of attention, each precision."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from esmtune.alphabet import PAD
from esmtune.attention import BROKEN, attend, choose, difference, only, reason_of
from esmtune.config import Accelerator
from esmtune.devices import choose_device, choose_precision, devices_here, products
from esmtune.esm2 import ESM2, ESM2Config, Tokens
from esmtune.events import Progress, Watcher, silent
from esmtune.spans import Spans
from esmtune.ways import WAYS

Products = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Products, ...] = ("float32", "bfloat16")
HEADS = (16, 24, 32, 64, 128)  # channels of a head, of all official encoders
# How far a whole encoder of two layers may be from float64, as a share of the largest value.
TOLERANCE: dict[Products, float] = {"float32": 1e-4, "bfloat16": 0.05}
# And from itself on a CPU, where only the order of sums is another: 1e-6 and .01 were measured. Other devices round
# differently for other shapes of a batch, and may be off from themselves as they are from float64.
SAME: dict[Products, float] = {"float32": 1e-5, "bfloat16": 0.02}
OF_ITSELF = ("company", "padding")
TIMED = (20, 50, 80, 150)  # lengths
COPIES = {"cpu": 1}  # of them; on any other device many, for it to have enough to do


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How a way of attention fares on a device in a precision.

    `errors` holds, each as a share of the largest value, how far a tiny encoder is from float64 on the CPU
    (golden), from itself where a sequence is alone (company) or followed by `<pad>` (padding), and its
    gradients from those of float64 (gradient).
    """

    device: str
    precision: Products
    way: str  # one of the ways of attention, or auto, which is what is taken unasked
    takes: str = ""  # what auto comes to here
    missing: str = ""  # why the way is not to be had here
    broken: str = ""  # what it raised
    errors: Mapping[str, float]
    microseconds: tuple[float, float] | None = None  # a residue, of attention: forward, and with the backward pass

    @property
    def failed(self) -> tuple[str, ...]:
        """The tests that it failed."""
        bounds = {name: tolerance(name, self.precision, self.device) for name in self.errors}
        return tuple(name for name, error in self.errors.items() if not error <= bounds[name])

    @property
    def verdict(self) -> Literal["pass", "fail", "not available"]:
        """What came of it."""
        if self.missing:
            return "not available"
        return "fail" if self.broken or self.failed else "pass"

    @property
    def why(self) -> str:
        """Why it does not pass."""
        return self.missing or self.broken or ", ".join(self.failed)


def tolerance(test: str, precision: Products, device: str) -> float:
    """How large the error of a test may be on a kind of device, as a share of the largest value."""
    return (SAME if test in OF_ITSELF and device == "cpu" else TOLERANCE)[precision]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `doctor` found, and which device and precision are taken unasked, or by the accelerator asked for."""

    findings: tuple[Finding, ...]
    device: str
    precision: Products

    @property
    def is_healthy(self) -> bool:
        """Whether what would be used computes right numbers."""
        used = [each for each in self.findings if each.way == "auto" and each.device == self.device]
        return all(each.verdict == "pass" for each in used if each.precision == self.precision)


def doctor(accelerator: Accelerator = "auto", watch: Watcher = silent) -> Diagnosis:
    """Examine each device that is here, each precision and each way of attention; takes seconds.

    With an accelerator, only that one is examined.

    >>> doctor("cpu").is_healthy
    True

    Raises:
        ValueError: for a device that this machine does not have.
    """
    device = choose_device(accelerator)
    devices = devices_here() if accelerator == "auto" else [device]
    cases: list[tuple[str, Products, str]] = [(d, p, w) for d in devices for p in PRECISIONS for w in ("auto", *WAYS)]
    findings = []
    for number, (name, precision, way) in enumerate(cases):
        watch(Progress("examining", number, len(cases), "cases", f"{name} {precision} {way}"))
        findings.append(_examined(torch.device(name), precision, way))
    watch(Progress("examining", len(cases), len(cases), "cases"))
    return Diagnosis(findings=tuple(findings), device=device, precision=choose_precision("auto", device))


def _examined(device: torch.device, precision: Products, way: str) -> Finding:
    dtype, errors = getattr(torch, precision), {}
    is_auto = way == "auto"
    missing = "" if is_auto else WAYS[way].missing(device.type, dtype)
    if missing:
        return Finding(device=device.type, precision=precision, way=way, missing=missing, errors={})
    takes, broken, took = "", "", None
    try:
        with nullcontext() if is_auto else only(way), torch.inference_mode(False), torch.enable_grad():
            if is_auto:
                takes = "runs" if device.type == "cpu" else choose(device, dtype, HEADS[0])
            for head in HEADS:
                for test, error in _errors(head, device, precision, hides=is_auto or WAYS[way].hides).items():
                    errors[test] = max(errors.get(test, 0.0), error)
            took = _timed(device, dtype)
    except BROKEN as problem:
        broken = reason_of(problem)
    return Finding(
        device=device.type, precision=precision, way=way, takes=takes, broken=broken, errors=errors, microseconds=took
    )


def _errors(head: int, device: torch.device, precision: Products, *, hides: bool) -> dict[str, float]:
    """How far an encoder with heads of this size is from where it should be, by test."""
    sequences, encoder = _sequences(), _encoder(head).to(device)
    with products(precision, device):
        x = encoder(Tokens.of(sequences).to(device)).residues
        gradients = torch.autograd.grad((x * _pull(x)).sum(), list(encoder.parameters()))
        with torch.no_grad():  # where another kernel may be the faster one
            together = _exact(encoder(Tokens.of(sequences).to(device)).residues)
            alone = [encoder(Tokens.of([sequence]).to(device)).residues for sequence in sequences]
            followed = encoder(_followed(sequences).to(device)).residues if hides else None
    right, right_gradients = _right(head)
    found = {
        "golden": difference(_exact(x), right),
        "company": difference(_exact(torch.cat(alone)), together),
        "gradient": difference(torch.cat([_exact(g).flatten() for g in gradients]), right_gradients),
    }
    if followed is not None:
        rows = followed.split([len(sequence) + 3 for sequence in sequences])
        kept = torch.cat([row[: len(sequence)] for row, sequence in zip(rows, sequences, strict=True)])
        found["padding"] = difference(_exact(kept), together)
    return found


@cache
def _right(head: int) -> tuple[Tensor, Tensor]:
    """Residues and gradients in float64 on the CPU, attention as it is written down."""
    encoder = _encoder(head).double()
    with only("plain"), torch.autocast("cpu", enabled=False):
        x = encoder(Tokens.of(_sequences())).residues
        gradients = torch.autograd.grad((x * _pull(x)).sum(), list(encoder.parameters()))
    return x.detach(), torch.cat([each.flatten() for each in gradients])


def _encoder(head: int) -> ESM2:
    """Two layers of two heads, drawn from a seed of their own, each weight large enough to matter."""
    generator = torch.Generator().manual_seed(head)
    with torch.random.fork_rng(devices=[]):
        encoder = ESM2(ESM2Config(num_layers=2, embed_dim=2 * head, num_heads=2)).eval()
    for name, weight in encoder.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            weight.copy_(drawn * (2 * head) ** -0.5 + ("norm.weight" in name))
    return encoder


def _sequences() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=length)) for length in (1, 7, 7, 200, 40)]


def _followed(sequences: list[str]) -> Tokens:
    """Each sequence with three `<pad>` behind its end."""
    tokens = Tokens.of(sequences)
    rows = [torch.cat((row, row.new_full((3,), PAD))) for row in tokens.ids.split(tokens.lengths)]
    return Tokens(torch.cat(rows), tuple(map(len, rows)), tokens.seeds, has_pad=True)


def _pull(x: Tensor) -> Tensor:
    """Where the gradients come from: a direction of its own for each number."""
    return torch.linspace(-1, 1, x.numel(), dtype=torch.float64).cos().view(x.shape).to(x)


def _exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _timed(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Microseconds a residue of one layer's attention, 20 heads of 32: forward, and with the backward pass."""
    lengths = TIMED * COPIES.get(device.type, 64)
    spans, shape = Spans(lengths, device), (sum(lengths), 20, 32)
    q, k, v = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype) for _ in "qkv")

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v, spans)

    def both() -> None:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        y = attend(*inputs, spans=spans)
        torch.autograd.grad(y, inputs, y.detach())

    return _microseconds(forward, device) / len(q), _microseconds(both, device) / len(q)


def _microseconds(work: Callable[[], None], device: torch.device) -> float:
    took = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        took.append(time.perf_counter() - start)
    return 1e6 * statistics.median(took[1:])  # the first is a warm-up
