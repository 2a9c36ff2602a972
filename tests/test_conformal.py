"""Intervals and sets agree with crepes, and hold the truth as often as theory says, whatever is predicted."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from esmtune.calibration import PAIRS, Calibration, calibrate
from esmtune.conformal import calibration_error, depths, misses, one_of_each, rank, sets, threshold
from esmtune.distributions import PROBABILITIES
from esmtune.records import Censored
from esmtune.tasks import Binary, Multiclass, Multilabel, Multitask, Ordinal, Regression

LEVELS = [0.5, 0.8, 0.9, 0.95]
NAMES = [str(number) for number in range(100)]


def numbers(count=100, *, members=1, width=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(members, count, width, generator=generator, dtype=torch.float64)
    labels = (outputs.mean(0)[:, 0] * 2 + 1 + torch.randn(count, generator=generator, dtype=torch.float64)).tolist()
    return outputs, labels


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("members", [1, 4])
def test_intervals_of_numbers_are_those_of_crepes(level, members):
    from crepes import ConformalRegressor

    task = Regression.fit([0.0, 4.0])
    outputs, labels = numbers(members=members)
    found = calibrate("y", task, outputs, labels, NAMES, seed=0)
    new, _ = numbers(members=members, seed=1)
    center, others = np.array(task.predict(outputs.mean(0))), np.array(task.predict(new.mean(0)))
    sigmas = {}
    if members > 1:
        floor = 0.1 * 2.0  # of the standard deviation of the training labels, 2
        sigmas = {
            "fit": np.array([task.predict(m) for m in outputs]).std(0) + floor,
            "new": np.array([task.predict(m) for m in new]).std(0) + floor,
        }
    theirs = ConformalRegressor().fit(np.array(labels) - center, sigmas=sigmas.get("fit"))
    wanted = theirs.predict_int(others, sigmas=sigmas.get("new"), confidence=level)
    bounds = found.bounds(task, new, level)
    np.testing.assert_allclose(np.stack((bounds.lower, bounds.upper), axis=1), wanted, rtol=1e-6)
    assert found.method == ("normalized" if members > 1 else "absolute")


@pytest.mark.parametrize("level", LEVELS)
def test_intervals_by_group_are_those_of_crepes(level):
    from crepes import ConformalRegressor

    task, groups = Regression.fit([0.0, 4.0]), ["near" if n % 4 else "far" for n in range(100)]
    outputs, labels = numbers()
    found = calibrate("y", task, outputs, labels, NAMES, seed=0, groups=groups)
    new, _ = numbers(seed=1)
    center, others = np.array(task.predict(outputs[0])), np.array(task.predict(new[0]))
    theirs = ConformalRegressor().fit(np.array(labels) - center, bins=np.array(groups))
    wanted = theirs.predict_int(others, bins=np.array(groups), confidence=level)
    bounds = found.bounds(task, new, level, groups=groups, conditional=True)
    np.testing.assert_allclose(np.stack((bounds.lower, bounds.upper), axis=1), wanted, rtol=1e-6)
    whole = calibrate("y", task, outputs, labels, NAMES, seed=0)
    assert found.bounds(task, new, level) == whole.bounds(task, new, level)
    with pytest.raises(ValueError, match="the groups 'nowhere' have too few"):
        found.bounds(task, new, level, groups=["nowhere"] * 100, conditional=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("conditional", [False, True])
def test_sets_of_classes_are_those_of_crepes(level, conditional):
    from crepes import ConformalClassifier

    classes = np.array(["a", "b", "c"])
    task = Multiclass.fit(classes.tolist())
    generator = torch.Generator().manual_seed(0)
    outputs, new = 2 * torch.randn(2, 1, 100, 3, generator=generator, dtype=torch.float64)
    truth = torch.multinomial(outputs[0].softmax(-1), 1, generator=generator)[:, 0].numpy()
    found = calibrate("y", task, outputs, classes[truth].tolist(), NAMES, seed=0)
    own, others = (1 - x[0].softmax(-1).numpy() for x in (outputs, new))
    bins = truth if conditional else None
    theirs = ConformalClassifier().fit(own[np.arange(100), truth], bins=bins)
    told = np.tile(np.arange(3), (100, 1)) if conditional else None
    wanted = np.array(
        theirs.predict_set(others, bins=told, confidence=level, smoothing=False)
        if not conditional
        else np.stack(
            [
                theirs.predict_p(others[:, [c]], bins=np.full(100, c), smoothing=False)[:, 0] > 1 - level
                for c in range(3)
            ],
            axis=1,
        )
    ).astype(bool)
    wanted |= others.argmin(1)[:, None] == np.arange(3)  # ours is never empty
    bounds = found.bounds(task, new, level, conditional=conditional)
    assert bounds.sets == [tuple(classes[row]) for row in wanted]


@pytest.mark.parametrize(("loss", "width"), [("quantile", len(PROBABILITIES)), ("gaussian", 2)])
@pytest.mark.parametrize("level", [*LEVELS, 0.87])
def test_learned_intervals_move_out_by_the_score_of_the_level(loss, width, level):
    task = Regression.fit([0.0, 4.0], loss=loss)
    outputs, labels = numbers(width=width)
    found = calibrate("y", task, outputs, labels, NAMES, seed=0)
    new, _ = numbers(width=width, seed=1)
    bounds = found.bounds(task, new, level)
    y, k = np.array(labels), math.ceil(101 * level)
    if loss == "gaussian":
        center, other = (x[0, :, 0].numpy() * 2 + 2 for x in (outputs, new))
        spread, others = (np.array(task.doubt(x)) for x in (outputs, new))
        limit = sorted(np.abs(y - center) / spread)[k - 1]
        wanted = other - limit * others, other + limit * others
    else:
        p = np.array(PROBABILITIES)
        nearest = min((q for q in p if q < 0.5), key=lambda q: (round(abs(1 - 2 * q - level), 9), -q))
        low, high = (int(np.abs(p - q).argmin()) for q in (nearest, 1 - nearest))
        own, others = (np.sort(x[0].numpy(), axis=1) * 2 + 2 for x in (outputs, new))
        limit = sorted(max(a - label, label - b) for a, b, label in zip(own[:, low], own[:, high], y, strict=True))[
            k - 1
        ]
        wanted = others[:, low] - limit, others[:, high] + limit
        crossed = wanted[0] > wanted[1]
        middle = (wanted[0] + wanted[1]) / 2
        wanted = np.where(crossed, middle, wanted[0]), np.where(crossed, middle, wanted[1])
    np.testing.assert_allclose(bounds.lower, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(bounds.upper, wanted[1], rtol=1e-6)


def test_pairs_of_quantiles_lie_alike_about_the_median():
    for level, low, high in PAIRS:
        assert PROBABILITIES[high] - PROBABILITIES[low] == pytest.approx(level)
        assert PROBABILITIES[high] + PROBABILITIES[low] == pytest.approx(1)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_over_resamplings_is_distributed_as_theory_says(level):
    """The share covered of many points is Beta(k, n + 1 - k) over calibration sets of n: its mean and quantiles."""
    task, n, resamplings = Regression.fit([0.0, 2.0]), 60, 400
    generator = np.random.default_rng(0)
    shares = []
    for seed in range(resamplings):
        labels = generator.normal(size=n)
        found = calibrate("y", task, torch.full((1, n, 1), -1.0), labels.tolist(), NAMES[:n], seed=seed)
        bounds = found.bounds(task, torch.full((1, 1, 1), -1.0), level)  # about the true mean, 0
        shares.append(math.erf(bounds.upper[0] / math.sqrt(2)))
    k = rank(n, level)
    wanted = beta(k, n + 1 - k)
    assert np.mean(shares) == pytest.approx(wanted.mean(), abs=4 * wanted.std() / math.sqrt(resamplings))
    for q in (0.1, 0.5, 0.9):  # a share of q lies below, within 4 standard deviations of a binomial
        assert np.mean(np.array(shares) <= wanted.ppf(q)) == pytest.approx(
            q, abs=4 * math.sqrt(q * (1 - q) / resamplings)
        )


def test_coverage_of_residues_is_that_of_a_random_residue_of_another_sequence():
    """Residues of a sequence share an error; calibrated as if they did not, coverage would vary far more."""
    generator, task, covered = np.random.default_rng(0), Regression.fit([0.0, 2.0]), []
    for seed in range(150):
        lengths = generator.integers(1, 30, size=41)
        shared = generator.normal(size=41)
        labels = [float(shared[s] + 0.3 * generator.normal()) for s in range(40) for _ in range(lengths[s])]
        names = [str(s) for s in range(40) for _ in range(lengths[s])]
        found = calibrate("y", task, torch.full((1, len(labels), 1), -1.0), labels, names, seed=seed)
        assert found.records == 40
        limit = found.bounds(task, torch.full((1, 1, 1), -1.0), 0.8).upper[0]
        covered.append(abs(shared[40] + 0.3 * generator.normal()) <= limit)
    assert np.mean(covered) == pytest.approx(33 / 41, abs=4 * math.sqrt(0.8 * 0.2 / 150))


def test_grades_are_an_interval_about_the_median():
    task = Ordinal.fit(["1", "2", "3", "4"])
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=100)
    outputs = task.outputs_of(torch.from_numpy(probabilities).log())[None]
    truth = [str(1 + np.random.default_rng(n).choice(4, p=row)) for n, row in enumerate(probabilities)]
    found = calibrate("y", task, outputs, truth, NAMES, seed=0)
    assert found.method == "ordinal"
    for level in LEVELS:
        bounds = found.bounds(task, outputs, level)
        median = task.predict(outputs[0])
        assert all(low <= m <= high for low, m, high in zip(bounds.lower, median, bounds.upper, strict=True))
        hit = np.mean([low <= t <= high for low, t, high in zip(bounds.lower, truth, bounds.upper, strict=True)])
        assert hit >= math.ceil(101 * level) / 100
    held = sets(depths(probabilities), np.array([[0.2]]))
    assert all("01" not in "".join(map(str, row.astype(int))).lstrip("0")[1:] for row in held)  # no gap


def test_a_calibration_saved_is_a_calibration_loaded():
    import json

    for task, labels, width in (
        (Regression.fit([0.0, 4.0], loss="quantile"), numbers()[1], 9),
        (Binary.fit(["no", "yes"]), ["no", "yes"] * 50, 1),
    ):
        found = calibrate("y", task, torch.randn(1, 100, width), labels, NAMES, seed=0)
        assert Calibration.loaded(json.loads(json.dumps(found.spec(), allow_nan=False))) == found
    with pytest.raises(KeyError):
        Calibration.loaded({**found.spec(), "method": "magic"})


def test_too_few_points_for_a_level_are_said_with_the_levels_that_there_are():
    task = Regression.fit([0.0, 4.0])
    outputs, labels = numbers(19)
    found = calibrate("y", task, outputs, labels, NAMES[:19], seed=0)
    assert found.bounds(task, outputs, 0.95).upper is not None
    with pytest.raises(ValueError, match=r"0.96 takes 24 .* has 19 for 'y': levels up to 0.95 are possible"):
        found.bounds(task, outputs, 0.96)
    for level in (0.0, 1.0, 90.0):
        with pytest.raises(ValueError, match="expected a share between 0 and 1"):
            found.check(level)


def test_a_class_with_too_few_points_is_in_every_set():
    task = Multiclass.fit(["a", "b", "c"])
    labels = ["a"] * 60 + ["b"] * 39 + ["c"]
    outputs = torch.randn(1, 100, 3)
    found = calibrate("y", task, outputs, labels, NAMES, seed=0)
    assert found.too_few(0.9) == ["c"]
    assert all("c" in held for held in found.bounds(task, outputs, 0.9, conditional=True).sets)


def test_what_is_unknown_a_bound_or_not_supported_is_not_calibrated():
    task = Regression.fit([0.0, 4.0])
    found = calibrate("y", task, torch.zeros(1, 3, 1), [1.0, None, Censored(9.0, ">")], NAMES[:3], seed=0)
    assert [s.scores for s in found.strata] == [(1.0,)]
    assert calibrate("y", task, torch.zeros(1, 1, 1), [None], ["a"], seed=0) is None
    ranked = Regression.fit([0.0, 4.0], loss="pairwise")  # no unit yet
    assert calibrate("y", ranked, torch.zeros(1, 1, 1), [1.0], ["a"], seed=0) is None
    several = Multitask.of([("y", task)])
    many = Multilabel(classes=("a",), shares=(0.5,))
    for other in (several, many):
        assert calibrate("y", other, torch.zeros(1, 1, 1), [1.0], ["a"], seed=0) is None


def test_ranks_and_thresholds():
    assert [rank(n, 0.9) for n in (8, 9, 10, 99)] == [None, 9, 10, 90]
    assert threshold(np.array([3.0, 1.0, 2.0]), 0.75) == 3.0
    assert threshold(np.array([3.0]), 0.9) == math.inf
    assert misses(np.array([[0.2, 0.8]])).tolist() == [[0.8, pytest.approx(0.2)]]
    assert len(one_of_each(["a"] * 5 + ["b"] * 5, np.ones(10, dtype=bool), 1)) == 2


def test_the_calibration_error_of_probabilities_that_are_right_is_nearly_none():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.4, 1, size=20_000)
    assert calibration_error(generator.uniform(size=20_000) < confidence, confidence) < 0.02
    assert calibration_error(generator.uniform(size=20_000) < confidence - 0.2, confidence) == pytest.approx(
        0.2, abs=0.02
    )
