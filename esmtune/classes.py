"""Names, of which each point has one: of two classes, or of several."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.distributions import distribution
from esmtune.kinds import Task, Total, task, weighed
from esmtune.labels import natural
from esmtune.losses import check_errors, check_loss, class_loss, ranking, wanted_shares
from esmtune.losses import loss as losses
from esmtune.metrics import Scores, classification_scores
from esmtune.records import Label
from esmtune.resamples import Counts, Resampled, classification_resampled

GAMMA = 2.0  # of the focal loss
LEAST_SHARE = 1e-9  # of what the training labels lack, so that its logarithm is finite

ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True, kw_only=True)
class Named(Task):
    """What is common to all tasks in which each point has one of several names."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the training labels

    metric: ClassVar[str] = "mcc"
    reads: ClassVar[Literal["number", "name", "names"]] = "name"

    @abstractmethod
    def log_probabilities(self, outputs: Float[Tensor, "*points outputs"]) -> Float[Tensor, "*points classes"]:
        """The logarithm of the probability of each class."""

    @abstractmethod
    def outputs_of(self, log_probabilities: Float[Tensor, "*points classes"]) -> Float[Tensor, "*points outputs"]:
        """Outputs that have these probabilities."""

    def chosen(self, probabilities: Float[Tensor, "points classes"]) -> Int[Tensor, "points"]:
        """Which class is predicted: the most probable one."""
        return probabilities.argmax(1)

    def refitted(self, labels: Sequence[Label]) -> "Named":
        """With the shares of other labels; of a class that they lack it is 0."""
        counts = counted(labels)
        total = counts.total()
        return replace(self, shares=tuple(counts[name] / total for name in self.classes)) if total else self

    def targets(self, labels: Sequence[Label]) -> Float[Tensor, "points 1"]:
        """Indices of classes, NaN where unknown."""
        place = {name: float(i) for i, name in enumerate(self.classes)}
        meaning: dict[Label, float] = dict.fromkeys(set(labels), math.nan)
        for label in meaning.keys() - {None}:
            if str(label) not in place:
                raise ValueError(f"there is no class {str(label)!r}. There are: {', '.join(self.classes)}.")
            meaning[label] = place[str(label)]
        return torch.from_numpy(np.array([meaning[x] for x in labels], dtype=np.float64))[:, None]

    def predict(self, outputs: Float[Tensor, "points outputs"]) -> list[Label]:
        """The name of the class."""
        return [self.classes[i] for i in self.chosen(self._probabilities(outputs)).tolist()]

    def probabilities(self, outputs: Float[Tensor, "points outputs"]) -> dict[str, list[float]]:
        """The probability of each class by its name."""
        return dict(zip(self.classes, self._probabilities(outputs).T.tolist(), strict=True))

    def baseline(self, count: int) -> Float[Tensor, "points outputs"]:
        """The shares of the training labels as probabilities."""
        shares = torch.tensor(self.shares, dtype=torch.float64).clamp(min=LEAST_SHARE)
        return self.outputs_of(shares.log()).float().expand(count, -1)

    def average(self, members: Float[Tensor, "members points outputs"]) -> Float[Tensor, "points outputs"]:
        """Outputs whose probabilities are the mean of those of the members."""
        if len(members) == 1:
            return members[0]
        mean = self.log_probabilities(members.double()).logsumexp(0) - math.log(len(members))
        return self.outputs_of(mean).to(members.dtype)

    def disagreement(self, members: Float[Tensor, "members points outputs"]) -> list[float]:
        """The standard deviation of the probability of the class that is predicted."""
        found = self.log_probabilities(members.double()).exp()
        chosen = self.chosen(found.mean(0))[None, :, None].expand(len(members), -1, 1)
        return found.gather(2, chosen)[..., 0].std(0, correction=0).tolist()

    def _probabilities(self, outputs: Float[Tensor, "points outputs"]) -> Float[Tensor, "points classes"]:
        return self.log_probabilities(outputs.double()).exp()

    def _known(
        self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]
    ) -> tuple[Int[np.ndarray, "known"], Float[Tensor, "known outputs"]]:
        """Which class the points have whose label is known, and their outputs."""
        truth = self.targets(labels)[:, 0]
        return truth[truth.isfinite()].long().numpy(), outputs.cpu()[truth.isfinite()]


@dataclass(frozen=True, kw_only=True)
class Classes(Named):
    """Classes without an order, and the options that losses of classes have."""

    loss_name: str = "cross-entropy"
    gamma: float = GAMMA
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"

    @classmethod
    def fit(
        cls,
        labels: Sequence[Label],
        *,
        loss: str = "cross-entropy",
        gamma: float = GAMMA,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
    ) -> "Classes":
        """Take the names and their shares from the labels that are known.

        Args:
            labels: Of all training points.
            loss: cross-entropy or focal.
            gamma: How little of focal's attention goes to what is nearly right; 0 is cross-entropy.
            label_smoothing: The share of each label that is spread over all classes.
            class_weights: With balanced, every class weighs as much as any other, however rare it is.

        Raises:
            ValueError: for options that make no sense, or too few or too many classes.
        """
        check_options(loss, gamma, label_smoothing)
        counts = counted(labels)
        classes = tuple(sorted(counts, key=natural))
        cls._check(classes)
        return cls(
            classes=classes, shares=tuple(counts[name] / counts.total() for name in classes), loss_name=loss,
            gamma=gamma, label_smoothing=label_smoothing, class_weights=class_weights,
        )  # fmt: skip

    @classmethod
    def _check(cls, names: Sequence[str]) -> None:
        """Refuse names that are too few or too many."""
        if not names:
            raise ValueError("there is no label to learn from: all are unknown.")

    def loss(
        self,
        outputs: Float[Tensor, "*points outputs"],
        targets: Float[Tensor, "*points 1"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """The chosen loss; balanced weights of classes have a mean of 1 over the training points."""
        is_known = targets[..., 0].isfinite()
        truth = targets[is_known][:, 0].long()
        errors = class_errors(
            self.log_probabilities(outputs[is_known]), truth, self.loss_name, self.gamma, self.label_smoothing
        )
        if self.class_weights == "balanced":
            errors = errors * balanced(torch.tensor(self.shares)).to(errors)[truth]
        return Total(weighed(errors, None if weights is None else weights[is_known]), len(truth))

    def scores(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label]) -> Scores:
        """Scores of the most probable class, and of the probabilities; weights do not matter."""
        truth, known = self._known(outputs, labels)
        return classification_scores(truth, self._probabilities(known).numpy())

    def resampled(self, outputs: Float[Tensor, "points outputs"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The same of resamples."""
        truth, known = self._known(outputs, labels)
        drawn = counts[self.targets(labels)[:, 0].isfinite().numpy()]
        return classification_resampled(truth, self._probabilities(known).numpy(), drawn)


@task("binary")
@dataclass(frozen=True, kw_only=True)
class Binary(Classes):
    """One of two classes; the positive one is the second in natural order, such as 1 of 0 and 1.

    >>> Binary.fit(["no", "yes", "no"]).predict(torch.tensor([[2.0], [-2.0]]))
    ['yes', 'no']
    """

    name: ClassVar[str] = "binary"

    @classmethod
    def _check(cls, names: Sequence[str]) -> None:
        if len(names) != 2:
            raise ValueError(f"binary labels are of two classes; there are {len(names)}: {', '.join(names)}.")

    @property
    def num_outputs(self) -> int:
        """The logit of the positive class."""
        return 1

    def log_probabilities(self, outputs: Float[Tensor, "*points 1"]) -> Float[Tensor, "*points 2"]:
        """The logarithm of the probability of each class."""
        return yes_or_no(outputs[..., 0])

    def outputs_of(self, log_probabilities: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 1"]:
        """The logarithm of the odds."""
        return log_probabilities[..., 1:] - log_probabilities[..., :1]


@task("multiclass")
@dataclass(frozen=True, kw_only=True)
class Multiclass(Classes):
    """One of several classes, named as in the training labels.

    >>> Multiclass.fit(["b", "a", "c"]).classes
    ('a', 'b', 'c')
    """

    name: ClassVar[str] = "multiclass"

    @property
    def num_outputs(self) -> int:
        """A logit for each class."""
        return len(self.classes)

    def log_probabilities(self, outputs: Float[Tensor, "*points classes"]) -> Float[Tensor, "*points classes"]:
        """The logarithm of the probability of each class."""
        return outputs.log_softmax(-1)

    def outputs_of(self, log_probabilities: Float[Tensor, "*points classes"]) -> Float[Tensor, "*points classes"]:
        """These logarithms themselves."""
        return log_probabilities


def counted(labels: Sequence[Label]) -> Counter[str]:
    """How often each name stands among the known labels.

    >>> counted(["a", None, "b", "a"])
    Counter({'a': 2, 'b': 1})
    """
    counts: Counter[str] = Counter()
    for label, number in Counter(labels).items():
        if label is not None:
            counts[str(label)] += number
    return counts


def check_options(loss: str, gamma: float, label_smoothing: float) -> None:
    """Refuse options of a loss of classes that make no sense."""
    check_loss(loss, class_loss, others={"numbers": [losses, ranking, distribution]})
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}, expected 0 or more.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a share from 0 to below 1.")
    if gamma != GAMMA and "gamma" not in class_loss.options(loss):
        raise ValueError(f"gamma is {gamma}, but the loss {loss!r} has none: take --task.loss focal.")


def class_errors(
    log_probabilities: Float[Tensor, "cells outcomes"],
    truth: Int[Tensor, "cells"],
    loss: str,
    gamma: float,
    label_smoothing: float,
) -> Float[Tensor, "cells"]:
    """How wrong probabilities are, by one of the losses of classes."""
    wanted = wanted_shares(truth, log_probabilities.shape[1], smoothing=label_smoothing, like=log_probabilities)
    options: Mapping[str, float] = {"gamma": gamma} if "gamma" in class_loss.options(loss) else {}
    errors = class_loss[loss](log_probabilities, wanted, **options)
    check_errors(errors, truth, loss)
    return errors


def balanced(shares: Float[Tensor, "*of classes"]) -> Float[Tensor, "*of classes"]:
    """Weights with which all classes weigh the same, and training points 1 in the mean.

    >>> balanced(torch.tensor([0.25, 0.75])).tolist()
    [2.0, 0.6666666865348816]
    """
    there = (shares > 0).sum(-1, keepdim=True)
    return (1 / (there * shares)).where(shares > 0, 1.0)


def yes_or_no(logits: Float[Tensor, "*cells"]) -> Float[Tensor, "*cells 2"]:
    """The logarithms of the probabilities of no and of yes, of which a logit is the difference."""
    return torch.nn.functional.logsigmoid(torch.stack((-logits, logits), dim=-1))
