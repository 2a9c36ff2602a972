"""Which rows are held out, and whether validation goes by folds."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from esmtune.config import DEFAULT_HEAD, DEFAULT_TUNING, FEW_LABELS, SPLIT_METHODS, Level, TrainConfig
from esmtune.datasets import Columns
from esmtune.families import feasible
from esmtune.identity import IDENTITY, NoMMseqsError, Pairs, linked, related
from esmtune.labels import Reads
from esmtune.methods import IN_ORDER, folds_by, split_by, times_of
from esmtune.records import SPLITS, Dataset, Record, Split, Table, Target
from esmtune.registry import nearest
from esmtune.schemes import Folded, Parted, Scheme
from esmtune.split_files import SplitFile, read_split
from esmtune.variants import variants_of

RELATED = (
    "The split is random: related sequences can stand on both sides of it, and then the scores are higher than they "
    "will be for proteins unlike these."
)

FOLDS = 5

LEAST_HALF = 20  # sequences: with less for the choice of weights or for calibration, none are kept for it

FEW = 10  # sequences: with less for validation it goes by folds, unless there are less in all
CHEAP_HEADS = ("linear", "mlp", "ridge")  # that see one vector a sequence
FEW_FROZEN = 50  # the same where folds cost next to nothing, unless a share for validation was asked for
QUICK = 1e12  # residues squared, up to which all are searched for in all at once
LOOKED_AT = 20  # sequences: with less nobody looks for related ones, since families of so few cannot be held out


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Records with their split, what was said of it, and the folds that hold each training sequence out."""

    records: list[Record]
    notices: list[str]
    facts: Mapping[str, Any]  # metrics.json tells them under split
    method: str | None = None  # that split them, if the data did not say
    held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # empty: members deal the folds at random


def asked_split(split: str | None, table: Table) -> tuple[str | None, str | None]:
    """What --split names: a column, or a method or a file.

    Raises:
        ValueError: for a name that could be two of them, or is none.
    """
    if split is None:
        return None, None
    is_method, is_file = split in SPLIT_METHODS, Path(split).is_file()
    if split in table.frame.columns:
        if is_method or is_file:
            what = "a way to split" if is_method else "a file"
            raise ValueError(f"split {split!r} is a column of {table.source} and {what}. Rename the column.")
        return split, None
    if is_method or is_file:
        return None, split
    if split.endswith(".csv"):
        raise ValueError(
            f"split {split!r} is no file. It can be a column, RUN/split.csv, or {', '.join(SPLIT_METHODS)}."
        )
    columns = table.frame.columns
    raise ValueError(
        f"split {split!r} is neither a column of {table.source} nor a way to split."
        f"{nearest(split, [*columns, *SPLIT_METHODS])} Its columns are {', '.join(columns)}; ways to split are "
        f"{', '.join(SPLIT_METHODS)}; or name a file, RUN/split.csv."
    )


def folds_for(
    config: TrainConfig, kind: str | None, missing: set[Split], records: Sequence[Record], level: Level
) -> int:
    """How many folds the training records are split into for validation; 1 if rows are set aside for it instead.

    Raises:
        ValueError: for folds that were asked for and cannot be made.
    """
    count = len({r.sequence for r in records if r.split in (None, "train")})
    train = count - round(count * config.test_fraction) if "test" in missing else count
    if config.folds is None:
        tuned = (config.tuning or {}).get("name", DEFAULT_TUNING)
        is_frozen = tuned == "frozen" or (tuned == "auto" and train < FEW_LABELS)
        is_cheap = level == "sequence" and is_frozen and (config.head or {}).get("name", DEFAULT_HEAD) in CHEAP_HEADS
        is_cheap = is_cheap and not config.learning_curve  # which trains each share anew
        least = FEW_FROZEN if is_cheap and config.valid_fraction == TrainConfig.valid_fraction else FEW
        few = config.valid_fraction > 0 and round(count * config.valid_fraction) < least and train >= FEW
        ordered = config.split in ("mutations", "time")
        return FOLDS if few and "valid" in missing and config.seeds == 1 and kind != "mlm" and not ordered else 1
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
    records: list[Record], config: TrainConfig, *, stratify: bool, missing: set[Split], folds: int,
    kind: str | None = None, method: str | None = None, tables: Sequence[Table] = (),
) -> Partition:  # fmt: skip
    """Set aside validation and test records, where the data do not say which they are.

    Raises:
        ValueError: if the method that was asked for cannot be used on these data.
    """
    records, notices = list(records), []
    free = [place for place, r in enumerate(records) if r.split in (None, "train")] if missing else []
    own = [records[place] for place in free]
    # With folds too, for the test rows must not depend on them, unless there are so few that all tunings go by folds.
    valid = config.valid_fraction if "valid" in missing else 0.0
    if folds > 1 and round(len({r.sequence for r in own}) * valid) < FEW:
        valid = 0.0
    test = config.test_fraction if "test" in missing else 0.0
    scheme = _asked_scheme(config, method, stratify, tables, own)
    pairs, found = None, ""
    if method is None and missing == {"valid", "test"} and kind != "mlm" and (valid or test or folds > 1):
        scheme, pairs, found = told_scheme(own, scheme, valid, test)
    try:
        parted = split_by(own, scheme, valid=valid, test=test, pairs=pairs) if own else None
    except ValueError as error:
        if method is not None:
            raise
        why = f"Related sequences cannot be held out apart: {error}"
        scheme, found = replace(scheme, method="random"), f"{why} {RELATED}"
        parted = split_by(own, scheme, valid=valid, test=test)
    for place in free if parted else []:
        part = parted.parts[records[place].sequence]  # pyright: ignore[reportOptionalMemberAccess]
        records[place] = replace(records[place], split="train" if folds > 1 and part == "valid" else part)
    folded = None
    if folds > 1 and scheme.method != "random":
        # Of the training records alone; pairs are numbered by all of them, so they are found anew.
        try:
            folded = folds_by([r for r in records if r.split == "train"], scheme, folds)
        except ValueError as error:
            if method is not None:
                raise
            found += f" The folds are random: {error}"
    counts = {split: sum(r.split == split for r in records) for split in SPLITS}
    names = [split for split in ("valid", "test") if split in missing and any(records[p].split == split for p in free)]
    names += [f"{folds} folds of train for validation"] if folds > 1 else []
    notices += [_said(counts, names, parted, scheme, found), *_warned(counts, folds)]
    facts = dict(_facts(parted, folded)) if names else {"method": "given"}
    facts["text"] = notices[0]
    return Partition(
        records=records, notices=notices, facts=facts, method=scheme.method if names else None,
        held=folded.held if folded else {},
    )  # fmt: skip


def with_file(records: Sequence[Record], path: str) -> tuple[Partition, int]:
    """Split records as a file says, by their sequences, and how many folds it has.

    Raises:
        ValueError: for a file that is no split, or sequences that are not in it.
    """
    file: SplitFile = read_split(Path(path))
    split = [replace(r, split=file.split_of(r)) for r in file.checked(records)]
    counts = {name: sum(r.split == name for r in split) for name in SPLITS}
    sizes = _sizes(counts)
    folds = file.folds
    text = f"Split: {sizes} (as {path} says)."
    held = {r.sequence: file.held(r) for r in split if r.split == "train"} if folds > 1 else {}
    notices = [text, *_warned(counts, folds)]
    facts = {"method": "given", "text": text}
    return Partition(records=split, notices=notices, facts=facts, held=held), folds


def _asked_scheme(
    config: TrainConfig, method: str | None, stratify: bool, tables: Sequence[Table], records: Sequence[Record]
) -> Scheme:
    if config.time and method != "time":
        raise ValueError(f"time {config.time!r} is the column for --split time: say that too, or leave out time.")
    if config.mutations is not None and method != "mutations":
        raise ValueError(f"mutations {config.mutations} is of --split mutations: say that too, or leave out mutations.")
    times = times_of(tables, config.time, records) if config.time else None
    return Scheme(
        method=method or "random", seed=config.seed, stratify=stratify, identity=config.identity,
        coverage=config.coverage, wild_type=config.wild_type, mutations=config.mutations, times=times,
    )  # fmt: skip


def told_scheme(
    records: Sequence[Record], scheme: Scheme, valid: float, test: float
) -> tuple[Scheme, Pairs | None, str]:
    """By identity if related sequences are found and can be held out; at random else, with what that hides.

    Returns the scheme, the related pairs if they were looked for, and what is to be said, in words.
    """
    sequences = list(dict.fromkeys(r.sequence for r in records))
    if len(sequences) < LOOKED_AT:
        return scheme, None, RELATED
    if variants_of(sequences, scheme.wild_type) is not None:
        return scheme, None, (
            "These are variants of one protein, and the split is random: test scores are of mutations at positions "
            "that training has seen, and higher than for others. --split position or mutations shows how much."
        )  # fmt: skip
    first = IDENTITY if scheme.identity is None else scheme.identity
    try:
        large = sum(map(len, sequences)) ** 2 > QUICK  # then see in seconds whether there is anything to search for
        pairs = linked(sequences, threshold=first, coverage=scheme.coverage) if large else None
        if pairs is None or len(pairs.first):
            pairs = related(sequences, threshold=first, coverage=scheme.coverage)
    except NoMMseqsError as error:
        return scheme, None, f"{RELATED} Nobody looked for them: {error}"
    if not len(pairs.first):
        return scheme, None, f"No sequences related at {first:.0%} identity were found, so the split is random."
    count = len(set(pairs.first.tolist()) | set(pairs.second.tolist()))
    related_rows = f"{count:,} of {len(sequences):,} sequences have a relative at {first:.0%} identity"
    threshold = feasible(records, scheme, valid=valid, test=test, pairs=pairs)
    if threshold is None:
        return scheme, None, f"{related_rows}, in families too large to be held out. {RELATED}"
    higher = f"; families at less than {threshold:.0%} are too large to be held out" if threshold > first else ""
    scheme = replace(scheme, method="identity", identity=threshold)
    return scheme, pairs, f"{related_rows}{higher}. --split random does not mind them."


def _sizes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {split}" for split, n in counts.items() if n or split != "calibration")


def _said(counts: Mapping[str, int], names: Sequence[str], parted: Parted | None, scheme: Scheme, found: str) -> str:
    sizes = _sizes(counts)
    if not names or parted is None:
        return f"Split: {sizes}."
    text = f"Split: {sizes} ({' and '.join(names)} drawn {parted.text}, seed {scheme.seed})."
    hides = found or (RELATED if scheme.method in ("random", "stratified") else "")
    return f"{text} {hides}".strip()


def _facts(parted: Parted | None, folded: Folded | None) -> Mapping[str, Any]:
    facts = dict(parted.facts) if parted else {}
    if folded:  # what was left in folds is told beside what was left in the split
        facts |= {f"folds_{name}": value for name, value in folded.facts.items() if name in ("violations", "pairs")}
    return facts


def _warned(counts: Mapping[str, int], folds: int) -> list[str]:
    notices = []
    if not counts["valid"] and folds == 1:
        notices.append("There are no validation rows: training keeps the weights after its last step.")
    if not counts["test"]:
        notices.append("There are no test rows: nothing says how good the predictor is on data it has not seen.")
    return notices


def dealt(data: Dataset, scheme: Scheme, folds: int) -> Dataset:
    """The same with its training sequences dealt to folds by the method that split it, where that deals folds."""
    if folds == 1 or scheme.method in ("random", "given", *IN_ORDER):
        return replace(data, held={})
    try:
        return replace(data, held=folds_by(data.of("train"), scheme, folds).held)
    except ValueError:  # too few of them: at random, as train does
        return replace(data, held={})


def seen_elsewhere(records: Sequence[Record]) -> set[str]:
    """The sequences of records for calibration that training or the choice of weights sees too."""
    kept = {r.sequence for r in records if r.split == "calibration"}
    return kept & {r.sequence for r in records if r.split in ("train", "valid")}


def with_calibration(
    records: Sequence[Record], targets: Sequence[Target], reads: Mapping[str, Reads], config: TrainConfig, *, seed: int
) -> tuple[list[Record], int, int]:
    """Keep a part of the validation sequences from the choice of weights: they are for calibration.

    Returns the records, how many of them are for calibration now, and of how many. Where the data have such rows
    already, or no target has intervals or sets (as several classes at once have none), none are drawn. Nor are
    sequences that are trained on too: their errors are smaller than those of new ones.
    """
    given = any(r.split == "calibration" for r in records)
    given = given or all(target.kind == "mlm" or reads[target.kind] == "names" for target in targets)
    learned = {r.sequence for r in records if r.split == "train"}
    known = [r.sequence for r in records if r.split == "valid" and r.is_labeled and r.sequence not in learned]
    valid = list(dict.fromkeys(known))
    fraction = 0.5 if config.calibration_fraction is None else config.calibration_fraction
    number = min(round(len(valid) * fraction), len(valid) - 1)
    if given or number < 1 or (config.calibration_fraction is None and number < LEAST_HALF):
        return list(records), 0, 0
    chosen = set(random.Random(f"calibration {seed}").sample(valid, number))
    before = sum(r.split == "valid" for r in records)
    new = [replace(r, split="calibration") if r.split == "valid" and r.sequence in chosen else r for r in records]
    return new, before - sum(r.split == "valid" for r in new), before
