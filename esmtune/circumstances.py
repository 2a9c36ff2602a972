"""What a run was asked to do, on which data, how these were split, where it ran, and how to do it again."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esmtune.commands import command_of, in_its_folder, in_lines
from esmtune.events import counted_as
from esmtune.judgments import chief_metric, kind_of_rows, nearness_parts
from esmtune.outcomes import Outcome
from esmtune.pages import Code, Items, Part, Rows, Section, Text
from esmtune.phrases import (
    CONFORMAL,
    ESM2,
    ESM2_BIBTEX,
    HIDDEN,
    KINDS,
    LORA,
    METHODS,
    MMSEQS2,
    OWN_DATA,
    UNKNOWN_NEARNESS,
    esmtune_bibtex,
    esmtune_citation,
    metric_name,
    number,
    share,
)

RELATED = ("leak", "leak-conflict", "near-duplicates", "variants")  # findings about both sides of a split
NEAR = 0.5  # identity
SHOWN_IDS = 10
ORDER = ("error", "warning", "note")
FILES = {
    "run.toml": "every option, as it was decided",
    "metrics.json": "all scores, and what is said here",
    "history.jsonl": "a line for each evaluation",
    "predictions.csv": "every labeled record with its prediction",
    "split.csv": "which sequence is in which part, without the sequences",
    "training.fasta.gz": "the sequences that were trained on",
    "environment.json": "versions, device, checksums, all that was said",
    "logs": "the history for other programs",
    "last": "the predictor with the weights after the last step",
    "predictor": "the predictor: this folder alone is needed to predict",
    "README.md": "the model card",
    "report.html": "this page",
}


def task_in_words(outcome: Outcome) -> str:
    """What is predicted, and of what."""
    of = "residue" if outcome.metrics.get("level") == "residue" else "sequence"
    if outcome.metrics.get("task") == "mlm":
        return KINDS["mlm"]
    told = [f"{t.name} ({KINDS.get(t.kind, t.kind)})" for t in outcome.targets]
    return f"{' and '.join(told) or outcome.metrics.get('target', 'labels')} of each {of}"


def encoder_in_words(outcome: Outcome) -> str:
    """The encoder by its name; of a folder the last part, since the rest says something of a machine alone."""
    name = str((outcome.spec.get("encoder") or {}).get("name") or outcome.metrics.get("encoder") or "unknown")
    return Path(name).name if Path(name).is_absolute() else name


def data_name(outcome: Outcome) -> str | None:
    """The name of the file with the data; None of data from memory."""
    return Path(str(outcome.config["data"])).name if outcome.config.get("data") else None


def asked_section(outcome: Outcome) -> Section:
    """What was asked."""
    spec, metrics = outcome.spec, outcome.metrics
    rows = [("predicts", task_in_words(outcome)), ("from", data_name(outcome) or "data in memory"),
            ("encoder", f"{encoder_in_words(outcome)}{_license(outcome)}"),
            ("tuning", _part(spec.get("tuning") or {"name": metrics.get("tuning")}))]  # fmt: skip
    if spec.get("head"):
        layers = ", ".join(map(str, spec.get("layers", ())))
        rows.append(("head", f"{_part(spec['head'])}{f', on layers {layers}' if layers else ''}"))
    for name, key in (("epochs", "epochs"), ("sequences a step", "global_batch_size"), ("seed", "seed"),
                      ("seeds", "seeds"), ("folds", "folds")):  # fmt: skip
        value = outcome.config.get(key)
        if value is not None and not (key in ("seeds", "folds") and value == 1):
            rows.append((name, str(value)))
    return Section("asked", "What was asked", (Rows("The run", ("", ""), rows),))


def _license(outcome: Outcome) -> str:
    found = (outcome.spec.get("encoder") or {}).get("license")
    return f" (license {found})" if found else " (license unknown)"


def _part(part: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {_value(value)}" for name, value in part.items() if name != "name")
    return f"{part.get('name')}{f' ({options})' if options else ''}"


def data_section(outcome: Outcome) -> Section:
    """The data and what was found odd in them."""
    data, records = outcome.metrics.get("data") or {}, outcome.metrics.get("records") or {}
    parts: list[Part] = []
    if records:
        counts = ", ".join(f"{count:,} {name}" for name, count in records.items())
        rows = f"{counted_as(data['rows'], 'row')}; " if "rows" in data else ""
        parts.append(Text(f"{rows}labeled records: {counts}."))
    found = sorted(data.get("findings") or [], key=lambda f: ORDER.index(f.get("severity", "note")))
    if "findings" not in data:
        parts.append(Text("The data were not examined: an older run."))
    elif not found:
        parts.append(Text("Nothing odd was found."))
    else:
        cells = [(f["severity"], f["name"], f"{f['text']}{_ids(f.get('ids') or ())}") for f in found]
        strong = frozenset(n for n, f in enumerate(found) if f["severity"] == "error")
        parts.append(Rows("What was found in the data", ("severity", "finding", "what"), cells, strong=strong))
    return Section("data", "The data and their problems", parts)


def _ids(ids: Any) -> str:
    if not ids:
        return ""
    return f" Ids: {', '.join(map(str, ids[:SHOWN_IDS]))}{', …' if len(ids) > SHOWN_IDS else '.'}"


def split_method(outcome: Outcome) -> str:
    """How the rows were split, by the name of the method."""
    told = (outcome.metrics.get("split") or {}).get("method")
    if told:
        return str(told)
    return "given" if any(outcome.config.get(name) for name in ("split", "valid", "test")) else "random"


def hidden(outcome: Outcome) -> list[str]:
    """What the split hides, in sentences: by its method, by what was found, by how near the test sequences are."""
    method = split_method(outcome)
    said = [HIDDEN.get(method, HIDDEN["given"])]
    findings = (outcome.metrics.get("data") or {}).get("findings") or []
    said += [str(f["text"]) for f in findings if f.get("name") in RELATED]
    bins = outcome.of_judged("by_identity")
    total = sum(each["records"] for each in bins) if bins else 0
    if total:
        near = sum(each["records"] for each in bins if each["from"] >= NEAR)
        told = f"{near:,} of {total:,} {kind_of_rows(outcome)} ({share(near / total)}) have a training sequence of at "
        said.append(f"{told}least {share(NEAR)} identity.{_far(outcome, bins)}")
    elif outcome.scores:
        said.append(UNKNOWN_NEARNESS)
    violations = (outcome.metrics.get("split") or {}).get("violations")
    if violations:
        said.append(f"Pairs of related sequences that still stand on both sides: {violations:,}.")
    if expected := (outcome.metrics.get("split") or {}).get("expected"):
        said.append(
            f"Not all held-out sequences were searched for: about {expected:,} have a relative on another side, as a "
            "sample tells."
        )
    return said


def _far(outcome: Outcome, bins: Any) -> str:
    metric = chief_metric(outcome)
    far = [each for each in bins if each["to"] <= NEAR and each["scores"].get(metric) is not None]
    near = [each for each in bins if each["from"] >= NEAR and each["scores"].get(metric) is not None]
    if not far or not near or metric is None:
        return ""
    a, b = far[0], near[-1]
    return (
        f" {metric_name(metric)} is {number(a['scores'][metric])} on the {a['records']:,} that are farthest, and "
        f"{number(b['scores'][metric])} on the {b['records']:,} that are nearest."
    )


def split_section(outcome: Outcome) -> Section:
    """How the rows were split, and what that hides."""
    split = outcome.metrics.get("split") or {}
    method = split_method(outcome)
    parts: list[Part] = [Text(str(split.get("text") or f"The rows were split {METHODS.get(method, method)}."))]
    parts.append(Items(hidden(outcome)))
    names = (("method", "method"), ("seed", "seed"), ("identity threshold", "identity"), ("coverage", "coverage"),
             ("families", "families"), ("sequences held out", "held_out"),
             ("of these searched for again", "checked"),
             ("pairs that still cross", "violations"))  # fmt: skip
    rows = [(name, _value(split[key])) for name, key in names if split.get(key) is not None]
    if rows:
        parts.append(Rows("The split", ("", ""), rows))
    if pairs := split.get("pairs"):
        parts.append(Rows("Related sequences on both sides", ("one", "other"), [tuple(map(str, p[:2])) for p in pairs]))
    parts += nearness_parts(outcome)
    return Section("split", "The split and what it hides", parts)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def environment_section(outcome: Outcome) -> Section:
    """Where the run was made."""
    environment = outcome.environment
    if not environment:
        return Section("environment", "Where it ran")
    rows = [(name, str(version)) for name, version in (environment.get("versions") or {}).items()]
    names = (("device", "device"), ("platform", "platform"), ("threads", "threads"), ("seconds", "seconds"),
             ("SHA-256 of the data", "data_sha256"), ("SHA-256 of the encoder", "encoder_sha256"))  # fmt: skip
    rows += [(name, str(environment[key])) for name, key in names if environment.get(key) is not None]
    parts: list[Part] = [Rows("Versions, device and checksums", ("", ""), rows)]
    if environment.get("notices"):
        parts += [
            Text("What was said during the run:"),
            Items([without_folders(str(text)) for text in environment["notices"]]),
        ]
    return Section("environment", "Where it ran", parts)


def without_folders(text: str) -> str:
    """A sentence with the names of files alone: where they lay says something of a machine, and who reads has another.

    >>> without_folders("Left out of /home/me/weights: a/b.")
    'Left out of weights: a/b.'
    """
    return re.sub(r"(?<![^\s'\"(])/(?:[^\s/]+/)+(?=[^\s/])", "", text)


def citations(outcome: Outcome) -> list[str]:
    """What was used that is to be cited."""
    version = (outcome.environment.get("versions") or {}).get("esmtune")
    found = [ESM2, esmtune_citation(version)]
    tuning = str((outcome.spec.get("tuning") or {}).get("name") or outcome.metrics.get("tuning"))
    found += [LORA] if "lora" in tuning else []
    found += [MMSEQS2] if split_method(outcome) == "identity" or outcome.of_judged("by_identity") else []
    return found + ([CONFORMAL] if outcome.metrics.get("calibration") else [])


def citing_section(outcome: Outcome) -> Section:
    """How to cite."""
    version = (outcome.environment.get("versions") or {}).get("esmtune")
    bibtex = f"{ESM2_BIBTEX}\n\n{esmtune_bibtex(version)}"
    return Section("citing", "How to cite", (Items(citations(outcome)), Code(bibtex)))


def repeating_section(outcome: Outcome) -> Section:
    """The command that repeats the run, and its options."""
    if not outcome.config:
        return Section("repeating", "How to repeat it")
    if not data_name(outcome):
        return Section("repeating", "How to repeat it", (Text(OWN_DATA), Code(repeating(outcome))))
    run = shlex.quote(outcome.name)
    parts: list[Part] = [
        Text("From the folder that holds the run, on the machine where it was made, to the same numbers:"),
        Code(f"esmtune train --config {run}/run.toml --out {shlex.quote(f'{outcome.name}-again')}"),
        Text("Elsewhere, where the data lie beside you; options that are not named have their defaults:"),
        Code(repeating(outcome)),
    ]
    if outcome.environment.get("data_sha256"):
        parts.append(Text(f"The data's SHA-256 is {outcome.environment['data_sha256']}."))
    return Section("repeating", "How to repeat it", parts)


def repeating(outcome: Outcome) -> str:
    """The run as one command: every option that is not its default, files by their names.

    The file of the data, if it came from memory, is called DATA.
    """
    options = {name: value for name, value in outcome.config.items() if name != "data"}
    return in_lines(command_of(data_name(outcome) or "DATA", options, in_its_folder))


def files_section(outcome: Outcome) -> Section:
    """What lies in the folder."""
    there = {path.name for path in outcome.path.iterdir()} | {"README.md", "report.html"}
    rows = [(name, what) for name, what in FILES.items() if name in there]
    return Section("files", "Files", (Rows(f"In the folder {outcome.name}", ("file", "holds"), rows),))
