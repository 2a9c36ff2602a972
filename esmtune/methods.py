"""The ways to split, by name: what is held out, for one test or for folds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from esmtune.events import counted_as
from esmtune.families import folds_by_identity, split_by_identity
from esmtune.identity import Pairs
from esmtune.labels import as_number, as_text
from esmtune.records import Record, Split, Table
from esmtune.schemes import (
    Folded,
    Parted,
    Scheme,
    by_name,
    by_number,
    check_strata,
    known_split,
    strata_of,
    weights_of,
)
from esmtune.splits import deal_groups, folds_of, split_at_random
from esmtune.variants import (
    Variants,
    folds_by_position,
    most_mutated,
    parts_by_position,
    variants_of,
)

IN_ORDER = ("mutations", "time")  # what comes later is held out: folds go forward, and a seed changes nothing


def split_by(
    records: Sequence[Record], scheme: Scheme, *, valid: float, test: float, pairs: Pairs | None = None
) -> Parted:
    """Hold out shares of the records for validation and test, by any method. Copies of a sequence stay together.

    `pairs` are related pairs of the sequences, each once and in order of appearance, if they are known already.

    Raises:
        ValueError: if the method cannot be used on these data, or leaves nothing to train on or to hold out.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"shares of {valid} for validation and {test} for test leave nothing to train on.")
    facts: dict[str, Any] = {"method": scheme.method, "seed": scheme.seed}
    if scheme.method == "random":
        drawn = split_at_random(records, valid=valid, test=test, stratify=scheme.stratify, seed=scheme.seed)
        return Parted(parts={r.sequence: known_split(r.split) for r in drawn},
                      text="at random" + ", each class alike" * scheme.stratify, facts=facts)  # fmt: skip
    weights = Counter(r.sequence for r in records)
    if scheme.method == "stratified":
        check_strata(records)
        alone = np.arange(len(weights))
        parts = deal_groups(
            alone, strata_of(records), weights_of(weights), (1 - valid - test, valid, test), scheme.seed
        )
        text = "at random, labels alike in each"
        return Parted(parts=by_name(weights, parts), text=text, facts=facts)
    if scheme.method == "identity":
        return split_by_identity(records, scheme, valid, test, pairs)
    if scheme.method == "time":
        return _latest(weights, _times(scheme), valid, test, facts)
    variants = _variants(weights, scheme)
    if scheme.method == "mutations":
        return _mutations(variants, weights, scheme, valid, test, facts)
    parts = parts_by_position(variants, weights, valid=valid, test=test, contiguous=scheme.method == "segment",
                              seed=scheme.seed)  # fmt: skip
    what = "a segment of the protein" if scheme.method == "segment" else "positions"
    text = f"by {what}: no variant in train is mutated where those of test or validation are held out"
    return Parted(parts=parts, text=text, facts=facts)


def folds_by(records: Sequence[Record], scheme: Scheme, folds: int, *, pairs: Pairs | None = None) -> Folded:
    """Deal the records into folds by any method that has no order. Copies of a sequence stay together.

    By position a variant of several positions is held out with each of them.

    >>> records = [Record(id="", sequence=s, labels=(1.0,), split=None, where="") for s in ("MK", "GG", "MK", "AV")]
    >>> sorted(folds_by(records, Scheme(method="random"), 3).held.values())
    [(0,), (1,), (2,)]

    Raises:
        ValueError: if the method cannot make so many folds of these data.
    """
    facts: dict[str, Any] = {"method": scheme.method, "seed": scheme.seed}
    if scheme.method in IN_ORDER:
        raise ValueError(
            f"folds by {scheme.method} go forward and leave out what comes later: write them to a table by esmtune "
            "split --folds, and train with one after the other, --split fold_1 --skip-bad-rows."
        )
    if scheme.method == "random":
        numbers = folds_of(records, folds, scheme.stratify, scheme.seed)
        held = {r.sequence: (number,) for r, number in zip(records, numbers, strict=True)}
        return Folded(held=held, text="at random" + ", each class alike" * scheme.stratify, facts=facts)
    weights = Counter(r.sequence for r in records)
    if scheme.method in ("position", "segment"):
        contiguous = scheme.method == "segment"
        held = folds_by_position(_variants(weights, scheme), weights, folds, contiguous=contiguous, seed=scheme.seed)
        return Folded(held=held, text=f"by {scheme.method}", facts=facts)
    shares = [1 / folds] * folds
    if scheme.method == "stratified":
        check_strata(records)
        parts = deal_groups(np.arange(len(weights)), strata_of(records), weights_of(weights), shares, scheme.seed)
        return Folded(held=by_number(weights, parts), text="at random, labels alike in each", facts=facts)
    return folds_by_identity(records, scheme, folds, pairs)


def in_blocks(records: Sequence[Record], scheme: Scheme, blocks: int) -> dict[str, int]:
    """Blocks of about one size in order of time or of the number of mutations; equals stay together.

    Raises:
        ValueError: for fewer times or numbers than blocks.
    """
    weights = Counter(r.sequence for r in records)
    keys: Mapping[str, float] = _times(scheme) if scheme.method == "time" else _variants(weights, scheme).counts
    rows: Counter[float] = Counter()
    for sequence, count in weights.items():
        rows[keys[sequence]] += count
    levels = sorted(rows)
    if len(levels) < blocks:
        what = "times" if scheme.method == "time" else "numbers of mutations"
        raise ValueError(f"there are {len(levels)} different {what}, but {blocks - 1} folds need {blocks}.")
    block_of, done, total = {}, 0, sum(rows.values())
    for rank, level in enumerate(levels):
        middle = int((done + rows[level] / 2) / total * blocks)
        last = block_of[levels[rank - 1]] if rank else 0
        block_of[level] = max(min(middle, last + 1, rank), blocks - (len(levels) - rank))
        done += rows[level]
    return {sequence: block_of[keys[sequence]] for sequence in weights}


def times_of(tables: Sequence[Table], column: str, records: Iterable[Record]) -> dict[str, float]:
    """When each sequence was first measured, from a column of numbers (years) or of dates as ISO 8601 writes them.

    Raises:
        ValueError: for a column that is not there, or a cell that is no time, with its line.
    """
    cells: dict[str, Any] = {}
    for table in tables:
        if column not in table.frame.columns:
            raise ValueError(f"{table.source} has no column {column!r}. It has: {', '.join(table.frame.columns)}.")
        cells |= {table.where(row): cell for row, cell in enumerate(table.frame[column].to_list())}
    first: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for record in records:
        time, kind = _time(cells[record.where], record.where)
        first[record.sequence] = min(time, first.get(record.sequence, math.inf))
        kinds.setdefault(kind, record.where)
    if len(kinds) > 1:
        (one, here), (other, there) = kinds.items()
        raise ValueError(
            f"the column {column!r} has {one} ({here}) and {other} ({there}), which cannot be put in order. Write all "
            "of them in one way, such as 2021-01-01 for a year."
        )
    return first


def _time(cell: Any, where: str) -> tuple[float, str]:
    """A number or a date as a number, and which of them it is; without a time zone, dates are those of UTC."""
    number = as_number(as_text(cell))
    if isinstance(number, float) and math.isfinite(number):
        return number, "numbers"
    try:
        date = datetime.fromisoformat(str(cell).strip())
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp(), "dates"
    except ValueError:
        raise ValueError(f"{where}: {cell!r} is no time; expected a number or a date such as 2024-05-31.") from None


def _mutations(
    variants: Variants, weights: Mapping[str, int], scheme: Scheme, valid: float, test: float, facts: dict[str, Any]
) -> Parted:
    """The most mutated are test; validation is drawn from the others at random."""
    held, most = most_mutated(variants, weights, test, scheme.mutations)
    parts: dict[str, Split] = {s: "test" if s in held else "train" for s in weights}
    rest = [s for s in weights if s not in held]
    # More may be held out for test than was asked for: of what is left, validation gets its share of all but test.
    share = valid / (1 - test) if len(held) else valid
    alone = [Record(id="", sequence=s, labels=(None,), split=None, where="") for s in rest]
    drawn = split_at_random(alone, valid=share, test=0.0, stratify=False, seed=scheme.seed)
    parts |= {r.sequence: known_split(r.split) for r in drawn}
    drawn_from = "; validation is drawn from those with few at random" if share else ""
    text = f"by mutations: up to {most} in train, more in test{drawn_from}"
    return Parted(parts=parts, text=text, facts=facts | {"mutations": most})


def _latest(
    weights: Mapping[str, int], times: Mapping[str, float], valid: float, test: float, facts: dict[str, Any]
) -> Parted:
    """The latest are test, those before them validation; what is of one time stays together."""
    rows: Counter[float] = Counter()
    for sequence, count in weights.items():
        rows[times[sequence]] += count
    total, after, parts_of = sum(rows.values()), 0, {}
    for time in sorted(rows, reverse=True):
        middle = (after + rows[time] / 2) / total
        parts_of[time] = "test" if middle < test else "valid" if middle < test + valid else "train"
        after += rows[time]
    parts: dict[str, Split] = {sequence: parts_of[times[sequence]] for sequence in weights}
    if "train" not in parts.values() or (test > 0 and "test" not in parts.values()):
        raise ValueError(
            f"the rows are of {counted_as(len(rows), 'time')}, which cannot be split in the shares that were asked "
            "for: too many are of one."
        )
    return Parted(parts=parts, text="by time: the latest are held out", facts=facts)


def _times(scheme: Scheme) -> Mapping[str, float]:
    if scheme.times is None:
        raise ValueError("a split by time needs the column with the times: --time COLUMN.")
    return scheme.times


def _variants(sequences: Iterable[str], scheme: Scheme) -> Variants:
    """The variants, with the wild type that was given, or the commonest residues for one."""
    found = variants_of(sequences, scheme.wild_type)
    if found is None:
        raise ValueError(
            f"a split by {scheme.method} is for variants of one protein: sequences of one length that differ little. "
            "These do not look so; --wild-type SEQUENCE says what they are variants of."
        )
    return found
