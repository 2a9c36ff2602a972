"""Commands of the shell that look at data, devices and runs, and train nothing that is kept."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

import esmtune
from esmtune.config import TrainConfig
from esmtune.terminal import Bars, Overwrite, app, results

SHOWN_TRIALS = 10


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
def search(
    data: str,
    *,
    trials: Annotated[int | None, Parameter(help="Try so many settings. [default: 20, unless --minutes]")] = None,
    minutes: Annotated[float | None, Parameter(help="Try settings for so long.")] = None,
    out: Annotated[Path | None, Parameter(help="A folder for what is found. [default: runs/NAME-search]")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, Parameter(help="Go on with a search that was stopped, or to more trials.")] = False,
    jobs: Annotated[int, Parameter(help="Trials side by side, each in a process of its own.")] = 1,
    space: Annotated[
        tuple[str, ...],
        Parameter(help="Limits of what is tried: tuning=frozen,lora head_learning_rate=1e-4..1e-3."),
    ] = (),
    nested: Annotated[int | None, Parameter(help="Also search on all but one of so many parts, and score it.")] = None,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
) -> None:
    """Try settings on folds of a table, and write the best as a configuration to train.

    The test rows are not read. An option of train that is given is fixed; the others are chosen.
    """
    folder = out or Path("runs") / f"{Path(data).name.split('.')[0]}-search"
    options = {name: getattr(config, name) for name in config.__dataclass_fields__}
    with Bars() as bars:
        found = esmtune.search(
            data, trials=trials, minutes=minutes, out=folder, overwrite=overwrite, resume=resume, jobs=jobs,
            space=space, nested=nested, watch=bars, **options,
        )  # fmt: skip
    results.print(_table_of(found))
    if found.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.importance.items() if share >= 0.01)
        results.print(f"What mattered, of the first stage: {shares}", soft_wrap=True)
    results.print(found.verdict.text, soft_wrap=True)
    if found.nested:
        results.print(found.nested.text, soft_wrap=True)
    results.print(f"To train the best: esmtune train --config {folder / 'best.toml'}", soft_wrap=True)


def _table_of(found: Any) -> Table:
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
