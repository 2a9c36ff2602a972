"""Sequences that are nearly the same: across splits, where they make scores too good, or all of them by design."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt

from esmtune.findings import Facts, Finding
from esmtune.records import HELD_OUT

IDENTITY = 0.9  # of the shorter one's residues
COVERAGE = 0.8  # the shorter one's length in the longer one's: fragments are another matter
SAMPLED = 24  # words that stand for a sequence, on average; of shorter ones all
CANDIDATES = 8  # that are compared in full, those with most words in common
CROWD = 64  # sequences looked at of those that share one word
PORTION = 5_000  # sequences at a time
SHORT = 40  # residues; of sequences that short, shorter words are needed to meet
MUCH_ALIKE = 0.7  # identity of variants of one protein to each other
DRAWN = 200  # sequences to tell from whether all are variants of one
MOST = 0.9


def kin(facts: Facts) -> Iterator[Finding]:
    """Say that all are variants of one protein, or find held-out rows that are nearly the same as a trained one."""
    sequences = [r.sequence for r in facts.records]
    if are_variants(sequences):
        yield Finding(
            name="variants", severity="note", count=len(sequences),
            text="These are variants of one protein, alike by design. If a split of them is drawn at random, the "
            "scores tell how well gaps between measured variants are filled; they are optimistic for positions, or "
            "numbers of mutations, that were not measured. To test that, hold out whole positions, or all with "
            "many mutations.",
        )  # fmt: skip
        return
    train = facts.splits.get("train", np.empty(0, np.int64))
    held = np.concatenate([np.empty(0, np.int64), *(facts.splits[s] for s in HELD_OUT if s in facts.splits)])
    pairs = near_pairs([sequences[i] for i in held], [sequences[i] for i in train])
    pairs = [(int(held[one]), int(train[other]), identity) for one, other, identity in pairs]
    pairs = [pair for pair in pairs if sequences[pair[0]] != sequences[pair[1]]]  # copies are told of elsewhere
    if not pairs:
        return
    rows = facts.held_out(one for one, _, _ in pairs)
    one, other, identity = pairs[0]
    yield Finding(
        name="near-duplicates", severity="warning", count=len(pairs), ids=facts.ids(one for one, _, _ in pairs),
        text=f"{rows} are nearly the same as a training sequence (at least {IDENTITY:.0%} identical, such as "
        f"{facts.records[one].id} and {facts.records[other].id}, {identity:.0%}): scores are higher than they will be "
        "for new proteins. Keep relatives on one side of the split.",
    )  # fmt: skip


def identity_of(one: str, other: str, least: float = 0.0) -> float:
    """The share of the shorter sequence's residues that stand in the other in the same order; 0 if below `least`.

    This is the longest common subsequence (rapidfuzz), the most that any alignment can match. For sequences of like
    length that are nearly the same it is their identity; below some 60 % it says little.

    >>> identity_of("MKTVRQERLK", "MKTVAQERLK"), identity_of("MKTVRQERLK", "MKTVRQRLK")
    (0.9, 1.0)
    """
    from rapidfuzz.distance import LCSseq

    shorter = min(len(one), len(other))
    return LCSseq.similarity(one, other, score_cutoff=int(np.ceil(least * shorter - 1e-9))) / shorter


def are_variants(sequences: Sequence[str], seed: int = 0) -> bool:
    """Whether nearly all sequences are variants of one protein, told from 200 of them.

    One of them is like nine tenths of the others: 70 % identical at nearly the same length.
    """
    if len(sequences) < 3:
        return False
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(sequences))[:DRAWN]
    found: list[str] = list(dict.fromkeys(sequences[int(place)] for place in drawn))
    if len(found) < 3:
        return False
    likes = ([_alike(one, other) for other in found if other != one] for one in found[:5])
    return any(np.mean(alike) >= MOST for alike in likes)


def _alike(one: str, other: str) -> bool:
    long_enough = min(len(one), len(other)) >= COVERAGE * max(len(one), len(other))
    return long_enough and identity_of(one, other, MUCH_ALIKE) >= MUCH_ALIKE


def near_pairs(
    queries: Sequence[str], references: Sequence[str], *, identity: float = IDENTITY, coverage: float = COVERAGE
) -> list[tuple[int, int, float]]:
    """For each query a reference that is nearly the same, if there is any: places of both, and their identity.

    Every sequence is known by a sample of its words of 6 residues (5 where most are short), the same words wherever
    they stand (Broder's sketches, https://doi.org/10.1109/SEQUEN.1997.666900). Those that share most are compared in
    full, so a pair is never wrong; of pairs just above 90 % less than 1 in 100 is missed.

    >>> near_pairs(["MKTVRQERLKSIVRILERSK"], ["GGSGGSAAAAGGSWW", "MKTVRQERLKSAVRILERSK"])
    [(0, 1, 0.95)]
    """
    if not queries or not references:
        return []
    size = 5 if np.median([len(sequence) for sequence in references]) < SHORT else 6
    words, owners = sketches(references, size)
    order = np.argsort(words, kind="stable")
    words, owners = words[order], owners[order]
    pairs = []
    for start in range(0, len(queries), PORTION):
        portion = queries[start : start + PORTION]
        for query, candidates in _met(*sketches(portion, size), words, owners, len(references)):
            for reference in candidates:
                one, other = portion[query], references[reference]
                if min(len(one), len(other)) < coverage * max(len(one), len(other)):
                    continue
                found = identity_of(one, other, identity)
                if found >= identity:
                    pairs.append((start + query, int(reference), found))
                    break
    return pairs


def sketches(sequences: Sequence[str], size: int) -> tuple[UInt[np.ndarray, "words"], Int[np.ndarray, "words"]]:
    """The sampled words of sequences as numbers, and whose they are."""
    words, owners = [], []
    for start in range(0, len(sequences), PORTION):
        portion = sequences[start : start + PORTION]
        found, whose = _sketched(portion, size)
        words.append(found)
        owners.append(whose + start)
    return np.concatenate(words), np.concatenate(owners)


def _sketched(sequences: Sequence[str], size: int) -> tuple[UInt[np.ndarray, "words"], Int[np.ndarray, "words"]]:
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    residues = np.frombuffer("".join(sequences).encode(), np.uint8).astype(np.uint32) & np.uint32(31)
    if len(residues) < size:
        return np.empty(0, np.uint32), np.empty(0, np.int64)
    words = np.zeros(len(residues) - size + 1, np.uint32)  # 5 bits a letter
    for place in range(size):
        words <<= np.uint32(5)
        words |= residues[place : len(words) + place]
    # A word is taken by its own value alone, so that the same words stand for both of two relatives: those that
    # come first when all are shuffled, which multiplying by 2 to the 32nd over the golden ratio does well enough.
    shuffled = words * np.uint32(0x9E3779B1)
    most = np.minimum(1.0, SAMPLED / np.maximum(1, lengths - size + 1)) * (2.0**32 - 1)
    taken = shuffled <= np.repeat(most.astype(np.uint32), lengths)[: len(words)]
    ends = np.cumsum(lengths)
    for place in range(1, size):  # words that reach into the next sequence are none
        last = ends - place
        taken[last[(last >= 0) & (last < len(taken))]] = False
    places = np.flatnonzero(taken)
    return words[places], np.searchsorted(ends, places, side="right")


def _met(
    queried: UInt[np.ndarray, "queried"], askers: Int[np.ndarray, "queried"], words: UInt[np.ndarray, "words"],
    owners: Int[np.ndarray, "words"], references: int,
) -> Iterator[tuple[int, list[int]]]:  # fmt: skip
    """Queries and the references that share most words with them, those with more first."""
    first = np.searchsorted(words, queried, side="left")
    count = np.minimum(np.searchsorted(words, queried, side="right") - first, CROWD)
    who = np.repeat(askers, count)
    offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    if not len(who):
        return
    pairs, shared = np.unique(who * references + owners[np.repeat(first, count) + offsets], return_counts=True)
    asker, met = pairs // references, pairs % references
    order = np.lexsort((-shared, asker))
    asker, met = asker[order], met[order]
    starts = np.flatnonzero(np.diff(asker, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(asker)], strict=True):
        yield int(asker[start]), met[start : min(end, start + CANDIDATES)].tolist()
