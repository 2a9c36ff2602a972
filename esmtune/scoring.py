"""What each training of a run scores, and which of them learned nothing."""

import statistics
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.masking import Masking, guessed
from esmtune.metrics import Scores, sign_of
from esmtune.records import Dataset, Label
from esmtune.standing import Fitted
from esmtune.tasks import MLM, Task

ENOUGH = 10  # points, to call a seed worse than others


def scores_of(
    task: Task, outputs: Tensor, data: Dataset, split: str, *, within: Sequence[bool] | None = None
) -> Scores:
    """The scores of the labeled points of a split, or of those of its records that are `within`; none without any."""
    records = data.of(None)
    counted = [True] * len(records) if within is None else within
    chosen = [r.split == split and is_in for r, is_in in zip(records, counted, strict=True) for _ in r.labels]
    labels = [label for label, is_in in zip(shown_labels(task, data), chosen, strict=True) if is_in]
    return task.scores(outputs[torch.tensor(chosen)], labels) if labels else {}


def shown_labels(task: Task, data: Dataset) -> list[Label]:
    """The labels of all labeled records, of which a language model is judged by those that it must guess alone."""
    records = data.of(None)
    masks = Masking(selected=task.masked) if isinstance(task, MLM) else None
    return guessed([label for r in records for label in r.labels], [r.sequence for r in records], masks)


def collapsed(
    names: Sequence[str], fitted: Sequence[Fitted], data: Dataset, answers: Float[Tensor, "members points outputs"],
    task: Task,
) -> list[str]:  # fmt: skip
    """The names of trainings that are not half as far above the baseline as the median one, by what chose the weights.

    A loss is no such metric, nor are few validation rows enough: then it is the task's own, and the rows that they
    learned from count too. One without a finite value is one, and so is one that diverged before its first
    evaluation.
    """
    lost = [name for name, f in zip(names, fitted, strict=True) if f.diverged and not f.history]
    chosen = fitted[0].best.get("metric")
    metric = task.metric if chosen in (None, "loss") else chosen
    labels = shown_labels(task, data)
    splits = [record.split for record in data.of(None) for _ in record.labels]
    is_valid = [split == "valid" for split in splits]
    known = sum(label is not None for label, is_in in zip(labels, is_valid, strict=True) if is_in)
    within = is_valid if known >= ENOUGH else [split in ("train", "valid") for split in splits]
    counted = [label for label, is_in in zip(labels, within, strict=True) if is_in]
    if sum(label is not None for label in counted) < ENOUGH:
        return lost if len(lost) < len(names) else []
    base = task.scores(task.baseline(len(counted)), counted)[metric] or 0.0
    gains: dict[str, float | None] = {}
    for name, own in zip(names, answers, strict=True):
        value = task.scores(own[torch.tensor(within)], counted)[metric] if own.isfinite().all() else None
        gains[name] = None if value is None else sign_of(metric) * (value - base)
    learned = [gain for name, gain in gains.items() if gain is not None and name not in lost]
    typical = statistics.median(learned) if learned else 0.0
    found = lost
    if typical > 0:  # else none of them learned anything: there is nothing else to tell them apart by
        found = [n for n, gain in gains.items() if n in lost or gain is None or gain < 0.5 * typical]
    return next((some for some in (found, lost) if len(some) < len(names)), [])
