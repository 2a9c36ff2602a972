"""Which task the data call for: fitted to their labels, or that of a saved predictor, which goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from esmtune.config import REGRESSION, Part, TrainConfig
from esmtune.distributions import distribution
from esmtune.losses import class_loss, loss, ranking
from esmtune.records import Dataset, Label, Level, of_target, order_of
from esmtune.regression import Regression
from esmtune.tasks import Multitask, Task, task

NAMED = {"binary", "multiclass"}
NUMBER_LOSSES = (*loss, *ranking, *distribution)


def fit_task(data: Dataset, asked: Part | None, labels: Sequence[Label] | None = None) -> Task:
    """Make the task that the data call for, of the training labels, with the options that were asked for.

    With several targets each has a task of its own, and an option goes to every one of them that has it.

    Raises:
        ValueError: for an option that no task has.
    """
    if labels is None:
        labels = learned_labels(data)
    options = {k: v for k, v in (asked or {}).items() if k != "name"}
    if len(data.targets) == 1:
        return _fitted(data.kind, labels, options, data.level)
    parts, taken = [], set()
    for place, target in enumerate(data.targets):
        own = of_target(labels, place, data.targets)
        fitting = {k: v for k, v in options.items() if _takes(target.kind, k, v)}
        taken |= set(fitting)
        if target.kind == "ordinal" and "order" in fitting:
            fitting["order"] = order_of(str(fitting["order"]), target.name, data.targets)
        parts.append((target.name, _fitted(target.kind, own, fitting, data.level)))
    for option, value in options.items():
        if option not in taken:
            kinds = ", ".join(dict.fromkeys(target.kind for target in data.targets))
            others = f" Of numbers: {', '.join(NUMBER_LOSSES)}; of classes: {', '.join(class_loss)}."
            raise ValueError(
                f"none of the targets' tasks ({kinds}) takes the option {option} {value!r}."
                f"{others if option == 'loss' else ''}"
            )
    return Multitask.of(parts)


def learned_labels(data: Dataset) -> list[Label]:
    """The labels of the training records; a number is unknown where its record weighs nothing."""
    numbers = [target.kind == "regression" for target in data.targets]

    def learned(label: Label, weight: float) -> Label:
        if weight or label is None:
            return label
        if len(numbers) > 1:
            return tuple(None if is_number else x for x, is_number in zip(label, numbers, strict=True))  # pyright: ignore
        return None if numbers[0] else label

    return [learned(label, record.weight) for record in data.of("train") for label in record.labels]


def _takes(kind: str, option: str, value: Any) -> bool:
    """Whether a task has an option; a loss must be one for its kind of labels."""
    if option == "loss" and option in task.options(kind):
        return value in (NUMBER_LOSSES if task[kind].reads == "number" else class_loss)
    return option in task.options(kind)


def task_options(kind: str, level: Level, asked: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a task: those that were asked for, and what is usual for a kind of labels at a level."""
    is_usual = kind == "regression" and level == "sequence" and asked.get("loss", "squared") == "squared"
    return task.resolve({**(REGRESSION if is_usual else {}), **asked, "name": kind})


def _fitted(kind: str, labels: Sequence[Label], options: Mapping[str, Any], level: Level) -> Task:
    resolved = task_options(kind, level, options)
    return task[kind].fit(labels, **{k: v for k, v in resolved.items() if k != "name"})


def going_on(fitted: Task, old: Task, config: TrainConfig) -> Task:
    """The saved task, `old`, for its head was trained in its unit and its order of classes; with what was asked for.

    Raises:
        ValueError: if the data, for which a task is `fitted`, or what was asked for do not go with it.
    """
    if isinstance(fitted, Multitask) and isinstance(old, Multitask):
        if fitted.names != old.names:
            raise ValueError(
                f"the predictor to start from predicts {', '.join(old.names)}, in this order, but the data has "
                f"{', '.join(fitted.names)}: name them so, --target {' '.join(old.names)}, or start its head anew: "
                "--init-skip head."
            )
        pairs = zip(fitted.names, fitted.tasks, old.tasks, strict=True)
        return Multitask.of([(name, going_on(new, was, config)) for name, new, was in pairs])
    strangers = set(getattr(fitted, "classes", ())) - set(getattr(old, "classes", ()))
    if fitted.name != old.name or strangers or old.num_outputs < fitted.num_outputs:
        what = f"has no class {', '.join(sorted(strangers))}" if fitted.name == old.name else f"is a {old.name}"
        instead = f", or say --task {old.name}" if {old.name, fitted.name} <= NAMED and not strangers else ""
        raise ValueError(
            f"the predictor to start from {what}, but the data is a {fitted.name}. "
            f"Start its head anew: --init-skip head{instead}."
        )
    options = {
        k: v for k, v in (config.task or {}).items() if k != "name" and _takes(fitted.name, k, v) and v != "auto"
    }
    asked = {k: v for k, v in fitted.spec().items() if k.removesuffix("_name") in options and k != "name"}
    if isinstance(old, Regression):
        scale, error = asked.get("scale", old.scale), asked.get("loss_name", old.loss_name)
        if error in ranking:
            if asked.get("ranking_weight"):
                raise ValueError(
                    f"the loss {error} that this run goes on with is of nothing but the order: leave out "
                    "ranking_weight."
                )
            asked["ranking_weight"] = 0.0
        if scale != old.scale or (old.knots and error not in loss):
            raise ValueError(
                f"the predictor to start from learned labels on the scale {old.scale}, which does not go with "
                f"{f'the scale {scale}' if scale != old.scale else f'the loss {error}'}. Leave it out, or start its "
                "head anew: --init-skip head."
            )
    return replace(old, **asked)  # pyright: ignore[reportArgumentType]
