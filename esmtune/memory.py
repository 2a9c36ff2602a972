"""How much memory a process took at its peak, and how much a device has left; 1 GiB is 2 to the 30th bytes."""

import ctypes
import gc
import mmap
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # in malloc.h
STACK = 8 * 2**20  # bytes: of a thread, where none is set
BESIDE = 4 * 2**20  # bytes: what else a thread takes as it starts


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most that was held at once since the process began, in bytes; `children` and `cuda` are 0 if there are none.

    >>> Peak(process=3 * GIB, children=0, cuda=GIB // 2).text
    'Peak memory: 3.00 GiB, and 0.50 GiB on the GPU.'
    """

    process: int  # resident, of this process
    children: int  # resident, of the largest process that it started and that has ended
    cuda: int  # allocated by torch on this process's GPU

    @property
    def text(self) -> str:
        """A sentence for the user."""
        children = f", and {self.children / GIB:,.2f} GiB of the largest process it started" if self.children else ""
        cuda = f", and {self.cuda / GIB:,.2f} GiB on the GPU" if self.cuda else ""
        return f"Peak memory: {self.process / GIB:,.2f} GiB{children}{cuda}."

    def entries(self) -> dict[str, Any]:
        """What stands in a run's `environment.json`: GiB of what, and how each was measured."""
        measured = {
            "process": (self.process, "largest resident set of the process since it began"),
            "largest_child": (self.children, "largest resident set of any one process that it started"),
            "cuda": (self.cuda, "torch.cuda.max_memory_allocated"),
        }
        found = {name: pair for name, pair in measured.items() if pair[0]}
        return {
            "peak_memory_gib": {name: round(size / GIB, 3) for name, (size, _) in found.items()},
            "peak_memory_is": {name: how for name, (_, how) in found.items()},
        }


def peak_memory(*, children: bool = False) -> Peak:
    """What this process and its GPU held at their peaks, so far, and with `children` the processes that it started.

    These begin as copies of it, so that small programs that it called look as large as it was.

    >>> peak_memory().process > 0
    True
    """
    cuda = 0
    torch = sys.modules.get("torch")  # to import it would be the peak
    if torch is not None and torch.cuda.is_initialized():
        cuda = torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit if children else 0
    return Peak(process=_high_water_mark() or own, children=largest, cuda=cuda)


def free_memory(device: str) -> int:
    """Bytes that a kind of device ("cpu", "cuda", "mps") has left for this process.

    On a CPU that is what the system calls available, or what a container's limit leaves if that is less.

    >>> free_memory("cpu") > 0
    True
    """
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    return max(0, int(min(psutil.virtual_memory().available, _left_by_limits(Path("/proc/self/cgroup"), Path("/")))))


def whole_memory() -> int:
    """Bytes of memory that this process may ever have: the machine's, or a container's limit if that is less.

    >>> whole_memory() >= free_memory("cpu")
    True
    """
    import psutil

    limits = (most for most, _ in _limits(Path("/proc/self/cgroup"), Path("/")))
    return int(min([psutil.virtual_memory().total, *limits]))


def give_back_at_once() -> None:
    """From now on, let every freed block of a megabyte and more leave this process at once, where it runs on glibc.

    Otherwise glibc keeps them between blocks that are in use, and a training that keeps little of much takes up to
    six times as much memory. It costs 15 to 60 % more time (the 8M and the 35M, two cores of an AMD EPYC).
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, 2**20)


def give_back_now() -> None:
    """Let go of what glibc and GPUs keep of freed blocks, and of the graph of a backward pass that failed.

    What is asked next may not come from there.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():  # until then torch keeps what a failed one had left to do
        torch.zeros((), requires_grad=True).backward()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _glibc("malloc_trim", 0)


def share_arena() -> None:
    """Let threads that start from now on allocate where all do: glibc reserves 64 MiB for an arena of their own."""
    _glibc("mallopt", _M_ARENA_MAX, 1)


def is_room_for_threads(count: int) -> bool:
    """Whether so many threads can have their stacks; where libgomp cannot start one, it ends the whole process."""
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    try:
        mmap.mmap(-1, count * (stack if stack > 0 else STACK) + BESIDE).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _glibc(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)  # other C libraries have none, and need none
        if function is not None:
            function(*arguments)


def _high_water_mark() -> int:
    """Linux's own mark of this process alone, in bytes: ru_maxrss begins with that of the program that started it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines.get("VmHWM", "0 kB").split()[0]) * 1024


def _left_by_limits(groups: Path, root: Path) -> float:
    """Bytes that the control groups of this process, and those around them, leave; infinity without a limit."""
    return min([most - used for most, used in _limits(groups, root)], default=float("inf"))


def _limits(groups: Path, root: Path) -> Iterator[tuple[float, float]]:
    """The most that the control groups of this process, and those around them, may hold, and what they hold."""
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            yield from _limit_of(place, *names)
            if place == top:
                break


def _limit_of(folder: Path, limit: str, used: str) -> Iterator[tuple[float, float]]:
    """What one control group may hold, and what it holds; pages of files that it could give up do not count."""
    with suppress(OSError, ValueError):  # there is none, or it is not for us to read
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if most != "max":
            reclaimable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))
            yield float(int(most)), float(now - reclaimable)
