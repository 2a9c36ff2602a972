"""What passes through the network for each record, and what comes back, over all processes together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor

from esmtune.batching import SPECIALS, Budget, by_length
from esmtune.config import TrainConfig
from esmtune.devices import evaluating
from esmtune.esm2 import Tokens
from esmtune.events import Notice, Progress, Watcher
from esmtune.masking import masked
from esmtune.pooling import Pooled
from esmtune.predictor import Predictor
from esmtune.records import Record

SHARE_OF_MEMORY = 0.4  # of what the machine has, which the features of a frozen encoder may take

Features = dict[int, Tensor]  # what a frozen encoder and the pool made of each record: [points, dim]


class Inputs:
    """What the network is given for each record: tokens, or what a frozen encoder and the pool made of them once.

    Points are the rows of targets and outputs: one a record, or one a residue, records one after the other.
    """

    def __init__(
        self,
        fabric: Fabric,
        predictor: Predictor,
        records: Sequence[Record],
        config: TrainConfig,
        features: Features,
        watch: Watcher,
    ):
        self.fabric, self.predictor, self.watch = fabric, predictor, watch
        self.sequences = [r.sequence for r in records]
        self.lengths = [len(s) for s in self.sequences]
        self.points = [len(r.labels) for r in records]
        self.starts = torch.tensor([0, *self.points]).cumsum(0).tolist()
        self.budget = Budget(tokens=config.tokens_per_batch, sequences=config.micro_batch_size)
        self.is_frozen = not any(w.requires_grad for w in predictor.encoder.parameters())
        self.is_kept = self.is_frozen and not predictor.masks and self._fits(config)
        self._kept = features

    def __call__(self, batch: Sequence[int], seeds: Int[Tensor, "batch"] | None = None) -> Tokens | Pooled:
        """The input for some records, each with the seed of what happens to it at random.

        Without seeds it is what evaluation sees, where the same residues are masked each time, if any are.
        """
        if self.is_kept:
            lengths, features = self._features(batch)
            seeds = torch.zeros(len(batch), dtype=torch.long) if seeds is None else seeds
            return self.predictor.head.pooled(features, lengths, seeds).to(self.fabric.device)
        tokens = self._tokens(batch, seeds)
        return masked(tokens, self.predictor.masks)[0] if self.predictor.masks else tokens

    def rows(self, batch: Sequence[int]) -> Int[Tensor, "points"]:
        """Where the points of some records stand among all."""
        if len(self.starts) == self.starts[-1] + 1:
            return torch.tensor(batch, dtype=torch.long)
        ranges = [torch.arange(self.starts[i], self.starts[i + 1]) for i in batch]
        return torch.cat([torch.arange(0), *ranges])

    def targets(
        self, targets: Float[Tensor, "all columns"], batch: Sequence[int], seeds: Int[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "points columns"]:
        """The targets of some records; where residues are masked, those of masked residues alone are known."""
        found = targets[self.rows(batch).to(targets.device)]
        if not self.predictor.masks:
            return found
        selected = masked(self._tokens(batch, seeds), self.predictor.masks)[1]
        return found.masked_fill(~selected.to(found.device)[:, None], torch.nan)

    def mine(self, batch: Sequence[int]) -> list[list[int]]:
        """The micro-batches of this process; where there are too few for all, one of no sequence."""
        fabric = self.fabric
        share = -(-sum(self.lengths[i] + SPECIALS for i in batch) // fabric.world_size)
        budget = replace(self.budget, tokens=min(self.budget.tokens, share)) if fabric.world_size > 1 else self.budget
        return list(by_length(batch, self.lengths, budget))[fabric.global_rank :: fabric.world_size] or [[]]

    def prepare(self, indices: Sequence[int], stage: str) -> None:
        """Pass records through a frozen encoder, once."""
        if self.is_kept:
            new = [i for i in indices if i not in self._kept]
            counts = [self._pooled_points(i) for i in new]
            self._kept |= dict(zip(new, self._pool(new, counts, stage).split(counts), strict=True))

    def pooled(self, indices: Sequence[int], stage: str) -> Pooled:
        """What the pool makes of records, as evaluation sees them."""
        self.prepare(indices, stage)
        counts = [self._pooled_points(i) for i in indices]
        features = self._features(indices)[1] if self.is_kept else self._pool(indices, counts, stage)
        seeds = torch.zeros(len(indices), dtype=torch.long)
        return self.predictor.head.pooled(features, tuple(counts), seeds).to(self.fabric.device)

    def outputs(self, indices: Sequence[int], stage: str) -> Float[Tensor, "points outputs"]:
        """What the network gives for the points of records, in evaluation mode, on the CPU."""
        self.prepare(indices, stage)
        counts = [self.points[i] for i in indices]
        width = self.predictor.task.num_outputs
        return self._gathered(indices, counts, width, stage, lambda b: self.predictor(self(b)))

    def _pool(self, indices: Sequence[int], counts: Sequence[int], stage: str) -> Tensor:
        width = self.predictor.features_dim
        return self._gathered(
            indices, counts, width, stage, lambda b: self.predictor.pooled(self._tokens(b, None)).features
        )

    def _features(self, batch: Sequence[int]) -> tuple[tuple[int, ...], Tensor]:
        parts = [self._kept[i] for i in batch]
        return tuple(map(len, parts)), torch.cat([torch.empty(0, self.predictor.features_dim), *parts])

    def _pooled_points(self, index: int) -> int:
        """A head may look at all residues, whatever the level of what it says."""
        return self.lengths[index] if self.predictor.head.sees_residues else 1

    def _tokens(self, batch: Sequence[int], seeds: Int[Tensor, "batch"] | None) -> Tokens:
        if seeds is None:
            seeds = torch.tensor(batch, dtype=torch.long)
        return Tokens.of([self.sequences[i] for i in batch], seeds).to(self.fabric.device)

    def _fits(self, config: TrainConfig) -> bool:
        size = 4 * self.predictor.features_dim * sum(map(self._pooled_points, range(len(self.lengths))))
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE_OF_MEMORY
        if size > there:
            self.watch(
                Notice(
                    f"What the encoder says about these residues takes {size / 1e9:,.0f} GB, more than may be kept of "
                    "this machine's memory: it is computed anew in each epoch."
                )
            )
        return size <= there

    @torch.no_grad()
    def _gathered(
        self,
        indices: Sequence[int],
        counts: Sequence[int],
        width: int,
        stage: str,
        compute: Callable[[Sequence[int]], Tensor],
    ) -> Tensor:
        """Rows computed by all processes together: each fills in its own, and the sum is the whole."""
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        place = {index: number for number, index in enumerate(indices)}
        rows = torch.zeros(starts[-1], width)
        batches = list(by_length(indices, self.lengths, self.budget))
        done = 0
        with evaluating(self.predictor):  # in float32 whatever training computes in, as predict will
            for number, batch in enumerate(batches):
                if number % self.fabric.world_size == self.fabric.global_rank:
                    answers = compute(batch).float().cpu().split([counts[place[i]] for i in batch])
                    for index, answer in zip(batch, answers, strict=True):
                        start = starts[place[index]]
                        rows[start : start + len(answer)] = answer
                done += len(batch)
                self.watch(Progress(stage, done, len(indices), "sequences"))
        if self.fabric.world_size > 1:
            rows = sum_over_processes(self.fabric, rows.to(self.fabric.device)).cpu()
        return rows


def sum_over_processes(fabric: Fabric, x: Tensor) -> Tensor:
    """The sum of what each process has."""
    total = fabric.all_reduce(x, reduce_op="sum") if fabric.world_size > 1 else x
    assert isinstance(total, Tensor)
    return total
