"""What a predictor knows of its own errors, from records that neither training nor the choice of weights saw.

A `Calibration` holds the scores of such points for one target, and makes of them intervals or sets of classes at any
level. Of numbers the method is `absolute`, or where something says how far off each prediction may be `normalized` by
that, or with learned quantiles `cqr`; of classes `lac`, of grades `ordinal`. What each is stands in `conformal`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from esmtune.conformal import (
    depths,
    highest_level,
    misses,
    one_of_each,
    rank,
    residuals,
    sets,
    shortfalls,
    threshold,
)
from esmtune.distributions import PROBABILITIES
from esmtune.kinds import Task
from esmtune.records import Label

Method = Literal["absolute", "normalized", "cqr", "lac", "ordinal"]
MOST_SCORES = 10_000  # that a predictor keeps: with them, coverage varies by .003
FLOOR = 0.1  # standard deviations of the training labels, added to how far members are apart: few may agree by chance
PAIRS = tuple(  # the levels of the intervals between two quantiles, as far from the median, and where these stand
    (round(1 - 2 * p, 3), place, len(PROBABILITIES) - 1 - place) for place, p in enumerate(PROBABILITIES) if p < 0.5
)


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """The scores of the calibration points of one group, ascending; with `cqr`, by the quantiles of one level."""

    group: str
    pair: float | None
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is certain at a level of each point: from where to where a number or grade lies, or which classes."""

    lower: list[Label] | None = None
    upper: list[Label] | None = None
    sets: list[tuple[str, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The scores of one target, by groups: classes, or what the caller told points apart by (Mondrian).

    Vovk et al. 2005, Algorithmic learning in a random world, https://doi.org/10.1007/b106715.
    """

    target: str
    method: Method
    floor: float  # added to each spread, in the label's unit
    strata: tuple[Stratum, ...]

    @property
    def records(self) -> int:
        """How many calibration points there are, each of a sequence of its own."""
        pair = self.strata[0].pair
        return sum(len(stratum.scores) for stratum in self.strata if stratum.pair == pair)

    def too_few(self, level: float) -> list[str]:
        """The groups that have too few points for a level by themselves."""
        pair = self._pair(level)
        return [s.group for s in self.strata if s.pair == pair and rank(len(s.scores), level) is None]

    def enough(self, level: float) -> set[str]:
        """The groups that have points enough for a level by themselves."""
        return {stratum.group for stratum in self.strata} - set(self.too_few(level))

    def check(self, level: float, *, conditional: bool = False) -> None:
        """Refuse a level that the scores do not allow.

        Raises:
            ValueError: naming the levels that they do.
        """
        pair = self._pair(level)
        most = max(len(s.scores) for s in self.strata if s.pair == pair) if conditional else self.records
        if rank(most, level) is None:
            where = " of one group" if conditional else ""
            least = math.ceil(level / (1 - level) - 1e-9)
            raise ValueError(
                f"an interval of {level} takes {least:,} calibration points{where}, but the predictor has {most:,} "
                f"for {self.target!r}: levels up to {highest_level(most)} are possible. "
                "Train with more rows for validation or calibration."
            )

    def bounds(
        self, part: Task, members: Float[Tensor, "members points outputs"], level: float,
        *, groups: Sequence[str] | None = None, conditional: bool = False,
    ) -> Bounds:  # fmt: skip
        """What is certain at a level of what the members say of points, of all points together or of each group alone.

        With `conditional`, `groups` tells which group each point is in; classes need not be told. A class with too
        few points for the level is in every set then.

        Raises:
            ValueError: for a level that the scores do not allow.
        """
        self.check(level, conditional=conditional)
        outputs = part.average(members)
        pair = self._pair(level)
        own = {s.group: np.array(s.scores) for s in self.strata if s.pair == pair}
        everything = threshold(np.concatenate(list(own.values())), level)
        if part.reads == "name":
            names, probabilities = _probabilities(part, outputs)
            scores = depths(probabilities) if self.method == "ordinal" else misses(probabilities)
            limit = np.full((1, len(names)), everything)
            if conditional and groups is None:
                limit = np.array([[threshold(own.get(name, np.empty(0)), level) for name in names]])
            elif conditional:
                limit = self._of_groups(own, level, groups or ())[:, None]
            return self._of_classes(names, sets(scores, limit))
        limits = self._of_groups(own, level, groups or ()) if conditional else everything
        center = np.array(part.predict(outputs), dtype=np.float64)
        if self.method == "cqr":
            _, low, high = next(found for found in PAIRS if found[0] == pair)
            quantiles = _quantiles(part, outputs)
            lower, upper = quantiles[:, low] - limits, quantiles[:, high] + limits
            lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
            middle = (lower + upper) / 2
            crossed = quantiles[:, low] - limits > quantiles[:, high] + limits  # nothing is left between them
            lower, upper = np.where(crossed, middle, lower), np.where(crossed, middle, upper)
        else:
            width = self._spreads(part, members) * limits
            lower, upper = center - width, center + width
        return Bounds(lower=lower.tolist(), upper=upper.tolist())

    def _of_groups(
        self, own: Mapping[str, Float[np.ndarray, "scores"]], level: float, groups: Sequence[str]
    ) -> Float[np.ndarray, "points"]:
        limits = {group: threshold(own.get(group, np.empty(0)), level) for group in set(groups)}
        few = sorted(group for group, limit in limits.items() if math.isinf(limit))
        if few:
            raise ValueError(
                f"the groups {', '.join(map(repr, few))} have too few calibration points for an interval of {level} "
                "each: take a lower level, or one interval for all groups."
            )
        return np.array([limits[group] for group in groups], dtype=np.float64)

    def _of_classes(self, names: Sequence[str], held: Bool[np.ndarray, "points classes"]) -> Bounds:
        if self.method == "ordinal":
            lowest: list[int] = held.argmax(1).tolist()
            highest: list[int] = (held.shape[1] - 1 - held[:, ::-1].argmax(1)).tolist()
            return Bounds(lower=[names[i] for i in lowest], upper=[names[i] for i in highest])
        rows: list[list[bool]] = held.tolist()
        return Bounds(sets=[tuple(name for name, holds in zip(names, row, strict=True) if holds) for row in rows])

    def _spreads(self, part: Task, members: Float[Tensor, "members points outputs"]) -> Float[np.ndarray, "points"]:
        if self.method == "absolute":
            return np.ones(members.shape[1])
        return np.array(part.doubt(members), dtype=np.float64) + self.floor

    def _pair(self, level: float) -> float | None:
        """Of the intervals between learned quantiles the one whose level is nearest; None without quantiles."""
        if self.method != "cqr":
            return None
        return min((pair for pair, _, _ in PAIRS), key=lambda pair: (abs(pair - level), pair))

    def spec(self) -> dict[str, Any]:
        """As `predictor.json` has it."""
        scores = [{"group": s.group, "pair": s.pair, "scores": list(s.scores)} for s in self.strata]
        return {"target": self.target, "method": self.method, "floor": self.floor, "strata": scores}

    @classmethod
    def loaded(cls, spec: Mapping[str, Any]) -> "Calibration":
        """Make it again of what `spec` gave."""
        strata = tuple(
            Stratum(group=s["group"], pair=s["pair"], scores=tuple(map(float, s["scores"]))) for s in spec["strata"]
        )
        if spec["method"] not in ("absolute", "normalized", "cqr", "lac", "ordinal") or not strata:
            raise KeyError(f"calibration {spec['method']!r}")
        return cls(target=spec["target"], method=spec["method"], floor=float(spec["floor"]), strata=strata)


def calibrate(
    target: str, part: Task, members: Float[Tensor, "members points outputs"], labels: Sequence[Label],
    sequences: Sequence[str], *, seed: int, groups: Sequence[str] | None = None,
) -> Calibration | None:  # fmt: skip
    """Score points that no training saw, one of each sequence; None where there is none, or the task has no scores.

    Args:
        target: Its name.
        part: Its task.
        members: What each member says of the points, or one that stands for all.
        labels: Of the points; bounds, such as >10, are not used, for nobody knows how far off a prediction is.
        sequences: Which sequence each point belongs to.
        seed: Of what is drawn.
        groups: What else tells the points apart, such as bins of identity to the training data; of classes it is
            the class unless given.

    >>> import torch
    >>> from esmtune.regression import Regression
    >>> fitted, names = Regression.fit([0.0, 2.0]), [str(number) for number in range(9)]
    >>> found = calibrate("tm", fitted, torch.zeros(1, 9, 1), [float(x) for x in range(9)], names, seed=0)
    >>> found.bounds(fitted, torch.zeros(1, 1, 1), 0.8)
    Bounds(lower=[-5.0], upper=[7.0], sets=None)
    """
    if not supports(part):
        return None
    if part.reads == "name":
        truth = np.array([np.nan if label is None else part.targets([label])[0, 0].item() for label in labels])
    else:
        truth = np.array([x if isinstance(x, float) else np.nan for x in labels], dtype=np.float64)
    chosen = one_of_each(sequences, np.isfinite(truth), seed)
    if len(chosen) > MOST_SCORES:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MOST_SCORES, replace=False))
    if not len(chosen):
        return None
    members, truth = members[:, chosen], truth[chosen]
    names: list[str] = list(getattr(part, "classes", ()))
    own = [names[int(x)] for x in truth] if part.reads == "name" else [""] * len(truth)
    places: list[int] = chosen.tolist()
    told = own if groups is None else [groups[place] for place in places]
    method, floor = _method(part, members)
    empty = Calibration(target=target, method=method, floor=floor, strata=())
    strata = [
        Stratum(group=group, pair=pair, scores=tuple(np.sort(scores[np.array(told) == group]).tolist()))
        for pair, scores in _scores(empty, part, members, truth)
        for group in sorted(set(told))
    ]
    return Calibration(target=target, method=method, floor=floor, strata=tuple(strata))


def supports(part: Task) -> bool:
    """Whether intervals or sets can be made for a task: numbers in a unit, or one class or grade a point."""
    if part.name in ("mlm", "multitask") or part.reads == "names":
        return False
    return bool(getattr(part, "classes", ())) if part.reads == "name" else getattr(part, "has_unit", True)


def _method(part: Task, members: Float[Tensor, "members points outputs"]) -> tuple[Method, float]:
    if part.reads == "name":
        return ("ordinal" if part.name == "ordinal" else "lac"), 0.0
    learned = getattr(part, "distribution", None)
    if learned is not None and learned.quantiles(members[:, :1]) is not None:
        return "cqr", 0.0
    if learned is not None:
        return "normalized", 0.0
    spread = getattr(part, "spread", None)
    if len(members) > 1 and isinstance(spread, float):
        return "normalized", FLOOR * spread
    return "absolute", 0.0


def _scores(
    empty: Calibration, part: Task, members: Float[Tensor, "members points outputs"], truth: Float[np.ndarray, "points"]
) -> Iterator[tuple[float | None, Float[np.ndarray, "points"]]]:
    """The scores of the true labels; of quantiles those of each interval between two."""
    outputs = part.average(members)
    if part.reads == "name":
        _, probabilities = _probabilities(part, outputs)
        scores = depths(probabilities) if empty.method == "ordinal" else misses(probabilities)
        yield None, scores[np.arange(len(truth)), truth.astype(np.int64)]
    elif empty.method == "cqr":
        quantiles = _quantiles(part, outputs)
        for pair, low, high in PAIRS:
            yield pair, shortfalls(truth, quantiles[:, low], quantiles[:, high])
    else:
        center = np.array(part.predict(outputs), dtype=np.float64)
        yield None, residuals(truth, center, empty._spreads(part, members))


def _probabilities(
    part: Task, outputs: Float[Tensor, "points outputs"]
) -> tuple[list[str], Float[np.ndarray, "points classes"]]:
    found = part.probabilities(outputs)
    return list(found), np.array(list(found.values()), dtype=np.float64).T


def _quantiles(part: Any, outputs: Float[Tensor, "points outputs"]) -> Float[np.ndarray, "points quantiles"]:
    return part.quantiles(outputs).numpy(force=True)
