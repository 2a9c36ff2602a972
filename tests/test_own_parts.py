"""Heads and losses of a user's own: found by the shell, named where they are missing, and checked for their shapes."""

import json

import pytest
import torch

import esmtune
from esmtune.heads import Linear, head
from esmtune.losses import class_loss, loss
from tests.conftest import TEN, in_new_process

ROWS = [(sequence, float(len(sequence))) for sequence in TEN]
MODULE = """
from esmtune.heads import Linear, head
from esmtune.losses import loss

@head("mine")
class Mine(Linear):
    pass

@loss("cubic")
def cubic(outputs, targets):
    return (outputs - targets).abs() ** 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts.py").write_text(MODULE)
    (tmp_path / "d.csv").write_text("sequence,y\n" + "".join(f"{s},{y}\n" for s, y in ROWS))
    return tmp_path


def test_the_shell_uses_ones_own_parts(folder, tiny):
    options = [
        "--target",
        "y",
        "--encoder",
        tiny,
        "--head",
        "mine",
        "--task.loss",
        "cubic",
        "--max-steps",
        2,
        "--folds",
        1,
    ]
    shell = ("-m", "esmtune")
    answer = in_new_process(*shell, "train", "d.csv", *options, "--out", "run", "--import", "parts", cwd=folder)
    assert answer.code == 0, answer.err
    assert json.loads((folder / "run/predictor/predictor.json").read_text())["needs"] == ["parts"]
    answer = in_new_process(*shell, "predict", "run", "d.csv", cwd=folder)
    assert answer.code == 2
    assert "defined in 'parts', which is not imported" in answer.err
    assert "--import parts" in answer.err
    answer = in_new_process(*shell, "predict", "--import=parts", "run", "d.csv", cwd=folder)
    assert answer.code == 0, answer.err
    assert len(answer.out.splitlines()) == 11
    answer = in_new_process(*shell, "predict", "run", "d.csv", "--import", "nowhere", cwd=folder)
    assert answer.code == 2
    assert "--import nowhere: No module named 'nowhere'" in answer.err


@pytest.mark.parametrize(
    ("part", "kind"), [("--head", "head"), ("--task.loss", "loss"), ("--task", "task"), ("--tuning", "tuning")]
)
def test_a_part_that_is_not_known_may_be_ones_own(folder, tiny, shell, part, kind):
    answer = shell("train", folder / "d.csv", "--encoder", tiny, part, "mine", "--out", folder / "run")
    assert answer.code == 2
    said = " ".join(answer.err.replace("│", " ").split())
    assert f"there is no {kind} 'mine'." in said
    assert "If it is your own, import its module first, in the shell by --import MODULE." in said


def test_a_run_with_a_part_that_was_imported_says_what_is_missing_when_it_is_not(folder, tiny, shell):
    options = ("train", folder / "d.csv", "--encoder", tiny, "--task.loss", "cubed", "--max-steps", 1, "--folds", 1)
    loss("cubed")(lambda outputs, targets: (outputs - targets).abs() ** 3)
    try:
        answer = shell(*options, "--out", folder / "run")
    finally:
        del loss._parts["cubed"]
    assert answer.code == 0, answer.err
    for more in (["--resume"], ["--config", folder / "run" / "run.toml"]):
        answer = shell(*options, *more, "--out", folder / "again")
        assert answer.code == 2
        said = " ".join(answer.err.replace("│", " ").split())
        assert "there is no loss 'cubed'." in said
        assert "import its module first, in the shell by --import MODULE." in said


def test_parts_of_ours_need_nothing(tiny, tmp_path):
    esmtune.train(ROWS, encoder=str(tiny), max_steps=1, folds=1, out=tmp_path / "run")
    assert json.loads((tmp_path / "run/predictor/predictor.json").read_text())["needs"] == []


@pytest.mark.parametrize("shrink", [torch.mean, lambda x: x[:1], lambda x: x[:, None]], ids=["mean", "one", "column"])
def test_a_loss_gives_one_number_a_point(tiny, shrink):
    loss("shrunk")(lambda outputs, targets: shrink((outputs - targets) ** 2))
    class_loss("shrunk")(lambda log_probabilities, wanted: shrink(-(wanted * log_probabilities).sum(-1)))
    try:
        for rows in (ROWS, [(sequence, "ab"[place % 2]) for place, sequence in enumerate(TEN)]):
            with pytest.raises(ValueError, match=r"loss 'shrunk' returned .*, expected one number a point, \(\d+,\)"):
                esmtune.train(rows, encoder=str(tiny), task={"loss": "shrunk"} | _named(rows), epochs=1)
    finally:
        for door in (loss, class_loss):
            del door._parts["shrunk"]


def _named(rows):
    return {"name": "regression" if isinstance(rows[0][1], float) else "binary"}


@pytest.mark.parametrize("shape", ["one row", "too many columns"])
def test_a_head_gives_a_row_a_point_and_a_column_an_output(tiny, shape):
    @head("odd")
    class Odd(Linear):
        def readout(self, x):
            y = super().readout(x)
            return {"one row": y[:1], "too many columns": torch.cat((y, y), 1)}[shape]

    try:
        with pytest.raises(ValueError, match=r"head 'odd' gives \(.*\) for two sequences .* takes \(2, 1\)"):
            esmtune.train(ROWS, encoder=str(tiny), head="odd", epochs=1)
    finally:
        del head._parts["odd"]
