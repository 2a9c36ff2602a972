"""Records of similar length, together, under a budget of tokens."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

T = TypeVar("T")
SPECIALS = 2  # <cls> and <eos>


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one pass through the network may hold. A sequence beyond it is a batch of its own."""

    tokens: int
    sequences: int | None = None

    def __post_init__(self):
        if self.tokens < 1 or (self.sequences is not None and self.sequences < 1):
            raise ValueError(f"a batch holds at least one token and one sequence, got {self}.")

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


def halving(batch: Sequence[int], compute: Callable[[Sequence[int]], T]) -> Iterator[tuple[Sequence[int], T]]:
    """Compute a batch; what does not fit into memory is halved and computed again, so that no record is lost.

    Yields parts of the batch, in its order, and what came of each.

    Raises:
        TooLittleMemoryError: if a single sequence does not fit.
    """
    left = [batch]
    while left:
        part = left.pop()
        try:
            found = compute(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) < 2:
                raise TooLittleMemoryError(
                    "a single sequence does not fit into memory. Cut long ones: --max-length."
                ) from error
            half = len(part) // 2
            left += [part[half:], part[:half]]
            continue
        yield part, found


class TooLittleMemoryError(ValueError):
    """There is too little memory for the least that can be computed at once."""


# What torch says where memory ran out on a CPU: its allocator, C++, and oneDNN, which asks for code and for work space.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "could not create a primitive", "could not create a memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left; torch has a class of its own for GPUs alone.

    >>> is_out_of_memory(RuntimeError("could not create a primitive"))
    True
    >>> is_out_of_memory(RuntimeError("could not create a primitive descriptor for the matmul primitive"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error)
    # A descriptor is refused for what is asked, not for want of memory.
    return any(known in said for known in OUT_OF_MEMORY) and "descriptor" not in said


def shuffled(count: int, size: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the indices of each global batch of an epoch: all records once, in an order of their own."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    for start in range(0, count, size):
        yield order[start : start + size]
