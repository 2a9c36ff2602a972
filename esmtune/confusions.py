"""How good predictions of classes are: which is taken for which, ROC and precision-recall curves, probabilities."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from esmtune.charts import Line, line_chart, matrix_chart
from esmtune.discrimination import MOST_CURVES, Confidence, Discrimination, confidence_of, curves_of
from esmtune.events import counted_as
from esmtune.evidence import each_points, points_in_words
from esmtune.outcomes import Outcome
from esmtune.pages import Part, Rows, Section, Text, short
from esmtune.phrases import NO_CALIBRATION, interval, number, share
from esmtune.points import Points

MOST_CLASSES = 25  # of a confusion matrix


def classes_section(outcome: Outcome) -> Section:
    """Of classes: the confusion matrix, each class by itself, ROC and precision-recall curves."""
    parts: list[Part] = []
    for points in each_points(outcome):
        if points.reads == "number":
            continue
        if points.reads == "name":
            parts.append(_confusion(outcome, points))
        found = _discrimination(outcome, points)
        if found is not None:
            parts += _curves(points.target.name, found)
        parts.append(_by_class(points))
    return Section("classes", "Which class is taken for which", parts)


def confusion(points: Points) -> Int[np.ndarray, "measured predicted"]:
    """How often each class was predicted for each."""
    count = len(points.classes)
    place = points.indices(points.labels) * count + points.indices(points.predictions)
    return np.bincount(place, minlength=count * count).reshape(count, count)


def _confusion(outcome: Outcome, points: Points) -> Part:
    counts, names, note = confusion(points), list(points.classes), ""
    if len(names) > MOST_CLASSES:
        kept = np.sort(np.argsort(-counts.sum(1), kind="stable")[: MOST_CLASSES - 1])
        rest = np.setdiff1d(np.arange(len(names)), kept)
        counts = np.block([
            [counts[np.ix_(kept, kept)], counts[np.ix_(kept, rest)].sum(1)[:, None]],
            [counts[np.ix_(rest, kept)].sum(0)[None], counts[np.ix_(rest, rest)].sum()[None, None]],
        ])  # fmt: skip
        note = f"The {len(kept)} commonest of {len(names)} classes; the others together are the last."
        names = [*(names[n] for n in kept), f"{len(rest)} others"]
    rows = [[name, *(f"{n:,}" for n in row)] for name, row in zip(names, counts.tolist(), strict=True)]
    right = float((points.labels == points.predictions).mean())
    told = (
        f"{points_in_words(outcome, points)}: {share(right)} on the diagonal, which is right. "
        "A row is what was measured; colors are shares of the row."
    )
    return matrix_chart(
        f"{points.target.name}: confusion matrix", counts, names, description=told, note=note,
        table=Rows("Measured (rows) and predicted (columns)", ("", *names), rows, frozenset(range(1, len(names) + 1))),
    )  # fmt: skip


def truth_of(points: Points, place: int) -> tuple[np.ndarray, Float[np.ndarray, "points"]]:
    """Of one class whether it holds, and its probability, where that is known."""
    assert points.probabilities is not None
    score = points.probabilities[:, place]
    if points.reads == "name":
        return points.labels == points.classes[place], score
    known = np.isfinite(points.labels[:, place])
    return points.labels[known, place] == 1, score[known]


def _discrimination(outcome: Outcome, points: Points) -> Discrimination | None:
    """How well classes are told apart: from probabilities, or of residues from what the run wrote down of theirs."""
    if points.probabilities is None:
        return outcome.curves.get(points.target.name)
    truths = {name: truth_of(points, place) for place, name in enumerate(points.classes)}
    return Discrimination(classes=len(truths), curves=curves_of(truths, is_exclusive=points.reads == "name"))


def _confidence(outcome: Outcome, points: Points) -> Confidence | None:
    """What the probabilities of predicted classes mean, from the same."""
    if points.reads != "name":
        return None
    if points.probabilities is None:
        kept = outcome.curves.get(points.target.name)
        return kept.confidence if kept else None
    return confidence_of(points.labels == points.predictions, points.probabilities.max(1))


def _curves(target: str, found: Discrimination) -> Iterator[Part]:
    if not found.curves:
        yield Text(f"{target}: no ROC curve, since only one class is among what was held out.")
        return
    note = f"The {len(found.curves)} commonest of {found.classes} classes." if found.classes > MOST_CURVES else ""
    roc, precision = [], []
    for curve in found.curves:
        x, y = curve.roc
        roc.append(Line(name=f"{short(curve.name)} ({number(curve.auroc)})", x=x, y=y))
        x, y = curve.precision_recall
        precision.append(Line(name=f"{short(curve.name)} ({share(curve.share)})", x=x, y=y))
    yield line_chart(
        f"{target}: ROC", roc, x="share of others called so", y="share of the class found", wide=False,
        description="The area under each curve is in brackets; the dashed line is chance.", note=note, diagonal=True,
        x_range=(-0.01, 1.01), y_range=(-0.01, 1.01),
    )  # fmt: skip
    yield line_chart(
        f"{target}: precision and recall", precision, x="recall", y="precision", wide=False, note=note,
        description="The share of each class is in brackets, which is the precision of chance.",
        x_range=(-0.01, 1.01), y_range=(-0.01, 1.02),
    )  # fmt: skip


def _by_class(points: Points) -> Rows:
    """Precision, recall and areas of each class."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = []
    for place, name in enumerate(points.classes):
        if points.reads == "name":
            truth, said = points.labels == name, points.predictions == name
        else:
            known = np.isfinite(points.labels[:, place])
            truth, said = points.labels[known, place] == 1, points.predictions[known, place] == 1
        hits, measured, predicted = int((truth & said).sum()), int(truth.sum()), int(said.sum())
        row = [name, f"{measured:,}", f"{predicted:,}", _share(hits, predicted), _share(hits, measured),
               _share(2 * hits, measured + predicted)]  # fmt: skip
        if points.probabilities is not None:
            own, score = truth_of(points, place)
            mixed = 0 < own.sum() < len(own)
            row += [
                number(float(area(own, score))) if mixed else "-" for area in (roc_auc_score, average_precision_score)
            ]
        rows.append(row)
    areas = ("AUROC", "AUPRC") if points.probabilities is not None else ()
    columns = ("class", "measured", "predicted", "precision", "recall", "F1", *areas)
    return Rows(f"{points.target.name}: each class by itself", columns, rows, frozenset(range(1, len(columns))))


def _share(part: int, whole: int) -> str:
    return number(part / whole) if whole else "-"


def calibration_section(outcome: Outcome) -> Section:
    """Whether intervals and sets hold what they promise, and probabilities what they say."""
    found = outcome.metrics.get("calibration") or {}
    of_targets = found.get("targets") or ({outcome.metrics.get("target", ""): found} if found else {})
    parts: list[Part] = []
    for name, own in of_targets.items():
        parts += _coverage(str(name), own, int((outcome.metrics.get("records") or {}).get("test", 0)))
    for points in each_points(outcome):
        confidence = _confidence(outcome, points)
        if confidence is not None:
            parts.append(_reliability(points.target.name, confidence, of_targets.get(points.target.name) or {}))
    if not of_targets and outcome.scores and outcome.metrics.get("task") not in ("mlm", "multilabel"):
        parts.insert(0, Text(NO_CALIBRATION, warning=True))
    return Section("calibration", "How far off a prediction may be", parts)


def _coverage(name: str, own: dict[str, Any], tested: int) -> Iterator[Part]:
    levels = {float(level): figures for level, figures in (own.get("levels") or {}).items()}
    calibrated = int(own.get("records") or 0)
    if not levels:
        return
    promised = sorted(levels)
    reached = [levels[level]["coverage"] for level in promised]
    # The share that is held varies with the calibration rows that were drawn, and with the test rows.
    noise = [
        2 * float(np.sqrt(level * (1 - level) * (1 / max(1, calibrated) + 1 / max(1, tested)))) for level in promised
    ]
    of = f"{counted_as(calibrated, 'calibration point')}, method {own.get('method', 'unknown')}"
    is_class = own.get("method") == "lac"
    width = "classes in a set" if is_class else "mean width"
    rows = [
        [share(level), share(levels[level]["coverage"]), number(levels[level].get("width")), f"± {share(n)}"]
        for level, n in zip(promised, noise, strict=True)
    ]
    yield Text(
        f"{name}: {of}. Of the test records {share(levels[0.9]['coverage'])} lie within their 90 % "
        f"{'sets' if is_class else 'intervals'}, which {'hold' if is_class else 'are'} "
        f"{number(levels[0.9].get('width'))} {'classes' if is_class else 'wide'} in the mean."
        if 0.9 in levels else f"{name}: {of}."
    )  # fmt: skip
    low = [r - n for r, n in zip(reached, noise, strict=True)]
    high = [min(1.0, r + n) for r, n in zip(reached, noise, strict=True)]
    line = Line(name="reached", x=promised, y=reached, is_marked=True, low=low, high=high)
    yield line_chart(
        f"{name}: coverage", [line], x="promised", y="share of test records within", diagonal=True, wide=False,
        x_range=(0.4, 1.0), y_range=(0.3, 1.02),
        description="On the dashed line intervals hold what they promise; whiskers are two standard deviations of what "
        "so many calibration and test records let expect.",
        table=Rows(f"{name}: coverage", ("promised", "reached", width, "to be expected"), rows, frozenset(range(4))),
    )  # fmt: skip


def _reliability(target: str, found: Confidence, own: dict[str, Any]) -> Part:
    from scipy.stats import binomtest

    bins = found.bins
    ends = [binomtest(round(right * n), n).proportion_ci(method="wilson") for _, right, n in bins]
    text = f"Expected calibration error {number(own.get('ece', found.error))}"
    text += (
        f", {number(own['ece_before'])} before probabilities were mended" if own.get("ece_before") is not None else ""
    )
    rows: Sequence[Sequence[str]] = [
        [number(said), number(right), interval((e.low, e.high)), f"{n:,}"]
        for (said, right, n), e in zip(bins, ends, strict=True)
    ]
    line = Line(
        name="right", x=[round(b[0], 4) for b in bins], y=[round(b[1], 4) for b in bins], is_marked=True,
        low=[float(e.low) for e in ends], high=[float(e.high) for e in ends],
        hover=[f"said {number(said)}, right {number(right)}, {n:,} points" for said, right, n in bins],
    )  # fmt: skip
    return line_chart(
        f"{target}: what probabilities mean", [line], x="probability of the predicted class",
        y="share that is right", diagonal=True, wide=False, x_range=(0.0, 1.02), y_range=(0.0, 1.02),
        description=f"{text}. On the dashed line probabilities mean what they say; whiskers are 95 % intervals.",
        table=Rows("Probabilities and what is right", ("said", "right", "95 % interval", "points"), rows,
                   frozenset(range(4))),
    )  # fmt: skip
