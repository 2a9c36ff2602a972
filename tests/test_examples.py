"""The examples run as they are written, and what they print is right."""

import importlib.util
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import TEN, in_new_process

import esmtune

LENGTH = Path(__file__).parents[1] / "examples" / "length.py"
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the tutorial prints, and the folder it wrote."""
    folder = tmp_path_factory.mktemp("examples") / "length"
    done = in_new_process(LENGTH, folder, **OFFLINE)
    assert done.code == 0, done.err
    return done.out, folder


def rows(text: str) -> list[tuple[int, float, float]]:
    lines = text[text.index("length  target") :].splitlines()[1:]
    return [(int(a), float(b), float(c)) for a, b, c in (line.split() for line in lines)]


def test_ten_lengths_are_learned(printed):
    table = rows(printed[0])
    assert [length for length, _, _ in table] == [len(s) for s in TEN]
    assert [target for _, target, _ in table] == [len(s) / 100 for s in TEN]
    errors = [prediction - target for _, target, prediction in table]
    mean = sum(len(s) for s in TEN) / 1000
    spread = math.sqrt(sum((len(s) / 100 - mean) ** 2 for s in TEN) / 10)
    # Always saying the mean is wrong by the spread, 0.098; ten sequences known by heart by far less.
    assert math.sqrt(sum(e * e for e in errors) / 10) < spread / 3
    assert max(map(abs, errors)) < 0.06


def test_random_weights_are_said_wherever_results_are(printed):
    out, folder = printed
    assert "RANDOM" in out
    assert json.loads((folder / "predictor" / "predictor.json").read_text())["encoder"]["name"].startswith("random:")
    assert json.loads((folder / "metrics.json").read_text())["encoder"].startswith("random:")


def test_the_tutorials_numbers_are_those_that_were_run(printed):
    history = [json.loads(line) for line in (printed[1] / "history.jsonl").read_text().splitlines()]
    assert history[-1]["step"] == 50
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 5
    run = (printed[1] / "run.toml").read_text()
    for line in ("max_steps = 50", "global_batch_size = 8", "micro_batch_size = 4", "hidden = 256", "dropout = 0.25"):
        assert line in run.splitlines(), line


def test_the_saved_predictor_says_what_was_printed(printed):
    again = esmtune.load(printed[1], verify=True).predict(TEN)
    assert again == pytest.approx([prediction for _, _, prediction in rows(printed[0])], abs=6e-4)


def test_without_a_folder_it_says_how_to_call_it():
    done = in_new_process(LENGTH, **OFFLINE)
    assert done.code == 1
    assert "python examples/length.py FOLDER" in done.err


def test_the_ten_sequences_are_those_of_the_tutorial():
    spec = importlib.util.spec_from_file_location("length", LENGTH)
    length = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(length)
    assert tuple(length.SEQUENCES) == TEN
    assert len(inspect.signature(length.main).parameters) == 1


def train_on_ten(tiny, **options):
    return esmtune.train(
        [(s, len(s) / 100) for s in TEN], encoder=str(tiny), valid_fraction=0.0, test_fraction=0.0,
        **{"max_steps": 3, "global_batch_size": 8} | options,
    )  # fmt: skip


def head_weights(run) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in run.predictor.head.parameters()])


def test_frozen_or_not(tiny):
    before = esmtune.load_encoder(tiny)[0].state_dict()
    frozen = train_on_ten(tiny, tuning="frozen").predictor.encoder.state_dict()
    full = train_on_ten(tiny, tuning="full").predictor.encoder.state_dict()
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert all(not torch.equal(full[name], before[name]) for name in before if "query.weight" in name)


def test_hidden_size_and_head_dropout(tiny):
    run = train_on_ten(tiny, head={"name": "mlp", "hidden": 7, "dropout": 0.5})
    assert run.predictor.head.hidden.weight.shape == (7, 96)
    without = train_on_ten(tiny, head={"name": "mlp", "hidden": 7, "dropout": 0.0})
    assert not torch.equal(head_weights(run), head_weights(without))


def test_the_micro_batch_changes_nothing_and_the_global_batch_does(tiny):
    whole, split, other = (
        train_on_ten(tiny, global_batch_size=size, micro_batch_size=micro) for size, micro in ((8, 8), (8, 3), (4, 4))
    )
    torch.testing.assert_close(head_weights(split), head_weights(whole), atol=1e-5, rtol=0)
    assert not torch.allclose(head_weights(other), head_weights(whole), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_steps(tiny, steps):
    assert train_on_ten(tiny, max_steps=steps).history[-1]["step"] == steps
