"""Labels learned as normal scores: the curve against SciPy, and when it is taken."""

import json
import math
import tomllib

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import norm, rankdata

import esmtune
from esmtune.classes import Binary
from esmtune.ensembles import Ensemble
from esmtune.linear import Probe, on_best_scale
from esmtune.normal_scores import KNOTS, STEP, curve, labels_at, scores_of
from esmtune.records import Censored
from esmtune.tasks import Multitask, Regression
from tests.conftest import TEN

DRAWN = np.random.default_rng(0)


@pytest.mark.parametrize(
    "labels",
    [
        DRAWN.exponential(size=500),
        DRAWN.integers(0, 5, 300).astype(float),
        np.array([1.0, 4.0]),
        -DRAWN.random(3) * 1e6,
    ],
    ids=["tail", "grades", "two", "large"],
)
def test_the_curve_goes_through_the_normal_scores_of_the_labels(labels):
    order = np.sort(labels)
    scores = norm.ppf((rankdata(order, "ordinal") - 0.5) / len(order))
    grid = (np.arange(KNOTS) - KNOTS // 2) * STEP
    inside = (grid >= scores[0]) & (grid <= scores[-1])
    heights = np.array(curve(labels))
    assert heights[inside] == pytest.approx(np.interp(grid[inside], scores, order), rel=1e-9, abs=1e-9)
    assert (np.diff(heights) >= 0).all()


def test_labels_come_back_from_their_scores():
    draw = np.random.default_rng(0)
    labels = draw.exponential(size=500)
    heights = curve(labels)
    asked = np.linspace(-3.0, 2 * labels.max(), 200)  # also below and above all that were seen
    back = labels_at(torch.from_numpy(scores_of(asked, heights)), heights).numpy()
    assert back == pytest.approx(asked, abs=1e-9)
    assert np.isnan(scores_of(np.array([math.nan]), heights)).all()
    assert labels_at(torch.tensor([math.nan]), heights).isnan().all()


def test_a_heap_of_equal_labels_has_one_score():
    labels = np.array([0.0] * 50 + list(range(1, 51)), dtype=float)
    heights = curve(labels)
    (score,) = scores_of(np.array([0.0]), heights)
    assert score == pytest.approx(norm.ppf(0.25), abs=0.1)  # the middle of their ranks, but for the knots' distance
    assert labels_at(torch.tensor([score, -2.5, -1.0]), heights).tolist() == [0.0] * 3
    assert labels_at(torch.tensor([1.0]), heights).item() == pytest.approx(np.quantile(labels, norm.cdf(1.0)), abs=1)


def test_the_largest_of_many_labels_are_what_they_were():
    """However far out, and beyond a heap of equal ones: each has its own score, in the order of labels."""
    drawn = np.random.default_rng(1)
    for labels in (np.exp(3 * drawn.normal(size=8000)), np.append(drawn.integers(0, 6, 3997), [8.0, 20.0, 40.0])):
        heights, order = curve(labels), np.sort(labels)
        top = scores_of(order[-3:], heights)
        assert 2.9 < top[0] < top[1] < top[2] < 4.5  # of 8,000 draws of a normal distribution the largest is near 3.8
        assert labels_at(torch.from_numpy(top), heights).numpy() == pytest.approx(order[-3:])
    saturated = curve(np.array([1.0] * 50 + [2.0] * 50))
    beyond = np.array([0.0, 1.0, 2.0, 2.5])
    found = scores_of(beyond, saturated)
    assert (np.diff(found) > 0).all()
    assert labels_at(torch.from_numpy(found), saturated).numpy() == pytest.approx(beyond)


def test_what_is_predicted_is_in_the_unit_of_the_label():
    labels = [1.0, 2.0, 4.0, 8.0, Censored(16.0, ">"), None]
    fitted = Regression.fit(labels, scale="normal")
    targets = fitted.targets(labels)
    assert targets[:, 1].tolist()[:5] == [0, 0, 0, 0, 1]
    outputs = targets[:4, :1]
    assert fitted.predict(outputs) == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert fitted.scores(outputs, labels[:4])["r2"] == pytest.approx(1.0)
    assert fitted.predict(fitted.baseline(1)) == pytest.approx([np.mean([1, 2, 4, 8, 16])])
    linear = Regression.fit(labels)
    assert fitted.predict(fitted.translated(linear.targets(labels)[:4, :1], linear)) == pytest.approx([1, 2, 4, 8])
    assert linear.predict(linear.translated(outputs, fitted)) == pytest.approx([1, 2, 4, 8])
    assert Regression.fit([3.0, 3.0], scale="normal").predict(torch.zeros(1, 1)) == [3.0]  # nothing varies


def test_labels_of_many_orders_of_magnitude_stay_apart_in_another_standard():
    labels = np.exp(5 * np.random.default_rng(1).normal(size=2000)).tolist()
    fitted = Regression.fit(labels, scale="normal")
    outputs = fitted.targets(labels)[:, :1].float()
    common = fitted.plain()
    moved = common.predict(common.translated(outputs, fitted))
    # Float64 has sixteen digits, and from the least label to the spread of all it is twelve.
    assert moved == pytest.approx(fitted.predict(outputs), rel=1e-3)
    assert min(moved) > 0


def test_a_scale_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="scale is 'log', expected one of linear, normal, auto"):
        Regression.fit([1.0, 2.0], scale="log")
    for loss in ("pairwise", "gaussian"):
        with pytest.raises(ValueError, match=f"the loss {loss} goes with the scale linear alone, got normal"):
            Regression.fit([1.0, 2.0], loss=loss, scale="normal")


def decided(task, x, labels, points=None):
    """`x` has rows of the points in their order."""
    points = list(range(len(labels)) if points is None else points)
    return on_best_scale(task, lambda wanted: Probe.of(x[[points.index(i) for i in wanted]]), points, labels)


def test_the_scale_is_that_from_which_unseen_labels_are_predicted():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 4))
    known = x @ [1.0, -2.0, 0.5, 0.0]
    for labels, expected in ((known, "linear"), (np.exp(known / 2), "normal"), (np.exp(known[:19]), "linear")):
        task = Regression.fit(labels.tolist(), ranking_weight=3.0, scale="auto")
        found, why = decided(task, x, labels.tolist())
        assert isinstance(found, Regression)
        assert (found.scale, bool(found.knots), found.ranking_weight) == (expected, expected == "normal", 3.0)
        assert ("normal scores" in why) == (expected == "normal")
        # Decided is decided, and features are not asked for.
        assert decided(found, None, labels.tolist()) == (found, "")
    both = Multitask.of(
        [("a", Regression.fit(np.exp(known / 2).tolist(), scale="auto")), ("b", Binary.fit(["x", "y"]))]
    )
    pairs = [(value, "xy"[place % 2]) for place, value in enumerate(np.exp(known / 2).tolist())]
    found, why = decided(both, x, [*pairs[:-1], None])
    assert isinstance(found, Multitask)
    assert [getattr(part, "scale", None) for part in found.tasks] == ["normal", None]
    assert why.startswith("a: ")


def test_a_sample_decides_and_all_labels_make_the_scale():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 2))
    labels = np.exp(1.2 * x[:, 0]).tolist()
    places = draw.permutation(400)[:250].tolist()
    for task in (Regression.fit(labels, scale="auto"), Regression.fit(x[:, 0].tolist(), scale="auto")):
        own = labels if task.center > 1 else x[:, 0].tolist()
        found, _ = decided(task, x[places], own, places)
        assert found == Regression.fit(own, scale=found.scale)
        assert found.scale == ("normal" if own is labels else "linear")


@pytest.mark.parametrize("x", [np.zeros((60, 3)), np.full((60, 3), np.nan)], ids=["constant", "no numbers"])
def test_features_that_say_nothing_leave_labels_as_they_are(x):
    draw = np.random.default_rng(0)
    labels = draw.exponential(size=60).tolist()
    assert decided(Regression.fit(labels, scale="auto"), x, labels) == (Regression.fit(labels), "")
    bounded = [*[10.0] * 30, *[Censored(20.0, ">")] * 30]
    found, _ = decided(Regression.fit(bounded, scale="auto"), draw.normal(size=(60, 3)), bounded)
    assert found.scale == "linear"


def test_numbers_that_weigh_nothing_have_no_say_in_the_scale_nor_its_curve(tiny):
    rows = variants(120)
    frame = pl.DataFrame(
        {
            "sequence": [sequence for sequence, _ in rows],
            "label": [label for _, label in rows[:80]] + [999.0] * 40,
            "weight": [1.0] * 80 + [0.0] * 40,
        }
    )
    options = {
        "encoder": str(tiny),
        "max_steps": 2,
        "folds": 1,
        "valid_fraction": 0,
        "test_fraction": 0,
        "cache": "none",
    }
    weighed = esmtune.train(frame, weight="weight", report=False, **options)
    without = esmtune.train(frame[:80], report=False, **options)
    assert weighed.predictor.task == without.predictor.task
    assert weighed.predictor.task.scale == "normal"


def variants(count):
    """Sequences whose labels are exponentials of how often a residue is there."""
    rows = []
    for place in range(count):
        sequence = "".join("ACDEFGHIKLMNPQRSTVWY"[i] for i in np.random.default_rng(place).integers(0, 20, 12))
        rows.append((sequence, math.exp(1.5 * sequence.count("A") - sequence.count("W"))))
    return rows


@pytest.mark.parametrize("tuning", ["frozen", {"name": "probe-then-full", "probe_epochs": 1}])
def test_a_run_decides_once_says_so_and_is_repeated_by_its_file(tiny, tmp_path, tuning):
    said = []
    options = {"encoder": str(tiny), "split": "random", "cache": "none", "report": False, "folds": 1}
    run = esmtune.train(variants(150), out=tmp_path / "one", tuning=tuning, max_steps=30, head_learning_rate=1e-2,
                        global_batch_size=32, watch=said.append, **options)  # fmt: skip
    assert sum("learned as normal scores" in getattr(event, "text", "") for event in said) == 1
    saved = json.loads((tmp_path / "one" / "predictor" / "predictor.json").read_text())["task"]
    assert saved["scale"] == "normal"
    assert len(saved["knots"]) == KNOTS
    config = tomllib.loads((tmp_path / "one" / "run.toml").read_text())
    assert config["task"] == {"name": "regression", "loss": "squared", "ranking_weight": 3.0, "scale": "auto"}
    again = esmtune.train(variants(150), **{**options, "tuning": config["tuning"], "task": config["task"]},
                          max_steps=30, head_learning_rate=1e-2, global_batch_size=32)  # fmt: skip
    assert again.predictor.predict(list(TEN)) == run.predictor.predict(list(TEN))
    assert esmtune.load(tmp_path / "one").predict(list(TEN)) == run.predictor.predict(list(TEN))
    plain = esmtune.train(variants(150), tuning=tuning, max_steps=3,
                          task={"name": "regression", "ranking_weight": 0.0, "scale": "linear"}, **options)  # fmt: skip
    assert plain.predictor.task == plain.predictor.task.plain()


def test_members_on_different_scales_speak_in_the_unit_of_the_label(tiny, tmp_path):
    """Each says what it says, whatever the others were trained on: nothing is lost below the first one's curve."""
    rows, members = [], []
    for scale in ("normal", "linear"):
        task = {"name": "regression", "scale": scale, "ranking_weight": 0.0}
        run = esmtune.train(variants(60), encoder=str(tiny), max_steps=20, task=task, folds=1, cache="none",
                            report=False)  # fmt: skip
        members.append(run.predictor)
        rows.append(run.predictor.predict(list(TEN)))
    for order in (members, members[::-1]):
        together = Ensemble(order)
        assert together.predict(list(TEN)) == pytest.approx(np.mean(rows, axis=0).tolist(), rel=1e-6)
        together.save(tmp_path / order[0].task.scale)
        assert esmtune.load(tmp_path / order[0].task.scale).predict(list(TEN)) == together.predict(list(TEN))


def test_a_run_that_goes_on_from_another_keeps_its_scale(tiny, tmp_path):
    options = {"split": "random", "cache": "none", "report": False, "max_steps": 10, "folds": 1}
    esmtune.train(variants(150), encoder=str(tiny), out=tmp_path / "one", **options)
    two = esmtune.train(variants(150), init=str(tmp_path / "one"), out=tmp_path / "two", **options)
    saved = tomllib.loads((tmp_path / "two" / "run.toml").read_text())["task"]
    assert (saved["scale"], saved["ranking_weight"]) == ("normal", 3.0)
    again = esmtune.train(variants(150), init=str(tmp_path / "one"), task=saved, **options)
    assert again.predictor.predict(list(TEN)) == two.predictor.predict(list(TEN))
    for task in ({"scale": "linear"}, {"loss": "pairwise"}):
        with pytest.raises(ValueError, match="learned labels on the scale normal, which does not go with"):
            esmtune.train(variants(150), init=str(tmp_path / "one"), task={"name": "regression", **task}, **options)
    anew = esmtune.train(variants(150), init=str(tmp_path / "one"), init_skip=["head.out"], **options)
    assert anew.predictor.task.scale != "auto"
