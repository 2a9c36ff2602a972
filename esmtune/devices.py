"""Where the network computes, and in what."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast, get_args

import torch
from torch import nn

from esmtune.config import Accelerator, Computed, Precision


def choose_device(accelerator: Accelerator) -> str:
    """The kind of device to compute on. MPS is never chosen unasked: some of its kernels are wrong without a word.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator not in devices_here():
        raise ValueError(f"there is no accelerator {accelerator!r} here. There are: auto, {', '.join(devices_here())}.")
    return accelerator


def devices_here() -> list[str]:
    """The kinds of device that this machine has.

    >>> devices_here()[0]
    'cpu'
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, is_there in there.items() if is_there]


def choose_precision(asked: Precision, device: str, *, trained: Computed | None = None) -> Computed:
    """What matrix products are computed in on a kind of device; `auto` takes bfloat16 where its units are the faster.

    Elsewhere it is not only less exact but slower (docs/LOG.md). $ESMTUNE_PRECISION, if it is
    set, is what `auto` takes; else `auto` stays with float32 where it is what a predictor was `trained` in.

    >>> choose_precision("float32", "cuda")
    'float32'
    """
    if asked == "auto":
        given = os.environ.get("ESMTUNE_PRECISION") or "auto"
        if given not in get_args(Precision):
            raise ValueError(f"ESMTUNE_PRECISION is {given!r}, expected one of {', '.join(get_args(Precision))}.")
        asked = cast(Precision, given)
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16_units(device) and trained != "float32" else "float32"


def has_bfloat16_units(device: str) -> bool:
    """Whether a kind of device has units that compute products faster in bfloat16 than others do in float32.

    AVX512-BF16 does on AMD's processors, 2.6 times as fast; on an Intel Xeon without AMX it took 1.6 times as long
    (docs/LOG.md).
    """
    if device == "cpu":
        has_avx = torch.cpu._is_avx512_bf16_supported() and processor_vendor() == "AuthenticAMD"
        return torch.cpu._is_amx_tile_supported() or has_avx
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def processor_vendor() -> str:
    """What the processor's maker calls itself; nothing where the system does not say."""
    return processor_says("vendor_id") or platform.processor().rpartition(" ")[2]  # Windows writes it last


@cache
def processor_says(field: str) -> str:
    """What Linux tells of the processor under a name; nothing elsewhere, or where it has none of that name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def products(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products are computed in a precision; sums, norms and rotations stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_precision(precision, device.type) == "bfloat16")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
