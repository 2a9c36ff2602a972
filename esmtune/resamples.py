"""The metrics of many resamples at once, as `metrics` defines them; NaN where a resample cannot define one.

A resample is told by how often each point is drawn: a column of `counts`. Sums over points are then matrix
products, and ranks are running sums, so that a thousand resamples cost little more than one.
"""

import numpy as np
from jaxtyping import Float, Int

Counts = Float[np.ndarray, "points resamples"]
Resampled = dict[str, Float[np.ndarray, "resamples"]]


def regression_resampled(
    labels: Float[np.ndarray, "points"], predictions: Float[np.ndarray, "points"], counts: Counts
) -> Resampled:
    """What `metrics.regression_scores` gives, of each resample.

    >>> x = np.array([1.0, 2.0, 4.0])
    >>> regression_resampled(x, x + 1, np.array([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0]]))["mae"].tolist()
    [1.0, 1.0]
    """
    errors, drawn = predictions - labels, counts.sum(0)
    centered = labels - (labels.mean() if len(labels) else 0.0)
    spearman, varies = rank_correlation(labels, predictions, counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = centered**2 @ counts - (centered @ counts) ** 2 / drawn
        squares = errors**2 @ counts
        return {
            "spearman": spearman,
            "pearson": np.where(np.isfinite(spearman), _pearson(labels, predictions, counts), np.nan),
            "r2": np.where(varies, 1 - squares / total, np.nan),
            "rmse": np.sqrt(squares / drawn),
            "mae": (np.abs(errors) @ counts) / drawn,
        }


def classification_resampled(
    labels: Int[np.ndarray, "points"], probabilities: Float[np.ndarray, "points classes"], counts: Counts
) -> Resampled:
    """What `metrics.classification_scores` gives, of each resample.

    >>> classification_resampled(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), np.ones((2, 1)))["mcc"].tolist()
    [1.0]
    """
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    truth, said = _by_class(labels, classes, counts), _by_class(predicted, classes, counts)
    right = _by_class(labels, classes, counts * (labels == predicted)[:, None])
    drawn, hits, varies = counts.sum(0), right.sum(0), (truth > 0).sum(0) > 1
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt((drawn**2 - (said**2).sum(0)) * (drawn**2 - (truth**2).sum(0)))
        mcc = np.where(spread > 0, (hits * drawn - (said * truth).sum(0)) / spread, 0.0)
        return {
            "accuracy": hits / drawn,
            "balanced_accuracy": np.where(varies, _mean_of(right / truth, truth > 0), np.nan),
            "mcc": np.where(varies, mcc, np.nan),
            "f1": _mean_of(2 * right / (truth + said), truth + said > 0),
        } | _areas(labels, probabilities, counts, truth.min(0) > 0)


def _areas(
    labels: Int[np.ndarray, "points"],
    probabilities: Float[np.ndarray, "points classes"],
    counts: Counts,
    there: np.ndarray,
) -> Resampled:
    classes = probabilities.shape[1]
    columns = [1] if classes == 2 else range(classes)
    pairs = [areas((labels == c).astype(np.float64), probabilities[:, c], counts) for c in columns]
    means = (np.mean([pair[which] for pair in pairs], axis=0) for which in (0, 1))
    return {name: np.where(there, mean, np.nan) for name, mean in zip(("auroc", "auprc"), means, strict=True)}


def multilabel_resampled(
    labels: Float[np.ndarray, "points classes"], probabilities: Float[np.ndarray, "points classes"], counts: Counts
) -> Resampled:
    """What `metrics.multilabel_scores` gives, of each resample.

    >>> truth, said = np.array([[1.0, 0.0], [0.0, np.nan]]), np.array([[0.9, 0.2], [0.7, 0.9]])
    >>> multilabel_resampled(truth, said, np.ones((2, 1)))["subset_accuracy"].tolist()
    [0.5]
    """
    is_known, is_held = np.isfinite(labels), probabilities > 0.5
    is_wrong = is_known & (is_held != (labels == 1))
    right, wrong = ((is_known & is_held & ~is_wrong).T @ counts), is_wrong.T @ counts
    known_points = is_known.any(1)
    halves = 2 * right + wrong
    pairs = [areas((labels[k, c] == 1).astype(float), probabilities[k, c], counts[k]) for c, k in enumerate(is_known.T)]
    roc, precision = (np.array([pair[which] for pair in pairs]) for which in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "f1_micro": 2 * right.sum(0) / halves.sum(0),
            "f1_macro": _mean_of(2 * right / halves, halves > 0),
            "auprc": _mean_of(precision, np.isfinite(precision)),
            "auroc": _mean_of(roc, np.isfinite(roc)),
            "subset_accuracy": (known_points & ~is_wrong.any(1)) @ counts / (known_points @ counts),
            "hamming_loss": wrong.sum(0) / (is_known.T @ counts).sum(0),
        }


def ordinal_resampled(
    labels: Int[np.ndarray, "points"], predictions: Int[np.ndarray, "points"], means: Float[np.ndarray, "points"],
    counts: Counts,
) -> Resampled:  # fmt: skip
    """What `metrics.ordinal_scores` gives, of each resample.

    >>> grades = np.array([0, 1, 2])
    >>> ordinal_resampled(grades, grades, grades / 2, np.ones((3, 1)))["qwk"].tolist()
    [1.0]
    """
    truth, said, drawn = labels.astype(np.float64), predictions.astype(np.float64), counts.sum(0)
    spearman, varies = rank_correlation(truth, means, counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (truth - said) ** 2 @ counts
        expected = (truth**2 + said**2) @ counts - 2 * (truth @ counts) * (said @ counts) / drawn
        return {
            "qwk": np.where(varies, 1 - observed / expected, np.nan),
            "accuracy": (labels == predictions) @ counts / drawn,
            "mae": np.abs(truth - said) @ counts / drawn,
            "spearman": spearman,
        }


def language_resampled(
    labels: Int[np.ndarray, "points"], log_probabilities: Float[np.ndarray, "points symbols"], counts: Counts
) -> Resampled:
    """What `metrics.language_scores` gives, of each resample.

    >>> language_resampled(np.array([0]), np.log(np.array([[0.5, 0.5]])), np.ones((1, 1)))["perplexity"].tolist()
    [2.0]
    """
    errors = -log_probabilities[np.arange(len(labels)), labels]
    right = labels == log_probabilities.argmax(1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        perplexity = np.exp(errors @ counts / counts.sum(0))
        return {
            "perplexity": np.where(np.isfinite(perplexity), perplexity, np.nan),
            "accuracy": right @ counts / counts.sum(0),
        }


def ranks(values: Float[np.ndarray, "points"], counts: Counts) -> Counts:
    """The rank of each point in each resample, where copies and ties share the mean of their ranks.

    >>> ranks(np.array([5.0, 7.0]), np.array([[1.0, 2.0], [1.0, 1.0]])).T.tolist()
    [[1.0, 2.0], [1.5, 3.0]]
    """
    order, group, ends = _sorted(values)
    upto = counts[order].cumsum(0)[ends]
    before = np.vstack((np.zeros((1, counts.shape[1])), upto[:-1]))
    found = np.empty_like(counts)
    found[order] = ((upto + before + 1) / 2)[group]
    return found


def rank_correlation(
    x: Float[np.ndarray, "points"], y: Float[np.ndarray, "points"], counts: Counts
) -> tuple[Float[np.ndarray, "resamples"], np.ndarray]:
    """Spearman's correlation in each resample, NaN where either is the same for all; and whether `x` varies at all.

    Ranks are halves of integers and their sums exact, so that what does not vary has a variance of zero.

    >>> rho, varies = rank_correlation(np.array([5.0, 7.0]), np.array([1.0, 0.0]), np.array([[1.0, 2.0], [1.0, 0.0]]))
    >>> rho.tolist(), varies.tolist()
    ([-1.0, nan], [True, False])
    """
    drawn = counts.sum(0)
    dx, dy = ranks(x, counts), ranks(y, counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        for ranked in (dx, dy):
            ranked -= np.einsum("pr,pr->r", counts, ranked) / drawn
        weighed = counts * dx
        shared, variance = np.einsum("pr,pr->r", weighed, dy), np.einsum("pr,pr->r", weighed, dx)
        return shared / np.sqrt(variance * np.einsum("pr,pr->r", counts * dy, dy)), variance > 0


def areas(
    truth: Float[np.ndarray, "points"], scores: Float[np.ndarray, "points"], counts: Counts
) -> tuple[Float[np.ndarray, "resamples"], Float[np.ndarray, "resamples"]]:
    """Areas under the ROC curve and the precision-recall curve (as average precision); NaN with one class alone.

    >>> [area.tolist() for area in areas(np.array([0.0, 1.0]), np.array([0.1, 0.8]), np.ones((2, 1)))]
    [[1.0], [1.0]]
    """
    order, _, ends = _sorted(-scores)
    drawn = counts[order]
    hits = (drawn * truth[order, None]).cumsum(0)[ends]
    called = drawn.cumsum(0)[ends]
    new = np.diff(hits, axis=0, prepend=0.0)
    misses = called - hits
    new_misses = np.diff(misses, axis=0, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        positive, negative = (x[-1] if len(x) else np.zeros(counts.shape[1]) for x in (hits, misses))
        roc = (new_misses * (hits - new / 2)).sum(0) / (positive * negative)
        precision = np.where(called > 0, hits / np.maximum(called, 1.0), 0.0)
        average = np.where(positive * negative > 0, (new * precision).sum(0) / positive, np.nan)
        return np.where(positive * negative > 0, roc, np.nan), average


def _sorted(values: Float[np.ndarray, "points"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order of values, which group of ties each stands in, in that order, and where each group ends."""
    order = values.argsort(kind="stable")
    ordered = values[order]
    is_new = np.append(True, ordered[1:] != ordered[:-1])[: len(values)]
    group = is_new.cumsum() - 1
    return order, group, np.flatnonzero(np.append(is_new[1:], True)[: len(values)])


def _pearson(x: Float[np.ndarray, "points"], y: Float[np.ndarray, "points"], counts: Counts) -> np.ndarray:
    drawn = counts.sum(0)
    x, y = x - x.mean(), y - y.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        dx, dy = (x @ counts) / drawn, (y @ counts) / drawn
        variances = ((x**2) @ counts / drawn - dx**2) * ((y**2) @ counts / drawn - dy**2)
        return ((x * y) @ counts / drawn - dx * dy) / np.sqrt(variances)


def _by_class(which: Int[np.ndarray, "points"], classes: int, counts: Counts) -> Float[np.ndarray, "classes resamples"]:
    """How many points of each class are drawn."""
    from scipy.sparse import csr_array

    ones = csr_array((np.ones(len(which)), (which, np.arange(len(which)))), shape=(classes, len(which)))
    return ones @ counts


def _mean_of(values: np.ndarray, there: np.ndarray) -> Float[np.ndarray, "resamples"]:
    """The mean over classes of those values that are there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(there, values, 0.0).sum(0) / there.sum(0)
