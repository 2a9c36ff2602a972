"""The tables of a training run: one, or one each for training, validation and test, and the columns of each."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from esmtune.config import TrainConfig
from esmtune.datasets import Columns, find_columns
from esmtune.partition import asked_split
from esmtune.readers import read
from esmtune.records import Problem, Row, Split, Table


def read_tables(data: Any, config: TrainConfig) -> tuple[list[Table], list[Split | None]]:
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


def columns_of(
    tables: Sequence[Table], parts: Sequence[Split | None], config: TrainConfig, kind: str | None
) -> list[Columns]:
    """The columns of each table; validation and test have theirs under the names of the first."""
    column, way = asked_split(config.split, tables[0])
    first = find_columns(
        tables[0], sequence=config.sequence, target=() if kind == "mlm" else config.target or None, id=config.id,
        split=column, mask=config.mask, weight=config.weight, splits=way is None,
    )  # fmt: skip
    if len(tables) > 1 and first.split:
        raise ValueError(
            f"{tables[0].source} has a split column, {first.split!r}, and there is a file for {parts[1]} too. "
            "Leave out the file, or name the column otherwise."
        )
    others = []
    for table, part in zip(tables[1:], parts[1:], strict=True):
        has = table.frame.columns
        sequence, id, mask = (name if name in has else None for name in (first.sequence, first.id, first.mask))
        found = find_columns(
            table, sequence=config.sequence or sequence, target=first.target or (), id=config.id or id,
            mask=config.mask or mask, weight=config.weight if part == "valid" or config.weight in has else None,
        )  # fmt: skip
        others.append(replace(found, split=None, validation=None))
    return [first, *others]


def in_part(row: Row, part: Split | None) -> Row:
    """The row, for what its file is for."""
    return replace(row, record=replace(row.record, split=part)) if part else row


def in_order(problems: Sequence[Problem], tables: Sequence[Table]) -> list[Problem]:
    """Problems as their rows stand in the files, whatever found them."""
    if not problems:
        return []
    wheres = (table.where(row) for table in tables for row in range(table.frame.height))
    place = {where: number for number, where in enumerate(wheres)}
    return sorted(problems, key=lambda problem: place[problem.where])


def checksum(tables: Sequence[Table]) -> str:
    """The SHA-256 of one table, or of those of all."""
    if len(tables) == 1:
        return tables[0].sha256
    return hashlib.sha256("".join(table.sha256 for table in tables).encode()).hexdigest()
