"""What a training run gives, in memory and as a folder."""

import json
import platform
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from esmtune.config import EDITION, TrainConfig
from esmtune.curation import Curated
from esmtune.events import Watcher, silent
from esmtune.memory import peak_memory
from esmtune.nearness import Nearness, write_training
from esmtune.records import Dataset
from esmtune.split_files import split_table
from esmtune.writers import whole_folder, write_json, write_table

if TYPE_CHECKING:
    from esmtune.ensembles import Ensemble
    from esmtune.members import Trained
    from esmtune.predicting import Spec
    from esmtune.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Run:
    """What training gave: a predictor, how good it is, how it got there, and what was said on the way."""

    predictor: "Predictor | Ensemble"
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    predictions: pl.DataFrame
    notices: tuple[str, ...]
    config: TrainConfig
    last: "Predictor | None" = None  # with the weights after the last step, of a run of one member
    path: Path | None = None
    training: tuple[str, ...] = ()  # the sequences that were trained on
    curves: Mapping[str, Any] = field(default_factory=dict)  # of residues: how well classes are told apart

    @property
    def diverged(self) -> bool:
        """Whether a training ended in numbers that were not finite; the weights are those from before."""
        return "diverged" in self.metrics


def metrics_of(
    trained: "Trained", curated: Curated, config: TrainConfig, near: Nearness | None = None, watch: Watcher = silent
) -> dict[str, Any]:
    """Scores of validation and test records, beside what can be said without fine-tuning."""
    dataset = curated.dataset
    from esmtune.assignments import fit_task
    from esmtune.scoring import scores_of
    from esmtune.standards import beside_baselines, without_loss

    task, spec = trained.task, trained.predictor.spec
    first = trained.fitted[0]
    metrics: dict[str, Any] = {
        "task": task.name,
        "target": ", ".join(target.name for target in dataset.targets),
        "level": dataset.level,
        "encoder": spec.encoder.name,
        "tuning": spec.tuning["name"],
        "records": {
            "train": len(dataset.of("train")),
            "valid": len(dataset.of("train" if trained.by_fold else "valid")),
            "test": len(dataset.of("test")),
            **({"calibration": kept} if (kept := _kept_for_calibration(trained, dataset)) else {}),
        },
    }
    if len(trained.members) == 1:
        metrics["best"] = {key: value for key, value in first.best.items() if key in ("step", "epoch", "metric")}
    diverged = {m.name: f.diverged for m, f in zip(trained.members, trained.fitted, strict=True) if f.diverged}
    if diverged:
        metrics["diverged"] = diverged
    # Of this run's training labels: a task that went on from a saved predictor is in the unit of that one's.
    ignorant = fit_task(dataset, without_loss(config.task)).plain()
    # With folds every training record was held out once, and what its own member said of it is its validation.
    metrics |= {"split": dict(curated.split)} | _by_nearness(trained, dataset, near)
    for split in ("valid", "test"):
        scores = scores_of(task, trained.outputs, dataset, "train" if trained.by_fold and split == "valid" else split)
        metrics |= {split: scores} if scores else {}
    metrics |= beside_baselines(trained, ignorant, dataset, watch)
    if len(trained.members) > 1:
        metrics |= _of_members(trained)
    if trained.others:
        from esmtune.curves import learning_curve

        by_seed = not trained.by_fold and len(trained.members) > 1  # a share has one seed: it is compared with one
        whole = metrics["test_mean" if by_seed else "test"]
        metrics |= learning_curve(trained, dataset, whole, metrics.get("test_sd") if by_seed else None)
    return metrics


def _of_members(trained: "Trained") -> dict[str, Any]:
    """Each member's scores, and their mean and standard deviation over the members that did not collapse."""
    from esmtune.scoring import scores_of

    of_members: dict[str, Any] = {}
    for number, (member, fitted) in enumerate(zip(trained.members, trained.fitted, strict=True)):
        entry: dict[str, Any] = {k: v for k, v in fitted.best.items() if k in ("step", "epoch")}
        for split in ("valid", "test"):
            scores = scores_of(trained.task, trained.answers[number], member.data, split)
            if scores:
                entry[split] = scores
        of_members[member.name] = entry
    result: dict[str, Any] = {"members": of_members, "collapsed": trained.collapsed}
    kept = [entry for name, entry in of_members.items() if name not in trained.collapsed]
    for split in ("valid", "test"):
        if all(split in entry for entry in kept):
            values = {metric: [entry[split][metric] for entry in kept] for metric in kept[0][split]}
            known = {metric: found for metric, found in values.items() if None not in found}
            result[f"{split}_mean"] = {metric: statistics.fmean(found) for metric, found in known.items()}
            if len(kept) > 1:
                result[f"{split}_sd"] = {metric: statistics.stdev(found) for metric, found in known.items()}
    return result


def _by_nearness(trained: "Trained", dataset: Dataset, near: Nearness | None) -> dict[str, Any]:
    """Test scores by identity to the nearest training sequence, and of variants by their mutations."""
    from esmtune.scoring import scores_of

    records = dataset.of(None)
    chosen = np.array([r.split == "test" for r in records])
    if near is None or not chosen.any():
        return {}

    def scores(within: np.ndarray) -> Mapping[str, float | None]:
        return scores_of(trained.task, trained.outputs, dataset, "test", within=within.tolist())

    identity, mutations = near.by_identity(chosen, scores), near.by_mutations(chosen, scores)
    return {"by_identity": {"test": identity}} | ({"by_mutations": {"test": mutations}} if mutations else {})


def _kept_for_calibration(trained: "Trained", dataset: Dataset) -> int:
    """How many records chose no weights of a member that speaks for them."""
    return sum(trained.calibrates) or len(dataset.of("calibration"))


def resolved(config: TrainConfig, curated: Curated, spec: "Spec") -> TrainConfig:
    """The configuration with everything that was found out or chosen, so that the run can be repeated."""
    from esmtune.assignments import task_options
    from esmtune.composition import starts_anew

    columns, kind = curated.columns, curated.dataset.kind
    options = config.task
    if kind != "multitask":
        options = task_options(kind, curated.dataset.level, config.task or {})
        if kind != "mlm" and not starts_anew(config, "head"):  # the task that was there goes on
            before = {name: spec.task.get(f"{name}_name", spec.task.get(name)) for name in options}
            options |= {name: value for name, value in before.items() if value is not None}
    return replace(
        config,
        target=_targets(curated),
        level=curated.dataset.level if kind != "mlm" else None,
        mask=columns.mask,
        folds=curated.folds,
        sequence=columns.sequence,
        id=columns.id,
        split=_whole_path(curated.split_asked) if curated.split_asked and not columns.split else columns.split,
        identity=curated.identity if curated.split_asked == "identity" else config.identity,
        valid=str(Path(config.valid).resolve()) if config.valid else None,
        test=str(Path(config.test).resolve()) if config.test else None,
        task=options,
        encoder=None if config.init else spec.encoder.name if config.encoder is None else _whole_path(config.encoder),
        init=_whole_path(config.init) if config.init else None,
        layers=None if kind == "mlm" else ",".join(map(str, spec.layers)),
        mix=spec.mix,
        head=dict(spec.head),
        tuning=dict(spec.tuning),
    )


def _targets(curated: Curated) -> tuple[str, ...] | None:
    """The columns with labels; where there are several targets, each with its kind."""
    targets = curated.dataset.targets
    if len(targets) == 1:
        return curated.columns.target
    return tuple(f"{target.name}:{target.kind}" for target in targets)


def _whole_path(name: str) -> str:
    """A path that holds from any folder; a name that is no path stays as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def run_toml(config: TrainConfig, data: Any, said: Sequence[str] = ()) -> str:
    """A configuration as `esmtune train --config` reads it, under what is to be said of it."""
    import tomli_w

    options = {k: v for k, v in asdict(config).items() if v is not None}
    if isinstance(data, str | Path):
        options = {"data": str(Path(data).resolve()), **options}
    head = "esmtune train --config FILE repeats this run" if "data" in options else "trained on data in memory"
    return "".join(f"# {line}\n" for line in (head, *said)) + tomli_w.dumps(options)


def write_run(run: Run, path: Path, data: Any, dataset: Dataset, *, logs: Path | None, seconds: float) -> None:
    """Write the folder of a run, whole or not at all."""
    history = "".join(json.dumps(entry) + "\n" for entry in run.history)
    with whole_folder(path) as folder:
        (folder / "run.toml").write_text(run_toml(run.config, data), encoding="utf-8")
        (folder / "history.jsonl").write_text(history, encoding="utf-8")
        write_json(run.metrics, folder / "metrics.json")
        write_json(_environment(run, dataset, seconds), folder / "environment.json")
        write_table(run.predictions, folder / "predictions.csv")
        if run.curves:
            write_json(dict(run.curves), folder / "curves.json")
        write_table(split_table(dataset.records, dataset.held), folder / "split.csv")
        write_training(run.training, folder)
        run.predictor.save(folder / "predictor", self_contained=run.config.self_contained)
        if run.last is not None:
            run.last.save(folder / "last", self_contained=run.config.self_contained)
        if logs is not None:
            shutil.copytree(logs, folder / "logs")


def _environment(run: Run, dataset: Dataset, seconds: float) -> dict[str, Any]:
    import torch

    packages = (
        "esmtune",
        "torch",
        "lightning-fabric",
        "polars",
        "numpy",
        "scikit-learn",
        "scipy",
        "safetensors",
        "peft",
    )
    device = run.predictor.device
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "edition": EDITION,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "data_sha256": dataset.sha256,
        "encoder": run.predictor.spec.encoder.name,
        "encoder_sha256": run.predictor.spec.encoder.sha256,
        "seconds": round(seconds, 1),
        **peak_memory(children=run.config.devices > 1).entries(),
        "notices": run.notices,
    }
