"""Where the network computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from esmtune.config import Accelerator


def choose_device(accelerator: Accelerator) -> str:
    """The kind of device to compute on. MPS is never chosen unasked: some of its kernels are wrong without a word.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(accelerator, False):
        raise ValueError(
            f"there is no accelerator {accelerator!r} here. "
            f"There are: auto, {', '.join(name for name, is_there in there.items() if is_there)}."
        )
    return accelerator


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
