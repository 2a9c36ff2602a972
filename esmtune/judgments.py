"""How good a run is, from its figures: the verdict, scores beside baselines, scores by nearness to training."""

from collections.abc import Iterator, Mapping
from typing import Any

from esmtune.charts import bar_chart
from esmtune.events import counted_as
from esmtune.metrics import sign_of
from esmtune.outcomes import Outcome, Scores
from esmtune.pages import Part, Rows, Section, Text
from esmtune.phrases import (
    CHANCE,
    NO_BASELINES,
    NO_INTERVALS,
    NOTHING_HELD_OUT,
    interval,
    meaning,
    metric_name,
    number,
    share,
)

CHIEF = {"regression": "spearman", "binary": "mcc", "multiclass": "mcc", "multilabel": "auprc", "ordinal": "qwk",
         "mlm": "perplexity", "multitask": "mean"}  # fmt: skip
PREDICTOR = "this predictor"
MOST_COLUMNS = 8  # of metrics


def chief_metric(outcome: Outcome) -> str | None:
    """The metric that a run is first judged by; None if nothing was held out."""
    asked = outcome.of_judged("gain").get("metric") or CHIEF.get(str(outcome.metrics.get("task")))
    if asked in outcome.scores:
        return asked
    return next(iter(outcome.scores), None)


def kind_of_rows(outcome: Outcome) -> str:
    """What the scores are of, in words."""
    if outcome.judged == "test":
        return "test records"
    return (
        "training records (each judged by a training that had not seen it)"
        if outcome.is_by_fold
        else "validation records"
    )


def count_of_rows(outcome: Outcome) -> int:
    """How many records the scores are of."""
    return int(outcome.metrics.get("records", {}).get(outcome.judged or "", int(outcome.held_out.sum())))


def best_baseline(outcome: Outcome, metric: str) -> str | None:
    """The baseline that is compared with: as the run says, else the best by a metric."""
    named = outcome.of_judged("gain").get("baseline")
    if named in outcome.baselines and outcome.baselines[named].get(metric) is not None:
        return named
    sign = sign_of(metric)
    known = {n: sign * value for n, s in outcome.baselines.items() if (value := s.get(metric)) is not None}
    return max(known, key=lambda name: known[name]) if known else None


def verdict(outcome: Outcome) -> str:
    """One sentence: how good, and what was gained over the best baseline."""
    metric = chief_metric(outcome)
    if metric is None:
        return NOTHING_HELD_OUT
    if told := outcome.of_judged("gain").get("text"):
        return str(told)
    value = outcome.scores.get(metric)
    found = interval(outcome.of_judged("intervals").get(metric))
    rows = f"{count_of_rows(outcome):,} {kind_of_rows(outcome)}"
    if value is None:
        return f"On {rows} {metric_name(metric)} is not defined: their labels or the predictions are all alike."
    said = f"On {rows} {metric_name(metric)} is {number(value)}{' ' if found else ''}{found}"
    best = best_baseline(outcome, metric)
    if best is None:
        return f"{said}. {_beside_another_metric(outcome, metric)}"
    base = outcome.baselines[best][metric]
    assert base is not None
    return f"{said}; the best baseline, {best}, has {number(base)}. Whether that is more than chance was not computed."


def _beside_another_metric(outcome: Outcome, metric: str) -> str:
    """Of baselines that have no such metric, as a constant has no correlation, what they have instead."""
    for other in (name for name in outcome.scores if name != metric):
        best = best_baseline(outcome, other)
        if best is not None and outcome.scores[other] is not None:
            own, base = number(outcome.scores[other]), number(outcome.baselines[best][other])
            return f"A baseline, {best}, has none; by {metric_name(other)} it is {own} against {base}."
    return NO_BASELINES


def scores_section(outcome: Outcome) -> Section:
    """Every metric with its interval, beside those of the baselines."""
    parts: list[Part] = []
    if not outcome.scores:
        return Section("scores", "Scores beside baselines", (Text(NOTHING_HELD_OUT, warning=True),))
    parts += _chief_chart(outcome)
    parts.append(scores_table(outcome, outcome.judged or "test"))
    if outcome.judged == "test" and outcome.metrics.get("valid"):
        parts.append(scores_table(outcome, "valid"))
    if outcome.of_judged("intervals"):
        parts.append(Text(CHANCE))
    else:
        parts.append(Text(NO_INTERVALS, warning=True))
    if not outcome.baselines:
        parts.append(Text(NO_BASELINES, warning=True))
    names = dict.fromkeys(name.rpartition(".")[2] for name in outcome.scores)
    explained = [(metric_name(n), meaning(n)) for n in names if meaning(n)]
    parts.append(Rows("What the metrics say", ("metric", "says"), explained))
    return Section("scores", "Scores beside baselines", parts)


def scores_table(outcome: Outcome, split: str) -> Rows:
    """The predictor and each baseline, a row each, with intervals; with many metrics these are the rows."""
    scores = outcome.metrics[split]
    intervals = (outcome.metrics.get("intervals") or {}).get(split) or {}
    of_baselines = (outcome.metrics.get("baseline_intervals") or {}).get(split) or {}
    baselines = outcome.baselines if split == outcome.judged else _baselines(outcome, split)
    sd = outcome.metrics.get(f"{split}_sd") or {}
    found = {PREDICTOR: scores} | ({"sd of members": sd} if sd else {}) | dict(baselines)
    ends = {PREDICTOR: intervals} | dict(of_baselines)
    cells = [
        [f"{number(own.get(m))} {_whole(interval((ends.get(name) or {}).get(m)))}".strip() for m in scores]
        for name, own in found.items()
    ]
    rows = [[name, *own] for name, own in zip(found, cells, strict=True)]
    columns, strong = ["", *map(metric_name, scores)], frozenset((0,))
    if len(scores) > MOST_COLUMNS:
        rows = [[metric_name(m), *own] for m, own in zip(scores, zip(*cells, strict=True), strict=True)]
        columns, strong = ["metric", *found], frozenset(n for n, m in enumerate(scores) if m == chief_metric(outcome))
    count = outcome.metrics.get("records", {}).get(split)
    what = {"test": "test records", "valid": "validation records"}.get(split, split)
    caption = f"{count:,} {what}" if count is not None else what
    caption += ", with 95 % intervals" if intervals else ""
    return Rows(caption, columns, rows, frozenset(range(1, len(columns))), strong)


def _whole(text: str) -> str:
    """An interval that is not broken over lines."""
    return text.replace(" ", "\u00a0")


def better_baselines(outcome: Outcome) -> str:
    """A sentence that names the baselines that do better on the same rows; empty if none does."""
    metric = chief_metric(outcome)
    value = outcome.scores.get(metric) if metric else None
    if metric is None or value is None:
        return ""
    sign = sign_of(metric)
    found = {n: own for n, s in outcome.baselines.items() if (own := s.get(metric)) is not None}
    better = [f"{name} ({number(own)})" for name, own in found.items() if sign * own > sign * value]
    if not better:
        return ""
    told = f"Baselines that do better on these rows by {metric_name(metric)}: {', '.join(better)}"
    return f"{told}; the predictor has {number(value)}."


def _baselines(outcome: Outcome, split: str) -> Mapping[str, Scores]:
    found = (outcome.metrics.get("baselines") or {}).get(split) or {}
    if all(isinstance(scores, Mapping) for scores in found.values()):
        return found
    return {next(iter(outcome.baselines), "baseline"): found}


def _chief_chart(outcome: Outcome) -> Iterator[Part]:
    metric = chief_metric(outcome)
    if metric is None or outcome.scores.get(metric) is None:
        return
    intervals = {PREDICTOR: outcome.of_judged("intervals").get(metric)}
    of_baselines = outcome.of_judged("baseline_intervals")
    intervals |= {name: (of_baselines.get(name) or {}).get(metric) for name in outcome.baselines}
    values = {PREDICTOR: outcome.scores} | dict(outcome.baselines)
    known = {name: own[metric] for name, own in values.items() if own.get(metric) is not None}
    if len(known) < 2:
        return
    absent = [name for name in outcome.baselines if name not in known]
    ends = [intervals.get(name) or (None, None) for name in known]
    better = "less is better" if sign_of(metric) < 0 else "more is better"
    told = [f"{name}: {number(v)} {interval(e)}".strip() for (name, v), e in zip(known.items(), ends, strict=True)]
    yield bar_chart(
        f"{metric_name(metric)} beside baselines", list(known), list(known.values()),
        low=[e[0] for e in ends], high=[e[1] for e in ends], hover=told, y=metric_name(metric),
        description=f"{metric_name(metric)} of {count_of_rows(outcome):,} {kind_of_rows(outcome)}; {better}. "
        + ("Whiskers are 95 % intervals." if any(e[0] is not None for e in ends) else ""),
        note=f"Not defined for {', '.join(absent)}." if absent else "", is_flat=True, highlighted=0,
    )  # fmt: skip


def nearness_parts(outcome: Outcome) -> Iterator[Part]:
    """The scores by identity to the nearest training sequence, and of variants by their mutations."""
    metric = chief_metric(outcome)
    for name, what, of in (
        ("by_identity", "identity to the nearest training sequence", _identity_bin),
        ("by_mutations", "mutations from the wild type", _mutations_bin),
    ):
        bins = outcome.of_judged(name)
        if not bins or metric is None:
            continue
        names = [of(each) for each in bins]
        metrics = list(bins[0]["scores"])
        rows = [
            [label, f"{each['records']:,}", *(number(each["scores"].get(m)) for m in metrics)]
            for label, each in zip(names, bins, strict=True)
        ]
        columns = (what, "records", *map(metric_name, metrics))
        values = [each["scores"].get(metric) for each in bins]
        hover = [
            f"{label}: {number(v)}, {counted_as(each['records'], 'record')}"
            for label, v, each in zip(names, values, bins, strict=True)
        ]
        yield bar_chart(
            f"{metric_name(metric)} by {what}", names, values, y=metric_name(metric), x=what, hover=hover,
            description=f"{metric_name(metric)} of the {kind_of_rows(outcome)} in each bin; bins of few records vary "
            "by chance, and within a bin labels vary less than over all.",
            table=Rows(f"Scores by {what}", columns, rows, frozenset(range(1, len(columns)))),
        )  # fmt: skip


def _identity_bin(each: Mapping[str, Any]) -> str:
    if each["from"] == 0 and each["to"] <= 0.31:
        return f"below {share(each['to'])}, or none related"
    return f"{share(each['from'])} to {share(each['to'])}"


def _mutations_bin(each: Mapping[str, Any]) -> str:
    return f"{each['mutations']}" if each["mutations"] < 10 else "10 and more"
