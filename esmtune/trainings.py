"""How the trainings of a run went: by epoch, by seed or fold, and by how many labels they had."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from esmtune.charts import Line, line_chart
from esmtune.events import counted_as
from esmtune.judgments import CHIEF, chief_metric
from esmtune.outcomes import Outcome
from esmtune.pages import Part, Rows, Section, Text
from esmtune.phrases import meaning, metric_name, number, share

MOST_LINES = 10  # of a chart of training


def learning_section(outcome: Outcome) -> Section:
    """How training went: loss and the metric of the validation rows, by epoch."""
    history = [entry for entry in outcome.history if entry.get("epoch") is not None]
    if not history:
        return Section("training", "How training went")
    runs = {
        " ".join(str(x) for x in key if x): list(entries)
        for key, entries in groupby(history, key=lambda e: (e.get("member", ""), e.get("stage", "")))
    }
    shown = dict(list(runs.items())[:MOST_LINES])
    left = f"{MOST_LINES} of {len(runs)} trainings are drawn." if len(runs) > MOST_LINES else ""
    losses = [
        Line(name=f"{name} {what}".strip(), x=[e["epoch"] for e in own if e.get(key) is not None],
             y=[e[key] for e in own if e.get(key) is not None], is_dashed=key == "train_loss",
             color=number_of if len(shown) > 1 else None)
        for number_of, (name, own) in enumerate(shown.items())
        for key, what in (("train_loss", "training"), ("valid_loss", "validation"))
    ]  # fmt: skip
    parts: list[Part] = [_best(outcome)] if outcome.metrics.get("best") else []
    parts.append(
        line_chart(
            "Loss", [line for line in losses if line.x], x="epoch", y="loss", note=left,
            description="Dashed: training. Where validation rises while training still falls, the predictor learns "
            "its training rows by heart.",
        )
    )  # fmt: skip
    metric = _watched(outcome, history)
    if metric is not None:
        lines = [
            Line(name=name or metric_name(metric), x=[e["epoch"] for e in own],
                 y=[(e.get("valid") or {}).get(metric) for e in own])
            for name, own in shown.items()
        ]  # fmt: skip
        parts.append(
            line_chart(
                f"{metric_name(metric)} of the validation rows", lines, x="epoch", y=metric_name(metric), note=left,
                description=f"{metric_name(metric)} after each epoch: {meaning(metric) or 'as the run computed it'}.",
            )
        )  # fmt: skip
    return Section("training", "How training went", parts)


def _watched(outcome: Outcome, history: Sequence[Mapping[str, Any]]) -> str | None:
    asked = (outcome.metrics.get("best") or {}).get("metric")
    there = {name for entry in history for name, value in (entry.get("valid") or {}).items() if value is not None}
    candidates = (asked, CHIEF.get(str(outcome.metrics.get("task"))), *sorted(there))
    return next((name for name in candidates if name in there), None)


def _best(outcome: Outcome) -> Text:
    best = outcome.metrics["best"]
    metric = best.get("metric")
    window = int(outcome.config.get("valid_window") or 1)
    over = f", mean of {window} epochs up to it" if window > 1 else ""
    why = f"chosen by the validation rows ({metric_name(metric)}{over})" if metric else "those after the last step"
    return Text(f"The weights are of epoch {best.get('epoch')}, step {best.get('step')}, {why}.")


def members_section(outcome: Outcome) -> Section:
    """Seeds or folds, each by itself."""
    members = outcome.metrics.get("members") or {}
    if not members:
        return Section("members", "Seeds and folds")
    split = "test" if any(own.get("test") for own in members.values()) else "valid"
    metrics = list(next((own[split] for own in members.values() if own.get(split)), {}))
    rows = [[name, *(number((own.get(split) or {}).get(m)) for m in metrics)] for name, own in members.items()]
    strong = []
    for name, key in (("mean", f"{split}_mean"), ("standard deviation", f"{split}_sd")):
        if outcome.metrics.get(key):
            strong.append(len(rows))
            rows.append([name, *(number(outcome.metrics[key].get(m)) for m in metrics)])
    names = ("member", *map(metric_name, metrics))
    numbers = frozenset(range(1, len(names)))
    said = f"The predictor is the mean of {counted_as(outcome.members, 'training')}."
    parts: list[Part] = [Text(said), Rows(f"{split} scores", names, rows, numbers, frozenset(strong))]
    if collapsed := outcome.metrics.get("collapsed"):
        listed = ", ".join(map(str, collapsed))
        parts.insert(1, Text(f"Learned nothing, and are no part of the predictor: {listed}.", warning=True))
    return Section("members", "Seeds and folds", parts)


def labels_section(outcome: Outcome) -> Section:
    """How good the run is with a share of its labels, and what more of them would bring."""
    points = outcome.metrics.get("learning_curve") or []
    if not points:
        return Section("labels", "What more labels would bring")
    more = outcome.metrics.get("more_labels") or {}
    metric = more.get("metric") or chief_metric(outcome)
    parts: list[Part] = [Text(str(more["text"]))] if more.get("text") else []
    known = [p for p in points if metric and (p.get("scores") or {}).get(metric) is not None]
    if known and metric:
        values = [p["scores"][metric] for p in known]
        spread = [(p.get("sd") or {}).get(metric) for p in known]
        hover = [
            f"{counted_as(p['records'], 'training record')} ({share(p['share'])}): {number(v)}"
            + (f" ± {number(sd)}" if sd else "")
            for p, v, sd in zip(known, values, spread, strict=True)
        ]
        line = Line(
            name=metric_name(metric), x=[p["records"] for p in known], y=values, is_marked=True, hover=hover,
            low=[None if sd is None else v - sd for v, sd in zip(values, spread, strict=True)],
            high=[None if sd is None else v + sd for v, sd in zip(values, spread, strict=True)],
        )  # fmt: skip
        metrics = list(points[-1].get("scores") or {})
        rows = [
            [f"{p['records']:,}", share(p["share"]), *(number((p.get("scores") or {}).get(m)) for m in metrics)]
            for p in points
        ]
        columns = ("training records", "share", *map(metric_name, metrics))
        parts.append(
            line_chart(
                "Test scores by the number of labels", [line], x="training records", y=metric_name(metric),
                description="Each point is trained on a share of the labels; whiskers are the standard deviation of "
                "repeats.", table=Rows("Scores by labels", columns, rows, frozenset(range(len(columns)))),
            )
        )  # fmt: skip
    return Section("labels", "What more labels would bring", parts)
