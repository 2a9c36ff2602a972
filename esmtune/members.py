"""Which predictors a run trains, one after the other, and what they make together."""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from esmtune.applicability import References
from esmtune.assignments import fit_task
from esmtune.composition import Origin, compose, decided, find_origin
from esmtune.config import TrainConfig
from esmtune.devices import choose_device
from esmtune.encoders import encoder_digest
from esmtune.ensembles import Ensemble
from esmtune.events import Notice, Watcher, silent
from esmtune.features import Kept
from esmtune.journal import Entry, Journal, asked_to_stop
from esmtune.membership import Member, members_of, speakers_of
from esmtune.memory import give_back_at_once
from esmtune.predictor import Predictor
from esmtune.processes import launched
from esmtune.provisions import provided
from esmtune.records import Dataset
from esmtune.scoring import collapsed
from esmtune.standing import Fitted
from esmtune.tasks import Task, task
from esmtune.training import train_once


@dataclass(frozen=True, kw_only=True)
class Trained:
    """All that training gave, put together."""

    config: TrainConfig  # decided in everything
    predictor: Predictor | Ensemble
    last: Predictor | None  # with the weights after the last step, of a run of one member that did not diverge
    members: list[Member]
    fitted: list[Fitted]
    others: list[tuple[Member, Fitted]]  # that are no part of the predictor
    collapsed: list[str]  # names of members that learned nothing, and are no part of the predictor
    draws: Float[Tensor, "members draws points outputs"]  # of the dropout of each member, of which answers are the mean
    answers: Float[Tensor, "members points outputs"]  # of all members, for the labeled records, in one unit
    outputs: Float[Tensor, "points outputs"]  # of the predictor; with folds of those that had not seen the point
    distances: Float[Tensor, "records"]  # of the labeled records from what the same were trained on; NaN for that
    task: Task
    by_fold: bool  # whether each training record was held out by one member, which validates it
    is_main: bool  # whether this process is the one that writes files
    origin: Origin  # the encoder as it was before
    kept: Kept  # what it made of sequences, if it was frozen and this process did it

    @cached_property
    def calibrates(self) -> list[bool]:
        """With folds, whether the member that speaks for a labeled record keeps it for calibration."""
        drawn = [member.data.of(None) for member in self.members]
        return [s is not None and drawn[s][place].split == "calibration" for place, s in enumerate(self.speakers)]

    @cached_property
    def speakers(self) -> list[int | None]:
        """With folds, the number of the member that speaks for each labeled record; None for those that all do."""
        return speakers_of(self.members) if self.by_fold else [None] * len(self.members[0].data.of(None))


def train_members(
    config: TrainConfig, data: Dataset, folds: int, journal: Journal, watch: Watcher, log_folder: Path | None = None,
    also: Callable[[TrainConfig], list[Member]] | None = None,
) -> Trained:  # fmt: skip
    """Train every member of a run, and put together those that learned something.

    `also` is given the decided configuration and says what else is to be trained on the way.

    Raises:
        ValueError: for parts, options or weights that cannot be had or do not fit the data.
        Terminated: when the process was asked to stop; the journal has what is needed to go on.
    """
    fitted_task = fit_task(data, config.task)
    if fitted_task.only_orders and config.global_batch_size == 1:
        raise ValueError("the loss compares the sequences of a step, but --global-batch-size is 1: take 2 or more.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        origin = find_origin(config, data, watch)
        journal.agree("encoder's SHA-256", encoder_digest(origin.encoder))
        config = decided(config, data, origin, watch)
        precision = journal.kept("precision in use", config.precision)
        if precision != config.precision:
            watch(Notice(f"Going on in {precision}, in which the run began."))
            config = replace(config, precision=precision)
        members = members_of(config, data, folds)
        torch.manual_seed(config.seed)
        # Says what is wrong, and what is new; then it is known what training it will take.
        first = compose(members[0].config, members[0].data, origin, members[0].own(fitted_task), watch)
        trainings = len(members) + len(also(config) if also else [])
        config, gives_back = provided(first, config, data, trainings, journal, watch)
        del first
        members = members_of(config, data, folds)
        others = also(config) if also else []
        features: Kept = {}
        every, is_main = fitted_members(
            config, [*members, *others], origin, fitted_task, journal, watch, log_folder, kept=features,
            gives_back=gives_back,
        )  # fmt: skip
        fitted = every[: len(members)]
        predictors = [
            _assembled(member, origin, fitted_task, found) for member, found in zip(members, fitted, strict=True)
        ]
    common = predictors[0].task.plain()  # each member may learn labels on another scale
    draws = torch.stack([draws_of(found, common) for found in fitted])
    answers = torch.stack([common.average(own) for own in draws])
    names = [member.name for member in members]
    lost = collapsed(names, fitted, members[0].data, answers, common) if config.seeds > 1 else []
    for name in lost:
        watch(Notice(f"COLLAPSED: {name} learned nothing that the other seeds did, and is left out of the predictor."))
    kept = [number for number, member in enumerate(members) if member.name not in lost]
    outputs, distances = common.average(answers[kept]), fitted[kept[0]].distances
    if folds > 1:
        speakers = speakers_of(members)
        outputs = _out_of_fold(members, speakers, answers, outputs)
        distances = _distances_out_of_fold(speakers, fitted)
    chosen = [predictors[number] for number in kept]
    for predictor in chosen if is_main else ():  # wherever training left the encoder, which they may share
        predictor.to(torch.device(choose_device(config.accelerator)))
    return Trained(
        config=config,
        predictor=chosen[0].eval() if len(chosen) == 1 else Ensemble(chosen),
        last=_last(predictors[0], fitted[0]) if len(members) == 1 and not fitted[0].diverged else None,
        members=members,
        fitted=fitted,
        others=list(zip(others, every[len(members) :], strict=True)),
        collapsed=lost,
        draws=draws,
        answers=answers,
        outputs=outputs,
        distances=distances,
        task=common,
        by_fold=folds > 1,
        is_main=is_main,
        origin=origin,
        kept=features,
    )


def fitted_members(
    config: TrainConfig, members: Sequence[Member], origin: Origin, fitted_task: Task, journal: Journal,
    watch: Watcher, log_folder: Path | None = None, *, kept: Kept, gives_back: bool = False,
) -> tuple[list[Fitted], bool]:  # fmt: skip
    """Train members, and say whether this process is the one that writes files; `kept` has and gets their features.

    Raises:
        ValueError: for parts or options that cannot be had or do not fit the data.
        Terminated: when the process was asked to stop.
    """
    work = partial(
        _train, members=members, origin=origin, fitted_task=fitted_task, journal=journal, kept=kept,
        gives_back=gives_back,
    )  # fmt: skip
    entries, is_main = launched(config, work, watch, log_folder)
    return [Fitted.of(entry) for entry in entries], is_main


def _train(
    fabric: Fabric, *, members: Sequence[Member], origin: Origin, fitted_task: Task, journal: Journal, watch: Watcher,
    kept: Kept, gives_back: bool,
) -> list[Entry]:  # fmt: skip
    """Train the members one after the other, in this process among others."""
    if fabric.world_size > 1:
        origin = copy.deepcopy(origin)  # what comes to a process lies in memory that all share
        members, gives_back = _agreed(fabric, members, gives_back)
    if gives_back:
        give_back_at_once()
    entries = []
    with torch.random.fork_rng(devices=[]), asked_to_stop() as stop:
        for number, member in enumerate(members, start=1):
            done = journal.read(f"{member.name}.fitted")
            if done is None:
                if len(members) > 1 and fabric.is_global_zero:
                    watch(Notice(f"Member {number} of {len(members)}: {member.name}."))
                found = _train_stages(fabric, member, origin, fitted_task, kept, journal, watch, stop)
                done = (found if member.gives_last else replace(found, last={})).entry()
                if fabric.is_global_zero:
                    journal.save(f"{member.name}.fitted", done)
            elif fabric.is_global_zero:
                watch(Notice(f"Member {number} of {len(members)}, {member.name}, was trained before."))
            entries.append(done)
    return entries


def _agreed(fabric: Fabric, members: Sequence[Member], gives_back: bool) -> tuple[Sequence[Member], bool]:
    """What the first process decided by its memory and device, in all: else they would divide a step differently."""
    names = ("tokens_per_batch", "checkpoint_activations", "precision")
    own = {name: getattr(members[0].config, name) for name in names}, gives_back
    chosen, gives_back = fabric.broadcast(own)
    return [replace(member, config=replace(member.config, **chosen)) for member in members], gives_back


def _train_stages(
    fabric: Fabric, member: Member, origin: Origin, fitted_task: Task, kept: Kept, journal: Journal,
    watch: Watcher, stop: threading.Event,
) -> Fitted:  # fmt: skip
    """Train one member; with probe-then-full its head first, on the encoder as it was."""
    torch.manual_seed(member.config.seed)
    predictor = compose(member.config, member.data, origin, member.own(fitted_task))
    go_on = partial(
        train_once, fabric, data=member.data, predictor=predictor, kept=kept, journal=journal, watch=watch,
        stop=stop,
    )  # fmt: skip
    probe = predictor.spec.tuning.get("probe_epochs", 0)
    if not probe:
        return go_on(config=member.config, name=member.name)
    # All steps together are no more than were asked for.
    steps = probe * -(-len(member.data.of("train")) // (member.config.global_batch_size or 1))
    limit = member.config.max_steps
    if limit and limit <= steps and fabric.is_global_zero:
        watch(Notice(
            f"PROBE: the encoder does not move, for the head alone takes all {limit:,} steps. Give more (--max-steps "
            f"{2 * steps:,}), or the head fewer epochs than {probe} (--tuning.probe_epochs)."
        ))  # fmt: skip
    done = journal.read(f"{member.name}.probe")
    if done is None:
        predictor.encoder.requires_grad_(False)
        shorter = replace(
            member.config, epochs=probe, max_steps=limit and min(limit, steps), patience=probe,
            valid_window=min(member.config.valid_window or 1, max(1, probe // 5)),
        )  # fmt: skip
        done = go_on(config=shorter, name=f"{member.name}.probing").entry()
        if fabric.is_global_zero:
            journal.save(f"{member.name}.probe", done)
    first = Fitted.of(done)
    if not predictor.task.only_orders:  # whose outputs are given a unit again, when all is done
        predictor.with_task(task.load(first.task))
    predictor.load_state_dict(first.weights, strict=False)
    for name, weight in predictor.encoder.named_parameters():
        weight.requires_grad_(name in predictor.rates)
    first = replace(first, history=[{"stage": "probe"} | entry for entry in first.history])
    if first.diverged or (limit and limit <= steps):
        return first
    return go_on(config=replace(member.config, max_steps=limit and limit - steps), name=member.name, begin=first)


def _assembled(member: Member, origin: Origin, fitted_task: Task, fitted: Fitted) -> Predictor:
    """The predictor that a member became."""
    torch.manual_seed(member.config.seed)
    predictor = compose(member.config, member.data, origin, member.own(fitted_task), silent)
    predictor.load_state_dict(fitted.weights, strict=False, assign=True)  # which are in memory once
    predictor.references = References.from_tensors(fitted.references)
    return predictor.with_task(task.load(fitted.task)).eval()


def _last(predictor: Predictor, fitted: Fitted) -> Predictor:
    """The same predictor with the weights after the last step; what did not move is in memory once."""
    assert fitted.last, "a run's only member gives its last weights"
    last = copy.deepcopy(predictor, {id(w): w for w in predictor.parameters() if not w.requires_grad})
    last.references = None  # they are what the best weights make of the training sequences
    last.load_state_dict(fitted.last, strict=False)
    return last


def draws_of(fitted: Fitted, common: Task) -> Float[Tensor, "draws points outputs"]:
    """What a training said of the labeled points, each draw of the dropout in the standard of another task."""
    own = task.load(fitted.task)
    return torch.stack([common.translated(draw, own) for draw in fitted.outputs])


def _out_of_fold(members: Sequence[Member], speakers: Sequence[int | None], answers: Tensor, outputs: Tensor) -> Tensor:
    """For each point the answer of the member that speaks for its record; for test points that of all."""
    outputs = outputs.clone()
    of_points = [s for s, r in zip(speakers, members[0].data.of(None), strict=True) for _ in r.labels]
    for number, answer in enumerate(answers):
        own = torch.tensor([speaker == number for speaker in of_points])
        outputs[own] = answer[own]
    return outputs


def _distances_out_of_fold(speakers: Sequence[int | None], fitted: Sequence[Fitted]) -> Tensor:
    """How far each record is from what the member learned from that speaks for it; test records from the first's."""
    distances = fitted[0].distances.clone()
    for number, found in enumerate(fitted):
        own = torch.tensor([speaker == number for speaker in speakers])
        distances[own] = found.distances[own]
    return distances
