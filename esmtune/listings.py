"""What the shell prints of checks, comparisons, plans and searches."""

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from esmtune.memory import GIB
from esmtune.terminal import results

if TYPE_CHECKING:
    from esmtune.checking import Check, Quartiles
    from esmtune.pages import Rows
    from esmtune.planning import Plan

SHOWN_TRIALS = 10


def print_rows(rows: "Rows") -> None:
    """A table of a comparison."""
    table = Table(title=escape(rows.caption), title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(rows.columns):
        table.add_column(escape(column), justify="right" if place in rows.numbers else "left", overflow="fold")
    for row in rows.rows:
        table.add_row(*map(escape, row))
    results.print(table)


SHOWN_CLASSES = 20
SHOWN_IDS = 10
COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}


def print_contents(found: "Check") -> None:
    """What a table holds: rows, lengths, labels, classes."""
    splits = ", ".join(f"{count:,} {split}" for split, count in found.splits.items())
    results.print(f"{found.source}: {found.rows:,} rows, {found.labeled:,} with a label ({splits})", soft_wrap=True,
                  markup=False)  # fmt: skip
    for text in found.notices:
        results.print(text, soft_wrap=True, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("", "count", "missing", "min", "25 %", "median", "75 %", "max"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    table.add_row("length", *_five(found.lengths, 0, "{:,.0f}"))
    for labels in found.labels:
        if labels.classes is None:
            table.add_row(escape(labels.target), *_five(labels.numbers, labels.missing, "{:.4g}"))
    results.print(table)
    results.print(f"{found.residues:,} residues in all")
    for labels in found.labels:
        if labels.classes is None:
            continue
        missing = f", {labels.missing:,} missing" if labels.missing else ""
        results.print(f"{labels.target}: {labels.known:,} labels{missing}", soft_wrap=True, markup=False)
        table = Table(box=None, pad_edge=False)
        table.add_column("class", overflow="fold")
        table.add_column("labels", justify="right")
        table.add_column("share", justify="right")
        for name, count in list(labels.classes.items())[:SHOWN_CLASSES]:
            table.add_row(escape(name), f"{count:,}", f"{count / labels.known:.1%}")
        results.print(table)
        if len(labels.classes) > SHOWN_CLASSES:
            results.print(f"and {len(labels.classes) - SHOWN_CLASSES:,} classes more")


def _five(numbers: "Quartiles | None", missing: int, form: str) -> list[str]:
    if numbers is None:
        return ["0", f"{missing:,}", *["-"] * 5]
    values = (numbers.minimum, numbers.quarter, numbers.median, numbers.three_quarters, numbers.maximum)
    return [f"{numbers.count:,}", f"{missing:,}", *map(form.format, values)]


def print_findings(found: "Check") -> None:
    """What is odd about it."""
    if not found.findings:
        results.print("Nothing odd was found.")
    for finding in found.findings:
        ids = f" Ids: {', '.join(finding.ids[:SHOWN_IDS])}" if finding.ids else ""
        ids += ", …" if len(finding.ids) > SHOWN_IDS else "." * bool(ids)
        color = COLORS[finding.severity]
        results.print(f"[{color}]{finding.severity}[/] {finding.name}: {escape(finding.text + ids)}", soft_wrap=True)


def print_plan(found: "Plan") -> None:
    """What a training will take, and what fits if it does not."""
    times = f"{found.trainings} times " if found.trainings > 1 else ""
    results.print(
        f"{times}{found.tuning} on {found.encoder}, {found.records:,} training records of {found.residues:,} residues, "
        f"at most {found.epochs:,} epochs", soft_wrap=True, markup=False,
    )  # fmt: skip
    again = ", layers that compute twice" if found.checkpoint_activations else ""
    fits = "fits" if found.fits else "does not fit"
    results.print(
        f"Memory: about {found.peak / GIB:,.1f} GiB of {found.room / GIB:,.1f} GiB, so it {fits} "
        f"(passes of {found.tokens_per_batch:,} tokens{again})", soft_wrap=True, markup=False,
    )  # fmt: skip
    for stage in found.stages:
        results.print(f"{stage.name}: {_between(stage.low, stage.high)}")
    if found.fits:
        taken = _between(*found.seconds)
        results.print(f"In all, on this machine as it is now: {taken}, beside reading, baselines and the report")
        results.print(found.command, soft_wrap=True, markup=False)
    for advice in found.advice:
        memory = f"about {advice.peak / GIB:,.1f} GiB"
        results.print(f"Fits: {advice.text}, {memory}\n  {advice.command}", soft_wrap=True, markup=False)
    if not found.fits and not found.advice:
        results.print("Nothing smaller fits either: free some memory, or cut long sequences (--max-length).")


def _between(low: float, high: float) -> str:
    unit, size = next(((u, s) for u, s in (("hours", 3600), ("minutes", 60)) if high >= 2 * s), ("seconds", 1))
    return f"{low / size:,.1f} to {high / size:,.1f} {unit}"


def trials_table(found: Any) -> Table:
    """The best trials and the defaults, and what became of the others."""
    from statistics import stdev

    done = [trial for trial in found.trials if trial.value is not None]
    place = {trial.number: n for n, trial in enumerate(found.ranked)}
    shown = [t for t in sorted(done, key=lambda t: place[t.number]) if place[t.number] < SHOWN_TRIALS or not t.number]
    states = [trial.state for trial in found.trials]
    others = ", ".join(f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states)
    title = f"{len(found.trials)} trials{f' ({others})' if others else ''}, {found.metric} over {found.folds} folds"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("trial", found.metric, "sd", "seconds", "settings"):
        table.add_column(column, justify="left" if column == "settings" else "right", overflow="fold")
    for trial in shown:
        settings = " ".join(
            f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in trial.settings.items()
        )
        sd = f"{stdev(trial.values):.4f}" if len(trial.values) > 1 else "-"
        table.add_row(str(trial.number), f"{trial.value:.4f}", sd, f"{trial.seconds:,.1f}", settings or "the defaults")
    return table
