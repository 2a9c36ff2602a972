"""What a run is measured by: the baselines of its own splits, with its own encoder as it was before training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esmtune.assignments import fit_task
from esmtune.baselines import BEFORE, Embed, Means
from esmtune.cache import cache_at
from esmtune.comparison import (
    WIDEST,
    Lookup,
    Side,
    baselines_of,
    comparison,
    embedder,
    expecter,
    not_kept,
    out_of_fold,
    usual_layers,
)
from esmtune.composition import sharing
from esmtune.config import TOKENS_PER_BATCH, Part, TrainConfig
from esmtune.devices import choose_device
from esmtune.embedding import kind_of
from esmtune.ensembles import Ensemble
from esmtune.events import Notice, Watcher
from esmtune.heads import LanguageModel
from esmtune.hub import read_json
from esmtune.linear import forget_axes
from esmtune.members import Trained
from esmtune.predictor import Predictor, find_encoder
from esmtune.records import UNFITTED, Dataset, Label, Level, Record
from esmtune.scoring import shown_labels
from esmtune.tasks import Task


def beside_baselines(trained: Trained, ignorant: Task, dataset: Dataset, watch: Watcher) -> dict[str, Any]:
    """The baselines of validation and test records, intervals, and what was gained, as `metrics.json` has them.

    With folds each record is validated by baselines that learned from the same others as the predictor did.
    """
    records, level = dataset.of(None), dataset.level
    means = _means(trained, dataset, watch) if trained.is_main and dataset.kind != "mlm" else Means()
    train = [record for record in records if record.split == "train"]
    held_out = [r for r in records if r.split in (("test",) if trained.by_fold else ("valid", "test"))]
    before = _before(trained, records, watch) if trained.is_main and dataset.kind == "mlm" else {}
    found = baselines_of(ignorant, train, held_out, level, means, watch)
    sides, labels = [], shown_labels(trained.task, dataset)
    for split in ("valid", "test"):
        asked = "train" if trained.by_fold and split == "valid" else split
        rows = [place for place, record in enumerate(records) if record.split == asked]
        if not rows:
            continue
        if asked == "train":
            outputs = out_of_fold(ignorant, _folds(trained, records), train, level, means, watch)
        else:
            chosen = torch.tensor([r.split == split for r in held_out for _ in r.labels])
            outputs = {name: own[chosen] for name, own in found.items()}
        points = torch.tensor([r.split == asked for r in records for _ in r.labels])
        outputs |= {name: own[points] for name, own in before.items()}
        sides.append(
            Side(
                split=split, records=[records[i] for i in rows], task=trained.task, outputs=trained.outputs[points],
                labels=[label for label, is_in in zip(labels, points.tolist(), strict=True) if is_in],
                ignorant=ignorant, baselines=outputs,
            )
        )  # fmt: skip
    forget_axes()
    return comparison(sides, judging_metric(trained))


def _before(trained: Trained, records: Sequence[Record], watch: Watcher) -> dict[str, Tensor]:
    """What the language model that a run began with said of all records, with the same residues hidden.

    Nothing, if a run began with none, or with one that was never trained.
    """
    origin, config, first = trained.origin, trained.config, trained.predictor.first
    heads = [first.head] if origin.start is None else [first.head, origin.start.head]
    if not origin.models_language or not all(isinstance(head, LanguageModel) for head in heads):
        return {}
    with torch.random.fork_rng(devices=[]):
        before = origin.start or Predictor(first.spec, sharing(origin.encoder), frozenset())
    before.precision, before.masks = config.precision, first.masks
    sequences = [record.sequence for record in records]  # the place of each decides what is hidden of it
    answers = before.to(first.device).answers(
        sequences, hide=True, tokens_per_batch=config.tokens_per_batch or TOKENS_PER_BATCH, watch=watch
    )
    return {BEFORE: answers[0].double()}


def judging_metric(trained: Trained) -> str:
    """What baselines are told apart by: what chose the weights, or the task's own metric where that was the loss."""
    chosen = trained.fitted[0].best.get("metric") or trained.config.metric
    return trained.task.metric if chosen in (None, "loss") else chosen


def _folds(trained: Trained, records: Sequence[Record]) -> list[tuple[list[Record], list[int]]]:
    """What each member learned from, and which training records, by their place among them, it did not."""
    found = []
    for member in trained.members:
        own = [(old, new) for old, new in zip(records, member.data.of(None), strict=True) if old.split == "train"]
        found.append(
            (
                [new for _, new in own if new.split == "train"],
                [i for i, (_, r) in enumerate(own) if r.split in UNFITTED],
            )
        )
    return found


def _means(trained: Trained, dataset: Dataset, watch: Watcher) -> Means:
    config, origin = trained.config, trained.origin
    device = choose_device(config.accelerator)
    name = config.encoder or origin.source.name
    layers, kept = _kept(trained, dataset)
    return Means(
        seed=config.seed,
        embed=embedder(
            origin.encoder.to(torch.device(device)), origin.source.name, dataset.level, layers,
            precision=config.precision, tokens_per_batch=config.tokens_per_batch or TOKENS_PER_BATCH,
            cache=cache_at(config.cache), kept=kept, watch=watch,
        ),
        expect=None if origin.source.is_random else expecter(name, device, watch),
    )  # fmt: skip


def _kept(trained: Trained, dataset: Dataset) -> tuple[tuple[int, ...], Lookup]:
    """The layers that baselines look at, and what the run computed of a sequence already, so that nothing is twice.

    Of a frozen encoder whose residues the head sees they are the head's layers.
    """
    first = trained.predictor.first
    pool, own = "residue" if dataset.level == "residue" else "mean", first.head.pool_name
    usual, seen = usual_layers(trained.origin.encoder, dataset.level), first.spec.layers
    if first.spec.tuning["name"] != "frozen" or (own != "residue" and (own != pool or seen != usual)):
        return usual, not_kept
    if first.features_dim > WIDEST:
        return usual, not_kept

    def found(sequence: str) -> np.ndarray | None:
        parts = trained.kept.get(sequence)
        if parts is None:
            return None
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return (x if own == pool else x.mean(0, keepdim=True)).numpy()

    return seen, found


def judged(
    run: Any, predictor: Predictor | Ensemble, dataset: Dataset, labels: Sequence[Label], outputs: Tensor,
    watch: Watcher,
) -> dict[str, Any]:  # fmt: skip
    """The same of records that a predictor is evaluated on: baselines, intervals, and what was gained."""
    task, level = predictor.task, dataset.level
    found = training_data(Path(run) if isinstance(run, str | Path) else None, predictor.spec.trained_on["sha256"])
    means, train, ignorant = Means(), [], task.plain()
    if found is not None and dataset.kind != "mlm":
        learned, config = found
        train, ignorant = learned.of("train"), fit_task(learned, without_loss(config.task)).plain()
        name = predictor.spec.encoder.name
        expect = None if predictor.spec.encoder.is_random else expecter(name, predictor.device.type, watch)
        means = Means(seed=config.seed, embed=_embed_if_kept(predictor, config, train, level, watch), expect=expect)
    baselines = baselines_of(ignorant, train, dataset.records, level, means, watch)
    side = Side(split="", records=dataset.records, labels=labels, task=task, outputs=outputs, ignorant=ignorant,
                baselines=baselines)  # fmt: skip
    return {name: entry[""] for name, entry in comparison([side], task.metric).items()}


def _embed_if_kept(
    predictor: Predictor | Ensemble, config: TrainConfig, train: Sequence[Record], level: Level, watch: Watcher
) -> Embed | None:
    """Embeddings by the encoder before training, if those of the training records need not be computed."""
    cache, source = cache_at(config.cache), predictor.spec.encoder
    if cache is None or source.is_random:
        return None
    if predictor.spec.tuning["name"] == "frozen":
        encoder = predictor.first.encoder
    else:
        encoder = find_encoder(source.name)[0].to(predictor.device)
    kind = kind_of(encoder, "residue" if level == "residue" else "mean", config.precision)
    kept = cache.read(kind, usual_layers(encoder, level), list({record.sequence for record in train}))
    if any(vectors is None for vectors in kept):
        watch(Notice("No ridge on embeddings: those of the training rows are no longer kept."))
        return None
    return embedder(
        encoder, source.name, level, usual_layers(encoder, level), precision=config.precision,
        tokens_per_batch=config.tokens_per_batch or TOKENS_PER_BATCH, cache=cache, kept=not_kept, watch=watch,
    )  # fmt: skip


def without_loss(asked: Part | None) -> Part | None:
    """Options of a task without those that say how it is trained, which a baseline is not."""
    return None if asked is None else {k: v for k, v in asked.items() if k in ("name", "order", "masked")}


def training_data(run: Path | None, sha256: str) -> tuple[Dataset, TrainConfig] | None:
    """What a run learned from, if it lies where it lay and is the same."""
    import tomllib

    from esmtune.curation import curate_training

    if run is None or not (run / "run.toml").is_file():
        return None
    options = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    data = options.pop("data", None)
    files = [name for name in (data, options.get("valid"), options.get("test")) if name]
    if data is None or not all(Path(name).is_file() for name in files):
        return None
    try:
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in options.items()}
        config = TrainConfig(**given)
        drawn = {"split": str(run / "split.csv")} if _is_drawn(run) and len(files) == 1 else {}
        dataset = curate_training(data, replace(config, **drawn)).dataset
    except (ValueError, TypeError):  # written by another version, or the data changed: they are not what they were
        return None
    return (dataset, config) if dataset.sha256 == sha256 else None


def _is_drawn(run: Path) -> bool:
    """Whether esmtune split the rows of a run: then its split need not be made again."""
    found = read_json(run / "metrics.json").get("split", {}) if (run / "metrics.json").is_file() else {}
    return found.get("method", "given") != "given" and (run / "split.csv").is_file()
