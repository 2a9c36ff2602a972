"""The ways to split, by name: what is held out, for one test or for folds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from esmtune.identity import CHECKED, COVERAGE, IDENTITY, Pairs, components, related, search
from esmtune.labels import as_number, as_text
from esmtune.records import Record, Split, Table
from esmtune.splits import deal_groups, folds_of, split_at_random
from esmtune.variants import (
    Variants,
    folds_by_position,
    most_mutated,
    parts_by_position,
    variants_of,
)

Method = Literal["random", "stratified", "identity", "position", "mutations", "segment", "time"]
METHODS: tuple[str, ...] = get_args(Method)
IN_ORDER = ("mutations", "time")  # what comes later is held out: folds go forward, and a seed changes nothing
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)  # that are tried in turn where all sequences are related at the first
QUANTILES = 5  # of numbers, which are dealt alike
ENOUGH = 0.5  # of what is asked for, at least, is held out


@dataclass(frozen=True, kw_only=True)
class Way:
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


def split_by(records: Sequence[Record], way: Way, *, valid: float, test: float, pairs: Pairs | None = None) -> Parted:
    """Hold out shares of the records for validation and test, by any method. Copies of a sequence stay together.

    `pairs` are related pairs of the sequences, each once and in order of appearance, if they are known already.

    Raises:
        ValueError: if the method cannot be used on these data, or leaves nothing to train on or to hold out.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"shares of {valid} for validation and {test} for test leave nothing to train on.")
    facts: dict[str, Any] = {"method": way.method, "seed": way.seed}
    if way.method == "random":
        drawn = split_at_random(records, valid=valid, test=test, stratify=way.stratify, seed=way.seed)
        return Parted(parts={r.sequence: _known(r.split) for r in drawn},
                      text="at random" + ", each class alike" * way.stratify, facts=facts)  # fmt: skip
    weights = Counter(r.sequence for r in records)
    if way.method == "stratified":
        alone = np.arange(len(weights))
        parts = deal_groups(alone, _strata(records), _array(weights), (1 - valid - test, valid, test), way.seed)
        text = "at random, labels alike in each"
        return Parted(parts=_named(weights, parts), text=text, facts=facts)
    if way.method == "identity":
        return _split_by_identity(records, way, valid, test, pairs)
    if way.method == "time":
        return _latest(weights, _times(way), valid, test, facts)
    variants = _variants(weights, way)
    if way.method == "mutations":
        return _mutations(variants, weights, way, valid, test, facts)
    parts = parts_by_position(variants, weights, valid=valid, test=test, contiguous=way.method == "segment",
                              seed=way.seed)  # fmt: skip
    what = "a segment of the protein" if way.method == "segment" else "positions"
    text = f"by {what}: no variant in train is mutated where those of test or validation are held out"
    return Parted(parts=parts, text=text, facts=facts)


def folds_by(records: Sequence[Record], way: Way, folds: int, *, pairs: Pairs | None = None) -> Folded:
    """Deal the records into folds by any method that has no order. Copies of a sequence stay together.

    By position a variant of several positions is held out with each of them.

    >>> records = [Record(id="", sequence=s, labels=(1.0,), split=None, where="") for s in ("MK", "GG", "MK", "AV")]
    >>> sorted(folds_by(records, Way(method="random"), 3).held.values())
    [(0,), (1,), (2,)]

    Raises:
        ValueError: if the method cannot make so many folds of these data.
    """
    facts: dict[str, Any] = {"method": way.method, "seed": way.seed}
    if way.method in IN_ORDER:
        raise ValueError(
            f"folds by {way.method} go forward and leave out what comes later: write them to a table by esmtune split "
            "--folds, and train with one after the other, --split fold_1 --skip-bad-rows."
        )
    if way.method == "random":
        numbers = folds_of(records, folds, way.stratify, way.seed)
        held = {r.sequence: (number,) for r, number in zip(records, numbers, strict=True)}
        return Folded(held=held, text="at random" + ", each class alike" * way.stratify, facts=facts)
    weights = Counter(r.sequence for r in records)
    if way.method in ("position", "segment"):
        contiguous = way.method == "segment"
        held = folds_by_position(_variants(weights, way), weights, folds, contiguous=contiguous, seed=way.seed)
        return Folded(held=held, text=f"by {way.method}", facts=facts)
    shares = [1 / folds] * folds
    if way.method == "stratified":
        parts = deal_groups(np.arange(len(weights)), _strata(records), _array(weights), shares, way.seed)
        return Folded(held=_by_number(weights, parts), text="at random, labels alike in each", facts=facts)
    sequences = list(weights)
    threshold = IDENTITY if way.identity is None else way.identity
    pairs = related(sequences, threshold=threshold, coverage=way.coverage) if pairs is None else pairs
    families = components(pairs.above(threshold), len(sequences))
    if families.max() + 1 < folds:
        raise ValueError(
            f"at {threshold:.0%} identity the sequences are {families.max() + 1} families, which cannot make {folds} "
            "folds. Give a higher --identity, or another method."
        )
    parts = deal_groups(families, _strata(records), _array(weights), shares, way.seed)
    checked = _check(sequences, parts, np.ones(len(sequences), dtype=bool), threshold, way)
    if len(checked.pairs.first):  # what the first search missed; all were looked up, so that nothing is missed now
        families = components(pairs.above(threshold).with_more(checked.pairs), len(sequences))
        parts = deal_groups(families, _strata(records), _array(weights), shares, way.seed)
    left = _crossing(checked.pairs, parts)
    facts |= {"identity": threshold, "coverage": way.coverage, **checked.facts(left, records)}
    return Folded(
        held=_by_number(weights, parts), text=f"by families of at least {threshold:.0%} identity", facts=facts
    )


def in_blocks(records: Sequence[Record], way: Way, blocks: int) -> dict[str, int]:
    """Blocks of about one size in order of time or of the number of mutations; equals stay together.

    Raises:
        ValueError: for fewer times or numbers than blocks.
    """
    weights = Counter(r.sequence for r in records)
    keys: Mapping[str, float] = _times(way) if way.method == "time" else _variants(weights, way).counts
    rows: Counter[float] = Counter()
    for sequence, count in weights.items():
        rows[keys[sequence]] += count
    levels = sorted(rows)
    if len(levels) < blocks:
        what = "times" if way.method == "time" else "numbers of mutations"
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
    for record in records:
        time = _time(cells[record.where], record.where)
        first[record.sequence] = min(time, first.get(record.sequence, math.inf))
    return first


def _time(cell: Any, where: str) -> float:
    number = as_number(as_text(cell))
    if isinstance(number, float) and math.isfinite(number):
        return number
    try:
        return datetime.fromisoformat(str(cell).strip()).timestamp()
    except ValueError:
        raise ValueError(f"{where}: {cell!r} is no time; expected a number or a date such as 2024-05-31.") from None


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Related pairs across parts that a search of held-out sequences found, and how many of them were looked up."""

    pairs: Pairs
    queries: int
    of: int

    def facts(self, left: Pairs, records: Sequence[Record]) -> dict[str, Any]:
        """What is told of the check, with the first of the pairs that are left."""
        names = list(dict.fromkeys(r.sequence for r in records))
        ids: dict[str, str] = {}
        for record in records:
            ids.setdefault(record.sequence, record.id)
        both = list(zip(left.first.tolist(), left.second.tolist(), strict=True))
        unique = sorted({(min(pair), max(pair)) for pair in both})
        found: dict[str, Any] = {"violations": len(unique), "checked": self.queries, "held_out": self.of}
        if unique:
            found["pairs"] = [[ids[names[a]], ids[names[b]]] for a, b in unique[:20]]
        return found


def _check(
    sequences: Sequence[str], parts: Int[np.ndarray, "n"], queries: np.ndarray, threshold: float, way: Way
) -> _Checked:
    """Search held-out sequences against all others, independently of how the families were found.

    What is more than a search can do in minutes is done for a sample, drawn by the seed.
    """
    places = np.flatnonzero(queries)
    total = float(sum(map(len, sequences)))
    own = np.array([len(sequences[p]) for p in places.tolist()], dtype=np.float64)
    chosen = places
    if own.sum() * total > CHECKED:
        order = np.random.default_rng(way.seed).permutation(len(places))
        few = max(1, int(np.searchsorted(np.cumsum(own[order]) * total, CHECKED)))
        chosen = places[np.sort(order[:few])]
    if not len(chosen):
        return _Checked(pairs=Pairs(first=chosen, second=chosen, identity=chosen.astype(np.float64)), queries=0, of=0)
    least = 7.5 if own.sum() * total <= 3e12 else 5.7
    found = search([sequences[p] for p in chosen.tolist()], sequences, coverage=way.coverage, threshold=threshold,
                   sensitivity=least)  # fmt: skip
    pairs = replace(found, first=chosen[found.first])
    return _Checked(pairs=_crossing(pairs, parts), queries=len(chosen), of=len(places))


def _crossing(pairs: Pairs, parts: Int[np.ndarray, "n"]) -> Pairs:
    return pairs.where(parts[pairs.first] != parts[pairs.second])


def _split_by_identity(records: Sequence[Record], way: Way, valid: float, test: float, pairs: Pairs | None) -> Parted:
    weights = Counter(r.sequence for r in records)
    sequences, strata, rows = list(weights), _strata(records), _array(weights)
    threshold = IDENTITY if way.identity is None else way.identity
    pairs = related(sequences, threshold=threshold, coverage=way.coverage) if pairs is None else pairs
    shares = (1 - valid - test, valid, test)
    parts, families, checked = rows, rows, None
    for _ in range(3):
        families = components(pairs.above(threshold), len(sequences))
        parts = deal_groups(families, strata, rows, shares, way.seed)
        _enough_held_out(parts, rows, shares, families, threshold)
        checked = _check(sequences, parts, parts > 0, threshold, way)
        if not len(checked.pairs.first):
            break
        # What the first search missed: these families are one. They go to training whole if that leaves enough; since
        # every held-out sequence was looked up, nothing crosses then. Else all is dealt anew.
        pairs = pairs.with_more(checked.pairs)
        merged = components(pairs.above(threshold), len(sequences))
        moved = parts.copy()
        moved[np.isin(merged, merged[checked.pairs.first])] = 0
        if _held(moved, rows, shares) >= 0.9 * _held(parts, rows, shares):
            parts, families = moved, merged
            break
    assert checked is not None
    left = _crossing(checked.pairs, parts)
    facts = {"method": "identity", "seed": way.seed, "identity": threshold, "coverage": way.coverage,
             "families": int(families.max()) + 1, **checked.facts(left, records)}  # fmt: skip
    which = "all" if checked.queries == checked.of else f"{checked.queries:,} of the"
    said = f"searched for again, {which} {checked.of:,} held-out sequences, no pair crosses"
    if len(left.first):
        said = f"searched for again, {facts['violations']:,} pairs cross, which could not be mended"
    text = (
        f"by identity: {facts['families']:,} families, in which sequences of at least {threshold:.0%} identity over "
        f"{way.coverage:.0%} of the shorter one are together; {said}"
    )
    return Parted(parts=_named(weights, parts), text=text, facts=facts)


def _held(parts: Int[np.ndarray, "n"], rows: np.ndarray, shares: Sequence[float]) -> float:
    """The least share of what was wanted that a part holds."""
    total = rows.sum()
    return min((rows[parts == n].sum() / (share * total) for n, share in enumerate(shares) if share > 0), default=1.0)


def _enough_held_out(
    parts: np.ndarray, rows: np.ndarray, shares: Sequence[float], families: np.ndarray, threshold: float
) -> None:
    if _held(parts, rows, shares) >= ENOUGH or rows.sum() * min(s for s in shares if s > 0) < 1:
        return
    largest = np.bincount(families, weights=rows).max() / rows.sum()
    raise ValueError(
        f"at {threshold:.0%} identity the sequences are {families.max() + 1:,} families, the largest with "
        f"{largest:.0%} of the rows: they cannot be split in the shares that were asked for. Give a higher --identity, "
        "or other shares."
    )


def feasible(records: Sequence[Record], way: Way, *, valid: float, test: float, pairs: Pairs) -> float | None:
    """The first threshold from which the families can be dealt in about the shares that are asked for."""
    weights = Counter(r.sequence for r in records)
    rows, shares = _array(weights), (1 - valid - test, valid, test)
    first = IDENTITY if way.identity is None else way.identity
    tried = [first] if way.identity is not None else [t for t in THRESHOLDS if t >= first]
    for threshold in tried:
        families = components(pairs.above(threshold), len(weights))
        parts = deal_groups(families, _strata(records), rows, shares, way.seed)
        if _held(parts, rows, shares) >= ENOUGH:
            return threshold
    return None


def _mutations(
    variants: Variants, weights: Mapping[str, int], way: Way, valid: float, test: float, facts: dict[str, Any]
) -> Parted:
    """The most mutated are test; validation is drawn from the others at random."""
    held, most = most_mutated(variants, weights, test, way.mutations)
    parts: dict[str, Split] = {s: "test" if s in held else "train" for s in weights}
    rest = [s for s in weights if s not in held]
    total, free = sum(weights.values()), sum(weights[s] for s in rest)
    share = min(valid * total / free, 0.5)
    alone = [Record(id="", sequence=s, labels=(None,), split=None, where="") for s in rest]
    drawn = split_at_random(alone, valid=share, test=0.0, stratify=False, seed=way.seed)
    parts |= {r.sequence: _known(r.split) for r in drawn}
    text = f"by mutations: up to {most} in train, more in test; validation is drawn from those with few at random"
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
            f"the rows are of {len(rows):,} times, which cannot be split in the shares that were asked for: "
            "too many are of one."
        )
    return Parted(parts=parts, text="by time: the latest are held out", facts=facts)


def _times(way: Way) -> Mapping[str, float]:
    if way.times is None:
        raise ValueError("a split by time needs the column with the times: --time COLUMN.")
    return way.times


def _variants(sequences: Iterable[str], way: Way) -> Variants:
    """The variants, with the wild type that was given, or the commonest residues for one."""
    found = variants_of(sequences, way.wild_type)
    if found is None:
        raise ValueError(
            f"a split by {way.method} is for variants of one protein: sequences of one length that differ little. "
            "These do not look so; --wild-type SEQUENCE says what they are variants of."
        )
    return found


def _strata(records: Sequence[Record]) -> Int[np.ndarray, "sequences"]:
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


def _array(weights: Mapping[str, int]) -> np.ndarray:
    return np.array(list(weights.values()), dtype=np.float64)


def _named(weights: Mapping[str, int], parts: np.ndarray) -> dict[str, Split]:
    names: tuple[Split, ...] = ("train", "valid", "test")
    return {sequence: names[part] for sequence, part in zip(weights, parts.tolist(), strict=True)}


def _by_number(weights: Mapping[str, int], parts: np.ndarray) -> dict[str, tuple[int, ...]]:
    return {sequence: (int(part),) for sequence, part in zip(weights, parts.tolist(), strict=True)}


def _known(split: Split | None) -> Split:
    assert split is not None
    return split
