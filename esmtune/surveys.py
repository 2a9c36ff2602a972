"""Commands of the shell that look at data, devices and runs, and train nothing that is kept."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

import esmtune
from esmtune.config import TrainConfig
from esmtune.terminal import Bars, Overwrite, Sequence, app, results

Method = Literal["random", "stratified", "identity", "position", "mutations", "segment", "time"]  # methods.METHODS


@app.command
def cache(
    *,
    folder: Annotated[str | None, Parameter(help="Where it is. [default: $ESMTUNE_CACHE, else the user's]")] = None,
    clear: Annotated[bool, Parameter(help="Delete what it holds.", negative="")] = False,
) -> None:
    """Show what is kept of frozen encoders between runs, or clear it."""
    from esmtune.cache import cache_at

    found = cache_at(folder)
    if found is None:
        results.print("Cache: none")
        return
    if clear:
        found.clear()
    kept = found.contents()
    total = sum(entry.bytes for entry in kept) / 2**30
    summary = f"{total:,.2f} of at most {found.limit / 2**30:,.2f} GiB" if kept else "it holds nothing"
    results.print(f"Cache: {found.folder}, {summary}", soft_wrap=True)
    if kept:
        table = Table(box=None, pad_edge=False)
        for column in ("encoder", "pool", "layers", "precision", "sequences", "MiB", "last used"):
            table.add_column(column, justify="right" if column in ("sequences", "MiB") else "left", overflow="fold")
        for entry in sorted(kept, key=lambda entry: -entry.used):
            day = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
            layers = ",".join(map(str, entry.layers))
            table.add_row(
                entry.encoder, entry.pool, layers, entry.precision, f"{entry.sequences:,}",
                f"{entry.bytes / 2**20:,.1f}", day,
            )  # fmt: skip
        results.print(table)


@app.command
def split(
    data: str,
    *,
    out: Annotated[Path, Parameter(help="A .csv, .tsv, .parquet or .jsonl file.")],
    overwrite: Overwrite = False,
    method: Annotated[
        Method | None, Parameter(help="How. [default: identity if sequences are related, or random]")
    ] = None,
    target: Annotated[str | None, Parameter(help="The column with the labels, to deal them alike.")] = None,
    sequence: Sequence = None,
    identity: Annotated[float | None, Parameter(help="Sequences so alike are related. [default: 0.3]")] = None,
    coverage: Annotated[float, Parameter(help="How much of the shorter one is alike then.")] = TrainConfig.coverage,
    wild_type: Annotated[str | None, Parameter(help="What variants differ from. [default: told from them]")] = None,
    mutations: Annotated[int | None, Parameter(help="Train on variants with at most so many.")] = None,
    time: Annotated[str | None, Parameter(help="The column with the times, for --method time.")] = None,
    valid_fraction: Annotated[float, Parameter(help="Of the rows.")] = TrainConfig.valid_fraction,
    test_fraction: Annotated[float, Parameter(help="Of the rows.")] = TrainConfig.test_fraction,
    folds: Annotated[int | None, Parameter(help="Instead of one split: a column fold_N for each.")] = None,
    repeats: Annotated[int, Parameter(help="Deal the folds so many times anew.")] = 1,
    seed: Annotated[int, Parameter(help="Of what is drawn.")] = 0,
) -> None:
    """Split a table into train, valid and test; all rows and columns come back, in order."""
    with Bars() as bars:
        frame = esmtune.split(
            data, out=out, overwrite=overwrite, method=method, target=target, sequence=sequence, identity=identity,
            coverage=coverage, wild_type=wild_type, mutations=mutations, time=time, valid_fraction=valid_fraction,
            test_fraction=test_fraction, folds=folds, repeats=repeats, seed=seed, watch=bars,
        )  # fmt: skip
    results.print(f"Split: {out} ({frame.height:,} rows)", soft_wrap=True)
