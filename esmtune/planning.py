"""Plan: what a training will take, in time and memory, told from a few steps that are thrown away."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from esmtune.assignments import fit_task
from esmtune.commands import command_of
from esmtune.composition import Origin, compose, decided, find_origin
from esmtune.config import TrainConfig
from esmtune.curation import curate_training
from esmtune.curves import curve_members
from esmtune.devices import choose_device
from esmtune.esm2 import OFFICIAL, RANDOM, ESM2Config
from esmtune.events import Watcher, silent
from esmtune.fitting import check_curve, configured
from esmtune.footprint import footprint_of_passing
from esmtune.membership import Member, members_of
from esmtune.predictor import Predictor
from esmtune.provisions import Provision, provision_of
from esmtune.shortage import is_out_of_memory
from esmtune.timings import Stage, stages_of, steps_of, steps_per_epoch
from esmtune.writers import check_out, write_json

LESS = ("lora", "frozen")  # tunings that take less, the greater first


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something else that fits, what it takes at its peak in bytes, and the command."""

    text: str
    peak: int
    command: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training will take: times on this machine as it is now, of as many epochs as it may have."""

    encoder: str
    tuning: str
    records: int  # to train on
    residues: int
    longest: int
    trainings: int  # seeds, folds, shares of a learning curve
    epochs: int
    stages: tuple[Stage, ...]  # none where a step would not fit
    tokens_per_batch: int
    checkpoint_activations: bool
    peak: int  # bytes: of the whole process, or on a GPU
    room: int  # bytes
    fits: bool
    command: str  # that trains so
    advice: tuple[Advice, ...]

    @property
    def seconds(self) -> tuple[float, float]:
        """From and to, of all stages."""
        return sum(stage.low for stage in self.stages), sum(stage.high for stage in self.stages)


def plan(
    data: Any, *, out: str | Path | None = None, overwrite: bool = False, watch: Watcher = silent, **options: Any
) -> Plan:
    """Tell what `train` would take with the same data and options, and what fits if it does not; nothing is trained.

    A few steps are timed on the user's own sequences. Of a frozen encoder the sequences that a cache has are not
    counted. Baselines, splits and files come on top: little, beside a training that one plans. `out` is a JSON file.

    >>> rows = [("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)] * 3
    >>> found = plan(rows, encoder="random:esm2_t6_8M_UR50D", tuning="full", epochs=2, cache="none")
    >>> found.fits, found.epochs, found.trainings, [stage.name for stage in found.stages]
    (True, 2, 1, ['training', 'validating', 'predicting'])

    Raises:
        BadRowsError: for rows that cannot be used, unless `skip_bad_rows`.
        ValueError: for everything else that is wrong with data or options.
    """
    config = asked = configured(options)
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="scores")
    curated = curate_training(data, config)
    check_curve(config, curated)
    dataset = curated.dataset
    on_gpu = choose_device(config.accelerator) == "cuda"  # which holds nothing of this process yet
    taken = 0 if on_gpu else psutil.Process().memory_info().rss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        origin = find_origin(config, dataset, watch)
        config = decided(config, dataset, origin, watch)
        members = members_of(config, dataset, curated.folds)
        if config.learning_curve:
            members += curve_members(config, asked=asked, data=dataset, folds=curated.folds)
        predictor, chosen = _provided(config, members[0], len(members), origin, watch)
        stages: tuple[Stage, ...] = ()
        if chosen.fits:
            predictor = predictor.to(choose_device(config.accelerator))
            stages = tuple(stages_of(predictor, config, members, chosen))
    lengths = [len(r.sequence) for r in dataset.of("train")]
    found = Plan(
        encoder=origin.source.name, tuning=str((config.tuning or {})["name"]), records=len(lengths),
        residues=sum(lengths), longest=max(map(len, (r.sequence for r in dataset.of(None)))), trainings=len(members),
        epochs=-(-steps_of(members[0]) // max(1, steps_per_epoch(members[0]))), stages=stages,
        tokens_per_batch=chosen.tokens,
        checkpoint_activations=chosen.recomputes, peak=chosen.peak + taken, room=int(chosen.room) + taken,
        fits=chosen.fits, command=_command(data, options),
        advice=() if chosen.fits else tuple(_advised(data, options, config, members, origin, taken)),
    )  # fmt: skip
    if out is not None:
        low, high = found.seconds
        write_json({**asdict(found), "seconds": [low, high]}, Path(out))
    return found


def _command(data: Any, options: Mapping[str, Any]) -> str:
    return " ".join(command_of(str(data) if isinstance(data, str | Path) else "DATA", options))


def _provided(
    config: TrainConfig, member: Member, count: int, origin: Origin, watch: Watcher = silent, also: int | float = 0
) -> tuple[Predictor, Provision]:
    """One of so many predictors as it would be trained, and what is chosen for them."""
    torch.manual_seed(config.seed)
    predictor = compose(member.config, member.data, origin, fit_task(member.data, config.task), watch)
    chosen = provision_of(predictor, config, member.data, count, also)
    predictor.encoder.recomputes = chosen.recomputes
    return predictor, chosen


def _advised(
    data: Any, options: Mapping[str, Any], config: TrainConfig, members: Sequence[Member], origin: Origin, taken: int
) -> Iterator[Advice]:
    """What fits instead: less of the encoder that moves, or a smaller one."""
    member, count = members[0], len(members)
    name, asked = (config.tuning or {})["name"], configured(options)
    for tuning in LESS[LESS.index(name) + 1 :] if name in LESS else LESS:
        other = replace(member.config, tuning={"name": tuning}, head=asked.head)
        own = replace(member, config=other)
        _, chosen = _provided(other, own, count, origin)
        if chosen.fits:
            yield Advice(
                text=f"--tuning {tuning}",
                peak=chosen.peak + taken,
                command=_command(data, {**options, "tuning": tuning}),
            )
    if config.init:
        return  # which brings its own encoder
    # By the size of another encoder, auto might come to another tuning than was measured.
    tuned = {"tuning": name} if (asked.tuning or {}).get("name") == "auto" else {}
    loaded = footprint_of_passing(origin.encoder, 0).weights  # that would not be there
    for short in _smaller(origin.encoder.config):
        other = replace(member.config, encoder=f"{RANDOM}{short}")  # of the same shape, which is all that is asked
        try:
            start = find_origin(other, member.data, silent)
            _, chosen = _provided(other, replace(member, config=other), count, start, also=loaded)
        except ValueError:  # it has fewer layers than were asked for
            continue
        except (RuntimeError, MemoryError) as error:  # beside the other one there is no room for it
            if not is_out_of_memory(error):
                raise
            continue
        if chosen.fits:
            encoder = f"{RANDOM}{short}" if origin.source.is_random else short
            command = _command(data, {**options, "encoder": encoder, **tuned})
            yield Advice(text=f"--encoder {encoder}", peak=chosen.peak + taken, command=command)
            return


def _smaller(shape: ESM2Config) -> list[str]:
    """The official encoders with fewer weights in their layers, the largest first."""
    sizes = {name: one.num_layers * one.embed_dim**2 for name, one in OFFICIAL.items()}
    found = [name for name, size in sizes.items() if size < shape.num_layers * shape.embed_dim**2]
    return sorted(found, key=lambda name: sizes[name], reverse=True)
