"""What is done where memory runs out, so that no record is lost."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import torch

from esmtune.memory import give_back_now, is_room_for_threads, share_arena

T = TypeVar("T")

# What torch says where memory ran out on a CPU: its allocator, C++, and oneDNN, which asks for code and for work space.
NO_CODE = "could not create a primitive"
SIGNS = ("DefaultCPUAllocator", "std::bad_alloc", NO_CODE, "could not create a memory")
warnings.filterwarnings("ignore", "mkldnn_.* failed")  # `attempted` sees to it


class TooLittleMemoryError(ValueError):
    """There is too little memory for the least that can be computed at once."""


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
    return any(known in said for known in SIGNS) and "descriptor" not in said


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
            found = with_code(compute, part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) < 2:
                raise TooLittleMemoryError(
                    "a single sequence does not fit into memory. Cut long ones: --max-length."
                ) from error
            half = len(part) // 2
            left += [part[half:], part[:half]]
        else:
            yield part, found
            continue
        give_back_now()  # here, where the error no longer holds what had been computed


def attempted(compute: Callable[..., T], *args: object) -> T:
    """Compute, and tell of a product in which oneDNN found no memory for its code by the error of all others.

    Of batched products in bfloat16 torch only warns, and does without oneDNN, thirty times as slow, for the rest of
    the process.

    Raises:
        RuntimeError: in place of that, if there is room for another thread; and what `compute` raises.
    """
    before = torch.backends.mkldnn.enabled
    try:
        answer = compute(*args)
        is_refused = before and not torch.backends.mkldnn.enabled
    finally:
        if before:
            torch.backends.mkldnn.enabled = True
    if is_refused and threading.current_thread() is threading.main_thread() and _is_room():
        raise RuntimeError(NO_CODE)
    return answer


def _is_room() -> bool:
    """Whether another thread can have its own stack, and those of its products."""
    return is_room_for_threads(1 + torch.get_num_threads())


def with_code(compute: Callable[..., T], *args: object) -> T:
    """Compute from the beginning again, in a thread of its own, if oneDNN refuses this one its code.

    oneDNN compiles in the thread that asks, and one that was denied memory once is refused everything new from then
    on, however much has come free (github.com/uxlfoundation/oneDNN/pull/5907, of 2026, clears that mark). What is
    computed finds the thread's mode of gradients there, but must open an autocast by itself.
    """
    try:
        return attempted(compute, *args)
    except RuntimeError as error:
        if not (is_out_of_memory(error) and NO_CODE in str(error)):
            raise
        refused = str(error)
    give_back_now()
    if not _is_room():
        raise RuntimeError(refused)
    share_arena()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            answer = thread.submit(copy_context().run, _as_here(compute), *args)
        except RuntimeError as error:  # a process may have so many of them
            raise RuntimeError(refused) from error
        return answer.result()


def _as_here(compute: Callable[..., T]) -> Callable[..., T]:
    """The same, with or without a graph as in the thread that it comes from: torch asks each for itself."""
    grads, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run(*args: object) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(grads):
            return compute(*args)

    return run
