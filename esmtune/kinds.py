"""What every task owes: labels to targets, how wrong an output is, how it reads, and what several members say together.

A task is made by `fit` from training labels, so an unfitted one cannot exist. It works on
points, which are sequences or residues, and never learns which.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.metrics import Scores
from esmtune.records import Label
from esmtune.registry import Registry, keyword_only
from esmtune.resamples import Counts, Resampled


@dataclass(frozen=True)
class Total:
    """A sum over points and how many there were, so that the mean is taken once, at the end."""

    sum: Float[Tensor, ""]
    count: int

    def __add__(self, other: "Total") -> "Total":
        return Total(self.sum + other.sum, self.count + other.count)

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The mean over all points."""
        return self.sum / self.count


class Task(ABC):
    """What a task knows. Its dataclass fields are what is saved; its keyword-only `fit` options are the user's."""

    name: ClassVar[str]
    metric: ClassVar[str]  # what early stopping watches unless told otherwise
    reads: ClassVar[Literal["number", "name", "names"]]  # what its labels are in a file: float, str or Marks

    fit: ClassVar[Callable[..., "Task"]]
    """Make a task of training labels; its keyword-only parameters are the options that users have."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many numbers the head gives for each point."""

    @abstractmethod
    def targets(self, labels: Sequence[Label]) -> Float[Tensor, "points columns"]:
        """Labels as numbers in float64, NaN where unknown; what the columns mean is the task's own business."""

    @abstractmethod
    def loss(
        self,
        outputs: Float[Tensor, "*points outputs"],
        targets: Float[Tensor, "*points columns"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """Sum of the errors at what is known, each times its point's weight, and `count(targets)`."""

    @abstractmethod
    def predict(self, outputs: Float[Tensor, "points outputs"]) -> list[Label]:
        """Outputs in the user's words or unit."""

    @abstractmethod
    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """Every metric of the task, over points with a known label, none of which weighs more than another."""

    def resampled(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The scores of many resamples, in each of which a point is drawn so many times; NaN where one is undefined."""
        found: list[Scores] = []
        for column in counts.T:
            places = np.repeat(np.arange(len(labels)), column.astype(np.int64))
            found.append(self.scores(outputs[torch.from_numpy(places)], [labels[i] for i in places.tolist()]))
        names = list(found[0]) if found else []
        return {name: np.array([scores[name] for scores in found], dtype=np.float64) for name in names}

    @abstractmethod
    def baseline(self, count: int) -> Float[Tensor, "points outputs"]:
        """The outputs of who knows nothing but the training labels."""

    @property
    def compares(self) -> bool:
        """Whether the loss compares points with each other, so that it must be given a global batch at once."""
        return False

    @property
    def only_orders(self) -> bool:
        """Whether the loss says of points in which order they are, and of none what it is."""
        return False

    def pointwise(self) -> "Task":
        """The same task, with a loss that is a sum over points if it has one."""
        return self

    def plain(self) -> "Task":
        """The same task, pointwise, and on no scale but the labels' own; its `translated` reads this one's outputs."""
        return self

    def count(self, targets: Float[Tensor, "*points columns"]) -> int:
        """How many errors the loss is a mean over: points of which anything is known, unless a task says otherwise."""
        return int(targets.isfinite().any(-1).sum())

    def probabilities(self, outputs: Float[Tensor, "points outputs"]) -> dict[str, list[float]]:
        """The probability of each class by its name; empty for a task without classes."""
        return {}

    def average(self, members: Float[Tensor, "members points outputs"]) -> Float[Tensor, "points outputs"]:
        """What the members of an ensemble say together: the mean, or where there are classes that of probabilities."""
        return members.mean(0) if len(members) > 1 else members[0]

    def disagreement(self, members: Float[Tensor, "members points outputs"]) -> list[float]:
        """How far the members of an ensemble are apart at each point: a standard deviation, in the label's unit.

        Of classes it is that of a probability: of the class predicted, or the largest.
        """
        if self.reads == "number":
            said = torch.tensor([self.predict(member) for member in members], dtype=torch.float64)[..., None]
        else:
            said = torch.tensor([list(self.probabilities(m).values()) for m in members], dtype=torch.float64).mT
        return said.std(0, correction=0).amax(-1).tolist()

    def doubt(self, members: Float[Tensor, "members points outputs"]) -> list[float] | None:
        """How far off each prediction may be, as far as the members or the outputs say; None if they do not."""
        return self.disagreement(members) if len(members) > 1 else None

    def translated(self, outputs: Float[Tensor, "points outputs"], other: "Task") -> Float[Tensor, "points outputs"]:
        """Outputs that mean something to another task, fitted to the same targets, as ones that mean it to this."""
        return outputs

    def refitted(self, labels: Sequence[Label]) -> "Task":
        """The same task with the statistics of other labels of the same targets; classes, and what is of none, stay."""
        return self

    def finished(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> "Task":
        """The task after training, which may learn from the outputs of all training points what they mean."""
        return self

    def parts(self) -> list[tuple[str, "Task", slice]]:
        """The tasks that it is made of, by the name of their target, and which outputs are theirs."""
        return [("", self, slice(None))]

    def spec(self) -> dict[str, Any]:
        """All that must be saved."""
        return {"name": self.name, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @classmethod
    def loaded(cls, spec: Mapping[str, Any]) -> "Task":
        """Make a task again of what `spec` gave, which may have been JSON meanwhile."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "name"})


TaskT = TypeVar("TaskT", bound=type[Task])


class _Tasks(Registry[type[Task]]):
    """Tasks, whose options for users are those of `fit`."""

    def __call__(self, *names: str) -> Callable[[TaskT], TaskT]:
        """Decorate a task with the name, or names, it goes by."""
        return super().__call__(*names)  # pyright: ignore[reportReturnType]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options of a task: the keyword-only parameters of its `fit`."""
        return keyword_only(self[name].fit)

    def load(self, spec: Mapping[str, Any]) -> Task:
        """Make a saved task again."""
        try:
            return self[spec["name"]].loaded(spec)
        except TypeError as error:
            raise ValueError(f"a saved task {spec['name']!r} does not fit: {error}") from None


task = _Tasks("task")


def weighed(errors: Float[Tensor, "cells"], weights: Float[Tensor, "cells"] | None) -> Float[Tensor, ""]:
    """The sum of errors, each times its weight."""
    return errors.sum() if weights is None else (errors * weights.to(errors.dtype)).sum()
