"""What a plan says, beside what a training then does."""

import json
import random

import pytest

import esmtune
from esmtune.events import Progress
from esmtune.memory import GIB
from tests.conftest import TEN, in_new_process

ROWS = [(sequence, float(len(sequence) % 7) + number / 10) for number, sequence in enumerate(TEN)]
OPTIONS = {"valid_fraction": 0.2, "test_fraction": 0.2, "folds": 1, "cache": "none", "split": "random"}


@pytest.fixture
def table(tmp_path):
    """Proteins of many lengths, in a table."""
    draw = random.Random(0)
    rows = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(30, 200))) for _ in range(40)]
    text = "".join(f"{row},{number}\n" for number, row in enumerate(rows))
    (tmp_path / "tm.csv").write_text(f"sequence,tm\n{text}")
    return tmp_path / "tm.csv"


def test_stages_are_those_of_the_training(tiny):
    def stages(**options):
        return [stage.name for stage in esmtune.plan(ROWS, encoder=str(tiny), **OPTIONS | options).stages]

    assert stages() == ["embedding", "training"]
    assert stages(head="ridge") == ["embedding"]
    assert stages(tuning="lora") == ["training", "validating", "predicting"]
    for several in ({"micro_batch_size": 2}, {"devices": 2}, {"tokens_per_batch": 8}):  # passes a step
        several |= {"tuning": "lora"}  # all outputs are needed before any gradient
        assert stages(**several) == ["training", "comparing", "validating", "predicting"]
    plain = {"name": "regression", "ranking_weight": 0.0}
    assert stages(**several, task=plain) == ["training", "validating", "predicting"]


def test_what_a_cache_has_is_not_counted(tiny, tmp_path):
    options = OPTIONS | {"encoder": str(tiny), "cache": str(tmp_path / "cache"), "head": "ridge"}
    assert esmtune.plan(ROWS, **options).stages
    assert not (tmp_path / "cache").exists()  # a plan leaves nothing
    esmtune.train(ROWS, **options)
    assert esmtune.plan(ROWS, **options).stages == ()


def test_a_training_takes_as_long_as_the_steps_it_has(tiny, monkeypatch):
    """With steps that take a second each: what a machine really takes is no business of a test."""
    monkeypatch.setattr("esmtune.timings._timed", lambda work: (work(), (1.0, 1.0))[1])
    few, many, capped = (
        esmtune.plan(ROWS, encoder=str(tiny), tuning="full", **OPTIONS, **counts).seconds[1]
        for counts in ({"epochs": 10}, {"epochs": 200}, {"epochs": 200, "max_steps": 5})
    )
    assert many > 10 * few
    assert capped < few


def test_a_learning_curve_is_counted(tiny, monkeypatch):
    monkeypatch.setattr("esmtune.timings._timed", lambda work: (work(), (1.0, 1.0))[1])
    rows = [(f"{sequence}{residue}", len(sequence) / 7) for sequence in TEN for residue in "ACDEFGHIKLMNPQRSTVWY"]
    options = OPTIONS | {"encoder": str(tiny), "tuning": "full", "max_steps": 10}
    plain, curve = (esmtune.plan(rows, **options, learning_curve=asked) for asked in (False, True))
    trained = esmtune.train(rows, **options, learning_curve=True)
    assert (plain.trainings, curve.trainings) == (1, len(trained.metrics["learning_curve"]))
    with pytest.raises(ValueError, match="learning_curve reads the test rows, but there are none"):
        esmtune.plan(rows, **options | {"test_fraction": 0.0}, learning_curve=True)
    ratio = curve.stages[0].high / plain.stages[0].high  # all take ten steps of eight sequences
    assert ratio == pytest.approx(curve.trainings, rel=0.1)


def test_memory_is_no_less_than_a_training_takes_nor_twice_as_much(tmp_path, table):
    """Of an encoder of the 8M's shape, so that the process itself is the smaller part."""
    code = (
        "import esmtune, sys, json\nfrom esmtune.memory import peak_memory\n"
        "options = dict(target='tm', encoder='random:esm2_t6_8M_UR50D', tuning='full', max_steps=1, folds=1, "
        "valid_fraction=0, test_fraction=0, cache='none', split='random')\n"
        f"esmtune.train({str(table)!r}, **options)\nprint(json.dumps(peak_memory().process))\n"
    )
    peak = json.loads(in_new_process("-c", code).out.splitlines()[-1])
    code = code.replace("esmtune.train(", "found = esmtune.plan(").replace("peak_memory().process", "found.peak")
    planned = json.loads(in_new_process("-c", code).out.splitlines()[-1])
    assert 0.9 * peak < planned < 2 * peak


def test_what_does_not_fit_comes_with_what_does(tiny, table, monkeypatch, shell):
    monkeypatch.setattr("esmtune.provisions.free_memory", lambda device: 5_500_000)
    found = esmtune.plan(str(table), target="tm", encoder=str(tiny), tuning="full", tokens_per_batch=64)
    assert not found.fits
    assert found.stages == ()  # a step that may not fit is not tried
    assert found.peak > found.room
    frozen = [advice for advice in found.advice if advice.text == "--tuning frozen"]
    assert frozen[0].command.startswith(f"esmtune train {table} --target tm --encoder {tiny} --tuning frozen")
    assert frozen[0].peak < found.room
    answer = shell("plan", table, "--target", "tm", "--encoder", tiny, "--tuning", "full", "--tokens-per-batch", "64")
    assert answer.code == 1
    assert "does not fit" in answer.out
    assert "--tuning frozen" in answer.out


def test_a_smaller_encoder_is_one_that_fits(monkeypatch):
    def advised(encoder):
        found = esmtune.plan(ROWS, encoder=f"random:{encoder}", tokens_per_batch=256, **OPTIONS)
        assert not found.fits
        return [advice.text for advice in found.advice]

    monkeypatch.setattr("esmtune.provisions.free_memory", lambda device: 1 << 20)  # beside the weights themselves
    assert advised("esm2_t12_35M_UR50D") == ["--encoder random:esm2_t6_8M_UR50D"]
    assert advised("esm2_t6_8M_UR50D") == []  # none is smaller


def test_a_smaller_encoder_is_tuned_as_it_was_measured(monkeypatch):
    monkeypatch.setattr("esmtune.provisions.free_memory", lambda device: 1 << 20)
    monkeypatch.setattr("esmtune.tuning.FEW_LABELS", 1)
    monkeypatch.setattr("esmtune.tuning.LARGE_ENCODER", 20_000_000)  # between the two
    options = OPTIONS | {"tokens_per_batch": 64, "tuning": "auto", "head": "linear"}
    found = esmtune.plan(ROWS, encoder="random:esm2_t12_35M_UR50D", **options)
    assert found.tuning == "lora"
    (smaller,) = [advice for advice in found.advice if advice.text.startswith("--encoder")]
    assert "--tuning lora" in smaller.command
    assert "auto" not in smaller.command


def test_the_shell_says_time_memory_and_the_command(tiny, table, tmp_path, shell):
    out = tmp_path / "plan.json"
    answer = shell("plan", table, "--target", "tm", "--encoder", tiny, "--tuning", "lora", "--out", out)
    assert answer.code == 0
    for text in ("GiB, so it fits", "training: ", f"esmtune train {table} --target tm --encoder {tiny} --tuning lora"):
        assert text in answer.out.replace("\n", " ")
    found = json.loads(out.read_text())
    assert found["seconds"][0] < found["seconds"][1]
    assert found["peak"] < 100 * GIB
    assert sorted(path.name for path in tmp_path.iterdir() if "tiny" not in path.name) == ["plan.json", "tm.csv"]


def test_wrong_input_is_refused_as_training_refuses_it(tiny, table, shell):
    for options, text in (
        (["--tuning", "lorax"], "there is no tuning 'lorax'. Did you mean 'lora'?"),
        (["--target", "ph"], "no column 'ph'"),
    ):
        usual = [] if "--target" in options else ["--target", "tm"]
        answer = shell("plan", table, "--encoder", tiny, *usual, *options)
        assert answer.code == 2
        assert text in answer.err


def test_nothing_is_drawn_and_nothing_trained(tiny):
    import torch

    torch.manual_seed(1)
    said = []
    esmtune.plan(ROWS, encoder=str(tiny), tuning="full", watch=said.append, **OPTIONS)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn
    assert not [event for event in said if isinstance(event, Progress) and event.stage == "training"]
