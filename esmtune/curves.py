"""The learning curve: how good a run is with a share of its labels, and what more of them would bring."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from esmtune.config import SHARES, TrainConfig
from esmtune.members import Trained, draws_of
from esmtune.membership import Member, members_of
from esmtune.metrics import Scores, sign_of
from esmtune.records import Dataset
from esmtune.scoring import scores_of
from esmtune.subsets import share_of
from esmtune.tasks import task

FEWEST = 10  # training sequences, or validation sequences, of which anything can be said
REPEATS = 3  # of each share, where the encoder is frozen and a training costs seconds
DRAWS = 400  # of the noise, for the interval of what more labels bring
EXPONENTS = np.geomspace(0.02, 3, 100)
GOOD_FIT = 0.8  # the share of what the points differ by that the curve must account for


@dataclass(frozen=True)
class PowerLaw:
    """An error that falls with the number of labels n: drop * (n / scale) ** -exponent + rest."""

    drop: float
    exponent: float
    rest: float
    scale: float

    def __call__(self, records: Float[np.ndarray, "points"] | float) -> Any:
        """The error with so many labels."""
        return self.drop * (np.asarray(records) / self.scale) ** -self.exponent + self.rest


def curve_members(decided: TrainConfig, *, asked: TrainConfig, data: Dataset, folds: int) -> list[Member]:
    """A member for each share of the labels and each repeat, or one for each fold of them; test records are the same.

    Tuning and precision are those of the run. Steps and validation go by the number of labels, as they do for a run
    that has no more: with less than ten validation sequences the weights after the last step are kept.
    """
    tuning = decided.tuning or {}
    repeats = REPEATS if tuning["name"] == "frozen" else 1
    stratify = data.level == "sequence" and len(data.targets) == 1 and task[data.kind].reads == "name"
    members = []
    for share in SHARES:
        for seed in range(asked.seed, asked.seed + repeats):
            part = _without_few(share_of(data, share, stratify=stratify, seed=seed))
            count = len(part.of("train"))
            if len({r.sequence for r in part.of("train")}) < FEWEST:
                continue
            config = replace(
                asked, tuning=tuning, precision=decided.precision, seed=seed, seeds=1, references=0,
                tokens_per_batch=decided.tokens_per_batch, checkpoint_activations=decided.checkpoint_activations,
            )  # fmt: skip
            config = config.completed(str(tuning["name"]), count)
            for member in members_of(config, part, folds):
                name = f"labels-{round(100 * share)}-percent-{seed}" + (f"-{member.name}" if folds > 1 else "")
                members.append(replace(member, name=name, share=share, gives_last=False))
    return members


def _without_few(data: Dataset) -> Dataset:
    if len({r.sequence for r in data.of("valid")}) >= FEWEST:
        return data
    return replace(data, records=tuple(r for r in data.records if r.split != "valid"))


def learning_curve(trained: Trained, data: Dataset, whole: Scores, sd: dict[str, float] | None) -> dict[str, Any]:
    """What metrics say of shares of the labels: scores of the test records by share, and what more labels would bring.

    `whole` are the scores with all labels, `sd` their spread over seeds if there were several.
    """
    found: dict[float, list[tuple[int, Scores]]] = defaultdict(list)
    groups: dict[tuple[float, int], list[int]] = defaultdict(list)
    for place, (member, _) in enumerate(trained.others):
        groups[member.share, member.config.seed].append(place)
    for (share, _), places in groups.items():
        found[share].append(_scores(trained, places))
    points = [_point(share, several) for share, several in sorted(found.items())]
    points.append({"share": 1.0, "records": len(data.of("train")), "scores": whole, "sd": sd})
    chosen = trained.fitted[0].best.get("metric")
    metric = trained.task.metric if chosen in (None, "loss") else str(chosen)
    return {"learning_curve": points, "more_labels": more_labels(points, metric)}


def _scores(trained: Trained, places: Sequence[int]) -> tuple[int, Scores]:
    """Training records and test scores of a share: of one member, or of all folds together."""
    import torch

    members = [trained.others[place] for place in places]
    outputs = [trained.task.average(draws_of(fitted, trained.task)) for _, fitted in members]
    data = members[0][0].data
    count = sum(len(data.of(split)) for split in (("train", "valid", "calibration") if trained.by_fold else ("train",)))
    return count, scores_of(trained.task, trained.task.average(torch.stack(outputs)), data, "test")


def _point(share: float, several: Sequence[tuple[int, Scores]]) -> dict[str, Any]:
    scores: Scores = {}
    sd: dict[str, float] = {}
    for metric in several[0][1]:
        values = [found[metric] for _, found in several]
        known = [value for value in values if value is not None]
        scores[metric] = statistics.fmean(known) if len(known) == len(values) else None
        if len(known) == len(values) > 1:
            sd[metric] = statistics.stdev(known)
    records = round(statistics.fmean(count for count, _ in several))
    return {"share": share, "records": records, "repeats": len(several), "scores": scores, "sd": sd or None}


def fit_power_law(
    records: Float[np.ndarray, "points"], errors: Float[np.ndarray, "points"], weights: Float[np.ndarray, "points"]
) -> PowerLaw:
    """The power law of least squares, weighted, that falls: drop and rest are no less than zero.

    For each exponent the rest is a linear problem (Lawson and Hanson 1995, https://doi.org/10.1137/1.9781611971217).
    That errors fall so with data: Hestness et al. 2017, https://doi.org/10.48550/arXiv.1712.00409.

    >>> n = np.array([10.0, 20.0, 50.0, 100.0])
    >>> law = fit_power_law(n, 2 * n**-0.5 + 0.1, np.ones(4))
    >>> round(float(law(200.0)), 3), round(2 * 200**-0.5 + 0.1, 3)
    (0.241, 0.241)
    """
    from scipy.optimize import minimize_scalar, nnls

    scale = float(records.max())
    roots = np.sqrt(weights)

    def solved(exponent: float) -> tuple[Float[np.ndarray, "2"], float]:
        columns = np.stack([(records / scale) ** -exponent, np.ones(len(records))], axis=1)
        return nnls(columns * roots[:, None], errors * roots)

    place = int(np.argmin([solved(exponent)[1] for exponent in EXPONENTS]))
    near = EXPONENTS[max(0, place - 1)], EXPONENTS[min(len(EXPONENTS) - 1, place + 1)]
    exponent = float(minimize_scalar(lambda x: solved(x)[1], bounds=near, method="bounded").x)  # pyright: ignore[reportAttributeAccessIssue]
    (drop, rest), _ = solved(exponent)
    return PowerLaw(float(drop), exponent, float(rest), scale)


def more_labels(points: Sequence[dict[str, Any]], metric: str, times: int = 2) -> dict[str, Any]:
    """What so many times the labels would bring, by a power law through the points of a learning curve.

    The interval holds 90 % of what comes out when the points are moved by the noise that repeats show, or by what the
    law leaves if that is more, taken to shrink with the root of the number of labels. Where the law does not account
    for the points, or they do not differ by more than repeats do, `gain` is None and the text says so.
    """
    sign = -sign_of(metric)
    used = [point for point in points if point["scores"].get(metric) is not None]
    whole = points[-1]["records"]
    text = f"What more labels would bring cannot be told: {{}} ({metric}, {whole:,} training records)."
    result: dict[str, Any] = {"metric": metric, "records": times * whole, "gain": None, "low": None, "high": None}
    if len(used) < 3:
        return result | {"text": text.format(f"there are only {len(used)} points")}
    records = np.array([point["records"] for point in used], float)
    errors = np.array([sign * point["scores"][metric] + (sign < 0) for point in used])
    repeats = np.array([point.get("repeats", 1) for point in used], float)
    weights = repeats * records / records.max()
    law = fit_power_law(records, errors, weights)
    left = float(np.sqrt((weights * (errors - law(records)) ** 2).sum() / max(1, len(used) - 3)))
    repeated = _repeated(used, metric)
    ends = (left if repeated is None else repeated) / np.sqrt(weights[[0, -1]])
    if errors[0] - errors[-1] < 2 * np.hypot(*ends):
        return result | {"text": text.format("the scores of all shares are alike within the noise")}
    explained = 1 - np.average((errors - law(records)) ** 2, weights=weights) / np.average(
        (errors - np.average(errors, weights=weights)) ** 2, weights=weights
    )
    if explained < GOOD_FIT:
        return result | {"text": text.format("the scores do not rise steadily with the labels")}
    spread = max(left, repeated or 0.0) / np.sqrt(weights)  # of each point
    gains = _gains(records, law(records), spread, weights, times)
    gain, (low, high) = float(law(float(whole)) - law(float(times * whole))), np.quantile(gains, (0.05, 0.95)).tolist()
    direction = "-" if sign > 0 else "+"
    said = (
        f"Twice the labels ({times * whole:,} instead of {whole:,} training records) would bring about "
        f"{direction}{gain:.3f} {metric} [{low:.3f}, {high:.3f}], if the curve goes on as it began."
    )
    return result | {"gain": gain, "low": low, "high": high, "text": said}


def _repeated(used: Sequence[dict[str, Any]], metric: str) -> float | None:
    """The standard deviation of one training with all labels as repeats of shares show it; None without repeats."""
    squares = [
        ((point["sd"] or {})[metric] ** 2 * point["records"] / used[-1]["records"], point.get("repeats", 2) - 1)
        for point in used
        if metric in (point["sd"] or {})
    ]
    total = sum(freedom for _, freedom in squares)
    return float(np.sqrt(sum(square * freedom for square, freedom in squares) / max(1, total))) if squares else None


def _gains(
    records: Float[np.ndarray, "points"], errors: Float[np.ndarray, "points"], spread: Float[np.ndarray, "points"],
    weights: Float[np.ndarray, "points"], times: int,
) -> Float[np.ndarray, "draws"]:  # fmt: skip
    draws = np.random.default_rng(0).normal(errors, spread, (DRAWS, len(errors)))
    laws = [fit_power_law(records, drawn, weights) for drawn in draws]
    return np.array([law(float(records.max())) - law(float(times * records.max())) for law in laws])
