"""From a user's files to a dataset: read, find columns, mend, split, and refuse what cannot be learned from."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from esmtune.config import TrainConfig
from esmtune.datasets import (
    INFERRED,
    LABELS_ARE_NUMBERS,
    Columns,
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
    tables, parts = _read_tables(data, config)
    columns = _columns_of(tables, parts, config)
    rows = [read_rows(table, found, max_length=config.max_length) for table, found in zip(tables, columns, strict=True)]
    records = [replace(r, split=part or r.split) for part, rs in zip(parts, rows, strict=True) for r in rs.records]
    problems = [problem for rs in rows for problem in rs.problems]
    target = columns[0].target or ""
    kind, why = _asked_kind(config) or infer_kind(records)
    labeled, unreadable = read_labels(records, kind)
    problems += unreadable
    notices = [f"Task: {kind} of {target!r}, {why}.", *(n for rs in rows for n in rs.notices)]
    unlabeled = sum(r.label is None for r in labeled)
    if unlabeled:
        notices.append(f"Rows without a label in {target!r}, left out: {unlabeled:,}.")
    known = [r for r in labeled if r.label is not None]
    known, more = _with_splits(known, kind, config, missing=_missing_splits(tables, columns[0], config, known))
    notices += more
    try:
        known, strangers = check_labels(known, kind, target)
    except ValueError:
        refuse(_in_order(problems, tables), config.skip_bad_rows)
        raise
    problems = _in_order(problems + strangers, tables)
    refuse(problems, config.skip_bad_rows)
    dataset = Dataset(
        records=tuple(known), target=target, kind=kind, sha256=_checksum(tables),
        notices=(*notices, *skipped(problems)), problems=tuple(problems),
    )  # fmt: skip
    return Curated(dataset=dataset, columns=columns[0])


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
    rows = read_rows(table, columns if subset else replace(columns, split=None), max_length=max_length)
    chosen = [r for r in rows.records if subset in (None, r.split)]
    records, unreadable = read_labels(chosen, kind)
    problems = rows.problems + unreadable
    for r in records:
        if classes and r.label is not None and r.label not in classes:
            known = ", ".join(classes[:10])
            problems.append(
                Problem(r.where, r.id, f"the predictor does not know the class {r.label!r}; it knows {known}")
            )
    problems = _in_order(problems, [table])
    refuse(problems, skip_bad_rows)
    bad = {problem.where for problem in problems}
    known = tuple(r for r in records if r.label is not None and r.where not in bad)
    if not known:
        raise ValueError(f"no {subset + ' ' if subset else ''}row of {table.source} has a label in {columns.target!r}.")
    notices = [*rows.notices, *skipped(problems)]
    unlabeled = sum(r.label is None for r in records)
    if unlabeled:
        notices.append(f"Rows without a label in {columns.target!r}, left out: {unlabeled:,}.")
    return Dataset(
        records=known, target=columns.target or "", kind=kind, sha256=table.sha256, notices=tuple(notices),
        problems=tuple(problems),
    )  # fmt: skip


def _asked_kind(config: TrainConfig) -> tuple[str, str] | None:
    name = (config.task or {}).get("name")
    if name is None:
        return None
    if name not in INFERRED:
        from esmtune.tasks import task  # torch, which a mistake in the data should not have to wait for

        task[str(name)]
    return str(name), "as asked"


def _read_tables(data: Any, config: TrainConfig) -> tuple[list[Table], list[Split | None]]:
    """The table, and those of validation and test if they are files of their own, with the split of each."""
    tables = [read(data)]
    parts: list[Split | None] = [None]
    files: dict[Split, str | None] = {"valid": config.valid, "test": config.test}
    for part, path in files.items():
        if path is None:
            continue
        if not isinstance(path, str | os.PathLike):
            raise ValueError(
                f"{part} is a {type(path).__name__}, expected the path of a file. Rows in memory go into one table, "
                "with a column split that says train, valid or test."
            )
        table = read(path)
        for other in tables:
            if table.sha256 == other.sha256:
                raise ValueError(f"{table.source} is the same file as {other.source}: its rows cannot be {part} too.")
        tables.append(table)
        parts.append(part)
    if len(tables) > 1:
        parts[0] = "train"
    return tables, parts


def _columns_of(tables: Sequence[Table], parts: Sequence[Split | None], config: TrainConfig) -> list[Columns]:
    """The columns of each table; validation and test have theirs under the names of the first."""
    first = find_columns(tables[0], sequence=config.sequence, target=config.target, id=config.id, split=config.split)
    if len(tables) > 1 and first.split:
        raise ValueError(
            f"{tables[0].source} has a split column, {first.split!r}, and there is a file for {parts[1]} too. "
            "Leave out the file, or name the column otherwise."
        )
    others = []
    for table in tables[1:]:
        sequence, id = (name if name in table.frame.columns else None for name in (first.sequence, first.id))
        found = find_columns(table, sequence=config.sequence or sequence, target=first.target, id=config.id or id)
        others.append(replace(found, split=None, validation=None))
    return [first, *others]


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
    records, notices = list(records), []
    stratify = kind not in LABELS_ARE_NUMBERS
    free = [place for place, r in enumerate(records) if r.split in (None, "train")] if missing else []
    drawn = split_at_random(
        [records[place] for place in free],
        valid=config.valid_fraction if "valid" in missing else 0.0,
        test=config.test_fraction if "test" in missing else 0.0,
        stratify=stratify,
        seed=config.seed,
    )
    for place, record in zip(free, drawn, strict=True):
        records[place] = record
    counts = {split: sum(r.split == split for r in records) for split in ("train", "valid", "test")}
    sizes = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    names = " and ".join(split for split in ("valid", "test") if any(r.split == split for r in drawn))
    if names:
        how = "at random, each class alike" if stratify else "at random"
        notices.append(f"Split: {sizes} ({names} drawn {how}, seed {config.seed}). {RELATED}")
    else:
        notices.append(f"Split: {sizes}.")
    if not counts["valid"]:
        notices.append("There are no validation rows: the weights after the last step are kept.")
    if not counts["test"]:
        notices.append("There are no test rows: nothing says how good the predictor is on data it has not seen.")
    return records, notices


def _in_order(problems: Sequence[Problem], tables: Sequence[Table]) -> list[Problem]:
    """Problems as their rows stand in the files, whatever found them."""
    if not problems:
        return []
    wheres = (table.where(row) for table in tables for row in range(table.frame.height))
    place = {where: number for number, where in enumerate(wheres)}
    return sorted(problems, key=lambda problem: place[problem.where])


def refuse(problems: Sequence[Problem], skip: bool) -> None:
    """Stop at rows that cannot be used, unless they are to be skipped.

    Raises:
        BadRowsError: with every such row.
    """
    if problems and not skip:
        raise BadRowsError(problems, "Mend them, or leave them out with --skip-bad-rows. Nothing was written.")


def skipped(problems: Sequence[Problem]) -> list[str]:
    """A sentence for each row that was left out."""
    return [f"Left out {problem}." for problem in problems]


def _checksum(tables: Sequence[Table]) -> str:
    if len(tables) == 1:
        return tables[0].sha256
    return hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
