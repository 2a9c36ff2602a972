"""Report: what a run came to, as a page for people and a model card, from the files of its folder alone."""

from pathlib import Path

from esmtune.cards import write_card
from esmtune.circumstances import (
    asked_section,
    citing_section,
    data_section,
    encoder_in_words,
    environment_section,
    files_section,
    hidden,
    repeating_section,
    split_section,
    task_in_words,
)
from esmtune.confusions import calibration_section, classes_section
from esmtune.events import Notice, Watcher, silent
from esmtune.evidence import agreement_section, errors_section, examples_section, worst_section
from esmtune.judgments import (
    best_baseline,
    better_baselines,
    chief_metric,
    count_of_rows,
    kind_of_rows,
    scores_section,
    verdict,
)
from esmtune.outcomes import Outcome, read_outcome
from esmtune.pages import EXTRA, Page, Part, Section, Text, Tiles, is_possible, require, write_page
from esmtune.phrases import NO_TEST, interval, metric_name, number
from esmtune.trainings import labels_section, learning_section, members_section

REPORT = "report.html"
CARD = "README.md"


def report(run: str | Path, *, overwrite: bool = False, watch: Watcher = silent) -> Path:
    """Make the report of a run anew: RUN/report.html, and the model card RUN/README.md.

    A model card that is there is left as it is, since people write in it, unless `overwrite`. Neither the data nor the
    weights are read. Returns the path of the report.

    Raises:
        ValueError: if the folder is no run, or the extra `report` is not installed.
    """
    require()
    outcome = read_outcome(run)
    write_page(page_of(outcome), outcome.path / REPORT)
    if overwrite or not (outcome.path / CARD).exists():
        write_card(outcome, outcome.path / CARD)
    else:
        watch(Notice(f"The model card {outcome.path / CARD} is left as it is; --overwrite writes it anew."))
    return outcome.path / REPORT


def tell(run: Path, *, with_page: bool, watch: Watcher) -> None:
    """Write the model card of a run that was just written, and its report where that is possible and asked for.

    The run is whole before; what goes wrong here is said, and loses nothing.
    """
    try:
        outcome = read_outcome(run)
        write_card(outcome, run / CARD)
        if with_page and is_possible():
            write_page(page_of(outcome), run / REPORT)
        elif with_page:
            watch(Notice(f"No report was written: {EXTRA}, and esmtune report {run} makes it."))
    except Exception as error:  # a run that took days is worth more than its report
        watch(Notice(f"The report could not be written ({type(error).__name__}: {error}); the run itself is whole. "
                     f"esmtune report {run} tries again."))  # fmt: skip


def page_of(outcome: Outcome) -> Page:
    """The report of a run."""
    sections = (
        _verdict_section(outcome),
        scores_section(outcome),
        agreement_section(outcome),
        classes_section(outcome),
        calibration_section(outcome),
        split_section(outcome),
        errors_section(outcome),
        examples_section(outcome),
        worst_section(outcome),
        labels_section(outcome),
        learning_section(outcome),
        members_section(outcome),
        data_section(outcome),
        asked_section(outcome),
        repeating_section(outcome),
        citing_section(outcome),
        environment_section(outcome),
        files_section(outcome),
    )
    version = (outcome.environment.get("versions") or {}).get("esmtune")
    return Page(
        title=f"{outcome.name}: {outcome.metrics.get('target', 'a run')}",
        subtitle=f"Predicts {task_in_words(outcome)}, with {encoder_in_words(outcome)}, tuning "
        f"{outcome.metrics.get('tuning', 'unknown')}.",
        sections=sections,
        foot=f"Made by esmtune{f' {version}' if version else ''} from the files of the run; this page loads nothing.",
    )


def _verdict_section(outcome: Outcome) -> Section:
    parts: list[Part] = [Text(verdict(outcome))]
    metric = chief_metric(outcome)
    if metric is not None and outcome.scores.get(metric) is not None:
        found = interval(outcome.of_judged("intervals").get(metric))
        rows = f"{count_of_rows(outcome):,} {kind_of_rows(outcome)}"
        tiles = [(metric_name(metric), number(outcome.scores[metric]), found or rows)]
        best = best_baseline(outcome, metric)
        if best is not None:
            own = interval((outcome.of_judged("baseline_intervals").get(best) or {}).get(metric))
            tiles.append((f"best baseline: {best}", number(outcome.baselines[best][metric]), own))
        if (gained := outcome.of_judged("gain")) and gained.get("difference") is not None:
            tiles.append(("gained", _signed(gained["difference"]), interval((gained.get("low"), gained.get("high")))))
        if (level := ((outcome.metrics.get("calibration") or {}).get("levels") or {}).get("0.9")) is not None:
            tiles.append(("within 90 % intervals", f"{100 * level['coverage']:.1f} %", "of the test records"))
        parts.append(Tiles(tiles))
    if told := better_baselines(outcome):
        parts.append(Text(told, warning=True))
    if outcome.scores and outcome.judged != "test" and NO_TEST not in verdict(outcome):
        parts.append(Text(NO_TEST, warning=True))
    if outcome.metrics.get("diverged"):
        parts.append(Text("A training ended in numbers that were not finite; the weights are those from before.", True))
    warned = {f["text"] for f in (outcome.metrics.get("data") or {}).get("findings") or [] if f["severity"] != "note"}
    parts += [Text(text, warning=text in warned) for text in hidden(outcome)]
    return Section("verdict", "What came of it", parts)


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)
