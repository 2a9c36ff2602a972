"""Setting records aside for validation and test."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from esmtune.records import Record, Split


def split_at_random(records: Sequence[Record], *, valid: float, test: float, stratify: bool, seed: int) -> list[Record]:
    """Give every record a split: of each class alike if `stratify`, copies of a sequence always together.

    `valid` and `test` are shares of all records. A class keeps at least one of its sequences in training.

    Raises:
        ValueError: if the shares leave nothing to train on.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"shares of {valid} for validation and {test} for test leave nothing to train on.")
    copies: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        copies[record.sequence].append(index)
    strata: dict[str, list[str]] = defaultdict(list)
    for sequence, indices in copies.items():
        strata[str(records[indices[0]].label) if stratify else ""].append(sequence)
    order = random.Random(seed)
    chosen: dict[str, Split] = {}
    done = 0
    for _, sequences in sorted(strata.items()):
        order.shuffle(sequences)
        # Shares are rounded over all strata together, so that many small classes still add up to them.
        n_test, n_valid = (round((done + len(sequences)) * share) - round(done * share) for share in (test, valid))
        done += len(sequences)
        held_out = sequences[: min(n_test + n_valid, len(sequences) - 1)]
        chosen |= dict.fromkeys(sequences, "train")
        chosen |= dict.fromkeys(held_out[n_test:], "valid")
        chosen |= dict.fromkeys(held_out[:n_test], "test")
    if stratify:
        _keep_every_class(records, chosen)
    return [replace(record, split=chosen[record.sequence]) for record in records]


def _keep_every_class(records: Sequence[Record], chosen: dict[str, Split]) -> None:
    """Bring a class back into training whose sequences all went elsewhere, as copies with another label can."""
    in_training = {r.label for r in records if chosen[r.sequence] == "train"}
    for record in records:
        if record.label not in in_training:
            chosen[record.sequence] = "train"
            in_training.add(record.label)
