"""What passes through the network for each record, and what comes back, over all processes together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor

from esmtune.applicability import References
from esmtune.batching import SPECIALS, Budget, by_length
from esmtune.config import TOKENS_PER_BATCH, TrainConfig
from esmtune.esm2 import Tokens
from esmtune.events import Watcher
from esmtune.features import Features, Kept, gathered, progress
from esmtune.footprint import MEASURED_BYTES, size_of
from esmtune.masking import masked
from esmtune.pooling import Pooled
from esmtune.predictor import Predictor
from esmtune.records import Record


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
        kept: Kept,
        watch: Watcher,
    ):
        self.fabric, self.predictor, self.watch = fabric, predictor, watch
        self.sequences = [r.sequence for r in records]
        self.lengths = [len(s) for s in self.sequences]
        self.points = [len(r.labels) for r in records]
        self.starts = torch.tensor([0, *self.points]).cumsum(0).tolist()
        self.budget = Budget(tokens=config.tokens_per_batch or TOKENS_PER_BATCH, sequences=config.micro_batch_size)
        self.is_frozen = not any(w.requires_grad for w in predictor.encoder.parameters())
        self.is_kept = False
        self.sizes = self.lengths  # of records, in what passes through the network
        if self.is_frozen and not predictor.masks:
            self.features = Features(fabric, predictor, self.sequences, config, kept, watch)
            self.is_kept = self.features.is_possible
            if self.is_kept and not predictor.head.sees_residues:
                self.sizes = [1] * len(records)  # one vector each, so that a step is one pass

    def __call__(self, batch: Sequence[int], seeds: Int[Tensor, "batch"] | None = None) -> Tokens | Pooled:
        """The input for some records, each with the seed of what happens to it at random.

        Without seeds it is what evaluation sees, where the same residues are masked each time, if any are.
        """
        if self.is_kept:
            lengths, features = self.features([self.sequences[i] for i in batch])
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
        share = -(-sum(self.sizes[i] + SPECIALS for i in batch) // fabric.world_size)
        budget = replace(self.budget, tokens=min(self.budget.tokens, share)) if fabric.world_size > 1 else self.budget
        return list(by_length(batch, self.sizes, budget))[fabric.global_rank :: fabric.world_size] or [[]]

    def prepare(self, indices: Sequence[int], stage: str) -> None:
        """Pass records through a frozen encoder, once."""
        if self.is_kept:
            self.features.prepare([self.sequences[i] for i in indices], stage)

    def pooled(self, indices: Sequence[int], stage: str) -> Pooled:
        """What the pool makes of records, as evaluation sees them."""
        if self.is_kept:
            self.prepare(indices, stage)
            lengths, features = self.features([self.sequences[i] for i in indices])
        else:
            every = self.predictor.head.sees_residues
            lengths = tuple(self.lengths[i] if every else 1 for i in indices)
            width = self.predictor.features_dim
            features = self._gathered(
                indices, lengths, width, stage, lambda b: self.predictor.pooled(self._tokens(b, None)).features
            )
        seeds = torch.zeros(len(indices), dtype=torch.long)
        return self.predictor.head.pooled(features, lengths, seeds).to(self.fabric.device)

    def measurable(self, indices: Sequence[int]) -> list[int]:
        """The first of some records, no more than what may be looked at at once."""
        return next(self._measured(indices), [])

    def vectors(self, indices: Sequence[int], stage: str) -> Float[Tensor, "indices dim"]:
        """What the head sees of records, standardized; of residues the mean."""
        parts = [self.predictor.vectors(self.pooled(part, stage)) for part in self._measured(indices)]
        return torch.cat(parts) if parts else torch.empty(0, self.predictor.features_dim, device=self.fabric.device)

    def _measured(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Records in parts whose features may be looked at at once; a single one may always."""
        part, size = list[int](), 0
        for index in indices:
            more = size_of(self.predictor, self.sequences[index])
            if part and size + more > MEASURED_BYTES:
                yield part
                part, size = [], 0
            part.append(index)
            size += more
        if part:
            yield part

    def outputs(self, indices: Sequence[int], stage: str) -> Float[Tensor, "points outputs"]:
        """What the network gives for the points of records, in evaluation mode, on the CPU."""
        self.prepare(indices, stage)
        counts = [self.points[i] for i in indices]
        width = self.predictor.task.num_outputs
        return self._gathered(indices, counts, width, stage, lambda batch: self.predictor(self(batch)))

    def said(
        self, indices: Sequence[int], stage: str, references: References | None
    ) -> tuple[Float[Tensor, "draws points outputs"], Float[Tensor, "indices"]]:
        """The outputs that the predictor gives once it is trained: one draw, or as many as it draws of its dropout.

        Also how far the records are from references; NaN without any.
        """
        self.prepare(indices, stage)
        counts = [self.points[i] for i in indices]
        draws, width = self.predictor.draws, self.predictor.task.num_outputs

        def compute(batch: Sequence[int]) -> Tensor:
            x, own = self(batch), [self.sequences[i] for i in batch]
            if references is None:
                return self._beside(torch.full((len(batch),), torch.nan), batch, self.predictor.said(x, own))
            x = self.predictor.pooled(x) if isinstance(x, Tokens) else x
            far = references.distance(self.predictor.vectors(x).cpu()).float()
            return self._beside(far, batch, self.predictor.said(x, own))

        found = self._gathered(indices, counts, draws * width + 1, stage, compute)
        starts = torch.tensor([0, *counts]).cumsum(0)[:-1]
        return found[:, :-1].unflatten(1, (draws, width)).transpose(0, 1), found[starts, -1]

    def _beside(self, of_records: Tensor, batch: Sequence[int], outputs: Sequence[Tensor]) -> Tensor:
        """Outputs of points, and in a last column what is known of their records."""
        counts = torch.tensor([self.points[i] for i in batch], device=outputs[0].device)
        column = of_records.to(outputs[0]).repeat_interleave(counts)
        return torch.cat([*outputs, column[:, None]], dim=1)

    def _gathered(
        self, indices: Sequence[int], counts: Sequence[int], width: int, stage: str,
        compute: Callable[[Sequence[int]], Tensor],
    ) -> Tensor:  # fmt: skip
        """Rows of records in their order, computed by all processes together."""
        batches = list(by_length(indices, self.sizes, self.budget))
        tell = progress(self.watch, stage, len(indices))
        of = dict(zip(indices, counts, strict=True))
        rows = gathered(self.fabric, self.predictor, batches, of, width, compute, tell)
        return torch.cat([torch.empty(0, width), *(rows[i] for i in indices)])

    def _tokens(self, batch: Sequence[int], seeds: Int[Tensor, "batch"] | None) -> Tokens:
        if seeds is None:
            seeds = torch.tensor(batch, dtype=torch.long)
        return Tokens.of([self.sequences[i] for i in batch], seeds).to(self.fabric.device)
