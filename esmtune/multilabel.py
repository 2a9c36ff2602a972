"""Several classes at once, of which each point has any number, or of which it is unknown whether it does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.classes import GAMMA, LEAST_SHARE, ClassWeights, balanced, check_options, class_errors, yes_or_no
from esmtune.kinds import Task, Total, task, weighed
from esmtune.labels import natural
from esmtune.metrics import Scores, multilabel_scores
from esmtune.records import Label, Marks
from esmtune.resamples import Counts, Resampled, multilabel_resampled


@task("multilabel")
@dataclass(frozen=True, kw_only=True)
class Multilabel(Task):
    """Any number of several classes; whether each of them holds is a question of its own.

    >>> fitted = Multilabel.fit([Marks(frozenset({"b", "a"})), Marks(frozenset())])
    >>> [str(label) for label in fitted.predict(torch.tensor([[2.0, -1.0], [3.0, 0.5]]))]
    ['a', 'a;b']
    """

    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the training points of which it is known, those that have the class
    loss_name: str = "cross-entropy"
    gamma: float = GAMMA
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[str] = "auprc"  # F1 stays at zero until a rare class first passes one half
    reads: ClassVar[Literal["number", "name", "names"]] = "names"

    @classmethod
    def fit(
        cls,
        labels: Sequence[Label],
        *,
        loss: str = "cross-entropy",
        gamma: float = GAMMA,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
    ) -> "Multilabel":
        """Take the classes that any label has, and how often each of them holds where that is known.

        Args:
            labels: Of all training points.
            loss: cross-entropy or focal, of each class and point.
            gamma: How little of focal's attention goes to what is nearly right; 0 is cross-entropy.
            label_smoothing: The share of each yes and no that is spread over both.
            class_weights: With balanced, yes and no weigh the same in each class, however rare it is.

        Raises:
            ValueError: for options that make no sense, or labels that have no class.
        """
        check_options(loss, gamma, label_smoothing)
        names = {name for label in set(labels) if isinstance(label, Marks) for name in label.yes}
        if not names:
            raise ValueError("there is no class to learn: no label has any.")
        classes = tuple(sorted(names, key=natural))
        shares = np.nanmean(_marked(labels, classes), axis=0)
        return cls(
            classes=classes, shares=tuple(shares.tolist()), loss_name=loss, gamma=gamma,
            label_smoothing=label_smoothing, class_weights=class_weights,
        )  # fmt: skip

    def refitted(self, labels: Sequence[Label]) -> "Multilabel":
        """With the shares of other labels, where it is known of any whether the class holds."""
        rows = _marked(labels, self.classes)
        is_known = np.isfinite(rows)
        known, yes = is_known.sum(0), np.where(is_known, rows, 0.0).sum(0)
        shares = np.where(known > 0, yes / np.maximum(known, 1), self.shares)
        return replace(self, shares=tuple(shares.tolist()))

    @property
    def num_outputs(self) -> int:
        """A logit for each class."""
        return len(self.classes)

    def targets(self, labels: Sequence[Label]) -> Float[Tensor, "points classes"]:
        """For each class 1 where it holds, 0 where it does not, NaN where that is unknown."""
        return torch.from_numpy(_marked(labels, self.classes))

    def count(self, targets: Float[Tensor, "*points classes"]) -> int:
        """For how many points and classes it is known whether they hold."""
        return int(targets.isfinite().sum())

    def loss(
        self,
        outputs: Float[Tensor, "*points classes"],
        targets: Float[Tensor, "*points classes"],
        weights: Float[Tensor, "*points"] | None = None,
    ) -> Total:
        """The chosen loss of each class of each point of which it is known."""
        is_known = targets.isfinite()
        truth = targets[is_known].long()
        errors = class_errors(yes_or_no(outputs[is_known]), truth, self.loss_name, self.gamma, self.label_smoothing)
        if self.class_weights == "balanced":
            yes = torch.tensor(self.shares)
            balance = balanced(torch.stack((1 - yes, yes), dim=1)).to(errors)
            errors = errors * balance[is_known.nonzero()[:, -1], truth]
        return Total(weighed(errors, None if weights is None else weights[..., None].expand_as(targets)[is_known]),
                     len(truth))  # fmt: skip

    def predict(self, outputs: Float[Tensor, "points classes"]) -> list[Label]:
        """Every class that is more probable than not."""
        rows = (outputs > 0).numpy(force=True)
        keys = [row.tobytes() for row in np.packbits(rows, axis=1)]
        row_of = dict(zip(keys, range(len(keys)), strict=True))
        meaning = {
            key: Marks(frozenset(self.classes[place] for place in np.flatnonzero(rows[row])))
            for key, row in row_of.items()
        }
        return [meaning[key] for key in keys]

    def probabilities(self, outputs: Float[Tensor, "points classes"]) -> dict[str, list[float]]:
        """The probability that each class holds, by its name."""
        return dict(zip(self.classes, outputs.double().sigmoid().T.tolist(), strict=True))

    def scores(self, outputs: Float[Tensor, "points classes"], labels: Sequence[Label]) -> Scores:
        """Scores over all points and classes of which it is known whether they hold; weights do not matter."""
        return multilabel_scores(_marked(labels, self.classes), outputs.double().sigmoid().numpy(force=True))

    def resampled(self, outputs: Float[Tensor, "points classes"], labels: Sequence[Label], counts: Counts) -> Resampled:
        """The same of resamples."""
        said = outputs.double().sigmoid().numpy(force=True)
        return multilabel_resampled(_marked(labels, self.classes), said, counts)

    def baseline(self, count: int) -> Float[Tensor, "points classes"]:
        """The shares of the training labels as probabilities."""
        return torch.tensor(self.shares, dtype=torch.float64).logit(eps=LEAST_SHARE).float().expand(count, -1)

    def average(self, members: Float[Tensor, "members points classes"]) -> Float[Tensor, "points classes"]:
        """Outputs whose probabilities are the mean of those of the members."""
        if len(members) == 1:
            return members[0]
        no, yes = yes_or_no(members.double()).logsumexp(0).unbind(-1)
        return (yes - no).to(members.dtype)

    def disagreement(self, members: Float[Tensor, "members points classes"]) -> list[float]:
        """The largest standard deviation, over the classes, of the probability that one holds."""
        return members.double().sigmoid().std(0, correction=0).amax(-1).tolist()


def _marked(labels: Sequence[Label], classes: Sequence[str]) -> Float[np.ndarray, "points classes"]:
    """For each label and class 1, 0 or NaN. A class that is unknown in all labels is nobody's."""
    place = {name: number for number, name in enumerate(classes)}
    distinct: dict[Label, int] = {label: row for row, label in enumerate(dict.fromkeys(labels))}
    rows = np.zeros((len(distinct), len(classes)))
    for label, row in distinct.items():
        if not isinstance(label, Marks):
            rows[row] = math.nan
            continue
        strangers = label.yes - place.keys()
        if strangers:
            raise ValueError(f"there is no class {min(strangers)!r}. There are: {', '.join(classes)}.")
        rows[row, [place[name] for name in label.yes]] = 1
        rows[row, [place[name] for name in label.unknown if name in place]] = math.nan
    return rows[np.array([distinct[label] for label in labels], dtype=np.int64)]
