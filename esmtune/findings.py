"""What is found in data before anything is trained, and what it is found in."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from esmtune.labels import Reads
from esmtune.records import HELD_OUT, SPLITS, Form, Label, Record, Target, of_target

Severity = Literal["error", "warning", "note"]
# Each has its paragraph in docs/data-checks.md.
Name = Literal[
    "bad-rows",
    "nothing-to-learn",
    "nucleotides",
    "leak",
    "leak-conflict",
    "near-duplicates",
    "variants",
    "conflict",
    "duplicate",
    "missing-labels",
    "two-values",
    "whole-numbers",
    "rank",
    "row-order",
    "sentinel",
    "outliers",
    "orders-of-magnitude",
    "limit",
    "constant",
    "imbalance",
    "rare-class",
    "missing-class",
    "shift",
    "length",
    "date-ids",
    "date-names",
    "ambiguous",
    "short",
    "tag",
]
KEPT_IDS = 100
ENOUGH = 20  # rows, below which nothing is said of how labels are distributed
UNLIKELY = 0.001  # p, from which something is no chance


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something in the data that one should know before trusting what is trained on them.

    `count` is how many rows, sequences, labels or classes it is about, as the text says; `ids` are the first hundred.
    """

    name: Name
    severity: Severity
    count: int
    text: str
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What findings are made from: the records with a label, each with its split, and what is to be predicted."""

    records: Sequence[Record]
    targets: Sequence[Target]
    reads: Mapping[str, Reads]  # of each kind of target

    @cached_property
    def lengths(self) -> Int[np.ndarray, "records"]:
        """Residues of each record."""
        return np.fromiter((len(r.sequence) for r in self.records), np.int64, len(self.records))

    @cached_property
    def splits(self) -> dict[str, Int[np.ndarray, "places"]]:
        """The places of the records of each split that has any."""
        names = np.array([r.split or "train" for r in self.records])
        found = {name: np.flatnonzero(names == name) for name in SPLITS}
        return {name: places for name, places in found.items() if len(places)}

    def ids(self, places: Iterable[int]) -> tuple[str, ...]:
        """The ids of the first of these records, each once."""
        found: dict[str, None] = {}
        for place in places:
            found[self.records[place].id] = None
            if len(found) == KEPT_IDS:
                break
        return tuple(found)

    def held_out(self, places: Iterable[int]) -> str:
        """How many rows of validation and test these are, of how many; nothing if they are none."""
        own = Counter(self.records[place].split for place in places)
        rows = ((own[split], len(self.splits[split]), split) for split in HELD_OUT if own[split])
        return " and ".join(f"{count:,} of the {total:,} {split} rows" for count, total, split in rows)

    def of(self, place: int) -> str:
        """Which target it is, where there are several."""
        return f" in {self.targets[place].name!r}" if len(self.targets) > 1 else ""

    def labels(self, place: int) -> list[tuple[int, Label]]:
        """Every known label of a target, and the place of its record."""
        return [
            (number, x)
            for number, record in enumerate(self.records)
            for x in of_target(record.labels, place, self.targets)
            if x is not None
        ]

    def numbers(self, place: int) -> tuple[Float[np.ndarray, "points"], Int[np.ndarray, "points"]]:
        """Every known number of a target, bounds left out, and the places of their records."""
        found = [(number, x) for number, x in self.labels(place) if isinstance(x, float)]
        values = np.fromiter((x for _, x in found), np.float64, len(found))
        return values, np.fromiter((number for number, _ in found), np.int64, len(found))

    def is_per_residue(self) -> bool:
        """Whether labels are of residues."""
        form: Form = self.targets[0].form
        return form not in ("one", "columns")


def shown(texts: Sequence[str], most: int) -> str:
    """The first of several texts, and whether there are more.

    >>> shown(["a", "b", "c"], 2)
    'a, b, …'
    """
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def chance(p: float) -> str:
    """A p-value, which may be too small for a number.

    >>> chance(0.00012), chance(0.0)
    ('p 0.0001', 'p < 1e-300')
    """
    return f"p {p:.1g}" if p >= 1e-300 else "p < 1e-300"


def each(number: int, one: str, many: str) -> str:
    """So many of something, with the verb that goes with it.

    >>> each(1, "row has", "rows have"), each(1200, "row has", "rows have")
    ('1 row has', '1,200 rows have')
    """
    return f"{number:,} {one if number == 1 else many}"
