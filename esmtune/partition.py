"""Which rows are held out, and whether validation goes by folds."""

import random
from collections.abc import Sequence
from dataclasses import replace

from esmtune.config import TrainConfig
from esmtune.datasets import Columns
from esmtune.records import Record, Split, Table
from esmtune.splits import split_at_random

RELATED = (
    "The split is random: related sequences can stand on both sides of it, and then the scores are higher than they "
    "will be for proteins unlike these."
)

FOLDS = 5

LEAST_HALF = 20  # sequences: with less for the choice of weights or for calibration, none are kept for it

FEW = 10  # sequences: with less for validation it goes by folds, unless there are less in all


def folds_for(config: TrainConfig, kind: str | None, missing: set[Split], records: Sequence[Record]) -> int:
    """How many folds the training records are split into for validation; 1 if rows are set aside for it instead.

    Raises:
        ValueError: for folds that were asked for and cannot be made.
    """
    count = len({r.sequence for r in records if r.split in (None, "train")})
    train = count - round(count * config.test_fraction) if "test" in missing else count
    if config.folds is None:
        few = config.valid_fraction > 0 and round(count * config.valid_fraction) < FEW <= train
        return FOLDS if few and "valid" in missing and config.seeds == 1 and kind != "mlm" else 1
    if config.folds > 1 and "valid" not in missing:
        raise ValueError("folds take the training rows in turn for validation, but the data say which rows are for it.")
    if config.folds > max(train, 1):
        raise ValueError(f"folds is {config.folds}, but there are only {train:,} training sequences to split.")
    return config.folds


def missing_splits(tables: list[Table], columns: Columns, config: TrainConfig, records: list[Record]) -> set[Split]:
    """Which splits must be made: what the data say always wins."""
    if columns.split:
        return set() if any(r.split == "valid" for r in records) else {"valid"}
    if len(tables) > 1:
        return {"valid"} if not config.valid else set()
    return {"valid", "test"}


def with_splits(
    records: list[Record], config: TrainConfig, *, stratify: bool, missing: set[Split], folds: int
) -> tuple[list[Record], list[str]]:
    """Set aside validation and test records at random, where the data do not say which they are."""
    records, notices = list(records), []
    free = [place for place, r in enumerate(records) if r.split in (None, "train")] if missing else []
    drawn = split_at_random(
        [records[place] for place in free],
        valid=config.valid_fraction if "valid" in missing and folds == 1 else 0.0,
        test=config.test_fraction if "test" in missing else 0.0,
        stratify=stratify,
        seed=config.seed,
    )
    for place, record in zip(free, drawn, strict=True):
        records[place] = record
    counts = {split: sum(r.split == split for r in records) for split in ("train", "valid", "test")}
    sizes = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    names = [split for split in ("valid", "test") if any(r.split == split for r in drawn)]
    names += [f"{folds} folds of train for validation"] if folds > 1 else []
    if names:
        how = "at random, each class alike" if stratify else "at random"
        notices.append(f"Split: {sizes} ({' and '.join(names)} drawn {how}, seed {config.seed}). {RELATED}")
    else:
        notices.append(f"Split: {sizes}.")
    if not counts["valid"] and folds == 1:
        notices.append("There are no validation rows: the weights after the last step are kept.")
    if not counts["test"]:
        notices.append("There are no test rows: nothing says how good the predictor is on data it has not seen.")
    return records, notices


def with_calibration(
    records: Sequence[Record], config: TrainConfig, *, seed: int, given: bool = False
) -> tuple[list[Record], int, int]:
    """Keep a part of the validation sequences from the choice of weights: they are for calibration.

    Returns the records, how many of them are for calibration now, and of how many. Where the data have such rows
    already (`given`), no others are drawn.
    """
    valid = list(dict.fromkeys(r.sequence for r in records if r.split == "valid" and r.is_labeled))
    fraction = 0.5 if config.calibration_fraction is None else config.calibration_fraction
    number = min(round(len(valid) * fraction), len(valid) - 1)
    if given or number < 1 or (config.calibration_fraction is None and number < LEAST_HALF):
        return list(records), 0, 0
    chosen = set(random.Random(f"calibration {seed}").sample(valid, number))
    before = sum(r.split == "valid" for r in records)
    new = [replace(r, split="calibration") if r.split == "valid" and r.sequence in chosen else r for r in records]
    return new, before - sum(r.split == "valid" for r in new), before
