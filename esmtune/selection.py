"""Which of the weights that training passes are the best."""

import statistics
from collections.abc import Sequence
from typing import Any

from esmtune.config import TrainConfig
from esmtune.events import Notice, Watcher
from esmtune.metrics import Scores, sign_of
from esmtune.records import Label
from esmtune.tasks import Task


def choosing_metric(config: TrainConfig, fitted: Task, labels: Sequence[Label], watch: Watcher) -> str:
    """What chooses the best weights: the task's metric, unless the validation labels cannot define it."""
    wanted = config.metric or fitted.metric
    known = [x for x in labels if x is not None]
    possible = fitted.scores(fitted.baseline(len(labels)), labels)
    if wanted not in ("loss", *possible):
        raise ValueError(f"there is no metric {wanted!r} for {fitted.name}. There are: loss, {', '.join(possible)}.")
    of_classes = wanted in ("auroc", "auprc") and possible[wanted] is None  # a class has no validation row
    if wanted != "loss" and labels and (len(set(known)) < 2 or of_classes):
        watch(Notice(f"{wanted} is not defined on the labels of the validation rows: the loss chooses instead."))
        return "loss"
    return wanted


def value_of(entry: dict[str, Any], metric: str) -> float | None:
    """What an evaluation came to, by the metric that chooses; None where that is not defined."""
    return entry["valid_loss"] if metric == "loss" else entry["valid"][metric]


def recent(entries: Sequence[dict[str, Any]], metric: str, window: int) -> float | None:
    """The mean of the metric that chooses over the last evaluations.

    None while there are fewer than the window, for a mean of few can be high by chance, or where it is not defined.
    """
    values = [value_of(entry, metric) for entry in entries[-window:]]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == window else None


def better(entry: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    """Whether one evaluation beats another by the mean of the metric that chooses over the evaluations up to each.

    Where neither has such a mean it is told by themselves, and either loses to one that has.
    """
    new, old = entry["recent"], best["recent"]
    if new is None and old is None:
        new, old = value_of(entry, metric), value_of(best, metric)
    sign = sign_of(metric)
    return new is not None and (old is None or sign * new > sign * old)


def best_so_far(best: dict[str, Any], metric: str) -> str:
    """The value of the weights that are kept, for the line that shows the progress; empty before there are any."""
    value = value_of(best, metric) if "valid" in best else None
    return "" if value is None else f", best {metric} {value:.3f}"


def numbers_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What loggers take of an evaluation: each number under a name of its own."""
    scores: Scores = entry.get("valid", {})
    numbers = {k: v for k, v in entry.items() if isinstance(v, int | float)}
    return numbers | {f"valid_{name}": value for name, value in scores.items() if value is not None}
