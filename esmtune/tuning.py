"""Which weights of the encoder move. Add yours at the end, decorated with the name users write.

A tuning is called with the encoder, all of whose weights are frozen, and lets some of them move.
The head always moves. The LM head never does: no output depends on it.
"""

from collections.abc import Callable

from esmtune.esm2 import ESM2
from esmtune.registry import Registry

tuning: Registry[Callable[[ESM2], None]] = Registry("tuning")


@tuning("frozen")
def frozen(encoder: ESM2) -> None:
    """Nothing: the head alone learns, and each sequence passes the encoder once."""


@tuning("last")
def last(encoder: ESM2, *, layers: int = 2) -> None:
    """The last few layers and the final norm."""
    if not 1 <= layers <= len(encoder.layers):
        raise ValueError(
            f"tuning 'last' has layers={layers}, but the encoder has {len(encoder.layers)}: write 1 to that."
        )
    encoder.layers[-layers:].requires_grad_(True)
    encoder.norm.requires_grad_(True)


@tuning("full")
def full(encoder: ESM2) -> None:
    """Every weight."""
    encoder.requires_grad_(True)
