"""Records beside the labels of their points for one target, and the samples of them that maps are found of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from esmtune.linear import affordable_points, is_affordable
from esmtune.records import Label, Level, Record


@dataclass(frozen=True)
class Points:
    """Records and the labels of their points for one target, end to end."""

    records: Sequence[Record]
    labels: Sequence[Label]
    level: Level

    @property
    def sequences(self) -> list[str]:
        """One a record."""
        return [record.sequence for record in self.records]

    @property
    def counts(self) -> Int[np.ndarray, "records"]:
        """How many points each record has."""
        return np.array([len(record.labels) for record in self.records], dtype=np.int64)

    def taken(self, places: Sequence[int]) -> "Points":
        """Some of the records."""
        ends = np.cumsum(self.counts)
        labels = [x for i in places for x in self.labels[ends[i] - len(self.records[i].labels) : ends[i]]]
        return Points([self.records[i] for i in places], labels, self.level)

    def sampled(self, limit: int, seed: int) -> "Points":
        """Random records with not many more points than a limit, at least one; or all."""
        if len(self.labels) <= limit:
            return self
        order = np.random.default_rng(seed).permutation(len(self.records))
        few = int(np.searchsorted(self.counts[order].cumsum(), limit)) if self.level == "residue" else limit
        return self.taken(sorted(order[: max(1, few)].tolist()))

    def labeled(self) -> "Points":
        """Those of the records of which anything is known."""
        return self.taken([place for place, record in enumerate(self.records) if record.is_labeled])

    def affordable(self, dim: int, outputs: int, seed: int) -> "Points | None":
        """All, or a sample, of which a map of so many numbers is found; None where that is not worth it."""
        if not is_affordable(dim, outputs, len(self.labels)):
            return None
        return self.sampled(affordable_points(dim, outputs), seed)

    def learnable(self) -> tuple[Int[np.ndarray, "known"], Float[np.ndarray, "known"], list[int]]:
        """Which points have a label and a weight, these weights, and how many are of each record, where any are."""
        weights = np.repeat([record.weight for record in self.records], self.counts)
        known = np.array([label is not None for label in self.labels], dtype=bool) & (weights > 0)
        record = np.repeat(np.arange(len(self.records)), self.counts)[known]
        groups = np.bincount(record, minlength=len(self.records))
        return np.flatnonzero(known), weights[known], groups[groups > 0].tolist()
