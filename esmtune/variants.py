"""Variants of one protein: the wild type, what differs from it, and parts by position or number of mutations."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, UInt8

from esmtune.events import counted_as
from esmtune.records import Split

CELLS = 1 << 24  # of a matrix, at once
FEW = 0.3  # of the positions: variants differ from their wild type in less


@dataclass(frozen=True)
class Variants:
    """Sequences of one length that differ from a wild type at some positions."""

    wild_type: str
    sequences: tuple[str, ...]  # each once

    @cached_property
    def mutated(self) -> list[tuple[int, ...]]:
        """The positions of each sequence at which it is not the wild type, from 0.

        >>> Variants("MKTV", ("MKTV", "MATA")).mutated
        [(), (1, 3)]
        """
        letters, wild = _letters(self.sequences), _letters([self.wild_type])[0]
        rows, columns = np.nonzero(letters != wild)
        cuts = np.searchsorted(rows, np.arange(1, len(self.sequences)))
        return [tuple(map(int, part)) for part in np.split(columns, cuts)]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many mutations each sequence has."""
        return {sequence: len(found) for sequence, found in zip(self.sequences, self.mutated, strict=True)}


def variants_of(sequences: Iterable[str], wild_type: str | None = None) -> Variants | None:
    """Tell whether sequences are variants of one protein: all as long, and few differences from the commonest residues.

    >>> found = variants_of(["MKTVRQ", "MKAVRQ", "MKTVRA", "MKTVKQ"])
    >>> found.wild_type if found else None
    'MKTVRQ'

    Raises:
        ValueError: for a wild type that is given and of which these are no variants.
    """
    own = tuple(dict.fromkeys(sequences))
    lengths = Counter(map(len, own))
    if wild_type is not None:
        strangers = [s for s in own if len(s) != len(wild_type)]
        if strangers:
            raise ValueError(
                f"the wild type has {len(wild_type):,} residues, but {len(strangers):,} of {len(own):,} sequences "
                f"have another length, the first {len(strangers[0]):,}. Give the wild type that they are aligned with."
            )
        return Variants(wild_type, own)
    if len(lengths) != 1 or len(own) < 2 or not own[0]:
        return None
    letters = _letters(own)
    common = np.stack([np.bincount(column, minlength=256) for column in letters.T]).argmax(axis=1).astype(np.uint8)
    differences = (letters != common).mean(axis=1)
    if float(np.quantile(differences, 0.95)) >= FEW:
        return None
    return Variants(common.tobytes().decode("ascii"), own)


def parts_by_position(
    variants: Variants, weights: Mapping[str, int], *, valid: float, test: float, contiguous: bool, seed: int
) -> dict[str, Split]:
    """Hold out positions: a variant with any test position is in test, else with any of validation is in validation.

    So nothing in training is mutated at a held-out position, and no row is lost. `weights` are rows of each sequence;
    `contiguous` takes each part's positions as one stretch, which may run over the end of the protein.

    Raises:
        ValueError: if positions cannot be held out so that anything like the shares results.
    """
    order = _positions(variants, contiguous, seed)
    total, chosen = sum(weights[s] for s in variants.sequences), dict.fromkeys(variants.sequences, "train")
    touching = _touching(variants)
    for name, share in (("test", test), ("valid", valid)):
        held, wanted = 0, share * total
        for position in list(order):
            more = [s for s in touching[position] if chosen[s] == "train"]
            added = sum(weights[s] for s in more)
            if held >= wanted or abs(held + added - wanted) > abs(held - wanted):
                if contiguous or held >= wanted:
                    break
                continue
            held += added
            order.remove(position)
            chosen |= dict.fromkeys(more, name)
        if wanted >= 1 and not 0.5 * wanted <= held <= 2 * wanted:
            raise ValueError(
                f"no positions can be held out for {name} so that it is about {share:.0%} of the rows: the variants "
                f"differ at {len(touching):,} positions, and nearest is {held / total:.0%}. Take another method, or "
                f"another share: --{name}-fraction."
            )
    return chosen  # pyright: ignore[reportReturnType]


def folds_by_position(
    variants: Variants, weights: Mapping[str, int], folds: int, *, contiguous: bool, seed: int
) -> dict[str, tuple[int, ...]]:
    """The folds that hold a variant out: those of all its positions, so that training never sees one of them.

    Raises:
        ValueError: for fewer positions than folds.
    """
    order = _positions(variants, contiguous, seed)
    if len(order) < folds:
        raise ValueError(f"the variants differ at {len(order)} positions, which cannot make {folds} folds.")
    touching = _touching(variants)
    sizes = [sum(weights[s] for s in touching[position]) for position in order]
    fold_of: dict[int, int] = {}
    if contiguous:
        done, total = 0.0, float(sum(sizes))
        for rank, (position, size) in enumerate(zip(order, sizes, strict=True)):
            middle = int((done + size / 2) / total * folds)
            fold_of[position] = max(min(middle, rank), folds - (len(order) - rank))  # none is left empty
            done += size
    else:
        loads = [0] * folds
        for position, size in sorted(zip(order, sizes, strict=True), key=lambda pair: -pair[1]):
            fold_of[position] = loads.index(min(loads))
            loads[fold_of[position]] += size
    plain = iter(range(len(variants.sequences)))  # the wild type and its copies are dealt in turn
    return {
        sequence: tuple(sorted({fold_of[p] for p in found})) or (next(plain) % folds,)
        for sequence, found in zip(variants.sequences, variants.mutated, strict=True)
    }


def most_mutated(
    variants: Variants, weights: Mapping[str, int], share: float, most: int | None = None
) -> tuple[set[str], int]:
    """The sequences with more mutations than training may have, about a share of the rows, and that number.

    Raises:
        ValueError: if none has more, or all have.
    """
    rows: Counter[int] = Counter()
    for sequence, count in variants.counts.items():
        rows[count] += weights[sequence]
    levels, total = sorted(rows), sum(rows.values())
    if most is None:
        if len(levels) < 2 or levels[:-1] == [0]:
            raise ValueError(
                f"all variants have {counted_as(levels[-1], 'mutation')} from the wild type: nothing is to be "
                "learned from few for many. Take another method, such as position."
            )
        beyond = {level: sum(n for count, n in rows.items() if count > level) for level in levels[:-1] if level > 0}
        most = min(beyond, key=lambda level: abs(beyond[level] - share * total))
    held = {sequence for sequence, count in variants.counts.items() if count > most}
    if not held or len(held) == len(variants.sequences):
        raise ValueError(
            f"mutations is {most}, but the variants have {levels[0]} to {levels[-1]}: {'none' if not held else 'all'} "
            "would be held out."
        )
    return held, most


def nearest_variants(queries: Sequence[str], targets: Sequence[str]) -> Float[np.ndarray, "queries"]:
    """How alike the nearest target of the same length is, by position; no alignment is needed.

    >>> nearest_variants(["MKTV", "GGGG"], ["MKTA", "MATA"]).tolist()
    [0.75, 0.0]
    """
    targets = list(dict.fromkeys(targets))
    best = [counts.max(axis=1) for counts in equal_residues(queries, targets)]
    return np.concatenate([np.empty(0, np.float32), *best]).astype(np.float64) / len(targets[0])


def equal_residues(queries: Sequence[str], targets: Sequence[str]) -> Iterator[Float[np.ndarray, "rows targets"]]:
    """At how many positions each query has the residue of each target, all of one length, for some queries at a time.

    >>> [counts.tolist() for counts in equal_residues(["MKTV", "GGGG"], ["MKTA", "MATA"])]
    [[[3.0, 2.0], [0.0, 0.0]]]
    """
    ours, theirs = _letters(queries), _letters(targets)
    varies = (ours != theirs[0]).any(axis=0) | (theirs != theirs[0]).any(axis=0)
    same = np.float32((~varies).sum())
    ours, theirs = ours[:, varies], theirs[:, varies]
    alphabet = np.unique(np.concatenate([ours.ravel(), theirs.ravel()]))
    known = _one_hot(theirs, alphabet).T  # identical residues of all pairs are one matrix product
    step = max(1, CELLS // max(1, *known.shape))
    for start in range(0, len(ours), step):
        yield _one_hot(ours[start : start + step], alphabet) @ known + same


def _one_hot(letters: UInt8[np.ndarray, "n positions"], alphabet: np.ndarray) -> Float[np.ndarray, "n columns"]:
    return (letters[:, :, None] == alphabet).reshape(len(letters), -1).astype(np.float32)


def _letters(sequences: Sequence[str]) -> UInt8[np.ndarray, "n length"]:
    return np.frombuffer("".join(sequences).encode("ascii"), dtype=np.uint8).reshape(len(sequences), -1)


def _touching(variants: Variants) -> dict[int, list[str]]:
    """The variants that are mutated at each position that is mutated at all."""
    found: dict[int, list[str]] = {}
    for sequence, positions in zip(variants.sequences, variants.mutated, strict=True):
        for position in positions:
            found.setdefault(position, []).append(sequence)
    return found


def _positions(variants: Variants, contiguous: bool, seed: int) -> list[int]:
    """The mutated positions: shuffled, or in order from one drawn at random on."""
    order = sorted({position for found in variants.mutated for position in found})
    dice = random.Random(seed)
    if contiguous:
        start = dice.randrange(len(order)) if order else 0
        return order[start:] + order[:start]
    dice.shuffle(order)
    return order
