"""The training loop, one function read from top to bottom, and what it needs around it."""

import math
import threading
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from esmtune.applicability import References, sampled
from esmtune.config import TrainConfig
from esmtune.events import Notice, Progress, Terminated, Watcher, silent
from esmtune.features import Kept, sum_over_processes
from esmtune.gradients import affordable, nothing, step_of
from esmtune.inputs import Inputs
from esmtune.journal import Journal
from esmtune.masking import guessed
from esmtune.optimization import Schedule, dropout_seed, moved_average
from esmtune.predictor import Predictor
from esmtune.preparation import centered, set_up
from esmtune.records import SPLITS, Dataset, Label
from esmtune.selection import best_so_far, better, choosing_metric, numbers_of, recent
from esmtune.stacking import with_ridge
from esmtune.standing import Fitted, Standing, entry_of, moving, restore, wearing
from esmtune.tasks import Total

SHOWN_IDS = 8


def train_once(
    fabric: Fabric,
    *,
    config: TrainConfig,
    data: Dataset,
    predictor: Predictor,
    kept: Kept,
    journal: Journal,
    name: str,
    watch: Watcher,
    stop: threading.Event,
    begin: Fitted | None = None,
) -> Fitted:
    """Train on the training records, choose by the validation records, and read the test records once, at the end.

    `name` is what the run is called in the journal, from which it goes on if it stands there. With
    `begin`, an earlier stage, that stage's best is the one to beat.

    Raises:
        Terminated: when `stop` is set; the journal then has what is needed to go on.
    """
    watch = watch if fabric.is_global_zero else silent
    if fabric.world_size == 1:  # several end together, after a step
        watch = _interruptible(watch, stop)
    records = data.of(None)
    train, valid, calibration, test = ([i for i, r in enumerate(records) if r.split == s] for s in SPLITS)
    labels = [label for r in records for label in r.labels]
    weights = torch.tensor([r.weight for r in records for _ in r.labels], device=fabric.device)
    predictor.to(fabric.device)
    inputs = Inputs(fabric, predictor, records, config, kept, watch)
    inputs.prepare([*train, *valid], "embedding")
    shown = guessed(labels, inputs.sequences, predictor.masks)
    of_valid = [shown[i] for i in inputs.rows(valid).tolist()]
    metric = choosing_metric(config, predictor.task, of_valid, watch)
    model, optimizer = set_up(fabric, config, predictor, inputs, data, train, labels, weights, begin)
    schedule = Schedule(config, 0 if predictor.head.is_solved else len(train))
    window = max(1, min(config.valid_window or 1, schedule.passes))  # one of two stages has fewer epochs
    now = Standing(
        weights=moving(predictor), average=moving(predictor) if config.ema else {}, running=nothing(fabric),
        history=list(begin.history) if begin else [], best=dict(begin.best) if begin else {},
    )  # fmt: skip
    saved = journal.read(name)
    if saved:
        restore(saved, now, predictor, optimizer)
        watch(Notice(f"Going on after step {now.step:,} of {schedule.total:,}."))
    elif predictor.head.is_solved:
        now.is_due = True
    task = predictor.task  # whose scale was decided on
    targets = task.targets(labels).to(fabric.device)
    diverged = None
    model.train()
    live = {n: w for n, w in predictor.state_dict().items() if n in now.average}

    try:
        for step, epoch, places, is_last_of_epoch in schedule:
            if now.is_over or step < now.step or (step == now.step and not now.is_due):
                continue
            if step > now.step:
                # One step: the loss is the sum over all labeled points of the global batch, divided by
                # their count, however the batch is split into micro-batches and over processes.
                batch = [train[place] for place in places]
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule.factor(step)
                seed = dropout_seed(config.seed, epoch)
                total = affordable(fabric, model, inputs, batch, targets, weights, seed)
                norm = fabric.clip_gradients(model, optimizer, max_norm=config.clip, error_if_nonfinite=False)
                total, is_finite, is_asked = _over_processes(fabric, total, norm, stop)
                if not is_finite:
                    diverged = {"step": step, "epoch": epoch, "ids": [records[i].id for i in batch]}
                    break
                now.running += total
                step_of(optimizer)
                if now.average:
                    moved_average(now.average, live, (config.ema or 0.0) * schedule.per_epoch, step)
                now.step, now.is_due = step, is_last_of_epoch
                if is_asked:
                    raise Terminated
                if fabric.is_global_zero and journal.is_due:
                    journal.save(name, entry_of(now, predictor, optimizer))
                note = f"epoch {epoch}{best_so_far(now.best, metric)}"
                watch(Progress("training", step, schedule.total, "steps", note))
            if now.is_due:
                rate = (config.head_learning_rate or 0.0) * schedule.factor(step)
                entry = {"step": step, "epoch": epoch, "train_loss": _mean(now.running), "learning_rate": rate}
                if lost := _evaluate(entry, now, inputs, valid, targets, weights, of_valid, metric, window):
                    diverged = {"step": step, "epoch": epoch, "ids": [records[i].id for i in lost]}
                    break
                now.running, now.is_due = nothing(fabric), False
                fabric.log_dict(numbers_of(now.history[-1]), step)
                if valid:
                    now.is_over = now.since_best >= (config.patience or math.inf)
                    scores = {"loss": now.best["valid_loss"], **now.best["valid"]}
                    note = f"epoch {epoch}{best_so_far(now.best, metric)}"
                    watch(Progress("training", step, schedule.total, "steps", note, scores))
                if now.is_over:
                    watch(Notice(f"Stopped after epoch {epoch}: {metric} on validation did not get better for "
                                 f"{config.patience} epochs."))  # fmt: skip
        if now.is_due:  # a head that was solved in one go
            _evaluate({"step": 0, "epoch": 0}, now, inputs, valid, targets, weights, of_valid, metric, window)
            now.is_due = False
        with wearing(predictor, now.average), centered(predictor):
            last = moving(predictor)
        chosen, best = now.weights, now.best
        if valid and not diverged:
            chosen, last = with_ridge(inputs, [chosen, last], records, train, valid, weights, config)
        with wearing(predictor, chosen):  # no longer than this, for a run may be stopped here and go on
            references = _references(inputs, train, config)
            outputs, distances = inputs.said([*train, *valid], "predicting", references)
            if chosen is not now.weights:  # what was kept has become another
                own = task.average(outputs)[len(inputs.rows(train)) :]
                best = best | _judged(inputs, own, valid, targets, weights, of_valid)
            if calibration or test:  # read here for the first time
                held_out, far = inputs.said([*calibration, *test], "testing", references)
                outputs, distances = torch.cat((outputs, held_out), dim=1), torch.cat((distances, far))
    except Terminated:
        if fabric.is_global_zero:
            journal.save(name, entry_of(now, predictor, optimizer))
        fabric.barrier()  # the first that ends takes the others with it
        raise
    if diverged:
        watch(Notice(_advice(diverged, now.best)))
    order = inputs.rows([*train, *valid, *calibration, *test]).argsort()
    outputs = outputs[:, order]
    distances[: len(train)] = torch.nan  # from which they are as far as they are from themselves
    distances = distances[torch.tensor([*train, *valid, *calibration, *test]).argsort()]
    of_train = inputs.rows(train)
    finished = task.finished(task.average(outputs)[of_train], [labels[i] for i in of_train.tolist()])
    best = {**best, "metric": metric if valid else None}
    return Fitted(
        weights=chosen, last=last, outputs=outputs, history=now.history, best=best, diverged=diverged,
        task=finished.spec(), references=references.tensors() if references else {}, distances=distances,
    )  # fmt: skip


def _references(inputs: Inputs, train: list[int], config: TrainConfig) -> References | None:
    """What the training sequences look like to the head, if that is to be kept."""
    predictor, sequences = inputs.predictor, [inputs.sequences[i] for i in train]
    chosen = sampled(sequences, predictor.features_dim, config.seed, most=config.references)
    if not chosen or not predictor.head.standardizes:
        return None
    vectors = inputs.vectors([train[place] for place in chosen], "measuring")
    return References.of(vectors.detach().cpu(), sequences)


def _evaluate(
    entry: dict[str, Any], now: Standing, inputs: Inputs, valid: list[int], targets: Tensor, weights: Tensor,
    labels: list[Label], metric: str, window: int,
) -> list[int]:  # fmt: skip
    """See what was learned, and keep the weights if they are the best so far, by the last evaluations of this stage.

    Patience begins when there are so many. Returns the records whose outputs are not finite; if there are any,
    nothing is kept.
    """
    predictor = inputs.predictor
    own = [other for other in now.history if "stage" not in other]
    with wearing(predictor, now.average), centered(predictor):
        if valid:
            outputs = inputs.outputs(valid, "validating")
            counts = [inputs.points[i] for i in valid]
            lost = [i for i, x in zip(valid, outputs.split(counts), strict=True) if not x.isfinite().all()]
            if lost:
                return lost
            entry |= _judged(inputs, outputs, valid, targets, weights, labels)
            entry["recent"] = recent([*own, entry], metric, window)
        if not now.best or not valid or better(entry, now.best, metric):
            now.best, now.weights, now.since_best = entry, moving(predictor), 0
        elif len(own) + 1 >= window:
            now.since_best += 1
        now.history.append(entry)
    return []


def _judged(
    inputs: Inputs, outputs: Tensor, valid: list[int], targets: Tensor, weights: Tensor, labels: list[Label]
) -> dict[str, Any]:
    """What an evaluation came to."""
    task, rows = inputs.predictor.task, inputs.rows(valid).to(weights.device)
    loss = task.loss(outputs, inputs.targets(targets, valid).cpu(), weights[rows].cpu()).mean.item()
    return {"valid_loss": loss, "valid": task.scores(outputs, labels)}


def _interruptible(watch: Watcher, stop: threading.Event) -> Watcher:
    """A watcher that ends the run when it is asked to; it hears of every batch, between which all is whole."""

    def hear(event: Notice | Progress) -> None:
        watch(event)
        if stop.is_set():
            raise Terminated

    return hear


def _over_processes(fabric: Fabric, part: Total, norm: Any, stop: threading.Event) -> tuple[Total, bool, bool]:
    """The loss of all processes, so that whichever goes on has it; whether it and all gradients are finite.

    And of several processes whether one was asked to stop: then all do, for they wait for each other.
    """
    is_finite = torch.isfinite(part.sum) & torch.isfinite(torch.as_tensor(norm, device=part.sum.device))
    if fabric.world_size == 1:
        return part, bool(is_finite), False
    own = part.sum
    counts = [torch.full_like(own, x) for x in (part.count, stop.is_set())]
    each = torch.stack((own, *counts, (~is_finite).to(own)))
    loss, count, asked, lost = sum_over_processes(fabric, each)
    return Total(loss, round(count.item())), not lost, bool(asked)


def _advice(diverged: dict[str, Any], best: dict[str, Any]) -> str:
    ids = ", ".join(diverged["ids"][:SHOWN_IDS])
    kept = f"The weights of epoch {best['epoch']} are kept" if best else "The weights of the beginning are kept"
    return (
        f"DIVERGED: at step {diverged['step']:,} (epoch {diverged['epoch']}) the loss, a gradient or an output "
        f"was no finite number, on the records {ids}. {kept}. Look at these records' labels; lower "
        "--encoder-learning-rate or --head-learning-rate, or lengthen --warmup."
    )


def _mean(total: Total) -> float:
    return total.sum.item() / total.count if total.count else math.nan
