"""From a user's files to a dataset: read, find columns, mend, split, and refuse what cannot be learned from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from esmtune.config import TrainConfig
from esmtune.datasets import (
    LABELS_ARE_NUMBERS,
    Columns,
    Rows,
    check_labels,
    find_columns,
    infer_kind,
    read_labels,
    read_rows,
)
from esmtune.readers import read
from esmtune.records import BadRowsError, Dataset, Problem, Record, Split, Table
from esmtune.splits import split_at_random

RELATED = (
    "The split is random: related sequences can stand on both sides of it, and then the scores are higher than they "
    "will be for proteins unlike these."
)


@dataclass(frozen=True, kw_only=True)
class Curated:
    """A dataset and the columns it was read from."""

    dataset: Dataset
    columns: Columns


def curate_training(data: Any, config: TrainConfig) -> Curated:
    """Make the dataset of a training run: from one table, or from one each for training, validation and test.

    Raises:
        BadRowsError: for rows that cannot be used, unless they are to be skipped.
        ValueError: for everything else that is wrong with the data, with what to do.
    """
    files: dict[Split, str | None] = {"valid": config.valid, "test": config.test}
    tables = [read(data), *(read(path) for path in files.values() if path is not None)]
    parts: list[Split | None] = [None, *(split for split, path in files.items() if path is not None)]
    columns = _columns(tables[0], config)
    if len(tables) > 1:
        if columns.split:
            raise ValueError(
                f"{tables[0].source} has a split column, {columns.split!r}, and there is a file for {parts[1]} too. "
                "Leave out the file, or name the column otherwise."
            )
        parts[0] = "train"
    rows = [_read(table, _columns(table, config), config.max_length) for table in tables]
    records = [replace(r, split=part or r.split) for part, rs in zip(parts, rows, strict=True) for r in rs.records]
    problems = [problem for rs in rows for problem in rs.problems]
    kind, why = (str(config.task["name"]), "as asked") if config.task else infer_kind(records)
    labeled, unreadable = read_labels(records, kind)
    problems += unreadable
    notices = [f"Task: {kind} of {columns.target!r}, {why}.", *(n for rs in rows for n in rs.notices)]
    unlabeled = sum(r.label is None for r in labeled)
    if unlabeled:
        notices.append(f"Rows without a label in {columns.target!r}, left out: {unlabeled:,}.")
    known = [r for r in labeled if r.label is not None]
    known, more = _with_splits(known, kind, config, missing=_missing_splits(tables, columns, config, known))
    notices += more
    strangers = check_labels(known, kind, columns.target or "") if known or not problems else []
    problems += strangers
    _refuse(problems, config.skip_bad_rows)
    bad = {problem.where for problem in strangers}
    dataset = Dataset(
        records=tuple(r for r in known if r.where not in bad),
        target=columns.target or "",
        kind=kind,
        sha256=_checksum(tables),
        notices=(*notices, *_skipped(problems)),
        problems=tuple(problems),
    )
    if not dataset.records:
        raise ValueError(f"no row of {tables[0].source} can be used.")
    return Curated(dataset=dataset, columns=columns)


def curate_labeled(
    table: Table, columns: Columns, *, kind: str, classes: Sequence[str], subset: Split | None,
    max_length: int | None, skip_bad_rows: bool,
) -> Dataset:  # fmt: skip
    """Make a dataset to evaluate a predictor on: the rows with a label, or those of one split.

    Raises:
        BadRowsError: for rows that cannot be used, unless they are to be skipped; a class that the predictor
            does not know is one reason.
        ValueError: for everything else that is wrong with the data.
    """
    if subset and not columns.split:
        raise ValueError(
            f"{table.source} has no split column to take the {subset} rows by. Say which it is: --split COLUMN."
        )
    rows = _read(table, columns, max_length)
    chosen = [r for r in rows.records if subset in (None, r.split)]
    records, unreadable = read_labels(chosen, kind)
    problems = rows.problems + unreadable
    for r in records:
        if classes and r.label is not None and r.label not in classes:
            known = ", ".join(classes[:10])
            problems.append(
                Problem(r.where, r.id, f"the predictor does not know the class {r.label!r}; it knows {known}")
            )
    _refuse(problems, skip_bad_rows)
    bad = {problem.where for problem in problems}
    known = tuple(r for r in records if r.label is not None and r.where not in bad)
    if not known:
        raise ValueError(f"no {subset + ' ' if subset else ''}row of {table.source} has a label in {columns.target!r}.")
    notices = [*rows.notices, *_skipped(problems)]
    unlabeled = sum(r.label is None for r in records)
    if unlabeled:
        notices.append(f"Rows without a label in {columns.target!r}, left out: {unlabeled:,}.")
    return Dataset(
        records=known, target=columns.target or "", kind=kind, sha256=table.sha256, notices=tuple(notices),
        problems=tuple(problems),
    )  # fmt: skip


def _columns(table: Table, config: TrainConfig) -> Columns:
    return find_columns(table, sequence=config.sequence, target=config.target, id=config.id, split=config.split)


def _read(table: Table, columns: Columns, max_length: int | None) -> Rows:
    return read_rows(table, columns, max_length=max_length)


def _missing_splits(tables: list[Table], columns: Columns, config: TrainConfig, records: list[Record]) -> set[Split]:
    """Which splits must be made: what the data say always wins."""
    if columns.split:
        return set() if any(r.split == "valid" for r in records) else {"valid"}
    if len(tables) > 1:
        return {"valid"} if not config.valid else set()
    return {"valid", "test"}


def _with_splits(
    records: list[Record], kind: str, config: TrainConfig, *, missing: set[Split]
) -> tuple[list[Record], list[str]]:
    """Set aside validation and test records at random, where the data do not say which they are."""
    valid = config.valid_fraction if "valid" in missing else 0.0
    test = config.test_fraction if "test" in missing else 0.0
    free = [r for r in records if r.split in (None, "train")]
    notices = []
    if missing:
        given = [r for r in records if r.split not in (None, "train")]
        stratify = kind not in LABELS_ARE_NUMBERS
        drawn = split_at_random(free, valid=valid, test=test, stratify=stratify, seed=config.seed)
        by_where = {r.where: r for r in drawn}
        records = [by_where.get(r.where, r) for r in records]
        assert len(drawn) + len(given) == len(records)
    counts = {split: sum(r.split == split for r in records) for split in ("train", "valid", "test")}
    sizes = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    if valid or test:
        what = "at random, each class alike" if kind not in LABELS_ARE_NUMBERS else "at random"
        drawn_names = " and ".join(name for name, share in (("valid", valid), ("test", test)) if share)
        notices.append(f"Split: {sizes} ({drawn_names} drawn {what}, seed {config.seed}). {RELATED}")
    else:
        notices.append(f"Split: {sizes}.")
    if not counts["valid"]:
        notices.append("There are no validation rows: the weights after the last step are kept.")
    if not counts["test"]:
        notices.append("There are no test rows: nothing says how good the predictor is on data it has not seen.")
    return records, notices


def _refuse(problems: Sequence[Problem], skip: bool) -> None:
    if problems and not skip:
        raise BadRowsError(problems, "Mend them, or leave them out with --skip-bad-rows. Nothing was written.")


def _skipped(problems: Sequence[Problem]) -> list[str]:
    return [f"Left out {problem}." for problem in problems]


def _checksum(tables: Sequence[Table]) -> str:
    if len(tables) == 1:
        return tables[0].sha256
    return hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
