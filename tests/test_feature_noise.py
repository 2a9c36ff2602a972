"""Noise on the features of a frozen encoder: how much of it suits the labels, and that it changes nothing else."""

import numpy as np
import pytest
import torch

import esmtune
from esmtune.linear import MOST_NOISE, Probe, fitting_noise
from esmtune.readouts import Noise
from esmtune.records import Marks
from esmtune.tasks import task
from tests.conftest import TEN

ROWS = [(sequence, float(len(sequence) % 7) + number / 10) for number, sequence in enumerate(TEN)]
OPTIONS = {"encoder": "random:esm2_t6_8M_UR50D", "epochs": 2, "valid_fraction": 0.2, "test_fraction": 0.2, "folds": 1,
           "global_batch_size": 4, "cache": "none"}  # fmt: skip


def features(points: int = 400, channels: int = 60):
    """Channels of which the first are much alike: few directions hold nearly all that varies."""
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(points, 3)) @ draw.normal(size=(3, channels))
    return shared + 0.1 * draw.normal(size=(points, channels))


X = features()
MAIN = np.linalg.svd(X - X.mean(0), full_matrices=False)[0] * len(X) ** 0.5
BROAD = MAIN[:, 0] + 2 * np.random.default_rng(1).normal(size=len(X))  # a direction that varies much, and errors
FINE = MAIN[:, 20]  # one that hardly varies, and no error


def noise_for(kind: str, labels, x=X, **options) -> float:
    return fitting_noise(task[kind].fit(labels, **options), lambda points: Probe.of(x[points]), range(len(x)), labels)


def named(values, kind: str = "binary"):
    """Labels of a kind, by the size of numbers."""
    if kind == "multilabel":
        return [Marks(frozenset("ab" if value > 1 else "a" if value > 0 else "c")) for value in values]
    return ["c" if kind != "binary" and value > 1 else "a" if value > 0 else "b" for value in values]


@pytest.mark.parametrize("kind", ["binary", "ordinal", "multiclass", "multilabel"])
def test_fine_differences_get_little_noise_and_labels_that_are_mostly_noise_get_much(kind):
    options = {"order": "b,a,c"} if kind == "ordinal" else {}
    fine, broad = (noise_for(kind, named(values, kind), **options) for values in (FINE, BROAD))
    assert 0 < fine < 0.2 < broad <= MOST_NOISE


def test_labels_that_nothing_tells_get_the_most():
    labels = named(np.tile([1.0, -1.0], len(X) // 2))
    assert noise_for("binary", labels, np.cos(np.arange(len(X)))[:, None] ** np.arange(1, 4)) == MOST_NOISE


def test_it_is_the_penalty_of_ridge_regression_over_the_number_of_points():
    from sklearn.linear_model import RidgeCV

    from esmtune.ridge import CLOSE

    labels = named(MAIN[:, 5] + np.random.default_rng(3).normal(size=len(X)))
    found = RidgeCV(alphas=CLOSE).fit((X - X.mean(0)) / X.std(0), [float(label == "a") for label in labels])
    assert 0 < noise_for("binary", labels) == pytest.approx((found.alpha_ / len(X)) ** 0.5)


def test_of_more_points_a_sample_says_the_penalty_and_all_share_it(monkeypatch):
    whole = noise_for("binary", named(BROAD))
    monkeypatch.setattr("esmtune.linear.PROBED", 100)
    sample = noise_for("binary", named(BROAD[:100]), X[:100])
    assert noise_for("binary", named(BROAD)) == pytest.approx(sample / 2)
    assert sample / 2 == pytest.approx(whole, rel=0.5)  # of a quarter of the points


def test_unknown_labels_do_not_tell():
    labels = [None if number % 2 else label for number, label in enumerate(named(BROAD))]
    assert noise_for("binary", labels) == noise_for("binary", named(BROAD)[::2], X[::2])
    few = [*named(BROAD)[:19], *[None] * (len(X) - 19)]
    assert noise_for("binary", few) is None


def test_noise_is_of_its_size_of_each_point_and_of_training_alone():
    noise, seeds, x = Noise(), torch.arange(500), torch.ones(500, 40)
    assert noise(x, seeds) is x
    noise.size = 0.7
    found = noise(x, seeds) - x
    assert found.std().item() == pytest.approx(0.7, rel=0.02)  # 20,000 draws: a standard error of .3 %
    assert abs(found.mean().item()) < 0.02
    assert torch.equal(noise(x[7:9], seeds[7:9]), noise(x, seeds)[7:9])
    assert noise.eval()(x, seeds) is x


@pytest.mark.parametrize("options", [{}, {"tuning": "lora"}, {"head": {"name": "conv"}}])
def test_a_split_batch_has_the_same_noise(options):
    whole = esmtune.train(ROWS, **OPTIONS, **options, feature_noise=0.5)
    parts = esmtune.train(ROWS, **OPTIONS, **options, feature_noise=0.5, micro_batch_size=1)
    none = esmtune.train(ROWS, **OPTIONS, **options, feature_noise=0)
    losses = [[entry["train_loss"] for entry in run.history] for run in (whole, parts, none)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # float32 sums in another order
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_predictions_have_no_noise(tmp_path):
    run = esmtune.train(ROWS, **OPTIONS, feature_noise=2.0, dropout_samples=3, out=tmp_path / "run")
    again = esmtune.predict(tmp_path / "run", [sequence for sequence, _ in ROWS])
    assert again["prediction"].to_list() == pytest.approx(run.predictions["prediction"].to_list(), rel=1e-6)


def test_what_was_decided_is_said_and_can_be_said_otherwise():
    rows = [(TEN[i % 10] + "A" * (i // 10), "ab"[i % 2]) for i in range(60)]
    options = OPTIONS | {"split": "random"}

    def says(labels=lambda label: label, **given):
        notices = esmtune.train([(s, labels(x)) for s, x in rows], **options, **given).notices
        return any("Features get noise of" in notice for notice in notices)

    assert says()
    assert says(head={"name": "linear"})
    assert not says(feature_noise=0.1)
    assert not says(tuning="bitfit")
    assert not says(tuning="probe-then-full")
    assert not says(head={"name": "attention"})
    assert not says(head={"name": "ridge"})
    assert not says(labels=ord, task="regression")
    with pytest.raises(ValueError, match="feature_noise is -1"):
        esmtune.train(rows, **options, feature_noise=-1)


def test_the_head_of_classes_drops_more_unless_it_is_told():
    rows = [(sequence, "ab"[number % 2]) for number, (sequence, _) in enumerate(ROWS)]
    for labels, given, dropout in [
        (rows, {}, 0.5),
        (rows, {"head": {"name": "mlp", "hidden": 8}}, 0.5),
        (rows, {"head": {"name": "mlp", "dropout": 0.1}}, 0.1),
        (rows, {"tuning": "lora"}, 0.25),
        (ROWS, {}, 0.25),
    ]:
        run = esmtune.train(labels, **OPTIONS, **given)
        assert run.predictor.spec.head["dropout"] == dropout


def test_a_head_that_knows_other_sequences_gets_no_noise_in_their_measure(tmp_path):
    rows = [(TEN[i % 10] + "A" * (i // 10), "ab"[i % 2]) for i in range(60)]
    options = OPTIONS | {"split": "random"}
    esmtune.train(rows, **options, out=tmp_path / "run")
    options = {name: value for name, value in options.items() if name != "encoder"} | {"init": str(tmp_path / "run")}
    for given, is_new in (({}, False), ({"init_skip": ["head"]}, True)):
        notices = esmtune.train(rows, **options, **given).notices
        assert any("Features get noise of" in notice for notice in notices) == is_new


def test_language_modeling_says_that_it_takes_no_noise():
    run = esmtune.train(TEN, **OPTIONS, task="mlm", feature_noise=0.5)
    assert any("--feature-noise has no say" in notice for notice in run.notices)
