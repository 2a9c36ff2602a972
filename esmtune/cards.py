"""The model card of a run: what Hugging Face shows of a model, with what is known of it and what is not."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esmtune.circumstances import (
    citations,
    data_name,
    encoder_in_words,
    hidden,
    repeating,
    split_method,
    task_in_words,
)
from esmtune.judgments import better_baselines, chief_metric, scores_table, verdict
from esmtune.metrics import sign_of
from esmtune.outcomes import Outcome
from esmtune.pages import Rows
from esmtune.phrases import ESM2_BIBTEX, METHODS, NO_CALIBRATION, NO_INTERVALS, NO_TEST, metric_name, number, share
from esmtune.writers import whole_file

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
# The names that Hugging Face has for our metrics and tasks, where it has any.
HUB_METRICS = {
    "spearman": "spearmanr", "pearson": "pearsonr", "r2": "r_squared", "rmse": "rmse", "mae": "mae",
    "accuracy": "accuracy", "mcc": "matthews_correlation", "f1": "f1", "auroc": "roc_auc", "perplexity": "perplexity",
}  # fmt: skip
HUB_TASKS = {
    ("binary", "sequence"): "text-classification", ("multiclass", "sequence"): "text-classification",
    ("binary", "residue"): "token-classification", ("multiclass", "residue"): "token-classification",
    ("mlm", "residue"): "fill-mask", ("mlm", "sequence"): "fill-mask",
}  # fmt: skip
_MARKS = re.compile(r"([\\`*_{}\[\]#|~$!])")


def card(outcome: Outcome) -> str:
    """The text of a model card: a header in YAML, and what people read."""
    import yaml

    header = yaml.safe_dump(header_of(outcome), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{header}---\n\n" + "\n\n".join(_body(outcome)) + "\n"


def write_card(outcome: Outcome, path: Path) -> None:
    """Write the model card as a whole file."""
    text = card(outcome)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def header_of(outcome: Outcome) -> dict[str, Any]:
    """What Hugging Face reads of a card: https://huggingface.co/docs/hub/model-cards.

    There are no `datasets`: they are names of data sets there, and the name of a file might be that of another's.
    """
    metrics, tuning = outcome.metrics, str((outcome.spec.get("tuning") or {}).get("name") or "frozen")
    kind, level = str(metrics.get("task")), str(metrics.get("level", "sequence"))
    license = (outcome.spec.get("encoder") or {}).get("license")
    pipeline = HUB_TASKS.get((kind, level))
    base = hub_name(outcome)
    return {
        "library_name": "esmtune",
        **({"license": str(license).lower()} if license else {}),
        **({"base_model": base, "base_model_relation": _relation(tuning)} if base else {}),
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": ["protein", "biology", "esm2", "esmtune", kind, tuning],
        **({"metrics": list(_hub_metrics(outcome))} if _hub_metrics(outcome) else {}),
        **({"model-index": _index(outcome, pipeline or kind)} if outcome.scores else {}),
    }


def hub_name(outcome: Outcome) -> str | None:
    """The encoder's name at Hugging Face, if it comes from there."""
    name = str((outcome.spec.get("encoder") or {}).get("name") or "")
    if re.fullmatch(r"esm2_t\d+_\w+_UR50D", name):
        return f"facebook/{name}"
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".") and not Path(name).exists()
    return name if is_name else None


def _relation(tuning: str) -> str:
    return "finetune" if tuning in ("frozen", "last", "bitfit", "full", "probe-then-full") else "adapter"


def _hub_metrics(outcome: Outcome) -> dict[str, float]:
    known = {HUB_METRICS.get(name.rpartition(".")[2]): v for name, v in outcome.scores.items() if v is not None}
    return {name: value for name, value in known.items() if name}


def _index(outcome: Outcome, kind: str) -> list[dict[str, Any]]:
    name = data_name(outcome) or "data in memory"
    results = [
        {"type": HUB_METRICS.get(metric.rpartition(".")[2], metric), "value": round(value, 6),
         "name": metric_name(metric)}
        for metric, value in outcome.scores.items() if value is not None
    ]  # fmt: skip
    if not results:
        return []
    dataset = {"type": re.sub(r"[^\w.-]+", "-", name.split(".")[0]) or "data", "name": name, "split": outcome.judged}
    task = {"type": kind, "name": str(outcome.metrics.get("target", "labels"))}
    return [{"name": outcome.name, "results": [{"task": task, "dataset": dataset, "metrics": results}]}]


def _body(outcome: Outcome) -> Iterator[str]:
    records = outcome.metrics.get("records") or {}
    yield f"# {marked(outcome.name)}"
    yield f"Predicts {marked(task_in_words(outcome))}, from sequence alone. {_unit(outcome)}"
    yield marked(verdict(outcome))
    yield "## Trained on"
    rows = ", ".join(f"{count:,} {name}" for name, count in records.items())
    method = split_method(outcome)
    yield (
        f"{marked(data_name(outcome) or 'Data from memory')}: {rows} records, split {METHODS.get(method, method)}. "
        f"Encoder {marked(encoder_in_words(outcome))}, tuning {outcome.metrics.get('tuning', 'unknown')}."
    )
    yield "## How good it is"
    if outcome.scores:
        yield table_of(scores_table(outcome, outcome.judged or "test"))
    yield "\n".join(f"- {text}" for text in _of_scores(outcome))
    yield "## Limits"
    yield "\n".join(f"- {text}" for text in _limits(outcome))
    yield from _use(outcome)
    yield "## Cite"
    yield "\n".join(f"- {marked(text)}" for text in citations(outcome))
    yield f"```bibtex\n{ESM2_BIBTEX}\n```"


def _unit(outcome: Outcome) -> str:
    numbers = [marked(t.name) for t in outcome.targets if t.kind == "regression"]
    return f"Numbers are in the unit that {' and '.join(numbers)} had in the data." if numbers else ""


def _of_scores(outcome: Outcome) -> Iterator[str]:
    metric = chief_metric(outcome)
    if metric is None:
        return
    chief = metric_name(metric)
    direction = "less" if sign_of(metric) < 0 else "more"
    yield f"{marked(chief)} is what it is first judged by; {direction} is better."
    if told := better_baselines(outcome):
        yield marked(told)
    if not outcome.of_judged("intervals"):
        yield NO_INTERVALS
    if outcome.judged != "test":
        yield NO_TEST
    level = ((outcome.metrics.get("calibration") or {}).get("levels") or {}).get("0.9")
    if level:
        yield f"{share(level['coverage'])} of the test records lie within their 90 % intervals or sets, which are " + (
            f"{number(level.get('width'))} wide in the mean."
        )
    elif not (outcome.metrics.get("calibration") or {}).get("targets"):
        yield NO_CALIBRATION


def _limits(outcome: Outcome) -> Iterator[str]:
    yield from (marked(text) for text in hidden(outcome))
    lengths = outcome.numbers("length")
    if lengths is not None and len(lengths):
        yield (
            f"The labeled sequences have {int(lengths.min()):,} to {int(lengths.max()):,} residues; of others it was "
            "not tested."
        )
    if cut := outcome.spec.get("max_length"):
        yield f"Sequences are cut to their first {int(cut):,} residues."
    license = (outcome.spec.get("encoder") or {}).get("license")
    if license:
        yield f"The encoder's weights have the license {marked(license)}, which holds for what is made from them too."
    else:
        yield "The license of the encoder's weights is not known: find out before passing this on."
    yield "A prediction is no measurement. It was not made to judge what is safe, or to diagnose."


def _use(outcome: Outcome) -> Iterator[str]:
    yield "## Use"
    yield f"```sh\nesmtune predict {shlex.quote(outcome.name)} proteins.csv --out predictions.csv\n```"
    code = f'predictor = esmtune.load({outcome.name!r})\nprint(predictor.predict(["{UBIQUITIN}"]))'
    yield f"```python\nimport esmtune\n\n{code}\n```"
    digest = (outcome.spec.get("encoder") or {}).get("sha256")
    if digest and not outcome.config.get("self_contained"):
        yield (
            "Unless all of the encoder's weights moved, it is looked up by its name, "
            f"{marked(encoder_in_words(outcome))}; `--encoder PATH` says where it is. Its SHA-256 must be `{digest}`."
        )
    if outcome.config.get("data"):
        yield f"Trained by:\n\n```sh\n{repeating(outcome)}\n```"


def table_of(rows: Rows) -> str:
    """A table in Markdown, its caption above it."""
    lines = [[marked(cell) for cell in row] for row in (rows.columns, *rows.rows)]
    ruler = ["--:" if place in rows.numbers else ":--" for place in range(len(rows.columns))]
    body = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ruler, *lines[1:]))
    return f"{marked(rows.caption)}:\n\n{body}"


def marked(text: object) -> str:
    """Text of the user's in Markdown, where it marks nothing and ends no cell.

    >>> marked("tm_value <b>|</b>")
    'tm\\\\_value &lt;b&gt;\\\\|&lt;/b&gt;'
    """
    plain = re.sub(r"\s+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", plain)
