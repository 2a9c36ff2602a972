"""The devices and processes that a run computes on, and how what happens there gets back."""

import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing.spawn import ProcessException

from esmtune.config import TrainConfig
from esmtune.devices import choose_device
from esmtune.events import Notice, Progress, Terminated, Watcher
from esmtune.journal import Entry, read_entry, write_entry
from esmtune.shortage import is_out_of_memory

REFUSAL = ".error.txt"  # what a process had to say to the user
SCARCE = (
    "memory ran out in one of several processes, which cannot start over. Take smaller passes (--tokens-per-batch "
    "256), fewer --devices, or a smaller encoder; `esmtune plan` with the same options shows what fits."
)
PATIENCE_SECONDS = 30  # that processes have to save and end when they are asked to

# Fabric announces each process on standard error; whoever wants to hear that can raise the level again.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

Work = Callable[..., list[Entry]]  # called with fabric and watch, in every process; gives what goes back


def rank_outside(config: TrainConfig) -> int:
    """Which of the processes that torchrun or SLURM started this one is; 0 where there is one, or they start here."""
    if config.devices * config.num_nodes > 1:
        for environment in (TorchElasticEnvironment, SLURMEnvironment):
            if environment.detect():
                return environment().global_rank()
    return 0


def launched(config: TrainConfig, work: Work, watch: Watcher, log_folder: Path | None) -> tuple[list[Entry], bool]:
    """Do work in as many processes as the configuration says.

    Returns what the first process made of it, and whether this process is the one that writes files.
    """
    fabric = _fabric(config, log_folder)
    if isinstance(fabric.strategy, DDPStrategy) and fabric.strategy._start_method == "spawn":
        return _spawned(fabric, work, watch), True
    return fabric.launch(partial(work, watch=watch)), fabric.is_global_zero


def _spawned(fabric: Fabric, work: Work, watch: Watcher) -> list[Entry]:
    """Work in processes of this machine: what they say comes back through a queue, what they made as files."""
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    raised: list[BaseException] = []

    def listen() -> None:
        while (event := queue.get()) is not None:
            try:
                if not raised:  # after that, hear on but pass nothing on: a full queue would stop the processes
                    watch(event)
            except BaseException as error:
                raised.append(error)
                threading.Thread(target=_end_processes, daemon=True).start()  # nobody watches any more

    with tempfile.TemporaryDirectory() as folder, terminable():
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            fabric.launch(partial(_to_files, work=work, watch=_Relay(queue), folder=Path(folder)))
        except ProcessException:
            if raised:  # for which they were ended
                raise raised[0] from None
            if said := next(Path(folder).glob(f"*{REFUSAL}"), None):
                raise ValueError(said.read_text(encoding="utf-8")) from None  # a user's error there is one here
            raise
        except BaseException:
            _end_processes()
            raise
        finally:
            queue.put(None)
            listener.join()
        if raised:
            raise raised[0]
        return [read_entry(file) for file in sorted(Path(folder).glob("*.safetensors"))]


def _to_files(fabric: Fabric, *, work: Work, watch: Watcher, folder: Path) -> None:
    try:
        made = work(fabric, watch=watch)
    except (ValueError, RuntimeError, MemoryError) as error:
        is_scarce = is_out_of_memory(error)
        if is_scarce or isinstance(error, ValueError):
            text = SCARCE if is_scarce else str(error)
            (folder / f"{fabric.global_rank}{REFUSAL}").write_text(text, encoding="utf-8")
        raise
    if fabric.is_global_zero:
        for number, entry in enumerate(made):
            write_entry(folder / f"{number:06d}.safetensors", entry)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the wait for processes, which then are told themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _end_processes() -> None:
    """Ask processes to end, which lets them save, and end those that do not."""
    children = torch.multiprocessing.active_children()
    for process in children:
        process.terminate()
    for process in children:
        process.join(PATIENCE_SECONDS)
        process.kill()


@dataclass(frozen=True)
class _Relay:
    """A watcher that hands events to another process."""

    queue: Any

    def __call__(self, event: Notice | Progress) -> None:
        self.queue.put(event)


def _fabric(config: TrainConfig, log_folder: Path | None) -> Fabric:
    started_outside = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    strategy: Any = "auto"
    if config.devices * config.num_nodes > 1:
        # Buffers never change while training, and processes may do different numbers of passes.
        strategy = DDPStrategy(start_method="popen" if started_outside else "spawn", forward_sync_buffers=False)
    return Fabric(
        accelerator=choose_device(config.accelerator),
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy,
        loggers=_loggers(config, log_folder),
    )


def _loggers(config: TrainConfig, folder: Path | None) -> list[Any]:
    loggers: list[Any] = []
    if config.log and folder is None:
        raise ValueError("log writes to the run's folder, but no out is given.")
    for name in config.log:
        if name == "csv":
            from lightning_fabric.loggers.csv_logs import CSVLogger

            loggers.append(CSVLogger(root_dir=str(folder), name="csv", version="", flush_logs_every_n_steps=1))
        else:
            try:
                from lightning_fabric.loggers.tensorboard import TensorBoardLogger

                loggers.append(TensorBoardLogger(root_dir=str(folder), name="tensorboard", version=""))
            except ModuleNotFoundError:
                raise ValueError(
                    "log tensorboard needs it installed: pip install 'esmtune[tensorboard]', or log csv."
                ) from None
    return loggers
