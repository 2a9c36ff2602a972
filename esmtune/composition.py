"""How a predictor is put together: from parts and pretrained weights, or from a saved one."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from esmtune.config import DEFAULT_ENCODER, DEFAULT_HEAD, DEFAULT_TUNING, Part, TrainConfig
from esmtune.esm2 import ESM2
from esmtune.events import Notice, Watcher
from esmtune.heads import head
from esmtune.predictor import Predictor, Spec, find_encoder
from esmtune.records import Dataset
from esmtune.tasks import Task, task
from esmtune.tuning import tuning


def compose(config: TrainConfig, data: Dataset, watch: Watcher) -> Predictor:
    """Put encoder, head and task together, from the configuration and, with `init`, from a saved predictor.

    Raises:
        ValueError: for a part, option, encoder or predictor that cannot be had, or that does not fit the data.
    """
    labels = [r.label for r in data.of("train")]
    task_spec = task.resolve(_completed({"name": data.kind}, config.task))
    tuning_spec = tuning.resolve(_completed({"name": DEFAULT_TUNING}, config.tuning))
    fitted = task[data.kind].fit(labels, **{k: v for k, v in task_spec.items() if k != "name"})
    start = Predictor.load(config.init) if config.init else None
    if start is None:
        encoder, source, moved = find_encoder(config.encoder or DEFAULT_ENCODER)
        head_spec = _completed({"name": DEFAULT_HEAD}, config.head)
    else:
        if config.encoder:
            raise ValueError(
                "init brings its own encoder: leave out encoder, or take encoder=RUN for the encoder alone."
            )
        encoder, source, moved = start.encoder, start.spec.encoder, start.moved
        head_spec = _completed(start.spec.head, config.head)
        head_names = [n for n in start.state_dict() if n.startswith("head.") and "standardize" not in n]
        if not all(starts_anew(config, name) for name in head_names):
            fitted = _same_task(fitted, start, config)
    spec = Spec(
        encoder=source,
        shape=encoder.config,
        tuning=tuning_spec,
        head=head.resolve(head_spec),
        task=fitted.spec(),
        target=data.target,
        max_length=config.max_length,
        trained_on={"records": len(labels), "sha256": data.sha256},
    )
    if source.is_random:
        weights = "has RANDOM weights: it has seen no protein" if start is None else "began with RANDOM weights"
        watch(Notice(f"The encoder {source.name} {weights}."))
    if source.left_out:
        watch(Notice(f"Left out of {source.name}, being no part of the encoder: {', '.join(source.left_out)}."))
    if start is None:
        return _tuned(Predictor(spec, encoder, moved), tuning_spec)
    fresh = Predictor(spec, ESM2(encoder.config), moved)
    return _tuned(_initialized(fresh, start, config, watch), tuning_spec)


def _completed(usual: Mapping[str, Any], asked: Part | None) -> Mapping[str, Any]:
    """What was asked for, over what is usual unless another part was asked for."""
    asked = asked or {}
    return {**usual, **asked} if asked.get("name", usual["name"]) == usual["name"] else asked


def _tuned(predictor: Predictor, spec: dict[str, Any]) -> Predictor:
    """Let those weights move that the tuning says, and note them as moved."""
    predictor.encoder.requires_grad_(False)
    tuning.build(spec, predictor.encoder)
    moving = {name for name, weight in predictor.encoder.named_parameters() if weight.requires_grad}
    if len(moving) == len(list(predictor.encoder.parameters())):
        moving |= set(predictor.encoder.state_dict())
    predictor.moved |= moving
    return predictor


def starts_anew(config: TrainConfig, name: str) -> bool:
    """Whether a weight comes from no saved predictor."""
    return not config.init or any(_begins(name, prefix) for prefix in config.init_skip)


def _same_task(fitted: Task, start: Predictor, config: TrainConfig) -> Task:
    """The saved task goes on, for its head was trained in its unit and its order of classes."""
    old = start.task
    strangers = set(getattr(fitted, "classes", ())) - set(getattr(old, "classes", ()))
    if fitted.name != old.name or strangers:
        what = f"has no class {', '.join(sorted(strangers))}" if fitted.name == old.name else f"is a {old.name}"
        raise ValueError(
            f"the predictor to start from {what}, but the data is a {fitted.name}. "
            "Start its head anew: --init-skip head."
        )
    asked = {"loss_name": fitted.spec()["loss_name"]} if "loss" in (config.task or {}) else {}
    return replace(old, **asked)  # pyright: ignore[reportArgumentType]


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
