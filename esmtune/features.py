"""What a frozen encoder and the pool made of sequences: computed once, over all processes, seeds and runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from esmtune.batching import Budget, remaining
from esmtune.cache import SHARD_BYTES, Collector, Kind, cache_at
from esmtune.config import TOKENS_PER_BATCH, TrainConfig
from esmtune.devices import evaluating
from esmtune.embedding import kind_of
from esmtune.esm2 import Tokens
from esmtune.events import Notice, Progress, Watcher
from esmtune.footprint import fits_in_memory, points_of, size_of
from esmtune.heads import Head
from esmtune.predictor import Predictor
from esmtune.shards import Vectors
from esmtune.shortage import halving

UNSTREAMED = (
    "features that do not fit into memory cannot be written to the cache, from which they were to be read. Give it "
    "another place (--cache FOLDER), or compute them in each epoch (--cache none)."
)

# Of each sequence [points, channels], all layers side by side, or each layer's, mapped from the files of a cache.
Kept = dict[str, tuple[Tensor, ...]]


class Features:
    """Features of sequences by a predictor's frozen encoder: in memory, or read from a cache where they do not fit.

    `is_possible` says whether they can be kept at all; if not, they are to be computed anew each time.
    """

    def __init__(
        self,
        fabric: Fabric,
        predictor: Predictor,
        sequences: Sequence[str],
        config: TrainConfig,
        kept: Kept,
        watch: Watcher,
    ):
        self.fabric, self.predictor, self.watch = fabric, predictor, watch
        self.budget = Budget(tokens=config.tokens_per_batch or TOKENS_PER_BATCH, sequences=config.micro_batch_size)
        self.cache = cache_at(config.cache) if type(predictor.head).pool is Head.pool else None
        self._kept = kept
        size = sum(size_of(predictor, sequence) for sequence in set(sequences))
        # All processes go one way, that of the first.
        self.fits = bool(fabric.broadcast(fits_in_memory(size, config.devices)))
        is_streamed = self.cache is not None and self.cache.has_room(size) and fabric.world_size == 1
        self.is_possible = self.fits or is_streamed
        if not self.fits:
            how = f"they are read from {self.cache.folder}" if is_streamed and self.cache else "computed in each epoch"
            watch(Notice(f"The features of these sequences take {size / 2**30:,.0f} GiB, more than fits: {how}."))

    def __call__(self, sequences: Sequence[str]) -> tuple[tuple[int, ...], Float[Tensor, "points channels"]]:
        """How many points each sequence has, and the features of all of them; they must have been prepared."""
        parts = [found[0] if len(found := self._kept[s]) == 1 else torch.cat(found, dim=1) for s in sequences]
        return tuple(map(len, parts)), torch.cat([torch.empty(0, self.predictor.features_dim), *parts])

    def prepare(self, sequences: Sequence[str], stage: str) -> None:
        """Pass sequences through the encoder, each once, and none that was before or that a cache has."""
        new = [sequence for sequence in dict.fromkeys(sequences) if sequence not in self._kept]
        if not new:
            return
        spec = self.predictor.spec
        kind = (
            kind_of(self.predictor.encoder, self.predictor.head.pool_name, self.predictor.precision)
            if self.cache
            else None
        )
        collector = Collector(self.cache, kind, spec.encoder.name, spec.layers, self.watch)
        self._take(new, kind)
        missing = [number for number, sequence in enumerate(new) if sequence not in self._kept]
        batches = remaining(range(len(new)), missing, [len(sequence) for sequence in new], self.budget)
        done = len(new) - len(missing)
        for part in self._parts(batches, new):
            rows = self._computed(part, new, stage, done)
            done += len(rows)
            names = [new[number] for number in rows]
            if self.fabric.is_global_zero:
                dim = spec.shape.embed_dim
                collector.add(names, [tuple(x.numpy() for x in row.split(dim, dim=1)) for row in rows.values()])
            self._kept |= {name: (row,) for name, row in zip(names, rows.values(), strict=True)}
            if not self.fits:  # then they are read from where they were just written
                collector.flush()
                if not collector.is_whole:
                    raise ValueError(UNSTREAMED)
                self._take(names, kind)
        collector.flush()

    def _take(self, sequences: Sequence[str], kind: Kind | None) -> None:
        """Keep what the cache has, in every process the same."""
        found: Sequence[Vectors | None] = [None] * len(sequences)
        if self.cache and kind and self.fabric.is_global_zero:
            found = self.cache.read(kind, self.predictor.spec.layers, sequences)
        there = sum_over_processes(self.fabric, torch.tensor([float(x is not None) for x in found]))
        for sequence, arrays, is_there in zip(sequences, found, there.tolist(), strict=True):
            if not is_there:
                continue
            layers = tuple(map(torch.from_numpy, arrays or ()))
            if self.fits:
                empty = torch.zeros(points_of(self.predictor, sequence), self.predictor.features_dim)
                layers = (sum_over_processes(self.fabric, torch.cat(layers, dim=1) if layers else empty),)
            self._kept[sequence] = layers

    def _computed(
        self, batches: Sequence[list[int]], sequences: Sequence[str], stage: str, done: int
    ) -> dict[int, Tensor]:
        def compute(batch: Sequence[int]) -> Tensor:
            tokens = Tokens.of([sequences[number] for number in batch]).to(self.fabric.device)
            return self.predictor.pooled(tokens).features

        counts = {number: points_of(self.predictor, sequences[number]) for batch in batches for number in batch}
        tell = progress(self.watch, stage, len(sequences), done)
        return gathered(self.fabric, self.predictor, batches, counts, self.predictor.features_dim, compute, tell)

    def _parts(self, batches: Sequence[list[int]], sequences: Sequence[str]) -> Iterator[list[list[int]]]:
        """Batches, as many at a time as are kept at once: one for each process, or what a file of the cache holds."""
        part, size = [], 0
        for batch in batches:
            part.append(batch)
            size += sum(size_of(self.predictor, sequences[number]) for number in batch)
            is_full = len(part) == self.fabric.world_size if self.fits else size >= SHARD_BYTES
            if is_full:
                yield part
                part, size = [], 0
        if part:
            yield part


@torch.no_grad()
def gathered(
    fabric: Fabric, predictor: Predictor, batches: Sequence[Sequence[int]], counts: Mapping[int, int], width: int,
    compute: Callable[[Sequence[int]], Tensor], tell: Callable[[int], None],
) -> dict[int, Tensor]:  # fmt: skip
    """Rows computed in evaluation mode by all processes together, on the CPU: each fills in its own, the sum is whole.

    `counts` has the rows of each index.
    """
    order = [index for batch in batches for index in batch]
    rows = dict(zip(order, torch.zeros(sum(counts[i] for i in order), width).split([counts[i] for i in order]),
                    strict=True))  # fmt: skip
    with evaluating(predictor):
        for number, batch in enumerate(batches):
            if number % fabric.world_size == fabric.global_rank:
                for part, found in halving(batch, compute):
                    for index, answer in zip(part, found.float().cpu().split([counts[i] for i in part]), strict=True):
                        rows[index].copy_(answer)
            tell(len(batch))
    if fabric.world_size > 1:
        whole = sum_over_processes(fabric, torch.cat([torch.empty(0, width), *rows.values()]))
        rows = dict(zip(order, whole.split([counts[i] for i in order]), strict=True))
    return rows


def progress(watch: Watcher, stage: str, total: int, done: int = 0) -> Callable[[int], None]:
    """Tell a watcher of so many more sequences at a time."""

    def tell(more: int) -> None:
        nonlocal done
        done += more
        watch(Progress(stage, done, total, "sequences"))

    return tell


def sum_over_processes(fabric: Fabric, x: Tensor) -> Tensor:
    """The sum of what each process has, where it was."""
    if fabric.world_size == 1:
        return x
    total = fabric.all_reduce(x.to(fabric.device), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total.to(x.device)
