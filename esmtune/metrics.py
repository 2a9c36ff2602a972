"""How good predictions are. A metric that the data cannot define is None, never a number that could be true."""

import math
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Scores = dict[str, float | None]


def regression_scores(labels: Float[np.ndarray, "points"], predictions: Float[np.ndarray, "points"]) -> Scores:
    """Spearman and Pearson correlation, R2, and root mean squared and mean absolute error in the label's unit.

    >>> regression_scores(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0]))["mae"]
    1.0
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    varies = len(set(labels.tolist())) > 1
    ranks = varies and len(set(predictions.tolist())) > 1
    return {
        "spearman": _known(spearmanr(labels, predictions)[0]) if ranks else None,
        "pearson": _known(pearsonr(labels, predictions)[0]) if ranks else None,
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


def _known(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
