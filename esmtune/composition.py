"""How a predictor is put together: from parts and pretrained weights, or from a saved one."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from esmtune.assignments import going_on
from esmtune.config import DEFAULT_ENCODER, FEW_LABELS, LAYERS, Part, TrainConfig
from esmtune.devices import choose_device, choose_precision
from esmtune.encoders import Source
from esmtune.esm2 import ESM2, LMHead
from esmtune.events import Notice, Watcher, silent
from esmtune.heads import head
from esmtune.linear import is_affordable
from esmtune.parts import MLM_HEAD, check_parts, completed, tuning_of, usual_head_of
from esmtune.predicting import Spec
from esmtune.predictor import Predictor, find_encoder
from esmtune.records import Dataset
from esmtune.sampling import can_draw
from esmtune.tasks import Task
from esmtune.tuning import automatic, tuning


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the weights of a run begin: an encoder, and a saved predictor around it with `init`."""

    encoder: ESM2
    source: Source
    moved: frozenset[str]
    start: Predictor | None
    models_language: bool = False  # whether it has a language model that was trained


def find_origin(config: TrainConfig, data: Dataset, watch: Watcher) -> Origin:
    """Load what a run begins with, once it is known that the parts it asks for exist.

    Raises:
        ValueError: for an encoder or predictor that cannot be had, and for parts or options that do not exist.
    """
    check_parts(config, data)
    if config.init and config.encoder:
        raise ValueError("init brings its own encoder: leave out encoder, or take encoder=RUN for the encoder alone.")
    start = Predictor.load(config.init) if config.init else None
    if start is None:
        encoder, source, moved = find_encoder(config.encoder or DEFAULT_ENCODER, lm_head=data.kind == "mlm")
        models_language = encoder.lm_head is not None and not source.is_random
        if data.kind == "mlm" and encoder.lm_head is None:
            watch(Notice(f"{source.name} has no LM head: it learns a new one."))
            encoder.lm_head = LMHead(encoder.config.embed_dim)
            torch.nn.init.zeros_(encoder.lm_head.norm.weight)  # it begins by expecting every symbol alike
    else:
        if start.is_adapted:
            start = start.merged()
        encoder, source, moved = start.encoder, start.spec.encoder, start.moved
        models_language = start.masks is not None
    if source.is_random:
        weights = "has RANDOM weights: it has seen no protein" if start is None else "began with RANDOM weights"
        watch(Notice(f"The encoder {source.name} {weights}."))
    if source.left_out:
        watch(Notice(f"Left out of {source.name}, being no part of the encoder: {', '.join(source.left_out)}."))
    return Origin(encoder=encoder, source=source, moved=moved, start=start, models_language=models_language)


def compose(config: TrainConfig, data: Dataset, origin: Origin, fitted: Task, watch: Watcher = silent) -> Predictor:
    """Put encoder, head and task together, by a configuration that is decided; new weights are torch's to draw.

    Raises:
        ValueError: for a part or option that cannot be had, or that does not fit the data.
    """
    start = origin.start
    tuning_spec = config.tuning or {}
    usual = usual_head_of(tuning_spec, data)
    head_spec = completed(usual if start is None else start.spec.head, config.head)
    if start is not None:
        head_names = [n for n in start.state_dict() if n.startswith("head.") and "standardize" not in n]
        if not all(starts_anew(config, name) for name in head_names):
            fitted = going_on(fitted, start.task, config)
    head_spec = _leveled(head.resolve(head_spec), config.head, data)
    layers, mix = _layers(config, data, head_spec, origin.encoder), config.mix
    if start is not None and config.layers is None:
        layers, mix = start.spec.layers, start.spec.mix
    if head_spec.get("ridge") and (start is None or not start.spec.head.get("ridge") or starts_anew(config, "head")):
        dim = len(layers) * origin.encoder.config.embed_dim
        head_spec["ridge"] = _has_ridge(config, data, fitted, dim, watch)
    spec = Spec(
        encoder=origin.source,
        shape=origin.encoder.config,
        tuning=tuning_spec,
        layers=layers,
        mix=mix,
        head=head_spec,
        task=fitted.spec(),
        targets=data.targets,
        max_length=config.max_length,
        trained_on={"records": len(data.of("train")), "sha256": data.sha256},
        dropout_samples=config.dropout_samples,
        precision=None if config.precision == "auto" else config.precision,
    )
    if start is None:
        encoder = origin.encoder if tuning_spec["name"] == "frozen" else sharing(origin.encoder)
        return _tuned(_sampling(Predictor(spec, encoder, origin.moved)), config)
    fresh = _sampling(Predictor(spec, ESM2(origin.encoder.config), origin.moved))
    predictor = _tuned(_initialized(fresh, start, config, watch), config)
    standardized = (n for n in predictor.state_dict() if n.startswith(("encoder.", "head.standardize")))
    predictor.is_standardized = not any(starts_anew(config, name) for name in standardized)
    return predictor


def _sampling(predictor: Predictor) -> Predictor:
    """Refuse draws of a dropout that the head does not have."""
    if predictor.spec.dropout_samples and not can_draw(predictor.head):
        raise ValueError(
            f"dropout_samples draws the head's dropout, but head {predictor.spec.head['name']!r} has none: leave it "
            "out, or take --head mlp with a --head.dropout above 0."
        )
    return predictor


def decided(config: TrainConfig, data: Dataset, origin: Origin, watch: Watcher) -> TrainConfig:
    """The configuration with tuning, head and what goes with them decided, by the size of the model and the labels.

    Raises:
        ValueError: for a tuning that does not fit the task.
    """
    labeled = len({r.sequence for r in data.of("train") if any(label is not None for label in r.labels)})
    spec = tuning_of(config, data)
    if spec["name"] == "auto":
        weights = sum(weight.numel() for weight in origin.encoder.parameters())
        # Residues to guess are enough of any sequences, and an encoder that does not move guesses no better.
        name, why = automatic(weights, max(labeled, FEW_LABELS) if data.kind == "mlm" else labeled)
        spec = {"name": name}
        watch(Notice(f"Tuning: {name}, because {why}."))
    spec = tuning.resolve(spec)
    if data.kind == "mlm" and spec["name"] == "frozen":
        raise ValueError("task mlm goes on training the encoder, which tuning frozen does not: take full or lora.")
    device = choose_device(config.accelerator)
    precision = choose_precision(config.precision, device)
    watch(Notice(f"Computing on {device} in {precision}."))
    return replace(config, tuning=spec, precision=precision).completed(spec["name"], len(data.of("train")))


def _leveled(spec: dict[str, Any], asked: Part | None, data: Dataset) -> dict[str, Any]:
    """A head at the level of the labels: its pool keeps residues apart where each has a label of its own."""
    if data.level == "residue" and "pool" in spec and "pool" not in (asked or {}):
        spec = {**spec, "pool": "residue"}
    level = head.build(spec, 2, 1).level
    if level != data.level:
        fitting = [name for name in head if name != MLM_HEAD and _can(name, data.level)]
        pool = f" with pool {spec['pool']!r}" if "pool" in spec else ""
        raise ValueError(
            f"head {spec['name']!r}{pool} says one thing a {level}, "
            f"but the labels of {data.targets[0].name!r} are one a {data.level}. Heads for that: {', '.join(fitting)}"
            f"{' with --head.pool residue' if data.level == 'residue' else ''}."
        )
    return spec


def _has_ridge(config: TrainConfig, data: Dataset, fitted: Task, dim: int, watch: Watcher) -> bool:
    """Whether a ridge can stand beside a new head; says so if it was asked for and cannot."""
    records = len(data.of("train"))
    if data.level != "sequence" or (config.tuning or {}).get("name") != "frozen":
        why = "it is for labels of sequences and --tuning frozen"
    elif not any(is_affordable(dim, part.num_outputs, records) for _, part, _ in fitted.parts()):
        why = "for so many classes it would take too long"
    else:
        return True
    if (config.head or {}).get("ridge"):
        watch(Notice(f"No ridge beside the head: {why}."))
    return False


def _can(name: str, level: str) -> bool:
    pools = getattr(head.options(name).get("pool"), "annotation", None)
    if pools is None:
        return level == head.build({"name": name}, 2, 1).level
    return level == "sequence" or "residue" in str(pools)


def _layers(config: TrainConfig, data: Dataset, spec: Mapping[str, Any], encoder: ESM2) -> tuple[int, ...]:
    """The layers that the head sees, from `-1`, `0,3,-1` or `all`; without a word those of docs/recipes.md."""
    text, last = config.layers, encoder.config.num_layers
    if data.kind == "mlm":
        if text is not None or config.mix:
            raise ValueError("task mlm reads the last layer: leave out layers and mix.")
        return (last,)
    if text is None:
        with torch.device("meta"):  # it draws no numbers, so that a run with layers written down draws the same
            sees_residues = head.build(spec, 2, 1).sees_residues
        return encoder.layers_for_residues() if sees_residues else encoder.layers_across(LAYERS)
    if text.strip() == "all":
        return tuple(range(last + 1))
    try:
        wanted = [encoder.layer_index(int(part)) for part in text.split(",")]
    except ValueError as error:
        what = "" if "invalid literal" in str(error) else f" ({error})"
        raise ValueError(f"layers is {text!r}, expected a number, several such as 0,3,-1, or all{what}.") from None
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"layers is {text!r}: a layer stands there twice.")
    return tuple(wanted)


def _tuned(predictor: Predictor, config: TrainConfig) -> Predictor:
    """Let those weights move that the tuning says, and note them as moved."""
    predictor.precision = config.precision
    predictor.encoder.recomputes = bool(config.checkpoint_activations)
    predictor.encoder.requires_grad_(False)
    before = frozenset(predictor.encoder.state_dict())
    predictor.rates = tuning.build(predictor.spec.tuning, predictor.encoder)
    for name, weight in predictor.encoder.named_parameters():
        weight.requires_grad_(name in predictor.rates)
    moving = frozenset(predictor.rates) & before
    for name in moving:  # what stays as it is may be shared with the encoder that the run began with
        own(predictor.encoder, name)
    if moving >= {name for name, _ in predictor.encoder.named_parameters()}:
        moving |= before
    predictor.moved |= moving
    return predictor


def sharing(encoder: ESM2) -> ESM2:
    """A copy of an encoder with the same weights, which are in memory once; an LM head, which will learn, is copied."""
    named = encoder.named_parameters()
    return copy.deepcopy(encoder, {id(weight): weight for name, weight in named if not name.startswith("lm_head.")})


def own(encoder: ESM2, name: str) -> None:
    """Give an encoder a weight of its own, where it shares it with another."""
    path, _, last = name.rpartition(".")
    weight = encoder.get_parameter(name)
    setattr(encoder.get_submodule(path), last, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))


def starts_anew(config: TrainConfig, name: str) -> bool:
    """Whether a weight comes from no saved predictor."""
    return not config.init or any(_begins(name, prefix) for prefix in config.init_skip)


def _initialized(fresh: Predictor, start: Predictor, config: TrainConfig, watch: Watcher) -> Predictor:
    """Load what is not skipped of a saved predictor, and say what was loaded and what is new."""
    saved, wanted = start.state_dict(), fresh.state_dict()
    for prefix in config.init_skip:
        if not any(_begins(name, prefix) for name in saved):
            raise ValueError(
                f"no weight of {config.init} begins with {prefix!r}. There are: {', '.join(_tops(saved))}."
            )
    kept = {name: w for name, w in saved.items() if not starts_anew(config, name)}
    if not any(name.startswith("encoder.") for name in kept):
        raise ValueError("init_skip leaves nothing of the encoder: take encoder random:NAME instead of init.")
    wrong = [n for n in kept if n not in wanted or wanted[n].shape != kept[n].shape]
    if wrong:
        raise ValueError(
            f"{config.init} does not fit the head that is asked for ({', '.join(wrong)}). "
            "Start it anew: --init-skip head."
        )
    with torch.no_grad():
        fresh.load_state_dict(kept, strict=False)
    new = sorted(wanted.keys() - kept.keys())
    fresh.moved |= {name.removeprefix("encoder.") for name in new if name.startswith("encoder.")}
    watch(Notice(f"From {config.init}: {len(kept)} weights loaded; new: {', '.join(new) or 'none'}."))
    return fresh


def _begins(name: str, prefix: str) -> bool:
    """Whether a dotted name begins with whole words of a prefix, so that layer 1 is not layer 10."""
    return name == prefix or name.startswith(prefix.removesuffix(".") + ".")


def _tops(names: Iterable[str]) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in names})
