"""Commands of the shell that look at data, devices and runs, and train nothing that is kept."""

import sys
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

import esmtune
from esmtune.config import Accelerator
from esmtune.terminal import Bars, app, messages, results


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
def doctor(*, accelerator: Annotated[Accelerator, Parameter(help="Only this one. [default: all]")] = "auto") -> None:
    """Check that the devices here compute right numbers, and time them; exit code 1 if what would be used does not."""
    with Bars() as bars:
        found = esmtune.doctor(accelerator, watch=bars)
    table = Table(box=None, pad_edge=False)
    for column in ("where", "attention", "error", "forward", "backward", "verdict"):
        table.add_column(column, justify="right" if column in ("forward", "backward") else "left", overflow="fold")
    for each in found.findings:
        forward, both = (f"{x:,.1f}" for x in each.microseconds) if each.microseconds else ("", "")
        table.add_row(
            f"{each.device} {each.precision}", f"auto: {each.takes}" if each.takes else each.way,
            f"{max(each.errors.values()):.0e}" if each.errors else "", forward, both,
            f"{each.verdict}: {each.why}" if each.why else each.verdict,
        )  # fmt: skip
    results.print(table)
    results.print(
        "Errors are shares of the largest value; times are of one layer's attention, in microseconds a residue."
    )
    used = f"{found.device} in {found.precision}"
    if not found.is_healthy:
        messages.print(
            f"esmtune: {used}, which would be used, computes wrong numbers: do not use it.", style="red", soft_wrap=True
        )
        sys.exit(1)
    results.print(f"Used unless asked otherwise: {used}, which passes.", soft_wrap=True)
