"""What outputs mean: labels to targets, how wrong an output is, and how it reads. Add yours at the end.

A task is a frozen dataclass decorated with the name users write. Its fields are what is saved, so they are
what JSON can hold; `fit` makes it of the training labels, and the keyword-only parameters of `fit` are its
options everywhere. It says its `name`, the `metric` that early stopping watches, and what it `reads` from a
file (number, name or names), and defines what is abstract in `Task`: `num_outputs`, `targets`, `loss`,
`predict`, `scores` and `baseline`. What is not abstract has a default that holds for most:

- `count`: points of which anything is known. If your loss has more errors than one a point, count them.
- `average`, `disagreement`: of an ensemble, the mean of outputs and the standard deviation of predictions.
- `resampled`: scores of many resamples, one after the other; all at once is faster.
- `compares`: False, which promises that the total of a batch is the sum of the totals of its parts.
- `only_orders`: False; True says that there is no loss of a single point, so that a step needs two, and that a linear
  map is no baseline.
- `pointwise`, `plain`: itself; of a task that compares one that does not, and of one that learns labels on a scale of
  its own one that does neither.

`esmtune.classes.Named` does all but `fit`, `loss` and `scores` for whatever has one of several names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.alphabet import SYMBOLS
from esmtune.classes import Binary, Multiclass, Named, counted
from esmtune.kinds import Task, Total, task, weighed
from esmtune.metrics import Scores, language_scores, sign_of
from esmtune.multilabel import Multilabel
from esmtune.ordinal import Ordinal
from esmtune.records import Label
from esmtune.regression import Regression
from esmtune.resamples import Counts, Resampled, language_resampled

__all__ = ["MLM", "Binary", "Multiclass", "Multilabel", "Multitask", "Ordinal", "Regression", "Task", "Total", "task",
           "weighed"]  # fmt: skip


@task("mlm")
@dataclass(frozen=True, kw_only=True)
class MLM(Named):
    """Which residue is hidden: language modeling, with the 33 symbols of ESM-2 as classes, in its order.

    What is to be guessed is up to the loop, which makes the targets of all else unknown.

    >>> MLM.fit("MKKV").predict(torch.nn.functional.one_hot(torch.tensor([20, 15]), 33).float())
    ['M', 'K']
    """

    classes: tuple[str, ...] = SYMBOLS
    masked: float = 0.15

    name: ClassVar[str] = "mlm"
    metric: ClassVar[str] = "perplexity"

    @classmethod
    def fit(cls, labels: Sequence[Label], *, masked: float = 0.15) -> "MLM":
        """Take the shares of the residues.

        Args:
            labels: All training residues, a letter each.
            masked: The share of residues that is to be guessed, in training and in scores.

        Raises:
            ValueError: for a share that is none, or no residue.
        """
        if not 0 < masked <= 1:
            raise ValueError(f"masked is {masked}, expected a share above 0 and up to 1.")
        counts = counted(labels)
        if not counts:
            raise ValueError("there is no residue to learn from.")
        return cls(shares=tuple(counts[symbol] / counts.total() for symbol in SYMBOLS), masked=masked)

    @property
    def num_outputs(self) -> int:
        """A logit for each symbol."""
        return len(self.classes)

    def log_probabilities(self, outputs: Float[Tensor, "*points symbols"]) -> Float[Tensor, "*points symbols"]:
        """The logarithm of the probability of each symbol."""
        return outputs.log_softmax(-1)

    def outputs_of(self, log_probabilities: Float[Tensor, "*points symbols"]) -> Float[Tensor, "*points symbols"]:
        """These logarithms themselves."""
        return log_probabilities

    def loss(
        self,
        outputs: Float[Tensor, "*points symbols"],
        targets: Float[Tensor, "*points 1"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """Cross-entropy."""
        is_known = targets[..., 0].isfinite()
        truth = targets[is_known][:, 0].long()
        errors = torch.nn.functional.cross_entropy(outputs[is_known], truth, reduction="none")
        return Total(weighed(errors, None if weights is None else weights[is_known]), len(truth))

    def scores(self, outputs: Float[Tensor, "points symbols"], labels: Sequence[Label]) -> Scores:
        """Perplexity and accuracy; weights do not matter."""
        truth, known = self._known(outputs, labels)
        return language_scores(truth, self.log_probabilities(known.double()).numpy())

    def resampled(self, outputs: Float[Tensor, "points symbols"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The same of resamples."""
        truth, known = self._known(outputs, labels)
        drawn = counts[self.targets(labels)[:, 0].isfinite().numpy()]
        return language_resampled(truth, self.log_probabilities(known.double()).numpy(), drawn)


@task("multitask")
@dataclass(frozen=True, kw_only=True)
class Multitask(Task):
    """Several targets of the same points, each with a task of its own, of which a point may lack any.

    Targets and outputs stand side by side, and the loss is a mean over all that is known of any target.

    >>> parts = [("tm", Regression.fit([1.0, 3.0])), ("soluble", Binary.fit(["no", "yes"]))]
    >>> Multitask.of(parts).predict(torch.tensor([[1.0, -2.0]]))
    [(3.0, 'no')]
    """

    names: tuple[str, ...]  # of the targets
    tasks: tuple[Task, ...]

    name: ClassVar[str] = "multitask"
    metric: ClassVar[str] = "mean"
    reads: ClassVar[Literal["number", "name", "names"]] = "names"  # as each part says; several in any case

    @classmethod
    def fit(cls, labels: Sequence[Label]) -> "Multitask":
        """Refuse to guess what the parts are.

        Raises:
            ValueError: always.
        """
        raise ValueError("a multitask is made of fitted tasks: Multitask.of([(target, task), ...]).")

    @classmethod
    def of(cls, parts: Sequence[tuple[str, Task]]) -> "Multitask":
        """Put fitted tasks together, each under the name of its target; labels are tuples in this order."""
        names = tuple(name for name, _ in parts)
        if not parts or len(set(names)) < len(names):
            raise ValueError(f"a multitask needs targets of different names, got: {', '.join(names) or 'none'}.")
        return cls(names=names, tasks=tuple(part for _, part in parts))

    @property
    def num_outputs(self) -> int:
        """The outputs of all tasks."""
        return sum(part.num_outputs for part in self.tasks)

    @property
    def compares(self) -> bool:
        """Whether any of the losses does."""
        return any(part.compares for part in self.tasks)

    @property
    def only_orders(self) -> bool:
        """Whether any of the losses does."""
        return any(part.only_orders for part in self.tasks)

    def pointwise(self) -> "Multitask":
        """All tasks with such a loss."""
        return Multitask.of([(name, part.pointwise()) for name, part in zip(self.names, self.tasks, strict=True)])

    def plain(self) -> "Multitask":
        """All tasks on no scale but that of their labels."""
        return Multitask.of([(name, part.plain()) for name, part in zip(self.names, self.tasks, strict=True)])

    def parts(self) -> list[tuple[str, Task, slice]]:
        """The tasks by the name of their target, and which outputs are theirs."""
        ends = np.cumsum([part.num_outputs for part in self.tasks]).tolist()
        slices = [slice(end - part.num_outputs, end) for part, end in zip(self.tasks, ends, strict=True)]
        return list(zip(self.names, self.tasks, slices, strict=True))

    def targets(self, labels: Sequence[Label]) -> Float[Tensor, "points columns"]:
        """The columns of all tasks, side by side."""
        return torch.cat([part.targets(own) for part, own in zip(self.tasks, self._own(labels), strict=True)], dim=1)

    def count(self, targets: Float[Tensor, "*points columns"]) -> int:
        """How much is known of all targets."""
        return sum(part.count(own) for part, own in zip(self.tasks, self._columns(targets), strict=True))

    def loss(
        self,
        outputs: Float[Tensor, "*points outputs"],
        targets: Float[Tensor, "*points columns"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """The losses of all tasks, added up."""
        columns = zip(self.parts(), self._columns(targets), strict=True)
        totals = [part.loss(outputs[..., place], own, weights) for (_, part, place), own in columns]
        return sum(totals[1:], totals[0])

    def predict(self, outputs: Float[Tensor, "points outputs"]) -> list[Label]:
        """What each task predicts, as a tuple."""
        return list(zip(*(part.predict(outputs[:, place]) for _, part, place in self.parts()), strict=True))

    def probabilities(self, outputs: Float[Tensor, "points outputs"]) -> dict[str, list[float]]:
        """The probability of each class, by the name of its target, a point, and its own."""
        return {
            f"{name}.{label}": column
            for name, part, place in self.parts()
            for label, column in part.probabilities(outputs[:, place]).items()
        }

    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """The scores of each task as target.metric, and `mean`, that of each task's own metric.

        In the mean, what is better when lower counts with a minus. A target whose labels have less than two
        values is no part of it.
        """
        scores, own_metrics = {}, []
        for (name, part, place), own in zip(self.parts(), self._own(labels), strict=True):
            found = part.scores(outputs[:, place], own)
            scores |= {f"{name}.{metric}": value for metric, value in found.items()}
            value = found[part.metric]
            if len({x for x in own if x is not None}) > 1:
                own_metrics.append(None if value is None else sign_of(part.metric) * value)
        is_defined = own_metrics and None not in own_metrics
        return scores | {"mean": math.fsum(own_metrics) / len(own_metrics) if is_defined else None}

    def resampled(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The same of resamples; `mean` only of those that define the metric of every target that varies at all."""
        found, own_metrics = {}, []
        for (name, part, place), own in zip(self.parts(), self._own(labels), strict=True):
            scores = part.resampled(outputs[:, place], own, counts)
            found |= {f"{name}.{metric}": values for metric, values in scores.items()}
            if len({x for x in own if x is not None}) > 1:
                own_metrics.append(sign_of(part.metric) * scores[part.metric])
        unknown = np.full(counts.shape[1], np.nan)
        return found | {"mean": np.mean(own_metrics, axis=0) if own_metrics else unknown}

    def baseline(self, count: int) -> Float[Tensor, "points outputs"]:
        """The baselines of all tasks."""
        return torch.cat([part.baseline(count) for part in self.tasks], dim=1)

    def average(self, members: Float[Tensor, "members points outputs"]) -> Float[Tensor, "points outputs"]:
        """Each task's own average."""
        return torch.cat([part.average(members[..., place]) for _, part, place in self.parts()], dim=1)

    def disagreement(self, members: Float[Tensor, "members points outputs"]) -> list[float]:
        """The largest of any task, whatever their units; ask `parts` for that of each."""
        each = [part.disagreement(members[..., place]) for _, part, place in self.parts()]
        return [max(values) for values in zip(*each, strict=True)]

    def translated(self, outputs: Float[Tensor, "points outputs"], other: Task) -> Float[Tensor, "points outputs"]:
        """Each task's outputs as ones that mean something to it."""
        assert isinstance(other, Multitask)
        pairs = zip(self.parts(), other.tasks, strict=True)
        return torch.cat([part.translated(outputs[:, place], old) for (_, part, place), old in pairs], dim=1)

    def refitted(self, labels: Sequence[Label]) -> "Multitask":
        """All tasks with the statistics of other labels."""
        pairs = zip(self.parts(), self._own(labels), strict=True)
        return Multitask.of([(name, part.refitted(own)) for (name, part, _), own in pairs])

    def finished(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> "Multitask":
        """All tasks finished."""
        pairs = zip(self.parts(), self._own(labels), strict=True)
        return Multitask.of([(name, part.finished(outputs[:, place], own)) for (name, part, place), own in pairs])

    def spec(self) -> dict[str, Any]:
        """All that must be saved."""
        return {"name": self.name, "names": list(self.names), "tasks": [part.spec() for part in self.tasks]}

    @classmethod
    def loaded(cls, spec: Mapping[str, Any]) -> "Multitask":
        """Make a task again of what `spec` gave."""
        return cls(names=tuple(spec["names"]), tasks=tuple(task.load(part) for part in spec["tasks"]))

    def _own(self, labels: Sequence[Label]) -> list[list[Label]]:
        """The labels of each task."""
        rows: list[Any] = [(None,) * len(self.tasks) if label is None else label for label in labels]
        return [[row[place] for row in rows] for place in range(len(self.tasks))]

    def _columns(self, targets: Float[Tensor, "*points columns"]) -> list[Tensor]:
        """The targets of each task."""
        return list(targets.split([part.targets([]).shape[1] for part in self.tasks], dim=-1))
