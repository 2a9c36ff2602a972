"""What passes through the network for each record, and what comes back, over all processes together."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import Tensor

from esmtune.batching import SPECIALS, Budget, by_length
from esmtune.config import TrainConfig
from esmtune.esm2 import Tokens
from esmtune.events import Progress, Watcher
from esmtune.heads import Pooled
from esmtune.predictor import Predictor, evaluating
from esmtune.records import Record


class Inputs:
    """What the network is given for each record: tokens, or what a frozen encoder and the pool made of them once."""

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
        share = -(-sum(self.lengths[i] + SPECIALS for i in batch) // fabric.world_size)
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
    def _gathered(
        self, indices: Sequence[int], width: int, stage: str, compute: Callable[[Sequence[int]], Tensor]
    ) -> Tensor:
        """Rows computed by all processes together: each fills in its own, and the sum is the whole."""
        place = {index: row for row, index in enumerate(indices)}
        rows = torch.zeros(len(indices), width)
        batches = list(by_length(indices, self.lengths, self.budget))
        done = 0
        with evaluating(self.predictor):  # in float32 whatever training computes in, as predict will
            for number, batch in enumerate(batches):
                if number % self.fabric.world_size == self.fabric.global_rank:
                    rows[[place[i] for i in batch]] = compute(batch).float().cpu()
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
