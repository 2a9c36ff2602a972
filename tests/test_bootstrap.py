"""Intervals agree with SciPy's, hold what they should as often as they say, and pairs tell a gain from chance."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import spearmanr

from esmtune.bootstrap import bootstrap
from esmtune.comparison import Side, comparison
from esmtune.drawing import interval_of
from esmtune.records import Record
from esmtune.tasks import Regression


def outputs_of(task: Regression, predictions: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((predictions - task.center) / task.spread)[:, None]


def drawn(size: int, noise: float, seed: int) -> tuple[list[float], np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(size=size)
    return truth.tolist(), truth + noise * random.normal(size=size)


def test_intervals_are_those_of_scipy():
    labels, predictions = drawn(150, 1.0, seed=1)
    task = Regression.fit(labels)
    found = bootstrap({"x": (task, outputs_of(task, predictions))}, labels, range(150), seed=0, resamples=4000)
    assert found is not None
    statistics = {
        "spearman": lambda x, y: spearmanr(x, y).statistic,
        "mae": lambda x, y: np.abs(x - y).mean(),
    }
    for metric, statistic in statistics.items():
        wanted = scipy_bootstrap(
            (np.array(labels), predictions), statistic, paired=True, vectorized=False, method="percentile",
            n_resamples=2000, rng=5,
        ).confidence_interval  # fmt: skip
        assert found.interval("x", metric) == pytest.approx(wanted, abs=0.02)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        labels, predictions = drawn(80, 1.0, seed)
        task = Regression.fit(labels)
        found = bootstrap({"x": (task, outputs_of(task, predictions))}, labels, range(80), seed=seed, resamples=400)
        assert found is not None
        low, high = found.interval("x", "pearson") or (0, 0)
        hits += low <= 1 / np.sqrt(2) <= high
    assert 0.90 <= hits / 200 <= 0.98


def test_sequences_are_drawn_not_residues():
    """Residues of one protein err alike: drawn one by one they would seem to be many times the evidence."""
    random = np.random.default_rng(0)
    labels = random.normal(size=1000).tolist()
    of_protein = np.repeat(random.normal(size=20), 50)
    task = Regression.fit(labels)
    compared = {"x": (task, outputs_of(task, np.array(labels) + of_protein))}
    together = bootstrap(compared, labels, np.repeat(np.arange(20), 50).tolist(), seed=0)
    apart = bootstrap(compared, labels, range(1000), seed=0)
    assert together is not None
    assert apart is not None
    widths = [np.ptp(found.interval("x", "mae") or (0, 0)) for found in (together, apart)]
    assert widths[0] > 3 * widths[1]


def test_few_sequences_have_no_interval():
    task = Regression.fit([0.0, 1.0])
    compared = {"x": (task, torch.zeros(18, 1))}
    assert bootstrap(compared, [float(i) for i in range(18)], [i // 2 for i in range(18)], seed=0) is None


def test_resamples_without_a_value_are_left_out_and_counted():
    assert interval_of(np.array([np.nan, 1.0, 1.0, 1.0])) == (1, 1)
    assert interval_of(np.array([np.nan, np.nan, np.nan, 1.0])) is None
    labels = [0.0] * 11 + [1.0]  # more than a third of the resamples have one value alone
    task = Regression.fit(labels)
    found = bootstrap({"x": (task, outputs_of(task, np.arange(12.0)))}, labels, range(12), seed=0)
    assert found is not None
    lost = found.undefined("x", {"spearman": 1.0, "mae": 1.0})
    assert set(lost) == {"spearman"}
    assert lost["spearman"] / found.resamples == pytest.approx((11 / 12) ** 12, abs=0.05)


def side(predictor: np.ndarray, baseline: np.ndarray, labels: list[float], split: str = "test") -> Side:
    task = Regression.fit(labels)
    records = [
        Record(id=str(i), sequence=f"M{'K' * i}", labels=(x,), split="test", where="") for i, x in enumerate(labels)
    ]
    return Side(
        split=split, records=records, labels=labels, task=task, outputs=outputs_of(task, predictor), ignorant=task,
        baselines={"mean": task.baseline(len(labels)), "one-hot ridge": outputs_of(task, baseline)},
    )  # fmt: skip


def test_a_real_gain_is_more_than_chance_and_none_is_not():
    labels, good = drawn(200, 0.5, seed=2)
    _, worse = drawn(200, 0.8, seed=2)
    _, same = drawn(200, 0.5, seed=2)
    gained = comparison([side(good, worse, labels)], "spearman")["gain"]["test"]
    assert gained["baseline"] == "one-hot ridge"
    assert 0 < gained["low"] < gained["difference"] < gained["high"]
    assert gained["text"].startswith("On 200 test proteins Spearman is .")
    assert gained["text"].endswith("the best baseline, chosen on the same rows, one-hot ridge: more than chance.")
    equal = comparison([side(good, same, labels)], "spearman")["gain"]["test"]
    assert (equal["difference"], equal["low"], equal["high"]) == (0, 0, 0)
    assert "no more than chance" in equal["text"]
    lost = comparison([side(worse, good, labels)], "spearman")["gain"]["test"]
    assert lost["high"] < 0
    assert "below the best baseline" in lost["text"]
    assert lost["text"].endswith("worse, and by more than chance.")


def test_a_gain_of_nothing_is_called_one_as_rarely_as_chance_has_it():
    """Predictor and baseline err alike but independently: one in twenty intervals may leave out zero."""
    false_alarms = 0
    for seed in range(50):
        random = np.random.default_rng(seed)
        truth = random.normal(size=60)
        one, other = (truth + random.normal(size=60) for _ in range(2))
        gained = comparison([side(one, other, truth.tolist())], "pearson")["gain"]["test"]
        false_alarms += not gained["low"] <= 0 <= gained["high"]
    assert false_alarms <= 7


def test_a_baseline_that_is_better_on_the_test_rows_alone_is_named():
    labels, good = drawn(200, 0.5, seed=2)
    _, fair = drawn(200, 0.65, seed=2)
    _, poor = drawn(200, 0.8, seed=2)

    def held(split: str, one_hot: np.ndarray, composition: np.ndarray) -> Side:
        made = side(fair, one_hot, labels, split=split)
        return replace(
            made, baselines={**made.baselines, "composition": outputs_of(Regression.fit(labels), composition)}
        )

    text = comparison([held("valid", good, poor), held("test", poor, good)], "spearman")["gain"]["test"]["text"]
    best = f"{spearmanr(labels, good).statistic:.3f}".lstrip("0")
    assert "the best baseline, one-hot ridge" in text
    assert text.endswith(f"On these rows composition does better than that baseline: {best}.")


def test_what_is_better_when_lower_is_told_so():
    labels, good = drawn(200, 0.5, seed=2)
    _, worse = drawn(200, 0.8, seed=2)
    gained = comparison([side(good, worse, labels)], "mae")["gain"]["test"]
    assert 0 < gained["low"] < gained["difference"] < gained["high"]
    assert "below the best baseline" in gained["text"]
    assert gained["text"].endswith("more than chance.")


def test_the_best_baseline_is_chosen_on_validation_rows():
    labels, good = drawn(60, 0.1, seed=2)
    _, bad = drawn(60, 3.0, seed=2)
    task = Regression.fit(labels)

    def both(first: np.ndarray, second: np.ndarray, split: str) -> Side:
        found = side(good, first, labels, split)
        more = {"a": outputs_of(task, first), "b": outputs_of(task, second)}
        return Side(**{**vars(found), "baselines": more})

    found = comparison([both(good, bad, "valid"), both(bad, good, "test")], "spearman")
    assert found["gain"]["test"]["baseline"] == "a"  # though b is better on the test rows


def test_a_thousand_resamples_of_a_large_test_set_take_seconds():
    labels, good = drawn(5743, 1.0, seed=2)
    task = Regression.fit(labels)
    compared = {str(n): (task, outputs_of(task, good + n)) for n in range(7)}
    started = time.process_time()
    found = bootstrap(compared, labels, range(5743), seed=0)
    assert found is not None
    assert found.resamples == 1000
    assert time.process_time() - started < 20  # ten when nothing else runs
