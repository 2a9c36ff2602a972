"""Split: a table in, the same table with a column that says what to train on, or one for each fold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from esmtune.config import SPLIT_METHODS, TrainConfig
from esmtune.datasets import USUAL_NAMES, find_columns, read_rows
from esmtune.events import Notice, Watcher, silent
from esmtune.labels import as_number, as_text
from esmtune.methods import IN_ORDER, folds_by, in_blocks, times_of
from esmtune.partition import told_scheme, with_file, with_splits
from esmtune.readers import read
from esmtune.records import Label, Record, Table
from esmtune.registry import nearest
from esmtune.schemes import Scheme
from esmtune.writers import check_out, write_table


def split(
    data: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    method: str | None = None,
    column: str | None = None,
    target: str | None = None,
    sequence: str | None = None,
    identity: float | None = None,
    coverage: float = TrainConfig.coverage,
    wild_type: str | None = None,
    mutations: int | None = None,
    time: str | None = None,
    valid_fraction: float = TrainConfig.valid_fraction,
    test_fraction: float = TrainConfig.test_fraction,
    folds: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    watch: Watcher = silent,
) -> pl.DataFrame:
    """Split a table: all its rows and columns, in order, then `split`, or with `folds` a column `fold_N` for each.

    `column` is another name than split or fold. A `method` may also be the split.csv of a run. Without one it goes as
    in training: by identity where related sequences are found, at random else. Labels are dealt alike if `target` is
    given or has a usual name. A fold column says test for the rows that the fold holds out, train for the others, and
    nothing for those that come later in time or have more mutations. A row without a sequence that can be used keeps
    its place, and has no split.

    >>> rows = [("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)]
    >>> frame = split(rows, test_fraction=0.25, valid_fraction=0.0)
    >>> sorted(frame["split"])
    ['test', 'train', 'train', 'train']

    Raises:
        ValueError: for a method that does not exist or cannot be used on these data, or a column that exists already.
    """
    is_file = method is not None and method not in SPLIT_METHODS and Path(method).is_file()
    if method is not None and method not in SPLIT_METHODS and not is_file:
        raise ValueError(
            f"there is no method {method!r}.{nearest(method, SPLIT_METHODS)} There are: {', '.join(SPLIT_METHODS)}, or "
            "RUN/split.csv."
        )
    if is_file and folds:
        raise ValueError(f"{method} tells one split: leave out folds.")
    if repeats > 1 and (not folds or method in IN_ORDER):
        why = f"by {method} there is one way" if method in IN_ORDER else "repeats are of folds: give --folds too"
        raise ValueError(f"repeats is {repeats}, but {why}.")
    if (folds is not None and folds < 2) or repeats < 1:
        raise ValueError(f"folds is {folds} and repeats {repeats}, expected 2 or more folds and 1 or more repeats.")
    config = TrainConfig(
        seed=seed, identity=identity, coverage=coverage, wild_type=wild_type, mutations=mutations, time=time,
        valid_fraction=valid_fraction, test_fraction=test_fraction, split=method, folds=1,
    )  # fmt: skip
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="table")
    table = read(data)
    stem = column or ("split" if folds is None else "fold")
    names = [stem] if folds is None else [f"{stem}_{n}" for n in range(1, folds * repeats + 1)]
    taken = [name for name in names if name in table.frame.columns]
    if taken:
        raise ValueError(
            f"{table.source} has a column {taken[0]!r} already, which split would add. Give another name: --column "
            "NAME."
        )
    records = _records(table, sequence, target, method, watch)
    stratify = all(isinstance(r.labels[0], str) for r in records)
    if folds is None:
        parts = _parts(records, config, method, stratify, table, watch)
        columns = [{r.where: r.split for r in parts}]
    else:
        columns = _folds(records, config, method, stratify, table, folds, repeats, watch)
    wheres = [table.where(row) for row in range(table.frame.height)]
    frame = table.frame.with_columns(
        pl.Series(name, [column.get(where) for where in wheres], dtype=pl.String)
        for name, column in zip(names, columns, strict=True)
    )
    if out is not None:
        write_table(frame, Path(out))
    return frame


def _records(
    table: Table, sequence: str | None, target: str | None, method: str | None, watch: Watcher
) -> list[Record]:
    """A record for each row with a sequence, its label as it is dealt by."""
    columns = find_columns(table, sequence=sequence, labeled=False)
    usual = [name for name in table.frame.columns if name.strip().lower() in USUAL_NAMES["target"]]
    if target is not None and target not in table.frame.columns:
        raise ValueError(f"{table.source} has no column {target!r}. It has: {', '.join(table.frame.columns)}.")
    named = target or (usual[0] if len(usual) == 1 else None)
    columns = replace(columns, target=(named,) if named else ())
    if named and method in ("stratified", "identity"):
        watch(Notice(f"Labels: those of {named!r} are dealt as alike as can be."))
    found = read_rows(table, columns, max_length=None)
    for text in found.notices:
        watch(Notice(text))
    if found.problems:
        watch(Notice(f"Rows without a split: {len(found.problems):,}, the first {found.problems[0]}."))
    if not found.rows:
        raise ValueError(f"no row of {table.source} has a sequence that can be split.")
    return [replace(row.record, labels=(_label(row.cells[0]) if row.cells else None,)) for row in found.rows]


def _label(cell: Any) -> Label:
    text = as_text(cell)
    number = as_number(text)
    return number if isinstance(number, float) else text or None


def _parts(
    records: list[Record], config: TrainConfig, method: str | None, stratify: bool, table: Table, watch: Watcher
) -> list[Record]:
    if method is None or method in SPLIT_METHODS:
        partition = with_splits(
            records, config, stratify=stratify, missing={"valid", "test"}, folds=1, method=method, tables=[table]
        )
    else:
        partition, _ = with_file(records, method)
    for text in partition.notices:
        watch(Notice(text))
    _tell_left(partition.facts, watch)
    return partition.records


def _folds(
    records: list[Record], config: TrainConfig, method: str | None, stratify: bool, table: Table, folds: int,
    repeats: int, watch: Watcher,
) -> list[dict[str, str]]:  # fmt: skip
    """A column for each fold of each repeat: where a row stands, and whether the fold tests or trains on it."""
    times = times_of([table], config.time, records) if config.time else None
    scheme = Scheme(
        method=method or "random", seed=config.seed, stratify=stratify, identity=config.identity,
        coverage=config.coverage, wild_type=config.wild_type, mutations=config.mutations, times=times,
    )  # fmt: skip
    pairs = None
    if method is None:
        scheme, pairs, found = told_scheme(records, scheme, 0.0, 1 / folds)
        watch(Notice(found))
    if method in IN_ORDER:
        block = in_blocks(records, scheme, folds + 1)
        watch(Notice(f"Folds: {folds}, by {method}: each tests on what comes after what it trains on."))
        return [
            {r.where: "test" if block[r.sequence] == n else "train" for r in records if block[r.sequence] <= n}
            for n in range(1, folds + 1)
        ]
    columns: list[dict[str, str]] = []
    for repeat in range(repeats):
        try:
            folded = folds_by(records, replace(scheme, seed=config.seed + repeat), folds, pairs=pairs)
        except ValueError as error:
            if method is not None or scheme.method == "random":
                raise
            scheme = replace(scheme, method="random")
            watch(Notice(f"The folds are random: {error}"))
            folded = folds_by(records, replace(scheme, seed=config.seed + repeat), folds)
        watch(Notice(f"Folds: {folds}, {folded.text}, seed {config.seed + repeat}."))
        _tell_left(folded.facts, watch)
        columns += [
            {r.where: "test" if number in folded.held[r.sequence] else "train" for r in records}
            for number in range(folds)
        ]
    return columns


def _tell_left(facts: Any, watch: Watcher) -> None:
    """Name the pairs that still cross."""
    pairs: Sequence[Sequence[str]] = facts.get("pairs", [])
    if pairs:
        listed = "\n".join(f"  {first} and {second}" for first, second in pairs)
        watch(Notice(f"Related sequences in different parts, {facts['violations']:,} pairs:\n{listed}"))
