"""What outputs mean: labels to targets, how wrong an output is, and how it reads. Add yours at the end.

A task is made by `fit` from training labels, so an unfitted one cannot exist. It works on
points, which are sequences or residues, and never learns which.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmtune.losses import loss as losses
from esmtune.metrics import Scores, classification_scores, regression_scores
from esmtune.records import Label
from esmtune.registry import Registry, keyword_only


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

    fit: ClassVar[Callable[..., "Task"]]
    """Make a task of training labels; its keyword-only parameters are the options that users have."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many numbers the head gives for each point."""

    @abstractmethod
    def targets(self, labels: Sequence[Label]) -> Tensor:
        """Labels as a tensor; an unknown one weighs nothing."""

    @abstractmethod
    def known(self, targets: Tensor) -> Bool[Tensor, "*points"]:
        """Which points have a label."""

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "*points outputs"], targets: Tensor) -> Total:
        """Sum of errors over the points with a known target, and their number."""

    @abstractmethod
    def predict(self, outputs: Float[Tensor, "points outputs"]) -> list[Label]:
        """Outputs in the user's words or unit."""

    @abstractmethod
    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """Every metric of the task, over points with a known label."""

    @abstractmethod
    def baseline(self, count: int) -> Float[Tensor, "points outputs"]:
        """The outputs of who knows nothing but the training labels."""

    def probabilities(self, outputs: Float[Tensor, "points outputs"]) -> dict[str, list[float]]:
        """The probability of each class by its name; empty for a task without classes."""
        return {}

    def spec(self) -> dict[str, Any]:
        """All that must be saved."""
        return {"name": self.name, **asdict(self)}  # pyright: ignore[reportArgumentType]


class _Tasks(Registry[type[Task]]):
    """Tasks, whose options for users are those of `fit`."""

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options of a task: the keyword-only parameters of its `fit`."""
        return keyword_only(self[name].fit)

    def load(self, spec: Mapping[str, Any]) -> Task:
        """Make a saved task again."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "name"}
        try:
            return self[spec["name"]](**fields)
        except TypeError as error:
            raise ValueError(f"a saved task {spec['name']!r} does not fit: {error}") from None


task = _Tasks("task")


@task("regression")
@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Real values, standardized by the mean and standard deviation of the training labels.

    >>> Regression.fit([1.0, 3.0]).predict(torch.zeros(1, 1))
    [2.0]
    """

    center: float
    spread: float
    loss_name: str = "squared"

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "spearman"

    @classmethod
    def fit(cls, labels: Sequence[Label], *, loss: str = "squared") -> "Regression":
        """Take center and spread from the labels that are known."""
        known = np.array([x for x in labels if x is not None], dtype=np.float64)
        losses[loss]  # an unknown name ends here
        with np.errstate(over="ignore", invalid="ignore"):  # said in the sentence below
            center, spread = float(known.mean()), float(known.std())
        if not math.isfinite(center + spread):
            raise ValueError(f"labels as large as {np.abs(known).max():.3g} have no finite spread: rescale them.")
        return cls(center=center, spread=spread or 1.0, loss_name=loss)

    @property
    def num_outputs(self) -> int:
        """One number."""
        return 1

    def targets(self, labels: Sequence[Label]) -> Float[Tensor, "points"]:
        """Standardized labels, NaN where unknown."""
        known = np.array([math.nan if x is None else x for x in labels], dtype=np.float64)
        return torch.from_numpy((known - self.center) / self.spread)

    def known(self, targets: Float[Tensor, "*points"]) -> Bool[Tensor, "*points"]:
        """Which points have a label."""
        return targets.isfinite()

    def loss(self, outputs: Float[Tensor, "*points 1"], targets: Float[Tensor, "*points"]) -> Total:
        """The chosen error, in standard deviations of the training labels."""
        is_known = self.known(targets)
        error = losses[self.loss_name](outputs[..., 0][is_known], targets[is_known].to(outputs.dtype))
        return Total(error.sum(), int(is_known.sum()))

    def predict(self, outputs: Float[Tensor, "points 1"]) -> list[Label]:
        """Numbers in the label's unit."""
        return (outputs[:, 0].double() * self.spread + self.center).tolist()

    def scores(self, outputs: Float[Tensor, "points 1"], labels: Sequence[Label]) -> Scores:
        """Correlations and errors, in the label's unit."""
        return regression_scores(np.array(labels, dtype=np.float64), np.array(self.predict(outputs), dtype=np.float64))

    def baseline(self, count: int) -> Float[Tensor, "points 1"]:
        """The mean of the training labels."""
        return torch.zeros(count, 1)


@dataclass(frozen=True, kw_only=True)
class _Classes(Task):
    """Named classes, of which each point has one."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the training labels

    metric: ClassVar[str] = "mcc"

    @classmethod
    def fit(cls, labels: Sequence[Label]) -> "_Classes":
        """Take the names and their shares from the labels that are known."""
        counts = Counter(str(x) for x in labels if x is not None)
        names = sorted(counts, key=_natural)
        return cls(classes=tuple(names), shares=tuple(counts[name] / counts.total() for name in names))

    def targets(self, labels: Sequence[Label]) -> Int[Tensor, "points"]:
        """Indices of classes, -1 where unknown."""
        index = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([-1 if x is None else index[str(x)] for x in labels], dtype=torch.long)

    def known(self, targets: Int[Tensor, "*points"]) -> Bool[Tensor, "*points"]:
        """Which points have a label."""
        return targets >= 0

    def predict(self, outputs: Float[Tensor, "points outputs"]) -> list[Label]:
        """The name of the most probable class."""
        return [self.classes[i] for i in self._probabilities(outputs).argmax(1).tolist()]

    def probabilities(self, outputs: Float[Tensor, "points outputs"]) -> dict[str, list[float]]:
        """The probability of each class by its name."""
        columns = self._probabilities(outputs).T.tolist()
        return dict(zip(self.classes, columns, strict=True))

    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """Scores of the most probable class, and of the probabilities."""
        return classification_scores(self.targets(labels).numpy(), self._probabilities(outputs).double().numpy())

    @abstractmethod
    def _probabilities(self, outputs: Float[Tensor, "points outputs"]) -> Float[Tensor, "points classes"]:
        """The probability of each class, in float64."""


@task("binary")
@dataclass(frozen=True, kw_only=True)
class Binary(_Classes):
    """One of two classes; the positive one is the second in natural order, such as 1 of 0 and 1.

    >>> Binary.fit(["no", "yes", "no"]).predict(torch.tensor([[2.0], [-2.0]]))
    ['yes', 'no']
    """

    name: ClassVar[str] = "binary"

    @property
    def num_outputs(self) -> int:
        """The logit of the positive class."""
        return 1

    def loss(self, outputs: Float[Tensor, "*points 1"], targets: Int[Tensor, "*points"]) -> Total:
        """Cross-entropy."""
        is_known = self.known(targets)
        truth = targets[is_known].to(outputs.dtype)
        error = F.binary_cross_entropy_with_logits(outputs[..., 0][is_known], truth, reduction="sum")
        return Total(error, int(is_known.sum()))

    def baseline(self, count: int) -> Float[Tensor, "points 1"]:
        """The log odds of the training labels: the majority, with its share as probability."""
        return torch.full((count, 1), math.log(self.shares[1] / self.shares[0]))

    def _probabilities(self, outputs: Float[Tensor, "points 1"]) -> Float[Tensor, "points 2"]:
        positive = outputs.double().sigmoid()
        return torch.cat((1 - positive, positive), dim=1)


@task("multiclass")
@dataclass(frozen=True, kw_only=True)
class Multiclass(_Classes):
    """One of several classes, named as in the training labels.

    >>> Multiclass.fit(["b", "a", "c"]).classes
    ('a', 'b', 'c')
    """

    name: ClassVar[str] = "multiclass"

    @property
    def num_outputs(self) -> int:
        """A logit for each class."""
        return len(self.classes)

    def loss(self, outputs: Float[Tensor, "*points classes"], targets: Int[Tensor, "*points"]) -> Total:
        """Cross-entropy."""
        is_known = self.known(targets)
        error = F.cross_entropy(outputs[is_known], targets[is_known], reduction="sum")
        return Total(error, int(is_known.sum()))

    def baseline(self, count: int) -> Float[Tensor, "points classes"]:
        """The log shares of the training labels."""
        return torch.tensor(self.shares).log().expand(count, -1)

    def _probabilities(self, outputs: Float[Tensor, "points classes"]) -> Float[Tensor, "points classes"]:
        return outputs.double().softmax(dim=1)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their size, before words by the alphabet."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
