"""From numbers to outputs of a task by one penalized linear map, whose penalty the training points choose."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.classes import Named
from esmtune.kinds import Task
from esmtune.multilabel import Multilabel
from esmtune.records import Censored, Label
from esmtune.regression import Regression
from esmtune.ridge import left_out, solve_in_axes, solve_squares
from esmtune.tasks import Multitask

WORK = 2e8  # points times numbers times outputs, of which a map is found at most; of more points a sample is taken
LEAST = 500  # points that a sample has at least
PROBED = 1000  # points that tell what suits a head, at most
FEWEST = 20  # the same at least
MOST_NOISE = 2.0  # standard deviations of the features
NEGLIGIBLE = 1e-13  # of the largest axis' share of the variance
KEPT = 1 << 20, 1 << 29  # bytes of axes that are kept until others are wanted: fewer are soon found again

_LAST: dict[str, tuple[Tensor, Tensor]] = {}  # axes and sizes, by the points


@dataclass(frozen=True)
class LinearMap:
    """Numbers to outputs, and under which penalty this was found."""

    weight: Float[Tensor, "outputs dim"]  # of standardized numbers
    bias: Float[Tensor, "outputs"]
    center: Float[np.ndarray, "dim"]
    scale: Float[np.ndarray, "dim"]
    penalty: float

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> Float[Tensor, "points outputs"]:
        """Outputs in float64."""
        return torch.from_numpy((x - self.center) / self.scale).double() @ self.weight.T + self.bias

    def after(
        self, center: Float[Tensor, "dim"], spread: Float[Tensor, "dim"]
    ) -> tuple[Float[Tensor, "outputs dim"], Float[Tensor, "outputs"]]:
        """Weight and bias of the same map of numbers that another mean and spread were taken off."""
        steep = self.weight / torch.from_numpy(self.scale)
        off = center.double() - torch.from_numpy(self.center)
        return steep * spread.double(), self.bias + steep @ off


def affordable_points(dim: int, outputs: int) -> int:
    """Of how many points a map is found at most."""
    return int(WORK / (dim * max(4, outputs)))


def is_affordable(dim: int, outputs: int, points: int) -> bool:
    """Whether a map is found of so many points, or of a sample that is worth it."""
    return affordable_points(dim, outputs) >= min(LEAST, points)


def forget_axes() -> None:
    """Give back the memory of the axes that were kept, when nobody will ask for them again."""
    _LAST.clear()


def linear_map(
    x: Float[np.ndarray, "points dim"], labels: Sequence[Label], weights: Float[np.ndarray, "points"],
    groups: Sequence[int], task: Task, *, seed: int,
) -> LinearMap:  # fmt: skip
    """Find the map of standardized numbers with the least loss of a task under a penalty.

    Of numbers this is ridge regression, of classes penalized logistic regression. Every point has a label, of numbers
    perhaps a bound. The penalty is the one of `ridge.CLOSE` or `ridge.PENALTIES` that predicts best what is held out:
    each point in turn where labels are numbers, a fifth of the groups of points otherwise.

    >>> x = np.arange(12.0)[:, None]
    >>> labels = [3 * float(value) + 1 for value in x[:, 0]]
    >>> found = linear_map(x, labels, np.ones(12), [1] * 12, Regression.fit(labels), seed=0)
    >>> round(float(Regression.fit(labels).predict(found(np.array([[20.0]])))[0]), 2)
    61.0
    """
    standardized, center, scale = _standardized(x)
    rows = torch.from_numpy(standardized).double()
    targets, weight = task.targets(labels), torch.from_numpy(weights).double()
    if isinstance(task, Regression) and not any(isinstance(label, Censored) for label in labels):
        found, bias, penalty = _squares(rows, targets[:, :1], weight)
    else:
        turned, axes, sizes = _own_axes(rows)

        def loss(outputs: Tensor, of: Tensor) -> tuple[Tensor, int]:
            total = task.loss(outputs, targets[of], weight[of])
            return total.sum, total.count

        found, bias, penalty = solve_in_axes(turned, sizes, groups, task.num_outputs, loss, seed=seed, held_out=1)
        found = found @ axes

    return LinearMap(found, bias, center, scale, penalty)


@dataclass(frozen=True)
class Probe:
    """Points in the own axes of their features, each to be predicted from all others by a linear map."""

    turned: Float[Tensor, "points axes"]
    sizes: Float[Tensor, "axes"]

    @classmethod
    def of(cls, x: Float[np.ndarray, "points dim"]) -> "Probe | None":
        """Of features as they are; None where there are too few points, or not all features are finite."""
        if len(x) < FEWEST or not np.isfinite(x).all():
            return None
        turned, _, sizes = _own_axes(torch.from_numpy(_standardized(x)[0]).double())
        return cls(turned, sizes)

    def best(self, y: Float[Tensor, "points columns"]) -> tuple[Float[Tensor, "points columns"], float]:
        """How far each point is from what the others say, under the penalty that makes this least; and that penalty."""
        alike = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
        found = left_out(self.turned, self.sizes, y - y.mean(0), alike)
        off, _, penalty = min(found, key=lambda each: each[0].square().sum())
        return off, penalty


Probing = Callable[[Sequence[int]], Probe | None]  # of training points, by their number


def on_best_scale(task: Task, probe: Probing, points: Sequence[int], labels: Sequence[Label]) -> tuple[Task, str]:
    """Decide on which scale labels are learned, where that is open, and say why if it is not that of the labels.

    It is that of normal scores if a linear map of frozen features, of at most `PROBED` training points, then
    predicts labels that it has not seen better, in their own unit, by more than chance: squared errors are smaller by
    two standard errors of their mean difference or more. The `points` are which of all training labels there are
    features of, in an order that says nothing.

    >>> x = np.linspace(-2.0, 2.0, 99)[:, None]
    >>> labels = np.exp(3 * x[:, 0]).tolist()
    >>> task = Regression.fit(labels, scale="auto")
    >>> found, _ = on_best_scale(task, lambda points: Probe.of(x[points]), range(99), labels)
    >>> found.scale
    'normal'
    """
    if isinstance(task, Multitask):
        found, said = [], []
        for place, (name, part) in enumerate(zip(task.names, task.tasks, strict=True)):
            own = [None if label is None else label[place] for label in labels]  # pyright: ignore[reportIndexIssue]
            new, why = on_best_scale(part, probe, points, own)
            found.append((name, new))
            said += [f"{name}: {why}"] if why else []
        return Multitask.of(found), " ".join(said)
    if not isinstance(task, Regression) or task.scale != "auto":
        return task, ""
    linear, normal = replace(task, scale="linear"), replace(task, scale="normal").refitted(labels)
    known = [point for point in points if isinstance(labels[point], float)][:PROBED]
    if not normal.knots or not (found := probe(known)):
        return linear, ""
    own = np.array([labels[point] for point in known], dtype=np.float64)
    errors = [_squared_errors(each, found, own) for each in (linear, normal)]
    gain = errors[0] - errors[1]
    if not gain.mean() > 2 * gain.std() / len(gain) ** 0.5:
        return linear, ""
    shares = [1 - each.mean() / own.var() for each in errors]
    return normal, (
        f"Labels are learned as normal scores, of which a linear map of frozen features predicts {shares[1]:.2f} of "
        f"their variance (R2, held out), and {shares[0]:.2f} as they are (--task.scale linear leaves them so)."
    )


def fitting_noise(
    task: Named | Multilabel, probe: Probing, points: Sequence[int], labels: Sequence[Label]
) -> float | None:
    """How much noise on standardized features suits classes, as a standard deviation; None where that cannot be told.

    Noise of variance v adds to the squared errors of a linear map of n points n v times the square of its weights
    (Bishop 1995, https://doi.org/10.1162/neco.1995.7.1.108). So v is the penalty under which a linear map of at most
    `PROBED` training points, to a column for each class, predicts those best that it has not seen, divided by the
    number of all that are labeled; `MOST_NOISE` squared at most. The `points` are as in `on_best_scale`.

    >>> from esmtune.classes import Binary
    >>> x = np.random.default_rng(0).normal(size=(200, 5))
    >>> plain, noisy = (["yes" if value > 0 else "no" for value in y] for y in (x[:, 0], np.sin(9 * x).sum(1)))
    >>> found = [fitting_noise(Binary.fit(y), lambda p: Probe.of(x[p]), range(200), y) or 0.0 for y in (plain, noisy)]
    >>> found[0] < 0.5 < found[1]
    True
    """
    known = [point for point in points if labels[point] is not None][:PROBED]
    if not (found := probe(known)):
        return None
    columns = task.targets([labels[point] for point in known])
    if isinstance(task, Named):
        columns = (columns == torch.arange(len(task.classes), dtype=columns.dtype)).double()
    _, penalty = found.best(columns.where(columns.isfinite(), columns.nanmean(0).nan_to_num()))
    return min(MOST_NOISE, (penalty / sum(label is not None for label in labels)) ** 0.5)


def _squared_errors(task: Regression, probe: Probe, labels: Float[np.ndarray, "points"]) -> np.ndarray:
    """The squared error of each label, in its own unit, by the map of all other points on the scale of a task."""
    y = task.targets(labels.tolist())[:, :1]
    off, _ = probe.best(y)
    return (np.array(task.predict(y - off)) - labels) ** 2


def _standardized(
    x: Float[np.ndarray, "points dim"],
) -> tuple[Float[np.ndarray, "points dim"], np.ndarray, np.ndarray]:
    """Numbers of mean 0 and spread 1, where they vary at all; and the mean and spread that they had."""
    center, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-9 * np.maximum(1, np.abs(center)), scale, 1.0)
    return (x - center) / scale, center, scale


def _squares(rows: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Ridge regression, of weighted points: rows and labels around their weighted mean, times the weight's root."""
    mean = (weight[:, None] * rows).sum(0) / weight.sum()
    middle = (weight[:, None] * targets).sum(0) / weight.sum()
    root = weight.sqrt()[:, None]
    turned, axes, sizes = _own_axes(root * (rows - mean))
    found, penalty = solve_squares(turned, sizes, root * (targets - middle), weight / weight.sum())
    found = found @ axes
    return found, middle - found @ mean, penalty


def _own_axes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `ridge.own_axes`, by the products of rows or columns, whichever are fewer: several times as fast.

    By NumPy, whose LAPACK takes three fifths of the time of torch's. The last axes are kept: a head, the same of
    another seed, and a baseline ask for those of the same points.
    """
    y = np.ascontiguousarray(x.numpy())
    key = f"{y.shape} {hashlib.sha256(y.data).hexdigest()}" if y.size else ""
    kept = _LAST.get(key)  # at once, for another thread may forget them
    if kept is None:
        squares, vectors = map(torch.from_numpy, np.linalg.eigh(y @ y.T if len(y) < y.shape[1] else y.T @ y))
        there = squares > squares.max() * NEGLIGIBLE
        sizes, vectors = squares[there].sqrt(), vectors[:, there]
        axes = (vectors / sizes).T @ x if len(x) < x.shape[1] else vectors.T
        if not KEPT[0] <= axes.nbytes <= KEPT[1]:
            return x @ axes.T, axes, sizes
        _LAST.clear()
        _LAST[key] = kept = axes, sizes
    axes, sizes = kept
    return x @ axes.T, axes, sizes


def sparse_map(x: Any, targets: Float[np.ndarray, "points"], weights: Float[np.ndarray, "points"], *, seed: int,
               classes: int = 0) -> Callable[[Any], Float[np.ndarray, "points values"]]:  # fmt: skip
    """The same by scikit-learn for many numbers of which few are not zero: a number, or of classes their probabilities.

    `x` is a SciPy sparse array. The penalty is chosen by five folds.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

    folds = KFold(min(5, len(targets)), shuffle=True, random_state=seed)
    if not classes:
        grid = {"alpha": np.logspace(-3, 3, 7)}
        search = GridSearchCV(Ridge(solver="sparse_cg", tol=1e-8), grid, scoring="neg_mean_squared_error", cv=folds)
        model = search.fit(x, targets, sample_weight=weights)
        return lambda new: model.predict(new)[:, None]
    present, dense, counts = np.unique(targets, return_inverse=True, return_counts=True)
    grid, fewest = {"C": np.logspace(-3, 3, 7)}, int(counts.min())
    parts = StratifiedKFold(5, shuffle=True, random_state=seed) if fewest >= 5 else folds
    scoring = "neg_log_loss" if fewest >= 5 else "accuracy"  # which is defined where a fold lacks a class
    search = GridSearchCV(LogisticRegression(max_iter=500), grid, scoring=scoring, cv=parts)
    model = search.fit(x, dense, sample_weight=weights)

    def probabilities(new: Any) -> Float[np.ndarray, "points values"]:
        found = np.zeros((new.shape[0], classes))
        found[:, present.astype(int)] = model.predict_proba(new)
        return found

    return probabilities
