"""What a split is asked for by and what comes of it, whatever the method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from esmtune.identity import COVERAGE
from esmtune.records import Record, Split

QUANTILES = 5  # of numbers, which are dealt alike


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How to split: the method and its options."""

    method: str
    seed: int = 0
    stratify: bool = False  # whether labels are classes, of which each is dealt alike
    identity: float | None = None  # None: 0.3
    coverage: float = COVERAGE
    wild_type: str | None = None
    mutations: int | None = None  # that training may have at most
    times: Mapping[str, float] | None = None  # of each sequence, the earliest


@dataclass(frozen=True, kw_only=True)
class Parted:
    """What a method made: a part for each sequence, in words, and what is to be told of it."""

    parts: Mapping[str, Split]
    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """The folds that hold each sequence out: one, or by position as many as it has mutated positions in."""

    held: Mapping[str, tuple[int, ...]]
    text: str
    facts: Mapping[str, Any]


def strata_of(records: Sequence[Record]) -> Int[np.ndarray, "sequences"]:
    """A number for each sequence: its class, or the fifth of the numbers it is in; 0 for every other sort of label."""
    first: dict[str, Any] = {}
    for record in records:
        label = record.labels[0] if record.labels else None
        first.setdefault(record.sequence, label if len(record.labels) == 1 else None)
    values = list(first.values())
    if all(isinstance(value, str) for value in values):
        return np.unique(np.array(values), return_inverse=True)[1].astype(np.int64)
    if all(isinstance(value, float) for value in values):
        cuts = np.quantile(values, np.linspace(0, 1, QUANTILES + 1)[1:-1])
        return np.unique(np.searchsorted(cuts, values), return_inverse=True)[1].astype(np.int64)
    return np.zeros(len(values), dtype=np.int64)


def weights_of(weights: Mapping[str, int]) -> Float[np.ndarray, "sequences"]:
    """How many rows each sequence has."""
    return np.array(list(weights.values()), dtype=np.float64)


def by_name(weights: Mapping[str, int], parts: np.ndarray) -> dict[str, Split]:
    """The part of each sequence, from its number."""
    names: tuple[Split, ...] = ("train", "valid", "test")
    return {sequence: names[part] for sequence, part in zip(weights, parts.tolist(), strict=True)}


def by_number(weights: Mapping[str, int], parts: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The one fold of each sequence."""
    return {sequence: (int(part),) for sequence, part in zip(weights, parts.tolist(), strict=True)}


def known_split(split: Split | None) -> Split:
    """A split that is there, as all are that were drawn."""
    assert split is not None
    return split
