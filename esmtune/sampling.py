"""What a head says when its dropout goes on at prediction: draws that are apart where it knows little."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.heads import Dropout, Head
from esmtune.pooling import Pooled


def drawn(head: Head, pooled: Pooled, sequences: Sequence[str], count: int) -> list[Float[Tensor, "points outputs"]]:
    """What a head says in so many draws of its dropout (Gal and Ghahramani 2016, https://proceedings.mlr.press/v48).

    What is dropped depends on the sequence and the number of the draw alone, so that a prediction is the same in any
    company, at any time, on any machine.

    >>> from esmtune.heads import head as heads
    >>> mlp = heads.build({"name": "mlp"}, 8, 1)
    >>> pooled = Pooled.of(torch.ones(1, 8), (1,), torch.tensor([0]))
    >>> one, other = drawn(mlp, pooled, ["MK"], 2)
    >>> bool(one != other), bool(one == drawn(mlp, pooled, ["MK"], 1)[0])
    (True, True)
    """
    was_training, device = head.training, pooled.features.device
    head.train()
    head.feature_noise.eval()
    try:
        return [
            head(Pooled.of(pooled.features, pooled.lengths, _seeds(sequences, draw, device))) for draw in range(count)
        ]
    finally:
        head.train(was_training)


def can_draw(head: Head) -> bool:
    """Whether a head has any dropout."""
    return any(isinstance(part, Dropout) and part.share > 0 for part in head.modules())


def _seeds(sequences: Sequence[str], draw: int, device: torch.device) -> Int[Tensor, "batch"]:
    digests = [hashlib.sha256(f"{draw} {sequence}".encode()).digest() for sequence in sequences]
    numbers = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
    return torch.tensor(numbers, dtype=torch.long, device=device)
