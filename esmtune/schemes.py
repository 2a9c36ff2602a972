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
    """A number for each sequence: its class, or the fifth of the numbers it is in; one for every other sort of label.

    >>> labels = ["b", "a", None, "b"]
    >>> records = [Record(id="", sequence="M" * n, labels=(x,), split=None, where="") for n, x in enumerate(labels, 1)]
    >>> strata_of(records).tolist()
    [2, 1, 0, 2]
    """
    first: dict[str, Any] = {}
    for record in records:
        first.setdefault(record.sequence, record.labels[0] if len(record.labels) == 1 else None)
    numbers = [value for value in first.values() if isinstance(value, float)]
    cuts = np.quantile(numbers, np.linspace(0, 1, QUANTILES + 1)[1:-1]) if numbers else np.empty(0)
    keys: list[tuple[int, int, str]] = []  # texts among numbers are bounds, such as >10
    for value in first.values():
        if isinstance(value, float):
            keys.append((2, int(np.searchsorted(cuts, value)), ""))
        else:
            keys.append((1, 0, value if not numbers else "") if isinstance(value, str) else (0, 0, ""))
    place = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([place[key] for key in keys], dtype=np.int64)


def check_strata(records: Sequence[Record]) -> None:
    """Refuse to deal labels alike where there is nothing to deal.

    Raises:
        ValueError: if no record has one number or class for a label.
    """
    if not any(isinstance(r.labels[0], float | str) for r in records if len(r.labels) == 1):
        raise ValueError(
            "a stratified split deals labels alike, and there are none that are one number or class a sequence. Say "
            "which column holds them, --target COLUMN, or split at random."
        )


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
