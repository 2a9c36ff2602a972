"""Setting records aside for validation and test."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from esmtune.records import Label, Marks, Record, Split


def split_at_random(records: Sequence[Record], *, valid: float, test: float, stratify: bool, seed: int) -> list[Record]:
    """Give every record a split: of each class alike if `stratify`, copies of a sequence always together.

    `valid` and `test` are shares of all records. A class keeps at least one of its sequences in training.

    Raises:
        ValueError: if the shares leave nothing to train on.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"shares of {valid} for validation and {test} for test leave nothing to train on.")
    chosen: dict[str, Split] = {}
    done = 0
    for sequences in _shuffled_strata(records, stratify, random.Random(seed)):
        # Shares are rounded over all strata together, so that many small classes still add up to them.
        n_test, n_valid = (round((done + len(sequences)) * share) - round(done * share) for share in (test, valid))
        done += len(sequences)
        held_out = sequences[: min(n_test + n_valid, len(sequences) - 1)]
        chosen |= dict.fromkeys(sequences, "train")
        chosen |= dict.fromkeys(held_out[n_test:], "valid")
        chosen |= dict.fromkeys(held_out[:n_test], "test")
    _keep_every_class(records, chosen)
    return [replace(record, split=chosen[record.sequence]) for record in records]


def folds_of(records: Sequence[Record], folds: int, stratify: bool, seed: int) -> list[int]:
    """Deal the records into folds of one size: of each class alike if `stratify`, copies of a sequence always together.

    >>> records = [Record(id="", sequence=s, labels=(1.0,), split=None, where="") for s in ("MK", "GG", "MK", "AV")]
    >>> found = folds_of(records, 3, False, 0)
    >>> sorted(set(found)), found[0] == found[2]
    ([0, 1, 2], True)
    """
    dealt = [s for sequences in _shuffled_strata(records, stratify, random.Random(seed)) for s in sequences]
    fold = {sequence: place % folds for place, sequence in enumerate(dealt)}
    return [fold[record.sequence] for record in records]


def deal_groups(
    group: Int[np.ndarray, "sequences"], strata: Int[np.ndarray, "sequences"], weights: Float[np.ndarray, "sequences"],
    shares: Sequence[float], seed: int,
) -> Int[np.ndarray, "sequences"]:  # fmt: skip
    """The part of each sequence: groups stay whole, parts get their shares of the weight and of each stratum.

    Greedy, the heaviest group first, each to where the sum of squared deviations from the shares, in units of what is
    wanted, grows least. A stratum that is one group ends in the first part if that has the largest share.

    >>> group = np.array([0, 0, 0, 1, 2, 2]); same = np.zeros(6, dtype=int)
    >>> deal_groups(group, same, np.ones(6), (0.5, 0.5), 0).tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    True
    """
    count, kinds = int(group.max()) + 1, int(strata.max()) + 1
    held = np.zeros((count, kinds + 1))  # the weight of each stratum in each group, then all of it
    np.add.at(held, (group, strata), weights)
    held[:, -1] = held[:, :-1].sum(axis=1)
    dice = np.random.default_rng(seed)
    order = dice.permutation(count)
    order = order[np.argsort(-held[order, -1], kind="stable")]
    parts = dice.permutation(len(shares)) if len(set(shares)) == 1 else np.arange(len(shares))
    wanted = np.outer([shares[part] for part in parts.tolist()], held.sum(axis=0)) + 1e-9
    filled, chosen = np.zeros_like(wanted), np.zeros(count, dtype=np.int64)
    for place in order:
        growth = ((2 * (filled - wanted) + held[place]) * held[place] / wanted).sum(axis=1)
        best = int(growth.argmin())
        filled[best] += held[place]
        chosen[place] = parts[best]
    return chosen[group]


def _shuffled_strata(records: Sequence[Record], stratify: bool, order: random.Random) -> Iterable[list[str]]:
    """The sequences of each class in random order, or all of them."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.sequence, record)
    strata: dict[str, list[str]] = defaultdict(list)
    for sequence, record in first.items():
        strata[str(record.labels[0]) if stratify else ""].append(sequence)
    for _, sequences in sorted(strata.items()):
        order.shuffle(sequences)
        yield sequences


def _keep_every_class(records: Sequence[Record], chosen: dict[str, Split]) -> None:
    """Bring a class back into training whose sequences all went elsewhere."""
    classes = [{name for label in set(record.labels) for name in _named(label)} for record in records]
    in_training = {
        name for record, own in zip(records, classes, strict=True) if chosen[record.sequence] == "train" for name in own
    }
    for record, own in zip(records, classes, strict=True):
        if not own <= in_training:
            chosen[record.sequence] = "train"
            in_training |= own


def _named(label: Label, place: int = 0) -> Iterable[tuple[int, str]]:
    """The classes that a label names, each with the place of its target."""
    if isinstance(label, str):
        return [(place, label)]
    if isinstance(label, Marks):
        return [(place, name) for name in label.yes]
    if isinstance(label, tuple):
        return [named for own, part in enumerate(label) for named in _named(part, own)]
    return []
