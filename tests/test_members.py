"""Several trainings of one run: seeds, folds, those that collapse, and what the others predict together."""

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import esmtune
from esmtune import events
from esmtune.config import TrainConfig
from esmtune.membership import members_of
from esmtune.selection import better
from tests.conftest import TEN

ROWS = [(sequence, len(sequence) / 10 + number % 3) for number, sequence in enumerate(TEN)]
HALVES = [(sequence, "long" if len(sequence) > 45 else "short") for sequence in TEN]
SPLIT = {"valid_fraction": 0.3, "test_fraction": 0.2}


def train(tiny, rows=ROWS, **options):
    return esmtune.train(rows, encoder=str(tiny), **{"epochs": 4, "tuning": "frozen", "head": "mlp", **options})


def test_seeds_make_an_ensemble_with_a_spread(tiny, tmp_path):
    run = train(tiny, seeds=3, seed=5, metric="loss", out=tmp_path / "run", **SPLIT)
    assert isinstance(run.predictor, esmtune.Ensemble)
    assert list(run.metrics["members"]) == ["seed-5", "seed-6", "seed-7"]
    alone = [member.predict(TEN) for member in run.predictor.members]
    assert len({tuple(found) for found in alone}) == 3  # they differ
    assert run.predictor.predict(TEN) == pytest.approx(np.mean(alone, axis=0), abs=1e-5)
    frame = esmtune.predict(tmp_path / "run", list(TEN))
    assert frame["prediction"].to_list() == pytest.approx(np.mean(alone, axis=0), abs=1e-5)
    assert frame["spread"].to_list() == pytest.approx(np.std(alone, axis=0), abs=1e-4)
    each = [found["test"]["rmse"] for found in run.metrics["members"].values()]
    assert run.metrics["test_mean"]["rmse"] == pytest.approx(np.mean(each))
    assert run.metrics["test_sd"]["rmse"] == pytest.approx(np.std(each, ddof=1))
    assert {entry["member"] for entry in run.history} == {"seed-5", "seed-6", "seed-7"}
    # Each seed is the run of that seed alone, on the split of the first.
    split = {row["id"]: row["split"] for row in run.predictions.iter_rows(named=True)}
    table = pl.DataFrame(
        {"sequence": TEN, "label": [x for _, x in ROWS], "split": [split[str(i + 1)] for i in range(10)]}
    )
    single = train(tiny, table, seed=6, metric="loss")
    assert single.predictor.predict(TEN) == pytest.approx(alone[1], abs=1e-6)


@pytest.mark.parametrize("tuning", ["frozen", "full", {"name": "lora", "rank": 2}], ids=str)
def test_an_ensemble_saved_is_an_ensemble_loaded(tiny, tmp_path, tuning):
    run = train(tiny, HALVES, seeds=2, tuning=tuning, out=tmp_path / "run", epochs=2, metric="loss", **SPLIT)
    loaded = esmtune.load(tmp_path / "run", verify=True)
    assert loaded.predict(TEN) == run.predictor.predict(TEN)
    assert loaded.probabilities(TEN) == run.predictor.probabilities(TEN)
    members = [member.probabilities(TEN)["long"] for member in loaded.members]
    assert loaded.probabilities(TEN)["long"] == pytest.approx(np.mean(members, axis=0), abs=1e-6)
    shared = {id(member.encoder) for member in loaded.members}
    assert len(shared) == (1 if tuning == "frozen" else 2)
    with pytest.raises(ValueError, match=r"is an ensemble of 2: take one, .*members.0"):
        esmtune.Predictor.load(tmp_path / "run")


def test_a_damaged_ensemble_is_refused_and_no_path_of_its_file_followed(tiny, tmp_path):
    train(tiny, seeds=2, out=tmp_path / "run", epochs=1, **SPLIT)
    file = tmp_path / "run" / "predictor" / "predictor.json"
    content = json.loads(file.read_text())
    for members in (["members/0", "../../other"], ["../x"], 3, [], {"members/0": 1}, None):
        file.write_text(json.dumps(content | {"members": members}))
        for load in (esmtune.load, esmtune.Predictor.load):
            with pytest.raises(ValueError, match="is damaged: its members are"):
                load(tmp_path / "run")
    file.write_text(json.dumps(content | {"needs": [["os"]]}))
    with pytest.raises(ValueError, match="is damaged: it needs"):
        esmtune.load(tmp_path / "run")
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read"):
        esmtune.load(tmp_path / "run")


def test_folds_predict_what_they_have_not_seen(tiny):
    """Every training record is validated by the member that did not learn from it, and by no other."""
    run = train(tiny, folds=3, test_fraction=0.2)
    assert run.metrics["records"] == {"train": 8, "valid": 8, "test": 2}
    assert len(run.predictor.members) == 3
    frame = run.predictions
    trained = frame.filter(pl.col("split") == "train")
    assert sorted(trained["fold"].to_list()) == [0, 0, 0, 1, 1, 1, 2, 2]
    for row in trained.iter_rows(named=True):
        member = run.predictor.members[row["fold"]]
        assert row["prediction"] == pytest.approx(member.predict([TEN[int(row["id"]) - 1]])[0], abs=1e-5)
    errors = trained["prediction"] - trained["label"]
    assert run.metrics["valid"]["rmse"] == pytest.approx(math.sqrt((errors**2).mean()), abs=1e-6)
    tested = frame.filter(pl.col("split") == "test")
    whole = run.predictor.predict([TEN[int(place) - 1] for place in tested["id"]])
    assert tested["prediction"].to_list() == pytest.approx(whole, abs=1e-5)


def test_few_rows_are_validated_by_folds_unasked(tiny):
    said = []
    rows = [(sequence[start:], float(len(sequence))) for sequence in TEN for start in (0, 1)]
    run = train(tiny, rows, epochs=1, watch=said.append)
    assert len(run.predictor.members) == 5
    assert run.config.folds == 5
    assert any("fold" in event.text for event in said if isinstance(event, events.Notice))


@pytest.mark.parametrize(
    "options", [{"valid_fraction": 0.4}, {"valid_fraction": 0.4, "metric": "loss"}, {"valid_fraction": 0.1}], ids=str
)
def test_a_collapsed_seed_is_named_and_left_out(tiny, monkeypatch, options):
    """Schmirler et al. replaced such a run by hand. Of few validation rows those of training tell it too."""
    from esmtune import members, training

    real = training.train_once

    def crippled(fabric, *, config, predictor, **rest):
        fitted = real(fabric, config=config, predictor=predictor, **rest)
        return replace(fitted, outputs=torch.zeros_like(fitted.outputs)) if config.seed == 1 else fitted

    monkeypatch.setattr(members, "train_once", crippled)
    said = []
    rows = [
        (("AKAE" if place % 2 else "GWGY") * 3 + "ACDEFGHIKLMNPQRSTVWY"[: place % 19], "ab"[place % 2])
        for place in range(40)
    ]
    learning = {"epochs": 30, "head_learning_rate": 3e-3, "folds": 1, "split": "random"}
    run = train(tiny, rows, seeds=3, watch=said.append, **learning, **options)
    assert run.metrics["collapsed"] == ["seed-1"]
    assert len(run.predictor.members) == 2
    assert any("COLLAPSED: seed-1" in event.text for event in said if isinstance(event, events.Notice))


def test_a_seed_that_diverged_before_its_first_evaluation_is_left_out_however_good_it_looks(tiny, monkeypatch):
    from esmtune import members, training

    real = training.train_once

    def diverged(fabric, *, config, predictor, **rest):
        fitted = real(fabric, config=config, predictor=predictor, **rest)
        return replace(fitted, diverged={"step": 1, "epoch": 1, "ids": []}, history=[]) if config.seed == 1 else fitted

    monkeypatch.setattr(members, "train_once", diverged)
    rows = [("ACDEFGHIKLMNPQRSTVWY"[place % 20] * 4 + "AK" * place, float(place)) for place in range(40)]
    options = {"epochs": 30, "head_learning_rate": 3e-3, "folds": 1, "split": "random", "valid_fraction": 0.4}
    run = train(tiny, rows, seeds=3, **options)
    assert run.metrics["collapsed"] == ["seed-1"]


def test_seeds_and_folds_are_not_both(tiny):
    with pytest.raises(ValueError, match="both train several times"):
        train(tiny, seeds=2, folds=2)


def test_two_seeds_share_the_pass_through_a_frozen_encoder(tiny):
    stages = []

    def watch(event):
        if isinstance(event, events.Progress) and event.done == event.total:
            stages.append(event.stage)

    train(tiny, seeds=3, epochs=1, watch=watch, **SPLIT)
    assert stages.count("embedding") == 1


def test_members_of_a_run_have_all_records():
    from esmtune.curation import curate_training

    config = TrainConfig(folds=3, task={"name": "binary"})
    curated = curate_training(HALVES, config)
    members = members_of(config, curated.dataset, 3)
    held_out = [r.id for m in members for r in m.data.of("valid")]
    assert sorted(held_out) == sorted(r.id for r in curated.dataset.of("train"))
    for member in members:
        ids = {split: {r.id for r in member.data.of(split)} for split in ("train", "valid", "test")}
        assert ids["train"] | ids["valid"] | ids["test"] == {r.id for r in curated.dataset.records}
        assert not ids["train"] & ids["valid"]


@pytest.mark.parametrize(("metric", "wins"), [("rmse", 0.2), ("tm.rmse", 0.2), ("spearman", 0.7), ("tm.spearman", 0.7)])
def test_weights_are_chosen_in_the_direction_of_the_metric_also_of_one_of_several_targets(metric, wins):
    entries = [{"valid": {metric: value}, "recent": value} for value in (0.2, 0.7)]
    best = entries[1] if better(entries[1], entries[0], metric) else entries[0]
    assert best["valid"][metric] == wins


def test_no_fold_knows_the_statistics_of_what_it_holds_out(tiny):
    """Center and spread of its labels are those of the others, and the mean as a baseline is theirs too."""
    rows = [(sequence, 1000.0 if number == 4 else float(number)) for number, sequence in enumerate(TEN)]
    run = train(tiny, rows, folds=5, epochs=1, test_fraction=0, calibration_fraction=0.0)
    frame = run.predictions
    for number, member in enumerate(run.predictor.members):
        learned = frame.filter(pl.col("fold") != number)["label"]
        assert member.task.center == pytest.approx(learned.mean())
        assert member.task.spread == pytest.approx(learned.std(ddof=0))
    means = [frame.filter(pl.col("fold") != fold)["label"].mean() for fold in frame["fold"]]
    by_hand = (frame["label"] - pl.Series(means)).abs().mean()
    assert run.metrics["baselines"]["valid"]["mean"]["mae"] == pytest.approx(by_hand)


def test_a_fold_without_a_class_predicts_among_all(tiny):
    """What a member has never seen is a class all the same, with a share of 0."""
    names = ["a", "a", "a", "a", "b", "b", "b", "b", "c", "c"]
    run = train(
        tiny, list(zip(TEN, names, strict=True)), folds=10, epochs=1, test_fraction=0, task="multiclass",
        calibration_fraction=0.0,
    )  # fmt: skip
    assert {member.task.classes for member in run.predictor.members} == {("a", "b", "c")}
    assert all(sum(member.task.shares) == pytest.approx(1) for member in run.predictor.members)
    assert {member.task.shares[2] for member in run.predictor.members} == {2 / 9, 1 / 9}


def test_seeds_where_one_would_go_by_folds_are_told_of(tiny):
    rows = [(sequence, float(number)) for number, sequence in enumerate(TEN * 2)]
    rows = [(sequence + "ACDEFGHIKL"[number // 2], label) for number, (sequence, label) in enumerate(rows)]
    options = {"encoder": str(tiny), "max_steps": 1, "cache": "none"}
    several, one = (esmtune.train(rows, seeds=seeds, **options) for seeds in (2, 1))
    assert [name for name in several.notices if "all 2 seeds have the same" in name]
    assert not [name for name in one.notices if "seeds have the same" in name]


def test_a_language_model_chooses_its_tuning_by_its_size(tiny):
    run = esmtune.train(list(TEN), encoder=str(tiny), task="mlm", tuning="auto", max_steps=1)
    (why,) = (notice for notice in run.notices if notice.startswith("Tuning: "))
    assert why.startswith("Tuning: full, because an encoder of ")
    assert why.endswith(" weights gains most when all of them move.")
    assert " 0 million" not in why


@pytest.mark.parametrize("seeds", [1, 2])
def test_all_of_a_predictor_ends_where_it_was_trained(tiny, monkeypatch, seeds):
    """A stand-in for a GPU, on which training leaves a frozen encoder, while heads come back from it."""
    moved = []
    monkeypatch.setattr("esmtune.predictor.Predictor.to", lambda self, device: moved.append((self, device)) or self)
    rows = [(sequence, len(sequence) / 7) for sequence in TEN]
    run = esmtune.train(rows, encoder=str(tiny), seeds=seeds, epochs=1, valid_fraction=0, test_fraction=0, folds=1)
    last = moved[-seeds:]
    assert [predictor for predictor, _ in last] == list(getattr(run.predictor, "members", [run.predictor]))
    assert all(device == torch.device("cpu") for _, device in last)
