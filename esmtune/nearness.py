"""How near to the training sequences the others are, and how good predictions are by that."""

import gzip
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from esmtune.identity import COVERAGE, NoMMseqsError, nearest
from esmtune.records import UNFITTED, Record
from esmtune.variants import Variants, nearest_variants, variants_of

IDENTITY_BINS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
BIN_NAMES = tuple(f"{low:g} to {high:g}" for low, high in itertools.pairwise(IDENTITY_BINS))
LOOKED_AT = 20  # training sequences: with less there is no telling near from far
MANY_MUTATIONS = 10  # from here on all are one bin
TRAINING = "training.fasta.gz"

Scorer = Callable[[np.ndarray], Mapping[str, float | None]]  # from which records count to their scores


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Of each record the identity to the nearest training sequence, and of variants the number of mutations."""

    identity: np.ndarray  # [records], 0 where no training sequence is related; NaN for training records
    mutations: np.ndarray | None  # [records]

    def filled(self, other: "Nearness", held: np.ndarray) -> "Nearness":
        """The same, and for the records that are held what another says of them."""
        if self.mutations is None or other.mutations is None:
            return replace(self, identity=np.where(held, other.identity, self.identity), mutations=None)
        return Nearness(
            identity=np.where(held, other.identity, self.identity),
            mutations=np.where(held, other.mutations, self.mutations),
        )

    def by_identity(self, chosen: np.ndarray, scores: Scorer) -> list[dict[str, Any]]:
        """The scores of the chosen records in bins of identity; the last bin has its end too."""
        bins = []
        for low, high in itertools.pairwise(IDENTITY_BINS):
            within = chosen & (self.identity >= low) & ((self.identity < high) | (high == IDENTITY_BINS[-1]))
            if within.any():
                bins.append({"from": low, "to": high, "records": int(within.sum()), "scores": dict(scores(within))})
        return bins

    def by_mutations(self, chosen: np.ndarray, scores: Scorer) -> list[dict[str, Any]]:
        """The scores of the chosen variants by their number of mutations from the wild type."""
        if self.mutations is None:
            return []
        counts = np.minimum(self.mutations, MANY_MUTATIONS)
        return [
            {"mutations": int(n), "records": int((chosen & (counts == n)).sum()),
             "scores": dict(scores(chosen & (counts == n)))}
            for n in np.unique(counts[chosen])
        ]  # fmt: skip


def nearness_of(
    training: Sequence[str], sequences: Sequence[str], *, wild_type: str | None = None, coverage: float = COVERAGE
) -> Nearness | None:
    """How near sequences are to those of training; None if there are too few of these, or MMseqs2 is not here.

    >>> wild = "MKTVRQERLKSIVRILERSK"
    >>> training = [wild[:n] + "A" + wild[n + 1 :] for n in range(20)]
    >>> found = nearness_of(training, [wild[:5] + "GG" + wild[7:]])
    >>> found.identity.tolist(), found.mutations.tolist()
    ([0.9], [2])
    """
    known = list(dict.fromkeys(training))
    if len(known) < LOOKED_AT or not sequences:
        return None
    variants = _of_one_protein(known, sequences, wild_type)
    if variants is not None:
        counts = np.array([variants.counts[s] for s in sequences])
        return Nearness(identity=nearest_variants(sequences, known), mutations=counts)
    own = list(dict.fromkeys(sequences))
    try:
        found = dict(zip(own, nearest(own, known, coverage=coverage), strict=True))
    except NoMMseqsError:
        return None
    return Nearness(identity=np.array([found[s] for s in sequences]), mutations=None)


def _of_one_protein(training: Sequence[str], sequences: Sequence[str], wild_type: str | None) -> Variants | None:
    """All of them as variants of the wild type of the training sequences, if they are."""
    try:
        learned = variants_of(training, wild_type)
        if learned is None or {len(s) for s in sequences} != {len(learned.wild_type)}:
            return None
        return variants_of([*training, *sequences], learned.wild_type)
    except ValueError:
        return None


def bin_of(identity: float) -> str:
    """The bin that an identity is in, in words; of none, none.

    >>> bin_of(0.42), bin_of(1.0), bin_of(float("nan"))
    ('0.3 to 0.5', '0.9 to 1', '')
    """
    if np.isnan(identity):
        return ""
    place = int(np.searchsorted(IDENTITY_BINS[1:-1], identity, side="right"))
    return BIN_NAMES[place]


def write_training(sequences: Sequence[str], folder: Path) -> None:
    """Write the training sequences, each once, under numbers; beside the predictor, not in it."""
    text = "".join(f">{n}\n{s}\n" for n, s in enumerate(dict.fromkeys(sequences), start=1))
    (folder / TRAINING).write_bytes(gzip.compress(text.encode("ascii"), mtime=0))


def read_training(run: Path) -> list[str]:
    """The training sequences of a run, or none if its file is not there."""
    file = next((f / TRAINING for f in (run, run.parent) if (f / TRAINING).is_file()), None)
    if file is None:
        return []
    lines = gzip.decompress(file.read_bytes()).decode("ascii").splitlines()
    return [line for line in lines if not line.startswith(">")]


def nearness_in(
    records: Sequence[Record], *, wild_type: str | None, coverage: float, folds: Sequence[Sequence[Record]] = ()
) -> Nearness | None:
    """How near the held-out records of a run are to its training records; NaN for the latter.

    `folds` are the same records as each of several members sees them: a training record that one of them holds out is
    as near as it is to what that one learns from; of several the last, which speaks for it.
    """
    found = _near(records, [r.split != "train" for r in records], wild_type, coverage)
    for own in folds:
        held = [old.split == "train" and new.split in UNFITTED for old, new in zip(records, own, strict=True)]
        more = _near(own, held, wild_type, coverage)
        found = more if found is None else found if more is None else found.filled(more, np.array(held))
    return found


def _near(records: Sequence[Record], held: Sequence[bool], wild_type: str | None, coverage: float) -> Nearness | None:
    """How near some records are to those of training; NaN, or -1 mutations, for all others."""
    found = nearness_of(
        [r.sequence for r in records if r.split == "train"],
        [r.sequence for r, is_held in zip(records, held, strict=True) if is_held], wild_type=wild_type,
        coverage=coverage,
    )  # fmt: skip
    if found is None:
        return None
    places = np.flatnonzero(held)
    identity = np.full(len(records), np.nan)
    identity[places] = found.identity
    if found.mutations is None:
        return Nearness(identity=identity, mutations=None)
    mutations = np.full(len(records), -1)
    mutations[places] = found.mutations
    return Nearness(identity=identity, mutations=mutations)
