"""What takes time in a training, by steps that are timed and thrown away."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from esmtune.batching import SPECIALS
from esmtune.cache import cache_at
from esmtune.config import TrainConfig
from esmtune.devices import evaluating
from esmtune.embedding import kind_of
from esmtune.esm2 import Tokens
from esmtune.heads import Head
from esmtune.membership import Member
from esmtune.predictor import Predictor
from esmtune.provisions import Provision
from esmtune.records import Split
from esmtune.shortage import with_code

TIMED = 3  # times that a step is timed, after one that warms up
TIMED_TOKENS = 1024  # in a timed step at most, but for a single sequence that is longer
AROUND = 1.3  # how far a machine drifts from what was timed, either way (docs/decisions/0018-memory.md)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a training, and how many seconds it takes, from and to."""

    name: str
    low: float
    high: float


def stages_of(
    predictor: Predictor, config: TrainConfig, members: Sequence[Member], chosen: Provision
) -> Iterator[Stage]:
    """The parts of a training of these members, one after another."""
    data = members[0].data
    everything = [r.sequence for r in data.of(None)]
    batch = _timed_batch(everything, chosen.tokens)
    tokens = Tokens.of(batch).to(predictor.device)
    residues = sum(map(len, batch))

    def passing() -> None:
        with torch.inference_mode(), evaluating(predictor):
            predictor.pooled(tokens)

    forward = _timed(passing)
    if not predictor.rates and not predictor.masks:  # the encoder passes each sequence once, whatever comes then
        missing = sum(map(len, _not_kept(predictor, config, everything)))
        if missing:
            yield _stage("embedding", forward, missing / residues)
        if not predictor.head.is_solved:
            steps = sum(steps_of(member) for member in members)
            yield _stage("training", _timed(_of_head(predictor, everything, members[0].config)), steps)
        return
    learned, held = (sum(_passed(member, split) for member in members) for split in ("train", "valid"))
    yield _stage("training", _timed(_of_both(predictor, tokens)), learned / residues)
    config = members[0].config
    is_cut = _passed(members[0], "train") > chosen.tokens * steps_of(members[0])
    is_cut = is_cut or (config.micro_batch_size or math.inf) < (config.global_batch_size or 1)
    if predictor.task.compares and (is_cut or config.devices * config.num_nodes > 1):  # whose outputs are needed first
        yield _stage("comparing", forward, learned / residues)
    yield _stage("validating", forward, held / residues)
    labeled = sum(len(record.sequence) for member in members for record in member.data.of(None))
    yield _stage("predicting", forward, labeled / residues)


def _stage(name: str, times: tuple[float, float], count: int | float) -> Stage:
    return Stage(name=name, low=times[0] * count / AROUND, high=times[1] * count * AROUND)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """The shortest and the longest of a few times, in seconds."""
    times = []
    for _ in range(1 + TIMED):  # the first one warms up
        start = time.perf_counter()
        with_code(work)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:]), max(times[1:])


def _timed_batch(sequences: Sequence[str], most: int) -> list[str]:
    """Sequences of all lengths there are, in one pass."""
    ordered = sorted(sequences, key=len)
    count = 1
    batch = [ordered[len(ordered) // 2]]
    while count < len(ordered):
        count *= 2
        few = [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(min(count, len(ordered)))]
        if sum(len(s) + SPECIALS for s in few) > min(most, TIMED_TOKENS):
            break
        batch = few
    return batch


def _of_both(predictor: Predictor, tokens: Tokens) -> Callable[[], None]:
    """A step through encoder and head, without the optimizer's part, which is small beside it."""

    def work() -> None:
        with _learning(predictor):
            predictor(tokens).float().square().mean().backward()

    return work


def _of_head(predictor: Predictor, sequences: Sequence[str], config: TrainConfig) -> Callable[[], None]:
    """A step of the head alone, on numbers of no meaning."""
    batch = _timed_batch(sequences, 1 << 30)[: config.global_batch_size or 1]
    batch = (batch * (config.global_batch_size or 1))[: config.global_batch_size or 1]
    lengths = tuple(len(s) if predictor.head.sees_residues else 1 for s in batch)
    features = torch.randn(sum(lengths), predictor.features_dim)
    pooled = predictor.head.pooled(features, lengths, torch.zeros(len(batch), dtype=torch.long)).to(predictor.device)
    optimizer = torch.optim.AdamW(predictor.head.parameters(), lr=0.0, fused=predictor.device.type in ("cpu", "cuda"))

    def work() -> None:
        with _learning(predictor):
            predictor.head(pooled).float().square().mean().backward()
            optimizer.step()

    return work


@contextmanager
def _learning(predictor: Predictor) -> Iterator[None]:
    predictor.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        predictor.eval()
        predictor.zero_grad()


def steps_of(member: Member) -> int:
    """How many steps a training of its own takes at most."""
    return member.config.max_steps or (member.config.epochs or 1) * steps_per_epoch(member)


def steps_per_epoch(member: Member) -> int:
    """How many steps it takes to see every record once."""
    return -(-len(member.data.of("train")) // (member.config.global_batch_size or 1))


def _passed(member: Member, split: Split) -> float:
    """Residues of a split that pass in all epochs of a training."""
    epochs = steps_of(member) / max(1, steps_per_epoch(member))
    return epochs * sum(len(record.sequence) for record in member.data.of(split))


def _not_kept(predictor: Predictor, config: TrainConfig, sequences: Sequence[str]) -> list[str]:
    """The sequences, each once, that no cache has."""
    distinct = list(dict.fromkeys(sequences))
    cache = cache_at(config.cache) if type(predictor.head).pool is Head.pool else None
    if cache is None:
        return distinct
    kind = kind_of(predictor.encoder, predictor.head.pool_name, predictor.precision)
    found = cache.read(kind, predictor.spec.layers, distinct)
    return [sequence for sequence, vectors in zip(distinct, found, strict=True) if vectors is None]
