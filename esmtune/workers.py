"""Trials in this process one after the other, or side by side in several, which know nothing of the search."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import torch

from esmtune.composition import Origin, find_origin
from esmtune.events import silent
from esmtune.heads import head
from esmtune.losses import class_loss, loss, ranking
from esmtune.space import Settings
from esmtune.tasks import task
from esmtune.trials import Answer, Bench, Outcome, attempt
from esmtune.tuning import tuning

SECONDS_TO_END = 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings to try, and the number that their outcome goes by."""

    number: int
    settings: Settings


Ask = Callable[[], Job | None]
Hear = Callable[[int, int, float], Answer]  # number of the job, step, value
Tell = Callable[[int, Outcome], None]


def origin_of(bench: Bench) -> Origin:
    """What every trial begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bench.config.seed)
        return find_origin(bench.config, bench.data, silent)


def work_through(bench: Bench, origin: Origin, jobs: int, *, ask: Ask, hear: Hear, tell: Tell) -> None:
    """Do what `ask` gives until it gives nothing, in this process or in so many others."""
    if jobs > 1:
        _side_by_side(bench, jobs, ask, hear, tell)
        return
    while (job := ask()) is not None:
        tell(job.number, attempt(bench, origin, job.settings, partial(hear, job.number)))


def _side_by_side(bench: Bench, jobs: int, ask: Ask, hear: Hear, tell: Tell) -> None:
    idle: list[tuple[Any, Any]] = []
    busy: dict[Any, tuple[Any, int]] = {}
    count = 0
    try:
        while True:
            while len(busy) < jobs and (job := ask()) is not None:
                process, pipe = idle.pop() if idle else _started(bench)
                pipe.send(dict(job.settings))
                busy[pipe] = process, job.number
                count += 1
            if not busy:
                return
            ready: list[Any] = list(wait(list(busy)))
            for pipe in ready:
                process, number = busy[pipe]
                try:
                    kind, *said = pipe.recv()
                except EOFError:
                    process.join()
                    del busy[pipe]
                    tell(number, Outcome(state="failed", reason=f"its process ended with {process.exitcode}"))
                    continue
                if kind == "report":
                    pipe.send(hear(number, *said))
                else:
                    del busy[pipe]
                    idle.append((process, pipe))
                    tell(number, *said)
    finally:
        _ended([process for process, _ in idle] + [process for process, _ in busy.values()])


def _started(bench: Bench) -> tuple[Any, Any]:
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, bench, _modules()), daemon=True)
    with _one_thread_each():
        process.start()
    theirs.close()
    return process, ours


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started have a thread each, of torch and NumPy alike, unless the user says how many."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # which libraries read as they are loaded
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _ended(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(SECONDS_TO_END)
        process.kill()


def _modules() -> list[str]:
    """Modules with parts of the user's own, which another process must import too."""
    registries: tuple[Any, ...] = (head, task, tuning, loss, class_loss, ranking)
    found = {registry[name].__module__ for registry in registries for name in registry}
    return sorted(name for name in found if not name.startswith("esmtune.") and name != "__main__")


def _work(pipe: Any, bench: Bench, modules: list[str]) -> None:
    """What a process of the search does: trials, until nobody asks for more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it hears that, and ends it
    sys.path.insert(0, os.getcwd())
    for name in modules:
        importlib.import_module(name)

    def report(step: int, value: float) -> Answer:
        pipe.send(("report", step, value))
        return pipe.recv()

    try:
        origin = origin_of(bench)
        while True:
            pipe.send(("done", attempt(bench, origin, pipe.recv(), report)))
    except (EOFError, BrokenPipeError):
        return
