"""What is chosen so that a run fits into the memory there is: the size of passes, and what is computed twice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from esmtune.batching import SPECIALS
from esmtune.config import TOKENS_PER_BATCH, TrainConfig
from esmtune.devices import choose_device
from esmtune.esm2 import ESM2
from esmtune.events import Notice, Watcher
from esmtune.footprint import (
    MEASURED_BYTES,
    Footprint,
    Most,
    fits_in_memory,
    footprint_of_passing,
    footprint_of_training,
    size_of,
)
from esmtune.journal import Journal
from esmtune.memory import GIB, free_memory
from esmtune.predictor import Predictor
from esmtune.records import Dataset

SHARE = 0.9  # of free memory that a run may count on
LEAST_TOKENS = 256
LOOKED_AT = 3  # times that features which are looked at are in memory, beside themselves


@dataclass(frozen=True, kw_only=True)
class Provision:
    """What is chosen for a training so that it fits, and what it then comes to."""

    tokens: int  # per pass
    recomputes: bool  # whether layers compute twice
    gives_back: bool  # whether freed memory leaves the process at once
    peak: int  # bytes, beside the process itself
    room: int | float  # bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is within what there is."""
        return self.peak <= self.room

    @property
    def text(self) -> str | None:
        """What the user should know: nothing where memory is plenty."""
        if not self.fits:
            return (
                f"MEMORY: this training takes about {self.peak / GIB:,.1f} GiB, but only {self.room / GIB:,.1f} GiB "
                "are free: it may not fit. `esmtune plan` with the same options shows what does."
            )
        choices = [f"passes of at most {self.tokens:,} tokens"] if self.tokens < TOKENS_PER_BATCH else []
        choices += ["layers that compute twice (--checkpoint-activations)"] if self.recomputes else []
        choices += ["memory that is given back at once, which takes time"] if self.gives_back else []
        return f"Memory: with {self.room / GIB:,.1f} GiB free, {', '.join(choices)}." if choices else None


def tokens_that_fit(footprint: Footprint, room: int | float, most: Most) -> int:
    """Tokens per pass: `TOKENS_PER_BATCH`, or halved until the peak fits into so many bytes.

    More than that is no faster on a CPU, so that machines with enough memory all compute alike. A sequence longer
    than that is a pass of its own, so the longest is always reckoned with.

    >>> few = Footprint(weights=0, copies=0, kept=0.0, learning=1.0, evaluating=1.0, fixed=0, features=0)
    >>> tokens_that_fit(few, 5000, Most(longest=100)), tokens_that_fit(few, 1100, Most(longest=100))
    (4096, 1024)
    """
    tokens = TOKENS_PER_BATCH
    while tokens > LEAST_TOKENS and footprint.peak(tokens, most) > room:
        tokens //= 2
    return tokens


def room_for(loaded: int | float, device: str) -> float:
    """Bytes that a run may come to, where so many of them are in this process already."""
    return SHARE * (free_memory(device) + (loaded if device == "cpu" else 0))


def tokens_for_passing(
    encoder: ESM2, layers: int, lengths: Sequence[int], device: str, given: int | None, watch: Watcher
) -> int:
    """Tokens per pass for predicting and embedding: as given, else what free memory has room for."""
    if given is not None:
        return given
    footprint = footprint_of_passing(encoder, layers)
    room = room_for(footprint.weights, device)
    tokens = tokens_that_fit(footprint, room, Most(longest=max(lengths, default=0) + SPECIALS))
    if tokens < TOKENS_PER_BATCH:
        watch(Notice(f"Memory: with {room / GIB:,.1f} GiB free, passes of at most {tokens:,} tokens."))
    return tokens


Footprints = dict[tuple[bool, bool], Footprint]  # by whether layers compute twice, and freed memory leaves at once


def footprints(predictor: Predictor, config: TrainConfig, sequences: Sequence[str], members: int = 1) -> Footprints:
    """What training so many predictors on sequences holds, by what may be done to hold less; cheapest first."""
    features = 0
    if not predictor.rates and not predictor.masks:  # then what the head sees is computed once, and kept
        size = sum(size_of(predictor, sequence) for sequence in set(sequences))
        # What is looked at is put together, standardized and, by some, sorted.
        features = (size if fits_in_memory(size, config.devices) else 0) + LOOKED_AT * min(size, MEASURED_BYTES)
    measure = partial(
        footprint_of_training, predictor, precision=config.precision, averages=bool(config.ema), features=features,
        members=members,
    )  # fmt: skip
    ways = [(False, False), (False, True), (True, True)] if predictor.rates else [(False, False)]
    return {(again, back): measure(recomputes=again, gives_back=back) for again, back in ways}


def provision(
    found: Footprints, room: int | float, most: Most, *, tokens: int | None, recomputes: bool | None
) -> Provision:
    """Choose what was left open, in the order of what it costs: smaller passes, memory given back, computing twice."""
    ways = [way for way in found if recomputes in (None, way[0])] or list(found)[:1]

    def made(recomputed: bool, given_back: bool) -> Provision:
        footprint = found[recomputed, given_back]
        count = tokens or tokens_that_fit(footprint, room, most)
        return Provision(
            tokens=count, recomputes=recomputed, gives_back=given_back, peak=footprint.peak(count, most), room=room
        )

    return next((choice for way in ways if (choice := made(*way)).fits), made(*ways[-1]))


def most_of(config: TrainConfig, data: Dataset) -> Most:
    """Tokens that ever pass at once in a training of a decided configuration on data."""
    every, learned = (
        sorted((len(record.sequence) + SPECIALS for record in data.of(split)), reverse=True)
        for split in (None, "train")
    )
    processes = config.devices * config.num_nodes  # which share the sequences of a step
    step = sum(learned[: config.global_batch_size])
    limit = config.micro_batch_size
    return Most(
        longest=max(every, default=0), learning=min(-(-step // processes), sum(learned[:limit])),
        evaluating=sum(every[:limit]),
    )  # fmt: skip


def provision_of(
    predictor: Predictor, config: TrainConfig, data: Dataset, members: int, also: int | float = 0
) -> Provision:
    """What is chosen for training so many predictors like a composed one on data, by the memory that is free now.

    `also` is the bytes of what is in this process beside it and will not be there.
    """
    device = choose_device(config.accelerator)
    room = room_for(footprint_of_passing(predictor.encoder, 0).weights + also, device)
    if device == "cpu":  # all processes share it; a GPU is each one's own
        room /= config.devices
    sequences = [r.sequence for r in data.of(None)]
    return provision(
        footprints(predictor, config, sequences, members), room, most_of(config, data),
        tokens=config.tokens_per_batch, recomputes=config.checkpoint_activations,
    )  # fmt: skip


def provided(
    predictor: Predictor, config: TrainConfig, data: Dataset, members: int, journal: Journal, watch: Watcher
) -> tuple[TrainConfig, bool]:
    """The configuration with what free memory decides, and whether freed memory is to leave at once.

    A run that goes on keeps what it began with.
    """
    found = provision_of(predictor, config, data, members)
    if found.text:
        watch(Notice(found.text))
    now = {"tokens": found.tokens, "recomputes": found.recomputes, "gives_back": found.gives_back}
    chosen: dict[str, Any] = journal.kept("provision", now)
    changed = replace(config, tokens_per_batch=chosen["tokens"], checkpoint_activations=chosen["recomputes"])
    return changed, chosen["gives_back"]
