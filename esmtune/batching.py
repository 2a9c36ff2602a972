"""Records of similar length, together, under a budget of tokens."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

SPECIALS = 2  # <cls> and <eos>


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one pass through the network may hold. A sequence beyond it is a batch of its own."""

    tokens: int
    sequences: int | None = None

    def __post_init__(self):
        if self.tokens < 1 or (self.sequences is not None and self.sequences < 1):
            given = f"{self.tokens:,} tokens" + ("" if self.sequences is None else f" and {self.sequences:,} sequences")
            raise ValueError(f"a pass holds at least one token and one sequence, but was given {given}.")

    def halved(self, sequences: int) -> "Budget":
        """Half of it, where a batch of so many sequences was too much."""
        return replace(self, tokens=max(1, self.tokens // 2), sequences=max(1, sequences // 2))


def by_length(indices: Sequence[int], lengths: Sequence[int], budget: Budget) -> Iterator[list[int]]:
    """Yield the indices of each batch, longest first, so that running out of memory happens at once.

    `lengths` counts the residues of every record, of which `indices` picks some.

    >>> list(by_length([0, 1, 2], [3, 9, 4], Budget(tokens=12)))
    [[1], [2, 0]]
    """
    batch: list[int] = []
    total = 0
    for index in sorted(indices, key=lambda i: lengths[i], reverse=True):
        length = lengths[index] + SPECIALS
        if batch and (total + length > budget.tokens or len(batch) == budget.sequences):
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += length
    if batch:
        yield batch


def remaining(
    indices: Sequence[int], missing: Collection[int], lengths: Sequence[int], budget: Budget
) -> list[list[int]]:
    """The batches of what is missing; where whole batches of all are, those, so that nothing is rounded otherwise.

    >>> remaining([0, 1, 2], [0, 2], [3, 9, 4], Budget(tokens=12))
    [[2, 0]]
    """
    missing = set(missing)
    touched = [batch for batch in by_length(indices, lengths, budget) if not missing.isdisjoint(batch)]
    if all(missing.issuperset(batch) for batch in touched):
        return touched
    return list(by_length(sorted(missing), lengths, budget))


def shuffled(count: int, size: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the indices of each global batch of an epoch: all records once, in an order of their own."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    for start in range(0, count, size):
        yield order[start : start + size]
