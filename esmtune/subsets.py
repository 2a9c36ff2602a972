"""Shares of the labels, one within the other, to see what more labels bring."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from esmtune.records import Dataset, Record


def share_of(data: Dataset, share: float, *, stratify: bool, seed: int) -> Dataset:
    """A dataset with a share of the training and validation sequences, drawn at random, and all test records.

    Of one seed, a smaller share lies within a larger one. Copies of a sequence stay together; with `stratify`
    each class gives the same share of its sequences, at least one of those that are trained on.
    """
    taken: set[str] = set()
    for split in ("train", "valid"):
        taken |= _drawn(data.of(split), share, stratify=stratify, seed=seed)
    records = tuple(r for r in data.records if r.split == "test" or r.sequence in taken)
    return replace(data, records=records)


def _drawn(records: Sequence[Record], share: float, *, stratify: bool, seed: int) -> set[str]:
    strata: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        strata[str(record.labels[0]) if stratify else ""].setdefault(record.sequence)
    order = random.Random(seed)
    taken: set[str] = set()
    for _, found in sorted(strata.items()):
        sequences = sorted(found)
        order.shuffle(sequences)
        taken |= set(sequences[: max(1, round(share * len(sequences)))])
    return taken
