"""The training sequences that are nearest to a sequence, by identity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from esmtune.variants import equal_residues

CHUNK = 1 << 24  # cells that are looked at together
CANDIDATES = 10  # whose identity is computed, of those that share most words
WORK = 5e8  # pairs of shared words that are counted at most
WORDS = (3, 4, 5, 6)  # residues of a word; the first that WORK allows


def nearest(
    sequences: Sequence[str], known: Sequence[str]
) -> tuple[list[Int[np.ndarray, "_"]], Float[np.ndarray, "sequences"]]:
    """The places of the known sequences that are nearest to each sequence, ties included, and how identical they are.

    Identity is the share of equal residues where all have one length (Hamming 1950,
    https://doi.org/10.1002/j.1538-7305.1950.tb00463.x); else 1 minus the edit distance over the longer
    length (Levenshtein), of the ten known sequences with which most words are shared. None is near where no word is.

    >>> places, identity = nearest(["MKTV"], ["MKTA", "GGGG", "MKTG"])
    >>> places[0].tolist(), identity.tolist()
    ([0, 2], [0.75])
    """
    if len({len(sequence) for sequence in (*sequences, *known)}) == 1:
        return _by_position(sequences, known)
    return _by_words(sequences, known)


def _by_position(
    sequences: Sequence[str], known: Sequence[str]
) -> tuple[list[Int[np.ndarray, "_"]], Float[np.ndarray, "sequences"]]:
    found: list[Int[np.ndarray, "_"]] = []
    identity: list[Float[np.ndarray, "_"]] = []
    for equal in equal_residues(sequences, known):
        most = equal.max(1)
        identity.append(most / np.float64(len(known[0])))
        found += [np.flatnonzero(row == top) for row, top in zip(equal, most, strict=True)]
    return found, np.concatenate(identity)


def _by_words(
    sequences: Sequence[str], known: Sequence[str]
) -> tuple[list[Int[np.ndarray, "_"]], Float[np.ndarray, "sequences"]]:
    from rapidfuzz.distance import Levenshtein

    asked, there = _words(sequences, known)
    found: list[Int[np.ndarray, "_"]] = []
    identity = np.zeros(len(sequences))
    sizes = np.sqrt(np.maximum(1, np.asarray(there.sum(1)).ravel()))
    step = max(1, CHUNK // max(1, len(known)))
    for start in range(0, len(sequences), step):
        shared = (asked[start : start + step] @ there.T).tocsr()
        for row in range(shared.shape[0]):
            span = slice(shared.indptr[row], shared.indptr[row + 1])
            places, counts = shared.indices[span], shared.data[span] / sizes[shared.indices[span]]
            places = places[np.lexsort((places, -counts))[:CANDIDATES]]
            alike = np.array([Levenshtein.normalized_similarity(sequences[start + row], known[i]) for i in places])
            found.append(np.sort(places[alike == alike.max()]) if len(places) else places)
            identity[start + row] = alike.max() if len(places) else 0.0
    return found, identity


def _words(sequences: Sequence[str], known: Sequence[str]) -> tuple[Any, Any]:
    """Which words stand in each sequence: the shortest ones that are not too common to be looked up."""
    from scipy.sparse import csr_array

    tables: tuple[Any, Any] = (None, None)
    for size in WORDS:
        number: dict[str, int] = {}
        found = []
        for rows in (sequences, known):
            words = [sorted({s[i : i + size] for i in range(max(1, len(s) - size + 1))}) for s in rows]
            found.append(([number.setdefault(w, len(number)) for own in words for w in own], [0, *map(len, words)]))
        asked, there = (
            csr_array((np.ones(len(c), np.float32), c, np.cumsum(n)), shape=(len(n) - 1, len(number))) for c, n in found
        )
        tables = asked, there
        if float(asked.sum(0) @ there.sum(0)) <= WORK:
            break
    return tables
