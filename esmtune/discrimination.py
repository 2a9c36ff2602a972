"""How well probabilities tell classes apart, and whether they mean what they say: curves, thinned to be drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from esmtune.conformal import calibration_error

MOST_CURVES = 8
CORNERS = 300  # of a curve
CONFIDENCES = 10  # bins

XY = tuple[Sequence[float], Sequence[float]]
Truths = Mapping[str, tuple[Bool[np.ndarray, "points"], Float[np.ndarray, "points"]]]


@dataclass(frozen=True, kw_only=True)
class ClassCurve:
    """One class against all others: its ROC curve, and precision over recall."""

    name: str
    share: float  # of the points that have it
    auroc: float
    roc: XY  # share of others called so, share of the class found
    precision_recall: XY  # recall, precision


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """In bins of the probability of what is predicted: its mean, the share that is right, how many there are."""

    bins: tuple[tuple[float, float, int], ...]
    error: float  # the expected calibration error


@dataclass(frozen=True, kw_only=True)
class Discrimination:
    """The curves of the commonest classes that some points have and others have not, and what probabilities mean."""

    classes: int  # in all, of which curves may be drawn
    curves: tuple[ClassCurve, ...]
    confidence: Confidence | None = None

    def spec(self) -> dict[str, Any]:
        """As curves.json has it."""
        return asdict(self)

    @classmethod
    def loaded(cls, spec: Mapping[str, Any]) -> "Discrimination":
        """What `spec` was made of."""
        confidence = spec["confidence"]
        return cls(
            classes=int(spec["classes"]),
            curves=tuple(
                ClassCurve(
                    name=curve["name"],
                    share=curve["share"],
                    auroc=curve["auroc"],
                    roc=tuple(curve["roc"]),
                    precision_recall=tuple(curve["precision_recall"]),
                )
                for curve in spec["curves"]
            ),
            confidence=confidence and Confidence(bins=tuple(map(tuple, confidence["bins"])), error=confidence["error"]),
        )


def curves_of(truths: Truths, *, is_exclusive: bool) -> tuple[ClassCurve, ...]:
    """The curves of the commonest classes, from whether each holds at each point, and its probability.

    Of two classes that exclude each other the second is drawn, since the other curve says the same.

    >>> truth, score = np.array([True, True, False]), np.array([0.9, 0.4, 0.5])
    >>> (found,) = curves_of({"no": (~truth, 1 - score), "yes": (truth, score)}, is_exclusive=True)
    >>> found.name, found.auroc, found.roc
    ('yes', 0.5, ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]))
    """
    from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

    names = list(truths)
    names = names[1:] if is_exclusive and len(names) == 2 else names
    possible = [name for name in names if 0 < truths[name][0].sum() < len(truths[name][0])]
    found = []
    for name in sorted(possible, key=lambda name: -int(truths[name][0].sum()))[:MOST_CURVES]:
        truth, score = truths[name]
        x, y, _ = roc_curve(truth, score)
        precision, recall, _ = precision_recall_curve(truth, score)
        found.append(
            ClassCurve(
                name=name, share=float(truth.mean()), auroc=float(roc_auc_score(truth, score)), roc=_thin(x, y),
                precision_recall=_thin(recall[::-1], precision[::-1]),
            )
        )  # fmt: skip
    return tuple(found)


def confidence_of(is_right: Bool[np.ndarray, "points"], sure: Float[np.ndarray, "points"]) -> Confidence:
    """What the probabilities of predicted classes mean.

    >>> confidence_of(np.array([True, False]), np.array([0.95, 0.95])).bins
    ((0.95, 0.5, 2),)
    """
    place = np.minimum((sure * CONFIDENCES).astype(int), CONFIDENCES - 1)
    bins = tuple(
        (float(sure[place == n].mean()), float(is_right[place == n].mean()), int((place == n).sum()))
        for n in range(CONFIDENCES) if (place == n).any()
    )  # fmt: skip
    return Confidence(bins=bins, error=calibration_error(is_right, sure))


def _thin(x: np.ndarray, y: np.ndarray) -> XY:
    """A curve through so many of its corners, with both ends: closer ones share a pixel."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), CORNERS)).round().astype(int))
    return np.round(x[kept], 4).tolist(), np.round(y[kept], 4).tolist()
