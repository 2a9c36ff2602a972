"""How good predictions are. A metric that the data cannot define is None, never a number that could be true."""

import math
import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

LOWER_IS_BETTER = frozenset(("rmse", "mae", "perplexity", "hamming_loss", "loss"))
Scores = dict[str, float | None]


def sign_of(metric: str) -> Literal[1, -1]:
    """What to multiply a metric by, so that more is better; the metric may stand after its target.

    >>> sign_of("spearman"), sign_of("rmse"), sign_of("tm.rmse")
    (1, -1, -1)
    """
    return -1 if metric.rpartition(".")[2] in LOWER_IS_BETTER else 1


def regression_scores(labels: Float[np.ndarray, "points"], predictions: Float[np.ndarray, "points"]) -> Scores:
    """Spearman and Pearson correlation, R2, and root mean squared and mean absolute error in the label's unit.

    >>> regression_scores(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0]))["mae"]
    1.0
    """
    from scipy.stats import NearConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    varies = len(set(labels.tolist())) > 1
    ranks = varies and len(set(predictions.tolist())) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NearConstantInputWarning)  # a library says nothing unless asked
        pearson = _known(pearsonr(labels, predictions)[0]) if ranks else None
    return {
        "spearman": _known(spearmanr(labels, predictions)[0]) if ranks else None,
        "pearson": pearson,
        "r2": _known(r2_score(labels, predictions)) if varies else None,
        "rmse": _known(root_mean_squared_error(labels, predictions)) if len(labels) else None,
        "mae": _known(mean_absolute_error(labels, predictions)) if len(labels) else None,
    }


def classification_scores(
    labels: Int[np.ndarray, "points"], probabilities: Float[np.ndarray, "points classes"]
) -> Scores:
    """Accuracy, balanced accuracy, Matthews correlation, macro F1, and areas under the ROC and precision-recall curves.

    `labels` are indices of classes. Of two classes the second is the positive one; of more, the
    areas are means over the classes, one against the rest, and need every class among the labels.

    >>> classification_scores(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))["auroc"]
    1.0
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

    if not len(labels):
        return dict.fromkeys(("accuracy", "balanced_accuracy", "mcc", "f1", "auroc", "auprc"))
    predicted = probabilities.argmax(axis=1)
    present = len(set(labels.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is only predicted: defined all the same
        scores: Scores = {
            "accuracy": _known(accuracy_score(labels, predicted)),
            "balanced_accuracy": _known(balanced_accuracy_score(labels, predicted)) if present > 1 else None,
            "mcc": _known(matthews_corrcoef(labels, predicted)) if present > 1 else None,
            "f1": _known(f1_score(labels, predicted, average="macro")),
        }
    return scores | _areas(labels, probabilities)


def _areas(labels: Int[np.ndarray, "points"], probabilities: Float[np.ndarray, "points classes"]) -> Scores:
    from sklearn.metrics import average_precision_score, roc_auc_score

    classes = probabilities.shape[1]
    if len(set(labels.tolist())) < classes:
        return {"auroc": None, "auprc": None}
    columns = [1] if classes == 2 else range(classes)
    pairs = [(labels == column, probabilities[:, column]) for column in columns]
    return {
        "auroc": _known(np.mean([roc_auc_score(truth, score) for truth, score in pairs])),
        "auprc": _known(np.mean([average_precision_score(truth, score) for truth, score in pairs])),
    }


def multilabel_scores(
    labels: Float[np.ndarray, "points classes"], probabilities: Float[np.ndarray, "points classes"]
) -> Scores:
    """F1 over all cells and as a mean over classes, areas, the share of points with no mistake, that of wrong cells.

    `labels` are 1 where a class holds, 0 where it does not, NaN where that is unknown, which is left
    out. The areas (of which `auprc` is the mean average precision) are means over classes that some known
    points have and some have not; the mean F1 is over classes that any point has or is said to have.

    >>> multilabel_scores(np.array([[1.0, 0.0], [0.0, np.nan]]), np.array([[0.9, 0.2], [0.7, 0.9]]))["subset_accuracy"]
    0.5
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    is_known, is_held = np.isfinite(labels), probabilities > 0.5
    is_wrong = is_known & (is_held != (labels == 1))
    right, wrong = (is_known & is_held & ~is_wrong).sum(0), is_wrong.sum(0)  # of each class
    halves = 2 * right + wrong
    columns = [(labels[known, c], probabilities[known, c]) for c, known in enumerate(is_known.T)]
    columns = [(truth, score) for truth, score in columns if len(np.unique(truth)) == 2]
    known_points = is_known.any(1)
    return {
        "f1_micro": _known(2 * right.sum() / halves.sum()) if halves.any() else None,
        "f1_macro": _mean(2 * right[halves > 0] / halves[halves > 0]),
        "auprc": _mean([average_precision_score(truth, score) for truth, score in columns]),
        "auroc": _mean([roc_auc_score(truth, score) for truth, score in columns]),
        "subset_accuracy": _mean(~is_wrong.any(1)[known_points]),
        "hamming_loss": _mean(is_wrong[is_known]),
    }


def ordinal_scores(
    labels: Int[np.ndarray, "points"],
    predictions: Int[np.ndarray, "points"],
    means: Float[np.ndarray, "points"],
    *,
    grades: int,
) -> Scores:
    """Quadratic weighted kappa, accuracy, mean absolute error in grades, and Spearman correlation.

    Kappa is Cohen's (1968, https://doi.org/10.1037/h0026256). Labels and predictions are numbers of grades, of
    which there are `grades`; the correlation is that of `means`, the mean grades expected.

    >>> ordinal_scores(np.array([0, 1, 2]), np.array([0, 2, 2]), np.array([0.1, 1.8, 1.9]), grades=3)["spearman"]
    1.0
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score

    varies = len(np.unique(labels)) > 1
    kappa = cohen_kappa_score(labels, predictions, labels=range(grades), weights="quadratic") if varies else np.nan
    ranks = varies and len(np.unique(means)) > 1
    return {
        "qwk": _known(kappa),
        "accuracy": _mean(labels == predictions),
        "mae": _mean(np.abs(labels - predictions)),
        "spearman": _known(spearmanr(labels, means)[0]) if ranks else None,
    }


def language_scores(
    labels: Int[np.ndarray, "points"], log_probabilities: Float[np.ndarray, "points symbols"]
) -> Scores:
    """Perplexity, which is the exponential of the mean cross-entropy, and accuracy.

    >>> language_scores(np.array([0, 1]), np.log(np.array([[0.5, 0.5], [0.5, 0.5]])))["perplexity"]
    2.0
    """
    mean = _mean(-log_probabilities[np.arange(len(labels)), labels])
    with np.errstate(over="ignore"):
        perplexity = None if mean is None else _known(np.exp(mean))
    return {"perplexity": perplexity, "accuracy": _mean(labels == log_probabilities.argmax(1))}


def _mean(values: Any) -> float | None:
    return _known(np.mean(values)) if len(values) else None


def _known(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
