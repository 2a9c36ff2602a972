"""What a run left on disk, read again: neither its weights nor its data are needed to tell how good it is."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from esmtune.discrimination import Discrimination
from esmtune.labels import READS, Reads, as_number
from esmtune.points import Points, cells_of
from esmtune.readers import read
from esmtune.records import Target

CURVES = "curves.json"
Scores = Mapping[str, float | int | None]
IGNORANT = {"number": "mean", "name": "majority", "names": "majority"}  # the baseline that stood alone before


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The files of a run, but its weights. What is not there is empty."""

    path: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    predictions: pl.DataFrame  # text, as it stands
    environment: Mapping[str, Any]
    spec: Mapping[str, Any]  # predictor.json, of several members that of the first
    members: int
    curves: Mapping[str, Discrimination]  # of the residues of each target with classes
    digests: tuple[str, ...] | None  # of the sequences of the predictions, where split.csv tells them

    @property
    def name(self) -> str:
        """What the run goes by."""
        return self.path.resolve().name

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """What was learned."""
        return tuple(Target(**target) for target in self.spec.get("targets", ()))

    def reads(self, target: Target) -> Reads:
        """What the labels of a target are, told from its task, or of a user's own task from what stands there."""
        if target.kind in READS:
            return READS[target.kind]
        cells = self.predictions[f"label{self.ending(target)}"].drop_nulls().head(100).to_list()
        return "number" if all(as_number(cell) is not None for cell in cells) else "name"

    def ending(self, target: Target) -> str:
        """What the columns of a target end in."""
        return f"_{target.name}" if len(self.targets) > 1 else ""

    @cached_property
    def judged(self) -> str | None:
        """The split that says how good the run is: test, else valid; None if nothing was held out."""
        return next((split for split in ("test", "valid") if self.metrics.get(split)), None)

    @cached_property
    def held_out(self) -> Bool[np.ndarray, "rows"]:
        """The rows of that split; with folds and no test rows, those of training that a fold held out."""
        split = self.predictions["split"].fill_null("")
        if self.judged == "valid" and "fold" in self.predictions.columns:
            return self.predictions["fold"].is_not_null().to_numpy()
        return (split == (self.judged or "")).to_numpy()

    @property
    def is_by_fold(self) -> bool:
        """Whether every training record was held out once."""
        return "fold" in self.predictions.columns

    @property
    def scores(self) -> Scores:
        """Those that say how good the run is."""
        return self.metrics.get(self.judged, {}) if self.judged else {}

    @property
    def baselines(self) -> Mapping[str, Scores]:
        """Scores of the baselines by name, on the same rows."""
        found = self.metrics.get("baselines", {}).get(self.judged or "", {})
        if any(isinstance(scores, Mapping) for scores in found.values()):
            return found
        reads = self.reads(self.targets[0]) if self.targets else "number"  # an older run has one, without a name
        return {IGNORANT[reads]: found} if found else {}

    def of_judged(self, name: str) -> Any:
        """An entry of the metrics that is kept by split, of the split that says how good the run is."""
        return (self.metrics.get(name) or {}).get(self.judged or "") or {}

    def numbers(self, name: str) -> Float[np.ndarray, "rows"] | None:
        """A column of the predictions as numbers; None if there is none."""
        if name not in self.predictions.columns:
            return None
        return self.predictions[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()

    def points(self, target: Target) -> Points | None:
        """Labels and predictions of a target on what was held out; None where they are not of a known form."""
        if target.kind == "mlm" or self.judged is None:
            return None
        read = _read_marks if self.reads(target) == "names" else _read_points
        found = read(self, target)
        return found if found is not None and len(found) else None

    def task_of(self, target: Target) -> Mapping[str, Any]:
        """What the task of a target knows, as it was saved."""
        task = self.spec.get("task", {})
        parts = dict(zip(task.get("names", ()), task.get("tasks", ()), strict=False))
        return parts.get(target.name, {}) if parts else task


def read_outcome(path: str | Path) -> Outcome:
    """Read the folder of a run.

    Raises:
        ValueError: if it is none, or a file in it cannot be read.
    """
    path = Path(path)
    for name in ("metrics.json", "predictions.csv"):
        if not (path / name).is_file():
            raise ValueError(f"{path} is no folder of a run: it has no {name}. Name the folder that train wrote.")
    try:
        predictions = _text_of(path / "predictions.csv")
        spec = _json(path / "predictor" / "predictor.json")
        members = len(found) if isinstance(found := spec.get("members"), list) else 0
        return Outcome(
            path=path,
            config=_toml(path / "run.toml"),
            metrics=_json(path / "metrics.json"),
            history=_lines(path / "history.jsonl"),
            predictions=predictions,
            environment=_json(path / "environment.json"),
            spec=_json(path / "predictor" / "members" / "0" / "predictor.json") | _own(spec) if members else spec,
            members=max(1, members),
            curves={name: Discrimination.loaded(own) for name, own in _json(path / CURVES).items()},
            digests=_digests(path / "split.csv", predictions),
        )
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise ValueError(f"a file of the run {path} cannot be read: {error}") from None


def _own(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("members", "format_version")}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return tuple(json.loads(line) for line in text.split("\n") if line.strip())


def _text_of(path: Path) -> pl.DataFrame:
    """A table as text; empty cells are null."""
    frame = read(path).frame
    return frame.select(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in frame.columns)


def _digests(path: Path, predictions: pl.DataFrame) -> tuple[str, ...] | None:
    """The SHA-256 of each predicted record's sequence.

    split.csv has the records in the same order, those without a label among them.
    """
    if not path.is_file():
        return None
    rows = _text_of(path).select("id", "split", "sequence_sha256").iter_rows()
    found = []
    for asked in predictions.select("id", "split").iter_rows():
        digest = next((digest for *own, digest in rows if tuple(own) == asked), None)
        if digest is None:
            return None
        found.append(digest)
    return tuple(found)


def _read_points(outcome: Outcome, target: Target) -> Points | None:
    """Of numbers, or of one of several classes."""
    end, frame, reads = outcome.ending(target), outcome.predictions, outcome.reads(target)
    if not {f"label{end}", f"prediction{end}"} <= set(frame.columns):
        return None
    columns = {name: _column(outcome, f"{name}{end}") for name in ("label", "prediction", "lower", "upper", "set")}
    classes = tuple(outcome.task_of(target).get("classes", ()))
    record, residue, kept, bounds = [], [], {name: [] for name, column in columns.items() if column is not None}, 0
    for row in np.flatnonzero(outcome.held_out).tolist():
        own = {name: cells_of(columns[name][row], target.form, classes) for name in kept}  # pyright: ignore[reportOptionalSubscript]
        for place, label in enumerate(own["label"]):
            if not label:
                continue
            if reads == "number" and not isinstance(as_number(label), float):
                bounds += 1
                continue
            record.append(row)
            residue.append(place + 1 if target.form != "one" else 0)
            for name, cells in own.items():
                kept[name].append(cells[place] if place < len(cells) else "")
    if reads == "number":
        kept |= {name: np.array([float(x or "nan") for x in kept[name]]) for name in kept if name != "set"}
    if reads == "name" and not set(classes) >= {*kept["label"], *kept["prediction"]}:
        classes = tuple(dict.fromkeys((*classes, *sorted({*kept["label"], *kept["prediction"]} - set(classes)))))
    has_bounds = reads == "number" or target.kind == "ordinal"
    return Points(
        target=target, reads=reads, record=np.array(record, np.int64), residue=np.array(residue, np.int64),
        labels=_array(kept["label"], reads), predictions=_array(kept["prediction"], reads),
        classes=classes if reads == "name" else (),
        probabilities=_probabilities(outcome, target, classes, record) if reads == "name" else None,
        lower=_bound(kept, "lower", reads) if has_bounds else None,
        upper=_bound(kept, "upper", reads) if has_bounds else None,
        sets=tuple(kept["set"]) if "set" in kept else None, bounds=bounds,
    )  # fmt: skip


def _array(values: Any, reads: Reads) -> np.ndarray:
    return np.asarray(values, np.float64) if reads == "number" else np.array(values, dtype=object)


def _bound(kept: Mapping[str, Any], name: str, reads: Reads) -> np.ndarray | None:
    return kept[name] if name in kept and reads == "number" else None


def _column(outcome: Outcome, name: str) -> list[str | None] | None:
    return outcome.predictions[name].to_list() if name in outcome.predictions.columns else None


def _probabilities(
    outcome: Outcome, target: Target, classes: tuple[str, ...], record: list[int]
) -> Float[np.ndarray, "points classes"] | None:
    names = [f"probability{outcome.ending(target)}_{name}" for name in classes]
    if target.form not in ("one", "columns") or not names or not set(names) <= set(outcome.predictions.columns):
        return None
    columns = [outcome.numbers(name) for name in names]
    return np.stack([column for column in columns if column is not None], axis=1)[record]


def _read_marks(outcome: Outcome, target: Target) -> Points | None:
    """Of several classes at once."""
    end, frame = outcome.ending(target), outcome.predictions
    classes = tuple(outcome.task_of(target).get("classes", ()))
    rows = np.flatnonzero(outcome.held_out).tolist()
    labels = _column(outcome, f"label{end}")
    probabilities = _probabilities(outcome, target, classes, rows)
    if labels is None or probabilities is None or f"label{end}" not in frame.columns:
        return None
    marks = np.full((len(rows), len(classes)), np.nan)
    place = {name: number for number, name in enumerate(classes)}
    for number, row in enumerate(rows):
        if labels[row] is None:
            continue
        marks[number] = 0.0
        for name in (labels[row] or "").split(";"):
            if name.removeprefix("?") in place:
                marks[number, place[name.removeprefix("?")]] = np.nan if name.startswith("?") else 1.0
    known = np.isfinite(marks).any(1)
    return Points(
        target=target, reads="names", record=np.array(rows, np.int64)[known],
        residue=np.zeros(int(known.sum()), np.int64), labels=marks[known],
        predictions=(probabilities > 0.5).astype(np.float64)[known], classes=classes,
        probabilities=probabilities[known], lower=None, upper=None, sets=None,
    )  # fmt: skip
