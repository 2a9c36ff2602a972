"""Which tuning and head a run asks for, or has where nothing else is asked for."""

from collections.abc import Mapping
from typing import Any

from esmtune.config import DEFAULT_TUNING, Part, TrainConfig, usual_head
from esmtune.heads import head
from esmtune.records import Dataset
from esmtune.registry import missing
from esmtune.tuning import tuning

MLM_HEAD = "language-model"


def check_parts(config: TrainConfig, data: Dataset) -> None:
    """Refuse a tuning or head that does not exist, or has no such options.

    Raises:
        ValueError: naming those that there are.
    """
    tuned = tuning_of(config, data)
    if tuned["name"] != "auto":
        tuning.resolve(tuned)
    if not config.init or "name" in (config.head or {}):  # else the head is that of the predictor
        head.resolve(completed(usual_head_of(tuned, data), config.head))


def tuning_of(config: TrainConfig, data: Dataset) -> Mapping[str, Any]:
    """The tuning that was asked for, or is usual.

    Raises:
        ValueError: if there is none of that name.
    """
    spec = completed({"name": "full" if data.kind == "mlm" else DEFAULT_TUNING}, config.tuning)
    known = ["auto", *tuning]
    if spec["name"] not in known:
        raise ValueError(missing("tuning", str(spec["name"]), known))
    if spec["name"] == "auto" and len(spec) > 1:
        raise ValueError("tuning auto has no options: name the tuning that they belong to.")
    return spec


def usual_head_of(tuned: Mapping[str, Any], data: Dataset) -> Mapping[str, Any]:
    """The head where no other is asked for."""
    return {"name": MLM_HEAD} if data.kind == "mlm" else usual_head(str(tuned["name"]), data.kind, data.level)


def completed(usual: Mapping[str, Any], asked: Part | None) -> Mapping[str, Any]:
    """What was asked for, over what is usual unless another part was asked for.

    >>> completed({"name": "mlp", "ridge": True}, {"hidden": 64}), completed({"name": "mlp"}, {"name": "linear"})
    ({'name': 'mlp', 'ridge': True, 'hidden': 64}, {'name': 'linear'})
    """
    asked = asked or {}
    return {**usual, **asked} if asked.get("name", usual["name"]) == usual["name"] else asked
