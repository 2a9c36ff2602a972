"""Where a training stands, what it came to, and both as a journal keeps them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.journal import Entry
from esmtune.predictor import Predictor
from esmtune.tasks import Total, task


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What training gave: the best weights and the last, how it went, and the outputs for every labeled point."""

    weights: dict[str, Tensor]
    last: dict[str, Tensor]
    outputs: Float[Tensor, "draws points outputs"]  # of the dataset's labeled records, in their order
    history: list[dict[str, Any]]
    best: dict[str, Any]
    diverged: dict[str, Any] | None  # step and ids at which numbers ceased to be finite
    task: dict[str, Any]  # the task as it came out of training
    references: dict[str, Tensor]  # what the training sequences look like; empty if that is not kept
    distances: Float[Tensor, "records"]  # of the labeled records from these; NaN for those of training, or for all

    def entry(self) -> Entry:
        """As a journal keeps it."""
        tensors = {f"weights/{n}": t for n, t in self.weights.items()} | {f"last/{n}": t for n, t in self.last.items()}
        tensors |= {f"references/{n}": t for n, t in self.references.items()}
        facts = {"history": self.history, "best": self.best, "diverged": self.diverged, "task": self.task}
        return tensors | {"outputs": self.outputs, "distances": self.distances}, facts

    @classmethod
    def of(cls, entry: Entry) -> "Fitted":
        """What `entry` was made of."""
        tensors, facts = entry
        weights, last = _under(tensors, "weights/"), _under(tensors, "last/")
        return cls(weights=weights, last=last, outputs=tensors["outputs"], distances=tensors["distances"],
                   references=_under(tensors, "references/"), **facts)  # fmt: skip


@dataclass(kw_only=True)
class Standing:
    """Where the loop stands: all that it needs to go on from here, beside weights and optimizer."""

    step: int = 0
    is_due: bool = False  # an evaluation, which has not been done yet
    is_over: bool = False
    since_best: int = 0  # evaluations
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor]  # the best
    average: dict[str, Tensor]  # of the weights, over the steps; empty without one
    running: Total


def entry_of(now: Standing, predictor: Predictor, optimizer: Any) -> Entry:
    """All that is needed to go on."""
    state = optimizer.state_dict()["state"]
    tensors = {f"now/{n}": t for n, t in moving(predictor).items()}
    tensors |= {f"best/{n}": t for n, t in now.weights.items()} | {f"average/{n}": t for n, t in now.average.items()}
    tensors |= {f"optimizer/{number}/{key}": t for number, found in state.items() for key, t in found.items()}
    tensors |= {"running": now.running.sum, "random": torch.get_rng_state()}
    kept = ("step", "is_due", "is_over", "since_best", "history", "best")
    facts = {name: getattr(now, name) for name in kept}
    return tensors, facts | {"count": now.running.count, "task": predictor.task.spec()}


def restore(entry: Entry, now: Standing, predictor: Predictor, optimizer: Any) -> None:
    """Go back to where an entry was made."""
    tensors, facts = entry
    predictor.with_task(task.load(facts.pop("task"))).load_state_dict(_under(tensors, "now/"), strict=False)
    now.weights, now.average = _under(tensors, "best/"), _under(tensors, "average/")
    now.running = Total(tensors["running"].to(now.running.sum.device), facts.pop("count"))
    torch.set_rng_state(tensors["random"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, "optimizer/").items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for name, value in facts.items():
        setattr(now, name, value)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def moving(predictor: Predictor) -> dict[str, Tensor]:
    """A copy of what training changes."""
    names = {f"encoder.{n}" for n, w in predictor.encoder.named_parameters() if w.requires_grad}
    state = predictor.state_dict()
    return {n: w.detach().cpu().clone() for n, w in state.items() if n in names or n.startswith("head.")}


@contextmanager
def wearing(predictor: Predictor, weights: dict[str, Tensor]) -> Iterator[None]:
    """Put other weights in place for a while; of none, none."""
    before = moving(predictor) if weights else {}
    predictor.load_state_dict(weights, strict=False)
    try:
        yield
    finally:
        predictor.load_state_dict(before, strict=False)
