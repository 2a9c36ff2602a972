"""The training loop, one function read from top to bottom, and what it needs around it."""

import copy
import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException

from esmtune.batching import shuffled
from esmtune.composition import compose, starts_anew
from esmtune.config import TrainConfig
from esmtune.events import Notice, Progress, Watcher
from esmtune.inputs import Inputs, sum_over_processes
from esmtune.metrics import Scores
from esmtune.optimization import Schedule, dropout_seed, parameter_groups
from esmtune.predictor import Predictor, choose_device
from esmtune.records import Dataset
from esmtune.tasks import Task, Total

STATISTICS_SAMPLE = 1024  # sequences that tell mean and spread of the features, where the encoder moves

# Fabric announces each process on standard error; whoever wants to hear that can raise the level again.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What training gave: the best weights, how it went, and the outputs for every labeled record."""

    weights: dict[str, Tensor]
    history: list[dict[str, Any]]
    best: dict[str, Any]
    outputs: Tensor  # [records, outputs], in the order of the dataset's labeled records
    is_main: bool  # whether this process is the one that writes files


def fit(config: TrainConfig, data: Dataset, watch: Watcher, log_folder: Path | None = None) -> tuple[Predictor, Fitted]:
    """Train on the training records, choose by the validation records, and read the test records once, at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        predictor = compose(config, data, watch)
    fabric = _fabric(config, log_folder)
    if isinstance(fabric.strategy, DDPStrategy) and fabric.strategy._start_method == "spawn":
        fitted = _fit_in_processes(fabric, config, data, predictor, watch)
    else:
        fitted = fabric.launch(partial(_fit, config=config, data=data, predictor=predictor, watch=watch))
    predictor.cpu().load_state_dict(fitted.weights, strict=False)
    return predictor.eval(), fitted


def _fit_in_processes(
    fabric: Fabric, config: TrainConfig, data: Dataset, predictor: Predictor, watch: Watcher
) -> Fitted:
    """Train in processes of this machine: what they say comes back through a queue, what they made as a file."""
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()

    raised: list[BaseException] = []

    def listen() -> None:
        while (event := queue.get()) is not None:
            try:
                if not raised:  # after that, hear on but pass nothing on: a full queue would stop the processes
                    watch(event)
            except BaseException as error:
                raised.append(error)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fitted.pt"
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            fabric.launch(
                partial(_fit_to_file, config=config, data=data, predictor=predictor, watch=_Relay(queue), file=file)
            )
        except ProcessRaisedException as error:
            last = str(error).strip().splitlines()[-1]
            if last.startswith("ValueError: "):  # a user's error in a process is a user's error here
                raise ValueError(last.removeprefix("ValueError: ")) from None
            raise
        except BaseException:
            for process in torch.multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            queue.put(None)
            listener.join()
        if raised:
            raise raised[0]
        return Fitted(**torch.load(file, weights_only=True))


@dataclass(frozen=True)
class _Relay:
    """A watcher that hands events to another process."""

    queue: Any

    def __call__(self, event: Notice | Progress) -> None:
        self.queue.put(event)


def _fit_to_file(
    fabric: Fabric, *, config: TrainConfig, data: Dataset, predictor: Predictor, watch: Watcher, file: Path
) -> None:
    # What comes to a process lies in memory that all share, and each must have weights of its own.
    own = copy.deepcopy(predictor)
    fitted = _fit(fabric, config=config, data=data, predictor=own, watch=watch)
    if fitted.is_main:
        torch.save(vars(fitted), file)


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
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
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


def _fit(fabric: Fabric, *, config: TrainConfig, data: Dataset, predictor: Predictor, watch: Watcher) -> Fitted:
    watch = watch if fabric.is_global_zero else (lambda event: None)
    records = data.of(None)
    train, valid, test = ([i for i, r in enumerate(records) if r.split == s] for s in ("train", "valid", "test"))
    labels = [r.label for r in records]
    targets = predictor.task.targets(labels).to(fabric.device)
    predictor.to(fabric.device)
    inputs = Inputs(fabric, predictor, records, config, watch)

    # What the head sees is standardized by what the training records look like before anything moves.
    inputs.prepare([*train, *valid], "embedding")
    if any(starts_anew(config, n) for n in predictor.state_dict() if n.startswith(("encoder.", "head.standardize."))):
        sample = train if inputs.is_frozen else _sample(train, config.seed)
        features = (
            torch.stack([inputs._pooled[i] for i in sample])
            if inputs.is_frozen
            else inputs.features(sample, "measuring")
        )
        predictor.head.standardize.fit(features.to(fabric.device))

    optimizer = torch.optim.AdamW(parameter_groups(predictor, config))
    model, optimizer = fabric.setup(_Network(predictor), optimizer)
    schedule = Schedule(config, len(train))
    metric = _metric(config, predictor.task, [labels[i] for i in valid], watch)
    history: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    weights = _moving(predictor)
    running = Total(torch.zeros((), device=fabric.device), 0)
    start = time.monotonic()

    for step, epoch, places, is_last_of_epoch in schedule:
        # One step: the loss is the sum over all labeled points of the global batch, divided by their
        # count, however the batch is split into micro-batches and over processes.
        model.train()
        batch = [train[place] for place in places]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.factor(step)
        count = int(predictor.task.known(targets[batch]).sum())
        micro_batches = inputs.mine(batch)
        for number, micro in enumerate(micro_batches, start=1):
            seeds = torch.tensor(micro, dtype=torch.long) + dropout_seed(config.seed, epoch)
            with fabric.no_backward_sync(model, enabled=number < len(micro_batches)):
                part = predictor.task.loss(model(SimpleNamespace(batch=inputs(micro, seeds))), targets[micro])
                fabric.backward(part.sum / count * fabric.world_size)  # DDP takes the mean over processes
            running += Total(part.sum.detach(), part.count)
        if not torch.isfinite(running.sum):
            ids = ", ".join(records[i].id for i in batch[:8])
            raise ValueError(
                f"the loss became {running.sum.item()} at step {step} (ids {ids}). "
                "Lower --encoder-learning-rate or --head-learning-rate."
            )
        fabric.clip_gradients(model, optimizer, max_norm=config.clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        watch(Progress("training", step, schedule.total, "steps", f"epoch {epoch}{_best_so_far(best, metric)}"))
        if not is_last_of_epoch:
            continue

        # One evaluation: what was learned, whether it is the best so far, whether to go on.
        entry = {
            "step": step,
            "epoch": epoch,
            "train_loss": _mean(fabric, running),
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        running = Total(torch.zeros((), device=fabric.device), 0)
        if valid:
            outputs = inputs.outputs(valid, "validating")
            known = [labels[i] for i in valid]
            entry["valid_loss"] = predictor.task.loss(outputs, targets[valid].cpu()).mean.item()
            entry["valid"] = predictor.task.scores(outputs, known)
        history.append(entry | {"seconds": round(time.monotonic() - start, 3)})
        fabric.log_dict(_flat(entry), step)
        if not best or not valid or _better(entry, best, metric):
            best, weights = entry, _moving(predictor)
        if valid and epoch - best["epoch"] >= config.patience:
            watch(
                Notice(f"Stopped after epoch {epoch}: no better {metric} on validation for {config.patience} epochs.")
            )
            break

    predictor.load_state_dict(weights, strict=False)
    outputs = inputs.outputs([*train, *valid], "predicting")
    if test:  # read here for the first time
        outputs = torch.cat((outputs, inputs.outputs(test, "testing")))
    order = torch.tensor([*train, *valid, *test]).argsort()
    best = {**best, "metric": metric if valid else None}
    return Fitted(weights=weights, history=history, best=best, outputs=outputs[order], is_main=fabric.is_global_zero)


class _Network(nn.Module):
    """A predictor as Fabric can wrap it: a batch comes in an opaque parcel, for Fabric takes containers apart."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, parcel: SimpleNamespace) -> Tensor:
        return self.predictor(parcel.batch)


def _moving(predictor: Predictor) -> dict[str, Tensor]:
    """A copy of what training changes."""
    names = {f"encoder.{n}" for n, w in predictor.encoder.named_parameters() if w.requires_grad}
    state = predictor.state_dict()
    return {n: w.detach().cpu().clone() for n, w in state.items() if n in names or n.startswith("head.")}


def _metric(config: TrainConfig, fitted: Task, labels: Sequence[Any], watch: Watcher) -> str:
    """What chooses the best weights: the task's metric, unless the validation labels cannot define it."""
    wanted = config.metric or fitted.metric
    possible = fitted.scores(fitted.baseline(len(labels)), labels)
    if wanted not in ("loss", *possible):
        raise ValueError(f"there is no metric {wanted!r} for {fitted.name}. There are: loss, {', '.join(possible)}.")
    of_classes = wanted in ("auroc", "auprc") and possible[wanted] is None  # a class has no validation row
    if wanted != "loss" and labels and (len(set(labels)) < 2 or of_classes):
        watch(Notice(f"{wanted} is not defined on the labels of the validation rows: the loss chooses instead."))
        return "loss"
    return wanted


def _better(entry: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    if metric == "loss":
        return entry["valid_loss"] < best["valid_loss"]
    new, old = entry["valid"][metric], best["valid"][metric]
    sign = -1 if metric in ("rmse", "mae") else 1
    return new is not None and (old is None or sign * new > sign * old)


def _best_so_far(best: dict[str, Any], metric: str) -> str:
    value = best.get("valid_loss") if metric == "loss" else best.get("valid", {}).get(metric)
    return "" if value is None else f", best {metric} {value:.3f}"


def _mean(fabric: Fabric, part: Total) -> float:
    both = torch.stack((part.sum.double(), torch.tensor(float(part.count), device=part.sum.device, dtype=torch.double)))
    total = sum_over_processes(fabric, both)
    return (total[0] / total[1]).item()


def _sample(indices: list[int], seed: int) -> list[int]:
    order = next(shuffled(len(indices), len(indices), seed=seed, epoch=0))
    return [indices[i] for i in order[:STATISTICS_SAMPLE]]


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    scores: Scores = entry.get("valid", {})
    numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
    return numbers | {f"valid_{name}": value for name, value in scores.items() if value is not None}
