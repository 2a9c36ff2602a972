"""What a training run gives, in memory and as a folder."""

import json
import platform
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from esmtune.config import TrainConfig
from esmtune.curation import Curated
from esmtune.records import Dataset
from esmtune.writers import whole_folder, write_json, write_table

if TYPE_CHECKING:
    from esmtune.predictor import Predictor
    from esmtune.tasks import Task
    from esmtune.training import Fitted


@dataclass(frozen=True, kw_only=True)
class Run:
    """What training gave: a predictor, how good it is, how it got there, and what was said on the way."""

    predictor: "Predictor"
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    predictions: pl.DataFrame
    notices: tuple[str, ...]
    config: TrainConfig
    path: Path | None = None


def readings(task: "Task", outputs: Any) -> pl.DataFrame:
    """What outputs mean, as columns: `prediction`, and `probability_CLASS` where there are classes."""
    probabilities = task.probabilities(outputs)
    dtype = pl.String if probabilities else pl.Float64
    columns = [pl.Series("prediction", task.predict(outputs), dtype=dtype)]
    columns += [pl.Series(f"probability_{name}", values, dtype=pl.Float32) for name, values in probabilities.items()]
    return pl.DataFrame(columns)


def metrics_of(predictor: "Predictor", dataset: Dataset, fitted: "Fitted") -> dict[str, Any]:
    """Scores of validation and test records, beside what knows nothing but the training labels."""
    task, records = predictor.task, dataset.of(None)
    metrics: dict[str, Any] = {
        "task": task.name,
        "target": dataset.target,
        "encoder": predictor.spec.encoder.name,
        "records": {split: len(dataset.of(split)) for split in ("train", "valid", "test")},
        "best": {key: value for key, value in fitted.best.items() if key in ("step", "epoch", "metric")},
        "baselines": {},
    }
    # Of this run's training labels: a task that went on from a saved predictor is in the unit of that one's.
    ignorant = type(task).fit([r.label for r in dataset.of("train")])
    for split in ("valid", "test"):
        places = [place for place, record in enumerate(records) if record.split == split]
        if places:
            labels = [records[place].label for place in places]
            metrics[split] = task.scores(fitted.outputs[places], labels)
            metrics["baselines"][split] = ignorant.scores(ignorant.baseline(len(places)), labels)
    return metrics


def predictions_of(task: "Task", dataset: Dataset, fitted: "Fitted") -> pl.DataFrame:
    """Every labeled record: id, split, label and prediction."""
    records = dataset.of(None)
    asked = pl.DataFrame(
        {"id": [r.id for r in records], "split": [r.split for r in records], "label": [r.label for r in records]}
    )
    return asked.hstack(readings(task, fitted.outputs))


def resolved(config: TrainConfig, curated: Curated, predictor: "Predictor") -> TrainConfig:
    """The configuration with everything that was found out or chosen, so that the run can be repeated."""
    from esmtune.tasks import task

    spec, columns = predictor.spec, curated.columns
    task_options = task.resolve({**(config.task or {}), "name": predictor.task.name})
    return replace(
        config,
        target=columns.target,
        sequence=columns.sequence,
        id=columns.id,
        split=columns.split,
        valid=str(Path(config.valid).resolve()) if config.valid else None,
        test=str(Path(config.test).resolve()) if config.test else None,
        task=task_options,
        encoder=None if config.init else spec.encoder.name if config.encoder is None else _whole_path(config.encoder),
        init=_whole_path(config.init) if config.init else None,
        head=dict(spec.head),
        tuning=dict(spec.tuning),
    )


def _whole_path(name: str) -> str:
    """A path that holds from any folder; a name that is no path stays as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def write_run(run: Run, path: Path, data: Any, dataset: Dataset, *, logs: Path | None, seconds: float) -> None:
    """Write the folder of a run, whole or not at all."""
    import tomli_w

    options = {k: v for k, v in asdict(run.config).items() if v is not None}
    if isinstance(data, str | Path):
        options = {"data": str(Path(data).resolve()), **options}
    head = "# esmtune train --config FILE repeats this run\n" if "data" in options else "# trained on data in memory\n"
    history = "".join(json.dumps(entry) + "\n" for entry in run.history)
    with whole_folder(path) as folder:
        (folder / "run.toml").write_text(head + tomli_w.dumps(options), encoding="utf-8")
        (folder / "history.jsonl").write_text(history, encoding="utf-8")
        write_json(run.metrics, folder / "metrics.json")
        write_json(_environment(run, dataset, seconds), folder / "environment.json")
        write_table(run.predictions, folder / "predictions.csv")
        run.predictor.save(folder / "predictor", self_contained=run.config.self_contained)
        if logs is not None:
            shutil.copytree(logs, folder / "logs")


def _environment(run: Run, dataset: Dataset, seconds: float) -> dict[str, Any]:
    import torch

    packages = ("esmtune", "torch", "lightning-fabric", "polars", "numpy", "scikit-learn", "scipy", "safetensors")
    device = run.predictor.device
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "data_sha256": dataset.sha256,
        "encoder": run.predictor.spec.encoder.name,
        "encoder_sha256": run.predictor.spec.encoder.sha256,
        "seconds": round(seconds, 1),
        "notices": run.notices,
    }
