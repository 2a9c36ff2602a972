"""Training: how a predictor is put together, and the loop, one function read from top to bottom."""

import copy
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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

from esmtune.batching import Budget, by_length, shuffled
from esmtune.config import DEFAULT_ENCODER, DEFAULT_HEAD, TrainConfig
from esmtune.esm2 import ESM2, Tokens
from esmtune.events import Notice, Progress, Watcher
from esmtune.heads import Pooled, head
from esmtune.metrics import Scores
from esmtune.predictor import Predictor, Spec, choose_device, evaluating, find_encoder
from esmtune.records import Dataset, Record
from esmtune.tasks import Task, Total, task
from esmtune.tuning import tuning

STATISTICS_SAMPLE = 1024  # sequences that tell mean and spread of the features, where the encoder moves


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What training gave: the best weights, how it went, and the outputs for every labeled record."""

    weights: dict[str, Tensor]
    history: list[dict[str, Any]]
    best: dict[str, Any]
    outputs: Tensor  # [records, outputs], in the order of the dataset's labeled records
    is_main: bool  # whether this process is the one that writes files


# --- Putting a predictor together ---------------------------------------------------------------


def compose(config: TrainConfig, data: Dataset, watch: Watcher) -> Predictor:
    """Put encoder, head and task together, from the configuration and, with `init`, from a saved predictor.

    Raises:
        ValueError: for a part, option, encoder or predictor that cannot be had, or that does not fit the data.
    """
    labels = [r.label for r in data.of("train")]
    task_spec = task.resolve(config.task or {"name": data.kind})
    tuning_spec = tuning.resolve(config.tuning)
    fitted = task[data.kind].fit(labels, **{k: v for k, v in task_spec.items() if k != "name"})
    start = Predictor.load(config.init) if config.init else None
    if start is None:
        encoder, source, moved = find_encoder(config.encoder or DEFAULT_ENCODER)
        head_spec = config.head or {"name": DEFAULT_HEAD}
    else:
        if config.encoder:
            raise ValueError(
                "init brings its own encoder: leave out encoder, or take encoder=RUN for the encoder alone."
            )
        encoder, source, moved = start.encoder, start.spec.encoder, start.moved
        head_spec = config.head or start.spec.head
        if "head" not in config.init_skip:
            fitted = _same_task(fitted, start)
    spec = Spec(
        encoder=source,
        shape=encoder.config,
        tuning=tuning_spec,
        head=head.resolve(head_spec),
        task=fitted.spec(),
        target=data.target,
        max_length=config.max_length,
        trained_on={"records": len(labels), "sha256": data.sha256},
    )
    if source.is_random:
        watch(Notice(f"The encoder {source.name} starts from RANDOM weights: it has seen no protein."))
    if source.left_out:
        watch(Notice(f"Left out of {source.name}, being no part of the encoder: {', '.join(source.left_out)}."))
    if start is None:
        return _tuned(Predictor(spec, encoder, moved), tuning_spec)
    fresh = Predictor(spec, ESM2(encoder.config), moved)
    return _tuned(_initialized(fresh, start, config, watch), tuning_spec)


def _tuned(predictor: Predictor, spec: dict[str, Any]) -> Predictor:
    """Let those weights move that the tuning says, and note them as moved."""
    predictor.encoder.requires_grad_(False)
    tuning.build(spec, predictor.encoder)
    moving = {name for name, weight in predictor.encoder.named_parameters() if weight.requires_grad}
    if len(moving) == len(list(predictor.encoder.parameters())):
        moving |= set(predictor.encoder.state_dict())
    predictor.moved |= moving
    return predictor


def _same_task(fitted: Task, start: Predictor) -> Task:
    """The saved task goes on, for its head was trained in its unit and its order of classes."""
    old = start.task
    strangers = set(getattr(fitted, "classes", ())) - set(getattr(old, "classes", ()))
    if fitted.name != old.name or strangers:
        what = f"has no class {', '.join(sorted(strangers))}" if fitted.name == old.name else f"is a {old.name}"
        raise ValueError(
            f"the predictor to start from {what}, but the data is a {fitted.name}. Start its head anew: --init-skip head."
        )
    return replace(old, **{k: v for k, v in fitted.spec().items() if k == "loss_name"})  # pyright: ignore[reportArgumentType]


def _initialized(fresh: Predictor, start: Predictor, config: TrainConfig, watch: Watcher) -> Predictor:
    """Load what is not skipped of a saved predictor, and say what was loaded and what is new."""
    saved, wanted = start.state_dict(), fresh.state_dict()
    for prefix in config.init_skip:
        if not any(_begins(name, prefix) for name in saved):
            raise ValueError(
                f"no weight of {config.init} begins with {prefix!r}. There are: {', '.join(_tops(saved))}."
            )
    kept = {name: w for name, w in saved.items() if not any(_begins(name, prefix) for prefix in config.init_skip)}
    wrong = [n for n in kept if n not in wanted or wanted[n].shape != kept[n].shape]
    if wrong:
        raise ValueError(
            f"{config.init} does not fit the head that is asked for ({', '.join(wrong)}). Start it anew: --init-skip head."
        )
    fresh.load_state_dict(kept, strict=False)
    new = sorted(wanted.keys() - kept.keys())
    fresh.moved |= {name.removeprefix("encoder.") for name in new if name.startswith("encoder.")}
    watch(Notice(f"From {config.init}: {len(kept)} weights loaded; new: {', '.join(new) or 'none'}."))
    return fresh


def _begins(name: str, prefix: str) -> bool:
    """Whether a dotted name begins with whole words of a prefix, so that layer 1 is not layer 10."""
    return name == prefix or name.startswith(prefix.removesuffix(".") + ".")


def _tops(names: Sequence[str] | dict[str, Tensor]) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in names})


# --- What passes through the network ------------------------------------------------------------


class Inputs:
    """What the network is given for each record: its tokens, or what a frozen encoder and the pool made of them once."""

    def __init__(
        self, fabric: Fabric, predictor: Predictor, records: Sequence[Record], config: TrainConfig, watch: Watcher
    ):
        self.fabric, self.predictor, self.watch = fabric, predictor, watch
        self.sequences = [r.sequence for r in records]
        self.lengths = [len(s) for s in self.sequences]
        self.budget = Budget(tokens=config.tokens_per_batch, sequences=config.micro_batch_size)
        self.is_frozen = not any(w.requires_grad for w in predictor.encoder.parameters())
        self._pooled: dict[int, Tensor] = {}

    def __call__(self, batch: Sequence[int], seeds: Tensor | None = None) -> Tokens | Pooled:
        """The input for some records, each with the seed of its dropout."""
        device = self.fabric.device
        seeds = torch.zeros(len(batch), dtype=torch.long) if seeds is None else seeds
        if self.is_frozen:
            dim = self.predictor.spec.shape.embed_dim
            features = torch.stack([self._pooled[i] for i in batch]) if batch else torch.empty(0, dim)
            return Pooled(features.to(device), seeds.to(device))
        return Tokens.of([self.sequences[i] for i in batch], seeds).to(device)

    def mine(self, batch: Sequence[int]) -> list[list[int]]:
        """The micro-batches of this process; where there are too few for all, one of no sequence."""
        fabric = self.fabric
        share = -(-sum(self.lengths[i] + 2 for i in batch) // fabric.world_size)
        budget = replace(self.budget, tokens=min(self.budget.tokens, share)) if fabric.world_size > 1 else self.budget
        return list(by_length(batch, self.lengths, budget))[fabric.global_rank :: fabric.world_size] or [[]]

    def prepare(self, indices: Sequence[int], stage: str) -> None:
        """Pass records through a frozen encoder, once."""
        if self.is_frozen:
            new = [i for i in indices if i not in self._pooled]
            self._pooled |= dict(zip(new, self.features(new, stage), strict=True))

    def features(self, indices: Sequence[int], stage: str) -> Tensor:
        """What the pool makes of records, on the CPU."""
        dim = self.predictor.spec.shape.embed_dim
        return self._gathered(
            indices, dim, stage, lambda b: self.predictor.head.pool(self.predictor.encoder(self._tokens(b))).features
        )

    def outputs(self, indices: Sequence[int], stage: str) -> Tensor:
        """What the network gives for records, in evaluation mode, on the CPU."""
        self.prepare(indices, stage)
        return self._gathered(indices, self.predictor.task.num_outputs, stage, lambda b: self.predictor(self(b)))

    def _tokens(self, batch: Sequence[int]) -> Tokens:
        return Tokens.of([self.sequences[i] for i in batch]).to(self.fabric.device)

    @torch.no_grad()
    def _gathered(self, indices: Sequence[int], width: int, stage: str, compute: Any) -> Tensor:
        """Rows computed by all processes together: each fills in its own, and the sum is the whole."""
        place = {index: row for row, index in enumerate(indices)}
        rows = torch.zeros(len(indices), width)
        batches = list(by_length(indices, self.lengths, self.budget))
        done = 0
        with evaluating(self.predictor), self.fabric.autocast():
            for number, batch in enumerate(batches):
                if number % self.fabric.world_size == self.fabric.global_rank:
                    rows[[place[i] for i in batch]] = compute(batch).float().cpu()
                done += len(batch)
                self.watch(Progress(stage, done, len(indices), "sequences"))
        if self.fabric.world_size > 1:
            rows = _sum(self.fabric, rows.to(self.fabric.device)).cpu()
        return rows


# --- The loop -----------------------------------------------------------------------------------


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

    def listen() -> None:
        while (event := queue.get()) is not None:
            watch(event)

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
        finally:
            queue.put(None)
            listener.join()
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
    if not config.init or "head" in config.init_skip:
        sample = train if inputs.is_frozen else _sample(train, config.seed)
        features = (
            torch.stack([inputs._pooled[i] for i in sample])
            if inputs.is_frozen
            else inputs.features(sample, "measuring")
        )
        predictor.head.standardize.fit(features.to(fabric.device))

    optimizer = torch.optim.AdamW(_parameter_groups(predictor, config))
    model, optimizer = fabric.setup(_Network(predictor), optimizer)
    schedule = _Schedule(config, len(train))
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
            seeds = torch.tensor(micro, dtype=torch.long) + (epoch << 32) + (config.seed << 48)
            with fabric.no_backward_sync(model, enabled=number < len(micro_batches)):
                part = predictor.task.loss(model(SimpleNamespace(batch=inputs(micro, seeds))), targets[micro])
                fabric.backward(part.sum / count * fabric.world_size)  # DDP takes the mean over processes
            running += Total(part.sum.detach(), part.count)
        if not torch.isfinite(running.sum):
            ids = ", ".join(records[i].id for i in batch[:8])
            raise ValueError(
                f"the loss became {running.sum.item()} at step {step} (ids {ids}). Lower encoder_learning_rate or head_learning_rate."
            )
        fabric.clip_gradients(model, optimizer, max_norm=config.clip, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        watch(Progress("training", step, schedule.total, "steps", f"epoch {epoch}"))
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
    """A predictor as Fabric can wrap it: a batch comes in an opaque parcel, for Fabric takes frozen containers apart."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, parcel: SimpleNamespace) -> Tensor:
        return self.predictor(parcel.batch)


class _Schedule:
    """The steps of a run, and how high the learning rate stands at each."""

    def __init__(self, config: TrainConfig, count: int):
        self.config, self.count = config, count
        per_epoch = -(-count // config.global_batch_size)
        self.total = config.max_steps or config.epochs * per_epoch

    def __iter__(self) -> Iterator[tuple[int, int, list[int], bool]]:
        """Each step's number, its epoch, its global batch, and whether an evaluation is due after it."""
        step = epoch = 0
        while step < self.total:
            epoch += 1
            batches = list(shuffled(self.count, self.config.global_batch_size, seed=self.config.seed, epoch=epoch))
            for number, batch in enumerate(batches, start=1):
                step += 1
                yield step, epoch, batch, number == len(batches) or step == self.total
                if step == self.total:
                    break

    def factor(self, step: int) -> float:
        """Rise in a line during the warm-up, then fall along a cosine to nothing."""
        rise = round(self.config.warmup * self.total)
        if step <= rise:
            return step / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise - 1) / max(1, self.total - rise)))


def _parameter_groups(predictor: Predictor, config: TrainConfig) -> list[dict[str, Any]]:
    """Encoder and head at their own rates; weight decay on matrices, not on norms and biases."""
    groups = []
    for part, peak in ((predictor.head, config.head_learning_rate), (predictor.encoder, config.encoder_learning_rate)):
        moving = [w for w in part.parameters() if w.requires_grad]
        for decay in (config.weight_decay, 0.0):
            weights = (
                [w for w in moving if (w.ndim > 1) == (decay > 0)] if config.weight_decay else moving * (decay == 0)
            )
            if weights:
                groups.append({"params": weights, "lr": peak, "peak": peak, "weight_decay": decay})
    return groups


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
    if wanted != "loss" and labels and len(set(labels)) < 2:
        watch(Notice(f"{wanted} is not defined on validation rows with a single label: the loss chooses instead."))
        return "loss"
    return wanted


def _better(entry: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    if metric == "loss":
        return entry["valid_loss"] < best["valid_loss"]
    new, old = entry["valid"][metric], best["valid"][metric]
    sign = -1 if metric in ("rmse", "mae") else 1
    return new is not None and (old is None or sign * new > sign * old)


def _mean(fabric: Fabric, part: Total) -> float:
    both = torch.stack((part.sum.double(), torch.tensor(float(part.count), device=part.sum.device, dtype=torch.double)))
    total = _sum(fabric, both)
    return (total[0] / total[1]).item()


def _sum(fabric: Fabric, x: Tensor) -> Tensor:
    """The sum over processes."""
    total = fabric.all_reduce(x, reduce_op="sum") if fabric.world_size > 1 else x
    assert isinstance(total, Tensor)
    return total


def _sample(indices: list[int], seed: int) -> list[int]:
    order = next(shuffled(len(indices), len(indices), seed=seed, epoch=0))
    return [indices[i] for i in order[:STATISTICS_SAMPLE]]


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    scores: Scores = entry.get("valid", {})
    numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
    return numbers | {f"valid_{name}": value for name, value in scores.items() if value is not None}
