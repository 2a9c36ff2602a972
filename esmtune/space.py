"""What a search chooses from: one table of options, the values they may have, and when they matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from esmtune.assignments import task_options
from esmtune.config import DEFAULT_HEAD, DEFAULT_TUNING, RECIPE_OF, RECIPES, Level, Part, TrainConfig, usual_head
from esmtune.heads import head
from esmtune.registry import nearest
from esmtune.tasks import task
from esmtune.tuning import tuning

Value = str | int | float | bool
Settings = Mapping[str, Value]  # by the names that users write, head.hidden among them
USUAL = "usual"  # layers: what train takes by itself

PARTS = ("task", "head", "tuning")
OTHERS = ("epochs", "max_steps", "mix", "warmup", "schedule", "ema", "clip")  # searched when a user says so
ADAPTED, MOVING = ("lora",), ("lora", "full")
STEPWISE = tuple(name for name in head if not head[name].is_solved)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An option to choose: one of some values, or a number from a range, where another option has certain values."""

    name: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False  # as many trials between 1e-4 and 1e-3 as between 1e-3 and 1e-2
    when: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def key(self) -> str:
        """A name that tells it from an axis of the same option under another condition."""
        return "|".join((self.name, *(f"{name}={','.join(allowed)}" for name, allowed in self.when)))

    def holds(self, settings: Settings) -> bool:
        """Whether the option matters beside others that have been chosen."""
        usual = {"tuning": DEFAULT_TUNING, "head": DEFAULT_HEAD}
        return all(settings.get(name, usual.get(name)) in allowed for name, allowed in self.when)

    def has(self, value: Value) -> bool:
        """Whether a value can be chosen."""
        return value in self.values if self.values else self.low <= float(value) <= self.high

    def chosen(self, trial: Any) -> Value:
        """A value for a trial of Optuna's."""
        if self.values:
            return trial.suggest_categorical(self.key, list(self.values))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.log)


def usual_space(kind: str, level: str, depth: int) -> tuple[Axis, ...]:
    """The axes for a task of a kind and level on an encoder of so many layers; a later one may depend on an earlier."""
    heads = ("linear", "mlp", "conv") if level == "residue" else ("linear", "mlp", "ridge", "attention")
    layers = dict.fromkeys((USUAL, "-1", str(round(0.75 * depth)), str(round(0.5 * depth))))
    stepwise = (("head", STEPWISE),)
    axes = (
        Axis(name="tuning", values=("frozen", "lora", "full")),
        Axis(name="tuning.rank", values=(4, 8, 16, 32), when=(("tuning", ADAPTED),)),
        Axis(name="head", values=heads),
        Axis(name="head.hidden", values=(64, 128, 256, 512), when=(("head", ("mlp", "attention")),)),
        Axis(name="head.depth", values=(1, 2, 3), when=(("head", ("mlp",)),)),
        Axis(name="head.dropout", low=0.0, high=0.5, when=(("head", ("mlp", "attention", "conv")),)),
        Axis(name="layers", values=tuple(layers)),
        Axis(name="global_batch_size", values=(8, 16, 32, 64), when=stepwise),
        Axis(name="head_learning_rate", low=1e-4, high=3e-3, log=True, when=stepwise),
        Axis(name="encoder_learning_rate", low=1e-4, high=3e-3, log=True, when=(("tuning", ADAPTED),)),
        Axis(name="encoder_learning_rate", low=1e-5, high=3e-4, log=True, when=(("tuning", ("full",)),)),
        Axis(name="weight_decay", low=1e-4, high=0.1, log=True, when=stepwise),
    )
    losses = {"number": ("squared", "absolute", "huber"), "name": ("cross-entropy", "focal"),
              "names": ("cross-entropy", "focal")}  # fmt: skip
    if kind in task and "loss" in task.options(kind):
        axes += (Axis(name="task.loss", values=losses[task[kind].reads], when=stepwise),)
    return axes


def space_of(config: TrainConfig, kind: str, level: str, depth: int, limits: Sequence[str] = ()) -> tuple[Axis, ...]:
    """The axes of a search: the usual ones, without what is fixed, within what the user allows.

    A limit is `NAME=VALUE,VALUE`, with / between values that have commas in them, or `NAME=LOW..HIGH`.

    Raises:
        ValueError: for a limit that names no option, or that cannot be read.
    """
    axes = list(usual_space(kind, level, depth))
    asked = [_limit(text) for text in limits]
    fixed = fixed_by(config)
    for name, text in asked:
        own = [axis for axis in axes if axis.name == name]
        conditions = {axis.when for axis in own} or {_condition(name, kind)}
        if name in fixed:
            raise ValueError(f"--space has {name}, but {name} is given as {fixed[name]!r}: take one of them.")
        if config.metric == "loss" and name.startswith("task."):
            raise ValueError(f"--space has {name}, which changes what --metric loss compares: take another metric.")
        place = axes.index(own[0]) if own else len(axes)
        axes = [axis for axis in axes if axis.name != name]
        is_log = any(axis.log for axis in own)
        axes[place:place] = [_axis(name, text, when, is_log) for when in sorted(conditions)]
    if config.init and not any(prefix == "head" for prefix in config.init_skip):
        axes = [axis for axis in axes if axis.name.split(".")[0] not in ("head", "layers")]
    if config.metric == "loss":  # which is compared, so that it must be the same for all
        axes = [axis for axis in axes if axis.name.split(".")[0] != "task"]
    tunings = next((axis.values for axis in axes if axis.name == "tuning"), (fixed.get("tuning", DEFAULT_TUNING),))
    axes = [_possible(axis, tunings) for axis in axes if axis.name not in fixed]
    return tuple(axes)


def _possible(axis: Axis, tunings: Sequence[Any]) -> Axis:
    """Without heads that are solved in one go where no encoder is frozen."""
    if axis.name != "head" or "frozen" in tunings:
        return axis
    values = tuple(value for value in axis.values if value in STEPWISE)
    if not values:
        raise ValueError(f"--space has head={','.join(map(str, axis.values))}, which needs a frozen encoder.")
    return replace(axis, values=values)


def fixed_by(config: TrainConfig) -> dict[str, Value]:
    """The options that a configuration gives, by the names of axes; options of a part alone are of the usual one."""
    usual = TrainConfig()
    fixed: dict[str, Value] = {}
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if field.name not in PARTS and value != getattr(usual, field.name):
            fixed[field.name] = value
    for part, default in (("head", DEFAULT_HEAD), ("tuning", DEFAULT_TUNING), ("task", None)):
        spec: Part = getattr(config, part) or {}
        name = spec.get("name", default) if spec else None
        fixed |= {part: name} if name is not None else {}
        fixed |= {f"{part}.{option}": value for option, value in spec.items() if option != "name"}
    return fixed


def usual_settings(axes: Sequence[Axis], config: TrainConfig, kind: str, level: Level) -> dict[str, Value]:
    """The values, by key, that train would take by itself, of those axes that have them: the first trial's."""
    fixed = fixed_by(config)
    own: dict[str, Value] = {"tuning": DEFAULT_TUNING, "head": DEFAULT_HEAD, **fixed}
    recipe = RECIPES[RECIPE_OF.get(str(own["tuning"]), "lora")]
    values: dict[str, Any] = {name: getattr(TrainConfig(), name) for name in (*OTHERS, "weight_decay")}
    values |= {**recipe, "layers": USUAL, **own}
    registries: tuple[tuple[str, Any], ...] = (("head", head), ("tuning", tuning))
    for part, registry in registries:
        name = str(own[part])
        if name in registry:
            values |= {f"{part}.{k}": p.default for k, p in registry.options(name).items()}
    usual = usual_head(str(own["tuning"]), kind, level)
    if own["head"] == usual["name"]:
        values |= {f"head.{option}": value for option, value in usual.items() if option != "name"}
    if kind in task:
        values |= {f"task.{option}": value for option, value in task_options(kind, level, config.task or {}).items()}
    return {
        axis.key: values[axis.name]
        for axis in axes
        if axis.holds(own) and values.get(axis.name) is not None and axis.has(values[axis.name])
    }


def configured_by(config: TrainConfig, settings: Settings) -> TrainConfig:
    """A configuration with what a trial has chosen.

    >>> found = configured_by(TrainConfig(), {"head": "mlp", "head.hidden": 64, "layers": "usual", "clip": 0.5})
    >>> found.head, found.layers, found.clip
    ({'name': 'mlp', 'hidden': 64}, None, 0.5)
    """
    parts: dict[str, dict[str, Any]] = {part: dict(getattr(config, part) or {}) for part in PARTS}
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        part, dot, option = name.partition(".")
        if part in PARTS:
            parts[part][option if dot else "name"] = value
        else:
            plain[name] = None if name == "layers" and value == USUAL else value
    return replace(config, **plain, **{part: spec or None for part, spec in parts.items()})


def _limit(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    name = name.removeprefix("--").replace("-", "_")
    if not equals or not values:
        raise ValueError(f"--space {text!r}: expected NAME=VALUE,VALUE or NAME=LOW..HIGH, such as head=linear,mlp.")
    return name, values


def _condition(name: str, kind: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """When an option matters that is not in the table: with the parts that have it."""
    part, dot, option = name.partition(".")
    registries: dict[str, Any] = {"head": head, "tuning": tuning}
    known = [*OTHERS, *(axis.name for axis in usual_space(kind, "sequence", 6))]
    if part in registries and dot:
        having = tuple(n for n in registries[part] if option in registries[part].options(n))
        if having:
            return ((part, having),)
    elif name in OTHERS or (part == "task" and kind in task and option in task.options(kind)):
        return ()
    raise ValueError(f"--space: there is no option {name!r} to search.{nearest(name, known)} Some are: "
                     f"{', '.join(dict.fromkeys(known))}.")  # fmt: skip


def _axis(name: str, text: str, when: tuple[tuple[str, tuple[str, ...]], ...], is_log: bool) -> Axis:
    low, dots, high = text.partition("..")
    if dots:
        ends = _value(low), _value(high)
        if any(isinstance(end, str | bool) for end in ends) or float(ends[0]) >= float(ends[1]):
            raise ValueError(f"--space {name}={text}: expected LOW..HIGH, two numbers, the lower first.")
        start, end = (float(x) if isinstance(ends[0], float) or isinstance(ends[1], float) else x for x in ends)
        return Axis(name=name, low=start, high=end, log=is_log and float(start) > 0, when=when)  # pyright: ignore[reportArgumentType]
    values = tuple(part.strip() for part in text.split("/" if "/" in text else ","))
    registries: dict[str, Any] = {"head": head, "tuning": tuning}
    for value in values:
        if name in registries:
            registries[name][value]  # refuses a name that there is not
    return Axis(name=name, values=values if name in (*registries, "layers") else tuple(map(_value, values)), when=when)


def _value(text: str) -> Value:
    """A value as it is written: a number, true or false, or a word."""
    for reads in (int, float):
        try:
            return reads(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
