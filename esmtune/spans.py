"""Where the sequences of a batch lie, worked out once a batch for all layers."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SIMILAR = 1.25  # the longest of a padded block is at most this many times as long as its shortest
PAIRS = 2**22  # of tokens that look at each other in a padded block: 320 MiB of float32 scores for 20 heads


@dataclass(frozen=True)
class Block:
    """Sequences of similar length as rows of one length; which of their columns are tokens that may be seen."""

    rows: int
    length: int
    visible: Bool[Tensor, "rows 1 1 length"] | None  # None where every one of them is


@dataclass(frozen=True)
class Blocks:
    """All sequences of a batch in padded blocks, and the way there and back.

    `into` says which token stands at each place of all blocks, end to end; a place of padding repeats
    its sequence's last. `out` says at which place each token stands.
    """

    blocks: tuple[Block, ...]
    into: Int[Tensor, "places"]
    out: Int[Tensor, "tokens"]


@dataclass(frozen=True, eq=False)
class Spans:
    """The lengths of sequences that lie end to end, and what follows from them, on their device.

    `visible` is given only when there is something that must not be looked at (`<pad>`). What is worked
    out is kept.

    >>> Spans((3, 3, 2), torch.device("cpu")).offsets.tolist()
    [0, 3, 6, 8]
    """

    lengths: tuple[int, ...]
    device: torch.device
    visible: Bool[Tensor, "tokens"] | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths, default=0)

    @cached_property
    def offsets(self) -> Int[Tensor, "starts"]:
        """Where each sequence begins and the last one ends, as kernels for variable lengths take it."""
        ends = torch.tensor((0, *self.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return sent(ends, self.device)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Neighbors of equal length: that length, and how many they are.

        >>> Spans((3, 3, 2), torch.device("cpu")).runs
        ((3, 2), (2, 1))
        """
        return tuple((length, len(list(run))) for length, run in groupby(self.lengths))

    @cached_property
    def blocks(self) -> Blocks:
        """The sequences in blocks of similar length."""
        lengths = torch.tensor(self.lengths, dtype=torch.long)
        starts = lengths.cumsum(0) - lengths
        out = torch.empty(int(lengths.sum()), dtype=torch.long)
        blocks, into, used = [], [], 0
        for members in self._similar():
            longest, column = self.lengths[members[0]], torch.arange(self.lengths[members[0]])
            is_token = column < lengths[members, None]
            tokens = starts[members, None] + torch.minimum(column, lengths[members, None] - 1)
            out[tokens[is_token]] = used + is_token.flatten().nonzero()[:, 0]
            used += tokens.numel()
            into.append(tokens.flatten())
            blocks.append(Block(len(members), longest, self._seen(is_token, tokens)))
        return Blocks(tuple(blocks), sent(torch.cat(into), self.device), sent(out, self.device))

    def _similar(self) -> list[list[int]]:
        """The sequences of each block, longest first."""
        groups: list[list[int]] = []
        for index in sorted(range(len(self.lengths)), key=lambda i: self.lengths[i], reverse=True):
            longest = self.lengths[groups[-1][0]] if groups else 0
            fits = groups and (len(groups[-1]) + 1) * longest**2 <= PAIRS
            if fits and longest <= SIMILAR * self.lengths[index]:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def _seen(self, is_token: Tensor, tokens: Tensor) -> Tensor | None:
        """What may be looked at in a block; nothing to say where that is everything."""
        if self.visible is None and bool(is_token.all()):
            return None
        seen = sent(is_token, self.device)
        if self.visible is not None:
            seen = seen & self.visible[sent(tokens, self.device)]
        return seen[:, None, None]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what that still computes, as a plain copy to CUDA would."""
    return x.to(device, non_blocking=device.type == "cuda")
