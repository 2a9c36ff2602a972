"""What every command of the shell shares: where it writes, how it shows progress and tables, options by one name."""

from collections import abc
from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import esmtune
from esmtune import events
from esmtune.config import Accelerator, Precision

Encoder = Annotated[str | None, Parameter(help="Where the encoder's weights are now, if they have moved.")]
Sequence = Annotated[str | None, Parameter(help="The column with the sequences, if its name is not a usual one.")]
Identifier = Annotated[str | None, Parameter(help="The column with a name for each row.")]
Overwrite = Annotated[bool, Parameter(help="Write over what is there.")]
Skip = Annotated[bool, Parameter(help="Leave out rows that cannot be used, and list them.")]
Device = Annotated[Accelerator, Parameter(help="auto takes a CUDA GPU if there is one, and the CPU otherwise.")]
Products = Annotated[Precision, Parameter(help="What matrix products are computed in; auto by the device.")]
Budget = Annotated[
    int | None,
    Parameter(help="Residues per pass at most; changes memory, not results. [default: 4096, or what fits]"),
]

SHOWN_METRICS = 3  # in bins, which are wide
COLUMNS = 6  # of metrics, side by side
Scores = Mapping[str, float | None]

messages = Console(stderr=True, highlight=False)
results = Console(highlight=False)
app = App(
    name="esmtune",
    help="Fine-tune ESM-2 on your own measurements, and predict with the result. --import MODULE, in any command, "
    "imports a module with parts of your own.",
    version=esmtune.__version__,
    help_format="plaintext",
    console=results,
    error_console=messages,
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(consume_multiple=True, negative=""),
)


class Bars:
    """Notices as lines and progress as bars, both on standard error; no bars where nobody watches."""

    def __init__(self):
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self.progress = Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal)
        self.stages: dict[str, Any] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: events.Notice | events.Progress) -> None:
        """Show an event."""
        if isinstance(event, events.Notice):
            self.progress.console.print(event.text, markup=False, soft_wrap=True)
            return
        if self.progress.disable:
            return
        if event.stage not in self.stages:
            self.stages[event.stage] = self.progress.add_task(
                event.stage, total=event.total, unit=event.unit, note="", rate=""
            )
        stage = self.stages[event.stage]
        speed = self.progress.tasks[self.progress.task_ids.index(stage)].speed
        self.progress.update(
            stage, completed=event.done, total=event.total, note=event.note, rate=f"{speed:,.0f}/s" if speed else ""
        )
        if event.done >= event.total:
            self.progress.remove_task(self.stages.pop(event.stage))


def print_scores(
    title: str,
    scores: Scores,
    baselines: Mapping[str, Scores],
    intervals: Mapping[str, abc.Sequence[float] | None] | None = None,
    sd: Mapping[str, float] | None = None,
) -> None:
    """Print metrics as a table: the predictor, how sure they are, their spread over members, and each baseline."""
    rows = [("predictor", scores), *([("sd of members", sd)] if sd else [])]
    for number, end in enumerate(("95 % from", "     to") if intervals else ()):
        found = {metric: own[number] for metric, own in (intervals or {}).items() if own}
        rows.insert(1 + number, (end, found))
    rows += baselines.items()
    for start in range(0, len(scores), COLUMNS):
        metrics = list(scores)[start : start + COLUMNS]
        table = Table(title=title if start == 0 else None, title_justify="left", box=None, pad_edge=False)
        table.add_column("")
        for metric in metrics:
            table.add_column(metric.replace("_", " ").replace(".", ". "), justify="right")
        for name, own in rows:
            table.add_row(name, *("-" if own.get(m) is None else f"{own[m]:.4f}" for m in metrics))
        results.print(table)


def print_comparison(title: str, metrics: Mapping[str, Any], split: str) -> None:
    """Print what a run came to on one split, and in a sentence what was gained."""
    print_scores(
        title,
        metrics[split],
        metrics["baselines"][split],
        metrics.get("intervals", {}).get(split),
        metrics.get(f"{split}_sd"),
    )
    gained = metrics.get("gain", {}).get(split)
    if gained:
        results.print(gained["text"], markup=False)


def print_bins(bins: list[dict[str, Any]]) -> None:
    """Print scores by identity to the nearest training sequence, or by the number of mutations."""
    if not bins:
        return
    by = "mutations" if "mutations" in bins[0] else "identity to nearest"
    table = Table(box=None, pad_edge=False)
    metrics = list(bins[0]["scores"])[:SHOWN_METRICS]
    for column in (by, "records", *metrics):
        table.add_column(column, justify="left" if column == by else "right")
    for found in bins:
        label = str(found["mutations"]) if by == "mutations" else f"{found['from']:.1f} to {found['to']:.1f}"
        scores = ("-" if x is None else f"{x:.4f}" for x in (found["scores"][name] for name in metrics))
        table.add_row(label, f"{found['records']:,}", *scores)
    results.print(table)


def print_curve(metrics: dict[str, Any]) -> None:
    """Print the test scores by the share of the labels that was trained on, and what more labels would bring."""
    points = metrics["learning_curve"]
    table = Table(title="test, by labels trained on", title_justify="left", box=None, pad_edge=False)
    for column in ("metric", *(f"{round(100 * point['share'])} % ({point['records']:,})" for point in points)):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in points[-1]["scores"]:
        values = [(point["scores"].get(name), (point["sd"] or {}).get(name)) for point in points]
        table.add_row(name, *("-" if x is None else f"{x:.4f}" + (f" ± {sd:.4f}" if sd else "") for x, sd in values))
    results.print(table)
    results.print(metrics["more_labels"]["text"], soft_wrap=True)
