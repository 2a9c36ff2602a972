"""What every command of the shell shares: where it writes, how it shows progress and tables, options by one name."""

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
Budget = Annotated[int, Parameter(help="Residues per pass at most; changes memory, not results.")]

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
    title: str, scores: dict[str, float | None], baseline: dict[str, float | None], sd: dict[str, float] | None = None
) -> None:
    """Print metrics as a table, beside those of a baseline, and their spread over members."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = [("predictor", scores), ("baseline", baseline), *([("sd of members", sd)] if sd else [])]
    for column in ("metric", *(name for name, _ in columns)):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in scores:
        values = (found.get(name) for _, found in columns)
        table.add_row(name, *("-" if x is None else f"{x:.4f}" for x in values))
    results.print(table)
