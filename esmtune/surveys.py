"""Commands of the shell that look at data, devices and runs, and train nothing that is kept."""

from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from esmtune.terminal import app, results


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
