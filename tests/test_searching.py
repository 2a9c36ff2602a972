"""Searches: what is tried, kept, gone on with and advised; and what a learning curve says."""

import json
import random
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

import esmtune
from esmtune.config import TrainConfig
from esmtune.curves import fit_power_law, more_labels
from esmtune.space import configured_by, space_of, usual_settings
from esmtune.verdicts import verdict_of
from tests.conftest import TEN

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
OPTIONS = {"max_steps": 4, "space": ["tuning=frozen", "head=linear,ridge", "layers=usual/-1"], "folds": 3}


def proteins(count, seed=0):
    draw = random.Random(seed)
    rows = ["".join(draw.choices(LETTERS, k=draw.randint(12, 20))) for _ in range(count)]
    return [(row, row.count("K") - row.count("E") + draw.gauss(0, 0.3)) for row in rows]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("table") / "charge.csv"
    file.write_text("sequence,label\n" + "".join(f"{row},{label}\n" for row, label in proteins(60)))
    return str(file)


def test_a_search_tries_the_defaults_first_and_keeps_what_it_found(table, tiny, tmp_path):
    out = tmp_path / "search"
    found = esmtune.search(table, encoder=str(tiny), trials=4, out=out, **OPTIONS)
    assert len(found.trials) == 4
    assert found.defaults.settings == {}
    assert found.folds == 3
    assert all(len(trial.values) == 3 for trial in found.trials if trial.state == "complete")
    assert found.best.value == max(trial.value for trial in found.trials if trial.value is not None)
    assert found.best.value == pytest.approx(np.mean(found.best.values), abs=1e-12)
    assert {path.name for path in out.iterdir()} >= {"best.toml", "trials.csv", "search.json", "trials.log"}
    assert len((out / "trials.csv").read_text().splitlines()) == 5
    options = tomllib.loads((out / "best.toml").read_text())
    run = esmtune.train(options.pop("data"), **options)  # the winner is a configuration like any other
    assert run.metrics["records"]["test"] == 6
    more = esmtune.search(table, encoder=str(tiny), trials=5, out=out, resume=True, **OPTIONS)
    assert [trial.settings for trial in more.trials[:4]] == [trial.settings for trial in found.trials]
    assert len(more.trials) == 5
    with pytest.raises(ValueError, match="that is another search"):
        esmtune.search(table, encoder=str(tiny), trials=6, out=out, resume=True, seed=1, **OPTIONS)


def test_a_search_does_not_read_the_test_rows(table, tiny, monkeypatch):
    from esmtune.esm2 import Tokens

    run = esmtune.train(table, encoder=str(tiny), max_steps=1)
    rows = [line.split(",")[0] for line in Path(table).read_text().splitlines()[1:]]
    tests = {rows[int(place) - 2] for place in run.predictions.filter(run.predictions["split"] == "test")["id"]}
    assert len(tests) == 6
    seen, read = set(), Tokens.of.__func__
    monkeypatch.setattr(Tokens, "of", classmethod(lambda cls, s, *a: seen.update(s) or read(cls, s, *a)))
    esmtune.search(table, encoder=str(tiny), trials=2, **OPTIONS)
    assert seen
    assert not seen & tests


def test_folds_of_a_search_go_by_identity_where_the_split_does(tiny, monkeypatch):
    from esmtune import choosing

    rows = []
    for family in range(20):
        first = "".join(random.Random(family).choices(LETTERS, k=60))
        for member in range(3):
            place = member * 3 + 1
            rows.append((first[:place] + "A" + first[place + 1 :], family + member + 0.5))
    benches = []
    real = choosing._Searching.__init__
    monkeypatch.setattr(
        choosing._Searching,
        "__init__",
        lambda self, bench, *a, **k: benches.append(bench) or real(self, bench, *a, **k),
    )
    esmtune.search(rows, encoder=str(tiny), trials=1, split="identity", **OPTIONS)
    held = benches[0].data.held
    families = {}
    for sequence, fold in held.items():
        families.setdefault(sequence[30:], set()).add(fold)
    assert all(len(folds) == 1 for folds in families.values())


def test_what_cannot_be_searched_is_said(table, tiny, tmp_path):
    for options, text in (
        ({"trials": 0}, "trials is 0, expected 1 or more"),
        ({"space": "haed=linear"}, "there is no option 'haed' to search. Did you mean 'head'?"),
        ({"space": "head"}, "expected NAME=VALUE,VALUE or NAME=LOW..HIGH"),
        ({"space": "weight_decay=1..0"}, "two numbers, the lower first"),
        ({"task": "mlm"}, "leave out task"),
        ({"resume": True}, "no out is given"),
    ):
        with pytest.raises(ValueError, match=text):
            esmtune.search(table, encoder=str(tiny), **options)
    with pytest.raises(ValueError, match="haed"):
        esmtune.search(table, encoder=str(tiny), out=tmp_path / "x", space="haed=linear")
    assert not (tmp_path / "x").exists()


def test_a_space_leaves_out_what_is_fixed_and_what_does_not_matter():
    axes = space_of(TrainConfig(head={"name": "linear"}), "regression", "sequence", 6, ["weight_decay=1e-4..1e-3"])
    names = [axis.name for axis in axes]
    assert "head" not in names
    decay = next(axis for axis in axes if axis.name == "weight_decay")
    assert (decay.low, decay.high, decay.log) == (1e-4, 1e-3, True)
    rank = next(axis for axis in axes if axis.name == "tuning.rank")
    assert not rank.holds({"tuning": "frozen"})
    assert rank.holds({"tuning": "lora"})
    assert configured_by(TrainConfig(), {"tuning": "lora", "tuning.rank": 4}).tuning == {"name": "lora", "rank": 4}


def test_the_first_trial_is_noted_with_what_it_has_and_losses_are_not_compared_with_other_losses(tiny):
    limits = ["task.ranking_weight=0.0,3.0", "task.scale=linear,auto"]
    axes = space_of(TrainConfig(), "regression", "sequence", 6, limits)
    usual = usual_settings(axes, TrainConfig(), "regression", "sequence")
    assert (usual["task.ranking_weight"], usual["task.scale"]) == (3.0, "auto")
    axes = space_of(TrainConfig(metric="loss"), "regression", "sequence", 6)
    assert not [axis.name for axis in axes if axis.name.startswith("task")]
    with pytest.raises(ValueError, match=r"task\.ranking_weight, which changes what --metric loss compares"):
        space_of(TrainConfig(metric="loss"), "regression", "sequence", 6, limits)
    with pytest.raises(ValueError, match="would compare losses that are not the same"):
        esmtune.search([(sequence, len(sequence)) for sequence in TEN], encoder=str(tiny), metric="loss", **OPTIONS)


def test_a_verdict_is_a_paired_test():
    """Without folds it is SciPy's; of folds the interval is wider, for they share rows."""
    best, defaults = [0.61, 0.70, 0.64, 0.66], [0.60, 0.65, 0.62, 0.60]
    found = verdict_of("spearman", best, defaults, "seeds", 1)
    interval = ttest_rel(best, defaults).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    wider = verdict_of("spearman", best, defaults, "folds", 4)
    assert wider.low < found.low < found.high < wider.high
    assert found.is_better
    assert not wider.is_better
    lower = verdict_of("rmse", best, defaults, "seeds", 1)
    assert lower.difference == pytest.approx(-found.difference)


def test_the_shell_searches(table, tiny, tmp_path, shell):
    out = tmp_path / "found"
    answer = shell("search", table, "--encoder", tiny, "--trials", "2", "--max-steps", "4", "--folds", "3", "--space",
                   "tuning=frozen", "head=linear,ridge", "--out", out)  # fmt: skip
    assert answer.code == 0
    assert "trials" in answer.out
    assert f"esmtune train --config {out / 'best.toml'}" in answer.out.replace("\n", " ")


def test_trials_side_by_side_are_those_in_turn(table, tiny):
    one, two = (esmtune.search(table, encoder=str(tiny), trials=2, jobs=jobs, **OPTIONS) for jobs in (1, 2))
    assert one.defaults.values == pytest.approx(two.defaults.values, abs=1e-6)


def test_a_learning_curve_has_a_point_for_each_share(tiny, tmp_path):
    run = esmtune.train(proteins(300), encoder=str(tiny), learning_curve=True, max_steps=20, valid_fraction=0.2,
                        test_fraction=0.2, out=tmp_path / "run", split="random")  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    points = metrics["learning_curve"]
    assert [point["share"] for point in points] == [0.1, 0.2, 0.5, 1.0]
    records = [point["records"] for point in points]
    assert records == sorted(records)
    assert records[-1] == metrics["records"]["train"]
    assert points[-1]["scores"] == metrics["test"]
    assert "more_labels" in metrics
    plain = esmtune.train(proteins(300), encoder=str(tiny), max_steps=20, valid_fraction=0.2, test_fraction=0.2,
                          split="random")  # fmt: skip
    assert plain.metrics["test"] == run.metrics["test"]  # what else is trained on the way changes nothing
    assert torch.equal(run.last.head.out.weight, plain.last.head.out.weight)
    with pytest.raises(ValueError, match="learning_curve reads the test rows, but there are none"):
        esmtune.train(proteins(30), encoder=str(tiny), learning_curve=True, test_fraction=0)


def test_a_power_law_is_found_again_and_noise_is_no_gain():
    records = np.array([30.0, 60.0, 150.0, 300.0])
    law = fit_power_law(records, 1.5 * records**-0.4 + 0.2, np.ones(4))
    assert float(law(600.0)) == pytest.approx(1.5 * 600**-0.4 + 0.2, abs=1e-4)

    def point(share, count, score):
        return {"share": share, "records": count, "scores": {"spearman": score}, "sd": {"spearman": 0.01}, "repeats": 3}

    rising = [point(0.1, 30, 0.40), point(0.2, 60, 0.52), point(0.5, 150, 0.64), point(1.0, 300, 0.70)]
    found = more_labels(rising, "spearman")
    assert 0 < found["low"] < found["gain"] < found["high"] < 0.2
    flat = [point(0.1, 30, 0.50), point(0.2, 60, 0.49), point(0.5, 150, 0.50), point(1.0, 300, 0.505)]
    assert more_labels(flat, "spearman")["gain"] is None
    # As frozen runs on IF1: a step that no power law makes is no noise.
    step = [point(0.1, 30, 0.378), point(0.2, 60, 0.381), point(0.5, 150, 0.594), point(1.0, 300, 0.625)]
    assert "alike" not in more_labels(step, "spearman")["text"]
    assert "alike" in more_labels(flat, "spearman")["text"]


def test_a_search_leaves_out_what_calibrates_the_winner():
    from esmtune.curation import curate_training
    from esmtune.searching import _curated

    frame = proteins(600)
    config = TrainConfig()
    kept = {r.sequence for r in curate_training(frame, config).dataset.records if r.split == "calibration"}
    assert kept
    assert not kept & {r.sequence for r in _curated(frame, config)[0].dataset.records}
