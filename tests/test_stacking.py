"""A ridge beside a head: the same map as scikit-learn's, a share that held-out points choose, and who has none."""

import json
import os
import signal

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

import esmtune
from esmtune import linear, stacking
from esmtune.classes import Binary
from esmtune.ensembles import Ensemble
from esmtune.events import Terminated
from esmtune.linear import linear_map
from esmtune.regression import Regression
from esmtune.ridge import CLOSE
from esmtune.stacking import FEWEST, SHARES, _best_share

DRAW = np.random.default_rng(0)
LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
SEQUENCES = ["".join(DRAW.choice(LETTERS, 24)) for _ in range(90)]
LABELS = [sequence.count("A") + sequence.count("L") + 0.1 * number / 90 for number, sequence in enumerate(SEQUENCES)]
SPLITS = ["train"] * 50 + ["valid"] * 25 + ["test"] * 15
OPTIONS = {"max_steps": 4, "calibration_fraction": 0.0, "folds": 1, "cache": "none"}


def table(**columns) -> pl.DataFrame:
    return pl.DataFrame({"sequence": SEQUENCES, "split": SPLITS} | (columns or {"label": LABELS}))


def train(tiny, data=None, **options):
    return esmtune.train(table() if data is None else data, encoder=str(tiny), **OPTIONS | options)


def said(run) -> list[str]:
    return [notice for notice in run.notices if "Beside the head" in notice]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return train(tiny, out=tmp_path_factory.mktemp("runs") / "run")


def test_outputs_are_the_mean_of_head_and_ridge(run, tiny):
    predictor, (share,) = run.predictor, run.predictor.head.beside.share.tolist()
    assert share in [pytest.approx(x) for x in SHARES[1:]]
    assert said(run) == [f"Beside the head a ridge on the same features has {share:.0%}".replace("%", " %")
                         + " of the say (--head.ridge=false leaves it out)."]  # fmt: skip
    x = np.asarray(esmtune.embed(str(tiny), SEQUENCES, layers=list(predictor.spec.layers)).vectors, dtype=np.float64)
    x = x.reshape(len(x), -1)
    center, spread = x[:50].mean(0), x[:50].std(0)
    ridge = RidgeCV(CLOSE).fit((x[:50] - center) / spread, LABELS[:50]).predict((x - center) / spread)
    stacked = np.array(predictor.predict(SEQUENCES))
    predictor.head.beside.share.zero_()
    alone = np.array(predictor.predict(SEQUENCES))
    predictor.head.beside.share.fill_(share)
    # Features of float32, whose spread is a hundredth of their size, through a map of weights up to some units.
    assert stacked == pytest.approx((1 - share) * alone + share * ridge, abs=1e-3)
    assert np.abs(ridge - alone).max() > 0.1
    rows = run.predictions.filter(pl.col("split") == "test")
    assert rows["prediction"].to_list() == pytest.approx(stacked[75:].tolist(), abs=1e-4)


def test_it_is_saved_with_the_run_and_both_states_have_it(run):
    for folder in ("predictor", "last"):
        loaded = esmtune.load(run.path / folder, verify=True)
        assert loaded.head.beside.share.any()
    assert esmtune.load(run.path).predict(SEQUENCES) == run.predictor.predict(SEQUENCES)
    assert json.loads((run.path / "predictor" / "predictor.json").read_text())["head"]["ridge"] is True


def test_the_head_learns_as_without_it(run, tiny):
    without = train(tiny, head={"name": "mlp", "ridge": False})
    assert without.predictor.head.beside is None
    assert not said(without)
    mine = run.predictor.state_dict()
    assert all(torch.equal(weight, mine[name]) for name, weight in without.predictor.state_dict().items())
    assert [entry["valid"] for entry in without.history] == [entry["valid"] for entry in run.history]


def test_the_share_is_the_most_probable_one():
    labels = DRAW.normal(size=60).tolist()
    task = Regression.fit(labels)
    truth = task.targets(labels)[:, :1]
    one, other = (
        truth + torch.from_numpy(DRAW.normal(size=(60, 1))),
        truth + torch.from_numpy(DRAW.normal(size=(60, 1))),
    )
    even = torch.ones(60)
    assert 0.35 < _best_share(task, one, other, labels, even) < 0.65  # as good, and their errors are their own
    assert _best_share(task, truth + 1e-3, other, labels, even) == 0.0
    assert _best_share(task, one, truth, labels, even) == SHARES[-1]
    halves = ["a" if label > 0 else "b" for label in labels]
    binary = Binary.fit(halves)
    right = 5 * (binary.targets(halves)[:, :1] * 2 - 1)
    assert _best_share(binary, right, -right, halves, even) == 0.0
    assert _best_share(binary, -right, right, halves, even) >= 0.9


def test_without_word_of_the_points_the_share_is_the_usual_one():
    alike = torch.zeros(30, 1, dtype=torch.float64)
    labels = DRAW.normal(size=30).tolist()
    assert _best_share(Regression.fit(labels), alike, alike, labels, torch.ones(30)) == 0.25


def test_a_point_of_no_weight_has_no_say():
    labels = DRAW.normal(size=40).tolist()
    task = Regression.fit(labels)
    truth = task.targets(labels)[:, :1]
    wrong = truth.clone()
    wrong[:5] += 100
    weights = torch.ones(40)
    assert _best_share(task, truth + 0.5, wrong, labels, weights) == 0.0
    weights[:5] = 0
    assert _best_share(task, truth + 0.5, wrong, labels, weights) == SHARES[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"tuning": "full"},
        {"task": {"name": "regression", "loss": "pairwise"}},
        {"task": {"name": "regression", "loss": "gaussian"}},
    ],
    ids=str,
)
def test_who_has_none(tiny, options):
    assert not said(train(tiny, **options))


def test_too_few_validation_rows_tell_nothing(tiny):
    few = table().with_columns(split=pl.Series(["train"] * (76 - FEWEST) + ["valid"] * (FEWEST - 1) + ["test"] * 15))
    run = train(tiny, few)
    assert not said(run)
    assert not run.predictor.head.beside.share.any()


@pytest.mark.parametrize("options", [{"tuning": "full"}, {"tuning": "lora"}], ids=str)
def test_where_the_encoder_moves_there_is_none_and_it_is_said(tiny, options):
    asked = train(tiny, head={"name": "mlp", "ridge": True}, **options)
    assert asked.predictor.spec.head["ridge"] is False
    assert any("No ridge beside the head: it is for labels of sequences and" in notice for notice in asked.notices)
    assert not any("No ridge" in notice for notice in train(tiny, **options).notices)


def of_residues() -> pl.DataFrame:
    labels = ["".join("ab"[letter in "AILV"] for letter in sequence) for sequence in SEQUENCES]
    return pl.DataFrame({"sequence": SEQUENCES, "label": labels, "split": SPLITS})


def test_labels_of_residues_have_none(tiny, run, tmp_path):
    alone = train(tiny, of_residues(), level="residue", out=tmp_path / "residues")
    assert alone.predictor.head.beside is None
    asked = train(tiny, of_residues(), level="residue", head={"name": "mlp", "ridge": True})
    assert asked.predictor.head.beside is None
    for init, options in [(run.path, {"init_skip": ("head",)}), (alone.path, {"head": {"name": "mlp", "ridge": True}})]:
        further = esmtune.train(of_residues(), level="residue", init=str(init), **OPTIONS | options)
        assert further.predictor.head.beside is None


def test_asked_for_in_vain_is_said(tiny):
    few = table().with_columns(split=pl.Series(["train"] * (76 - FEWEST) + ["valid"] * (FEWEST - 1) + ["test"] * 15))
    asked = train(tiny, few, head={"name": "mlp", "ridge": True})
    assert any(f"fewer than {FEWEST} validation rows are labeled" in notice for notice in asked.notices)


def test_a_map_that_cannot_be_had_costs_nobody_the_head(tiny, monkeypatch):
    def failing(*args, **kwargs):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr("esmtune.stacking.linear_map", failing)
    run = train(tiny)
    assert any("it is not to be had (LinAlgError: did not converge)" in notice for notice in run.notices)
    assert not run.predictor.head.beside.share.any()
    assert np.isfinite(run.predictor.predict(SEQUENCES)).all()


def test_rows_of_no_weight_and_no_label_are_no_part_of_it(tiny):
    """Against scikit-learn, with the rows in an order of their own."""
    order = DRAW.permutation(90)
    weights = DRAW.choice([0.5, 1.0, 2.0], 90)
    weights[:56:8] = 0.0
    labels = [None if number % 7 == 3 else label for number, label in enumerate(LABELS)]
    data = table(label=labels, weight=weights)[order.tolist()]
    run = train(tiny, data, weight="weight")
    (share,) = run.predictor.head.beside.share.tolist()
    assert share > 0
    learned = [i for i in order if SPLITS[i] == "train" and labels[i] is not None and weights[i] > 0]
    layers = list(run.predictor.spec.layers)
    x = np.asarray(esmtune.embed(str(tiny), SEQUENCES, layers=layers).vectors, dtype=np.float64).reshape(90, -1)
    rows = (x - x[learned].mean(0)) / x[learned].std(0)
    y, w = np.array([labels[i] for i in learned], dtype=float), weights[learned]
    penalty = linear_map(x[learned], y.tolist(), w, [1] * len(learned), Regression.fit(y.tolist()), seed=0).penalty
    # Labels are standardized by all known ones, here they are as they are: both have the same penalty.
    ridge = Ridge(alpha=penalty).fit(rows[learned], y, sample_weight=w).predict(rows)
    stacked = np.array(run.predictor.predict(SEQUENCES))
    run.predictor.head.beside.share.zero_()
    alone = np.array(run.predictor.predict(SEQUENCES))
    assert stacked == pytest.approx((1 - share) * alone + share * ridge, abs=1e-3)  # as above


def test_validation_rows_of_no_weight_are_none(tiny):
    weights = [0.0 if split == "valid" else 1.0 for split in SPLITS]
    run = train(tiny, table(label=LABELS, weight=weights), weight="weight")
    assert not said(run)


def test_each_target_has_a_share_of_its_own(tiny):
    halves = ["yes" if label > 2 else "no" for label in LABELS]
    halves[51:75] = [None] * 24  # one validation row is left: too few
    run = train(tiny, table(tm=LABELS, binds=halves), target=("tm", "binds"))
    share = run.predictor.head.beside.share
    assert share[0] > 0
    assert not share[1:].any()
    assert said(run)[0].startswith("Beside the head a ridge on the same features has ")
    assert " (tm) of the say" in said(run)[0]


def test_folds_and_classes(tiny):
    halves = ["yes" if label > 2 else "no" for label in LABELS]
    run = train(tiny, table(label=halves).with_columns(split=pl.lit("train")), folds=3, test_fraction=0.0)
    assert isinstance(run.predictor, Ensemble)
    assert len(said(run)) == 3
    assert all(member.head.beside.share.any() for member in run.predictor.members)


@pytest.mark.parametrize("tuning", ["frozen", "full", {"name": "lora", "rank": 2}], ids=str)
def test_a_run_that_goes_on_from_it_begins_where_it_ended(run, tiny, tuning):
    still = {"max_steps": 1, "head_learning_rate": 0.0, "encoder_learning_rate": 0.0, "ema": 0.0}
    further = esmtune.train(table(), init=str(run.path), tuning=tuning, **OPTIONS | still)
    assert further.predictor.predict(SEQUENCES) == pytest.approx(run.predictor.predict(SEQUENCES), abs=1e-4)
    assert further.predictor.head.beside.share.tolist() == run.predictor.head.beside.share.tolist()
    moved = esmtune.train(table(), init=str(run.path), tuning=tuning, **OPTIONS)
    assert moved.predictor.predict(SEQUENCES) != pytest.approx(run.predictor.predict(SEQUENCES), abs=1e-3)
    assert torch.equal(moved.predictor.head.beside.weight, run.predictor.head.beside.weight)


def test_a_new_head_of_an_encoder_that_moves_has_none(run):
    new = esmtune.train(table(), init=str(run.path), init_skip=("head",), tuning="full", **OPTIONS)
    assert new.predictor.head.beside is None
    assert not said(new)


def test_a_search_judges_what_train_would_give(tiny):
    """And not the head before the ridge."""
    found = esmtune.search(table(), encoder=str(tiny), trials=1, space=["tuning=frozen"], max_steps=4, cache="none")
    own = train(tiny)
    assert found.trials[0].value == pytest.approx(own.metrics["valid"]["spearman"])
    assert own.metrics["valid"]["spearman"] > max(entry["valid"]["spearman"] for entry in own.history)


def test_a_run_that_is_stopped_while_it_is_solved_goes_on_to_the_same_end(run, tiny, tmp_path):
    for number, name in enumerate(["_map_of", "_told", "_best_share", "wearing"]):
        out, real = tmp_path / str(number), getattr(stacking, name)

        def stopped(*args, real=real, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stacking, name, stopped)
            with pytest.raises(Terminated):
                train(tiny, out=out)
        again = train(tiny, out=out, resume=True)
        for file in ("predictor/weights.safetensors", "last/weights.safetensors", "predictions.csv", "history.jsonl"):
            assert (out / file).read_bytes() == (run.path / file).read_bytes(), (name, file)
        assert again.metrics["valid"] == run.metrics["valid"]


def test_the_same_points_are_taken_apart_once(monkeypatch):
    calls, real = [], np.linalg.eigh
    monkeypatch.setattr(linear, "KEPT", (0, 1 << 29))
    monkeypatch.setattr(np.linalg, "eigh", lambda x: calls.append(1) or real(x))
    x, y = DRAW.normal(size=(40, 6)), DRAW.normal(size=40).tolist()
    more = (np.ones(40), [1] * 40, Regression.fit(y))
    first, again = (linear_map(x, y, *more, seed=0) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first.weight, again.weight)
    linear_map(x + np.eye(40, 6), y, *more, seed=0)
    assert len(calls) == 2


def test_head_and_baseline_take_the_same_points_apart_once(tiny, monkeypatch):
    shapes, real = [], np.linalg.eigh
    monkeypatch.setattr(linear, "KEPT", (1 << 13, 1 << 29))  # and not those of the composition
    monkeypatch.setattr(np.linalg, "eigh", lambda x: shapes.append(x.shape) or real(x))
    run = train(tiny)
    assert "ridge on embeddings" in run.metrics["baselines"]["test"]
    assert said(run)
    assert not linear._LAST  # nobody will ask again
    assert shapes.count((50, 50)) == 2  # 50 points of 96 numbers: in no order for the scale, and for head and baseline
