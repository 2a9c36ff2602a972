"""Splits by identity: related sequences are families, which stay on one side, and that is searched for again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from esmtune.events import counted_as
from esmtune.identity import CHECKED, IDENTITY, Pairs, components, related, search
from esmtune.records import Record
from esmtune.schemes import Folded, Parted, Scheme, by_name, by_number, strata_of, weights_of
from esmtune.splits import deal_groups

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)  # that are tried in turn where all sequences are related at the first
BOTH_WAYS = 1e12  # residues of held-out sequences times those of all
ROUNDS = 3  # of dealing anew what a search found to be related after all
MORE_ROUNDS = 12  # the same, where each of them takes seconds
QUICK = 1e10  # held-out residues times all: searched within seconds
ENOUGH = 0.5  # of what is asked for, at least, is held out


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Related pairs across parts that a search of held-out sequences found, and how many of them were looked up."""

    pairs: Pairs
    queries: int
    of: int
    cells: float = 0.0  # residues of those that were looked up times those of all

    @property
    def expected(self) -> int:
        """How many held-out sequences that were not looked up have a relative in another part, if the sample tells.

        Those of the sample that had one are mended.
        """
        missed = len(np.unique(self.pairs.first))
        return round(missed / self.queries * (self.of - self.queries)) if missed else 0

    def facts(self, left: Pairs, records: Sequence[Record]) -> dict[str, Any]:
        """What is told of the check, with the first of the pairs that are left."""
        names = list(dict.fromkeys(r.sequence for r in records))
        ids: dict[str, str] = {}
        for record in records:
            ids.setdefault(record.sequence, record.id)
        both = list(zip(left.first.tolist(), left.second.tolist(), strict=True))
        unique = sorted({(min(pair), max(pair)) for pair in both})
        found: dict[str, Any] = {"violations": len(unique), "checked": self.queries, "held_out": self.of}
        found |= {"expected": self.expected} if self.expected else {}
        if unique:
            found["pairs"] = [[ids[names[a]], ids[names[b]]] for a, b in unique[:20]]
        return found


def _check(
    sequences: Sequence[str], parts: Int[np.ndarray, "n"], queries: np.ndarray, threshold: float, scheme: Scheme
) -> _Checked:
    """Search held-out sequences against all others, independently of how the families were found.

    What is more than a search can do in minutes is done for a sample, drawn by the seed.
    """
    places = np.flatnonzero(queries)
    total = float(sum(map(len, sequences)))
    own = np.array([len(sequences[p]) for p in places.tolist()], dtype=np.float64)
    chosen = places
    if own.sum() * total > CHECKED:
        order = np.random.default_rng(scheme.seed).permutation(len(places))
        few = max(1, int(np.searchsorted(np.cumsum(own[order]) * total, CHECKED)))
        chosen = places[np.sort(order[:few])]
    if not len(chosen):
        return _Checked(pairs=Pairs(first=chosen, second=chosen, identity=chosen.astype(np.float64)), queries=0, of=0)
    wanted = {"coverage": scheme.coverage, "threshold": threshold, "thorough": True}
    own_sequences = [sequences[p] for p in chosen.tolist()]
    found = search(own_sequences, sequences, **wanted)
    if own.sum() * total <= BOTH_WAYS:  # an alignment from the other end can be another one
        back = search(sequences, own_sequences, **wanted)
        found = found.with_more(Pairs(first=back.second, second=back.first, identity=back.identity))
    pairs = replace(found, first=chosen[found.first])
    cells = sum(map(len, own_sequences)) * total
    return _Checked(pairs=_crossing(pairs, parts), queries=len(chosen), of=len(places), cells=cells)


def _crossing(pairs: Pairs, parts: Int[np.ndarray, "n"]) -> Pairs:
    return pairs.where(parts[pairs.first] != parts[pairs.second])


def split_by_identity(
    records: Sequence[Record], scheme: Scheme, valid: float, test: float, pairs: Pairs | None
) -> Parted:
    """Deal whole families into parts, search for pairs that cross, and mend what is found.

    Raises:
        ValueError: if the families are too large for the shares.
    """
    weights = Counter(r.sequence for r in records)
    sequences, strata, rows = list(weights), strata_of(records), weights_of(weights)
    threshold = IDENTITY if scheme.identity is None else scheme.identity
    pairs = related(sequences, threshold=threshold, coverage=scheme.coverage) if pairs is None else pairs
    shares = (1 - valid - test, valid, test)
    parts, families, checked = rows, rows, None
    for round_ in range(MORE_ROUNDS):
        families = components(pairs.above(threshold), len(sequences))
        parts = deal_groups(families, strata, rows, shares, scheme.seed)
        _enough_held_out(parts, rows, shares, families, threshold)
        checked = _check(sequences, parts, parts > 0, threshold, scheme)
        if not len(checked.pairs.first) or (round_ + 1 >= ROUNDS and checked.cells > QUICK):
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
    facts = {"method": "identity", "seed": scheme.seed, "identity": threshold, "coverage": scheme.coverage,
             "families": int(families.max()) + 1, **checked.facts(left, records)}  # fmt: skip
    which = "all" if checked.queries == checked.of else f"{checked.queries:,} of the"
    said = f"searched for again, {which} {checked.of:,} held-out sequences, no pair crosses"
    if len(left.first):
        pairs_left, example = counted_as(facts["violations"], "pair"), " and ".join(facts["pairs"][0])
        said = f"searched for again, {pairs_left} still cross, such as {example}"
    elif checked.expected:
        said = _sampled(checked)
    text = (
        f"by identity: {counted_as(facts['families'], 'family')}, in which sequences of at least {threshold:.0%} "
        f"identity over {scheme.coverage:.0%} of the shorter one are together; {said}"
    )
    return Parted(parts=by_name(weights, parts), text=text, facts=facts)


def _sampled(checked: _Checked) -> str:
    """That a sample had relatives in other parts, and that others must have them too."""
    missed = len(np.unique(checked.pairs.first))
    return (
        f"of {checked.queries:,} of the {checked.of:,} held-out sequences, which were searched for again, {missed:,} "
        "had a relative in another part; that is mended, but as large a share of the others has one too, in all about "
        f"{checked.expected:,}"
    )


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
    number = counted_as(int(families.max()) + 1, "family")
    raise ValueError(
        f"at {threshold:.0%} identity the sequences are {number}, the largest with "
        f"{largest:.0%} of the rows: they cannot be split in the shares that were asked for. Give a higher --identity, "
        "or other shares."
    )


def feasible(records: Sequence[Record], scheme: Scheme, *, valid: float, test: float, pairs: Pairs) -> float | None:
    """The first threshold from which the families can be dealt in about the shares that are asked for."""
    weights = Counter(r.sequence for r in records)
    rows, shares = weights_of(weights), (1 - valid - test, valid, test)
    first = IDENTITY if scheme.identity is None else scheme.identity
    tried = [first] if scheme.identity is not None else [t for t in THRESHOLDS if t >= first]
    for threshold in tried:
        families = components(pairs.above(threshold), len(weights))
        parts = deal_groups(families, strata_of(records), rows, shares, scheme.seed)
        if _held(parts, rows, shares) >= ENOUGH:
            return threshold
    return None


def folds_by_identity(records: Sequence[Record], scheme: Scheme, folds: int, pairs: Pairs | None) -> Folded:
    """Deal whole families into folds of about one size.

    Raises:
        ValueError: for fewer families than folds.
    """
    weights = Counter(r.sequence for r in records)
    sequences = list(weights)
    threshold = IDENTITY if scheme.identity is None else scheme.identity
    pairs = related(sequences, threshold=threshold, coverage=scheme.coverage) if pairs is None else pairs
    families = components(pairs.above(threshold), len(sequences))
    strata, shares = strata_of(records), [1 / folds] * folds

    def dealt(families: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        if families.max() + 1 < folds:
            raise ValueError(
                f"at {threshold:.0%} identity the sequences are {counted_as(int(families.max()) + 1, 'family')}, which "
                f"cannot make {folds} folds. Give a higher --identity, or another method."
            )
        return deal_groups(families, strata, weights_of(weights), shares, scheme.seed)

    parts = dealt(families)
    checked = _check(sequences, parts, np.ones(len(sequences), dtype=bool), threshold, scheme)
    if len(checked.pairs.first):  # what the first search missed
        parts = dealt(components(pairs.above(threshold).with_more(checked.pairs), len(sequences)))
    left = _crossing(checked.pairs, parts)
    facts = {"method": "identity", "seed": scheme.seed, "identity": threshold, "coverage": scheme.coverage,
             **checked.facts(left, records)}  # fmt: skip
    text = f"by families of at least {threshold:.0%} identity"
    if checked.expected:
        text += f"; {_sampled(checked)}"
    return Folded(held=by_number(weights, parts), text=text, facts=facts)
