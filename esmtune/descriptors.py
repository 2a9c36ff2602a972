"""Numbers from sequences alone: length, composition, what a variant changed, what surrounds a residue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from esmtune.alphabet import AMINO_ACIDS
from esmtune.variants import variants_of

WINDOW = 7  # residues on either side

_PLACE = np.full(256, len(AMINO_ACIDS), np.uint8)  # all that is no amino acid of the twenty shares a last place
_PLACE[np.frombuffer(AMINO_ACIDS.encode(), np.uint8)] = np.arange(len(AMINO_ACIDS), dtype=np.uint8)


def placed(sequence: str) -> UInt8[np.ndarray, "residues"]:
    """Which of the twenty amino acids each residue is; 20 is any other."""
    return _PLACE[np.frombuffer(sequence.encode("latin-1"), np.uint8)]


def composition(sequences: Sequence[str]) -> Float[np.ndarray, "sequences 21"]:
    """The share of each of the twenty amino acids, and the logarithm of the length.

    >>> composition(["AAC"])[0, [AMINO_ACIDS.index("A"), -1]].round(2).tolist()
    [0.67, 1.1]
    """
    rows = np.zeros((len(sequences), len(AMINO_ACIDS) + 1))
    for row, sequence in zip(rows, sequences, strict=True):
        row[:-1] = np.bincount(placed(sequence), minlength=len(AMINO_ACIDS) + 1)[:-1] / len(sequence)
        row[-1] = np.log(len(sequence))
    return rows


def windows(sequence: str) -> Float[np.ndarray, "residues 42"]:
    """Of each residue which it is, the composition around it, and how far it is from either end.

    >>> windows("AAC").shape
    (3, 42)
    """
    size, which = len(sequence), placed(sequence)
    own = np.eye(len(AMINO_ACIDS) + 1)[which][:, :-1]
    sums = np.vstack((np.zeros(len(AMINO_ACIDS)), own.cumsum(0)))
    first = np.maximum(np.arange(size) - WINDOW, 0)
    last = np.minimum(np.arange(size) + WINDOW + 1, size)
    around = (sums[last] - sums[first]) / (last - first)[:, None]
    ends = np.log1p(np.stack((np.arange(size), np.arange(size)[::-1]), axis=1))
    return np.hstack((own, around, ends))


@dataclass(frozen=True)
class WildType:
    """What variants of one protein differ from, and what they differ by as numbers.

    >>> found = WildType.of(["MKTVRQ", "MKTVRI", "MKTVKQ"])
    >>> found.sequence, found.changes("MKGVRQ")
    ('MKTVRQ', [(2, 'G')])
    """

    sequence: str

    @classmethod
    def of(cls, sequences: Sequence[str]) -> "WildType | None":
        """What the sequences are variants of; None if of nothing."""
        found = variants_of(sequences)
        return cls(found.wild_type) if found else None

    def fits(self, sequence: str) -> bool:
        """Whether a sequence may be one of them."""
        return len(sequence) == len(self.sequence)

    def changes(self, sequence: str) -> list[tuple[int, str]]:
        """Where a sequence is not the wild type, and what stands there."""
        pairs = enumerate(zip(sequence, self.sequence, strict=True))
        return [(place, new) for place, (new, old) in pairs if new != old]

    def one_hot(self, sequences: Sequence[str], columns: dict[tuple[int, str], int]) -> Any:
        """For each position whether it is changed, and whether to what, as a SciPy sparse array.

        With an intercept, that is the same as a column for each residue at each position. What is not among
        the `columns` counts as changed to something unheard of.
        """
        from scipy.sparse import csr_array

        rows: list[int] = []
        places: list[int] = []
        for row, sequence in enumerate(sequences):
            for place, new in self.changes(sequence):
                found = [columns[key] for key in ((place, ""), (place, new)) if key in columns]
                places += found
                rows += [row] * len(found)
        return csr_array((np.ones(len(rows)), (rows, places)), shape=(len(sequences), max(1, len(columns))))

    def columns(self, sequences: Sequence[str]) -> dict[tuple[int, str], int]:
        """The columns that `one_hot` has of training sequences: of each position that changes, and each change."""
        seen = sorted({key for s in sequences for place, new in self.changes(s) for key in ((place, ""), (place, new))})
        return {key: number for number, key in enumerate(seen)}

    def marginals(
        self, sequences: Sequence[str], expected: Float[np.ndarray, "residues symbols"], index: dict[str, int]
    ) -> Float[np.ndarray, "sequences"]:
        """How much more a language model expects of each variant than of the wild type, which it was shown.

        The sum over what changed of the log-odds (wild-type marginals, Meier et al. 2021,
        https://doi.org/10.1101/2021.07.09.450648). `expected` are logarithms of probabilities.
        """
        old = expected[np.arange(len(self.sequence)), [index[symbol] for symbol in self.sequence]]
        return np.array(
            [sum(expected[place, index[new]] - old[place] for place, new in self.changes(s)) for s in sequences]
        )
