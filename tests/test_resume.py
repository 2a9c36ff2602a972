"""A run that was stopped, by SIGTERM or killed at any moment, and goes on, is to the bit the run that never stopped."""

import json
import os
import signal
from pathlib import Path

import pytest

import esmtune
from esmtune.journal import Journal, write_entry
from tests.conftest import TEN, in_new_process

OPTIONS = {
    "epochs": 3,
    "global_batch_size": 3,
    "tokens_per_batch": 120,
    "ema": 0.8,
    "checkpoint_minutes": 0,
    "patience": 99,
    "valid_fraction": 0.3,
    "test_fraction": 0.1,
    "encoder_learning_rate": 1e-3,
}
FULL = {"tuning": "full"}
STAGES = {"tuning": {"name": "probe-then-full", "probe_epochs": 2}}
LORA = {"tuning": {"name": "lora", "rank": 2, "dropout": 0.2}}
SEEDS = {"tuning": "full", "seeds": 2, "epochs": 2}
SCORES = {"tuning": "full", "valid_window": 2, "task": {"name": "regression", "scale": "normal", "ranking_weight": 3.0}}
IN_VAIN = {"tuning": "full", "patience": 1, "head_learning_rate": 0.0, "encoder_learning_rate": 0.0}

# Where a run dies: what is called, how often before, and what is left of the call.
DEATHS = {
    "in a step": (FULL, "torch.optim.AdamW.step", 3, "before"),
    "between steps": (FULL, "torch.optim.AdamW.step", 3, "after"),
    "in a checkpoint": (FULL, "esmtune.journal.save_file", 3, "half"),
    "before a checkpoint is in place": (FULL, "esmtune.writers.os.replace", 6, "before"),
    "in an evaluation": (FULL, "esmtune.training._evaluate", 2, "before"),
    "after an evaluation": (FULL, "esmtune.training._evaluate", 2, "after"),
    "in the last predictions": (FULL, "esmtune.standing.Fitted.entry", 1, "before"),
    "while the run is written": (FULL, "esmtune.fitting.write_run", 1, "before"),
    "in the second stage": (STAGES, "torch.optim.AdamW.step", 8, "before"),
    "with dropout of adapters": (LORA, "torch.optim.AdamW.step", 5, "before"),
    "in the second seed": (SEEDS, "torch.optim.AdamW.step", 5, "before"),
    "with normal scores, and weights chosen by two epochs": (SCORES, "torch.optim.AdamW.step", 5, "before"),
    "by SIGTERM in the evaluation that ends it": (IN_VAIN, "esmtune.training._evaluate", 2, "SIGTERM"),
    "by SIGTERM in the last predictions": (FULL, "esmtune.inputs.Inputs.said", 1, "SIGTERM"),
    "by SIGTERM in a step": (FULL, "torch.optim.AdamW.step", 4, "SIGTERM"),
    "by SIGTERM in an evaluation": (FULL, "esmtune.training._evaluate", 2, "SIGTERM"),
}

# One process imports everything, and each death is a fork of it.
SCRIPT = """
import importlib, json, os, signal, sys
import esmtune, esmtune.fitting, esmtune.training, esmtune.members, torch, peft
from esmtune.events import Terminated

def doomed(name, count, how):
    path, _, attribute = name.rpartition(".")
    try:
        owner = importlib.import_module(path)
    except ModuleNotFoundError:
        head, _, tail = path.rpartition(".")
        owner = getattr(importlib.import_module(head), tail)
    real, calls = getattr(owner, attribute), [0]
    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] != count:
            return real(*args, **kwargs)
        if how == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)
        if how == "half":
            open(args[1], "wb").write(b"\\x10\\0\\0\\0\\0\\0\\0\\0{")
        if how == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, attribute, call)

ends = {}
for title, (options, name, count, how) in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        doomed(name, count, how)
        try:
            esmtune.train(sys.argv[2], out=f"{sys.argv[3]}/{title}", **options)
        except Terminated:
            os._exit(143)
        os._exit(0)
    ends[title] = os.waitpid(child, 0)[1]
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "ten.csv"
    rows = [f"{sequence},{len(sequence) % 7}.{number}" for number, sequence in enumerate(TEN)]
    path.write_text("sequence,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def stopped(table, tiny, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("stopped")
    deaths = {t: (OPTIONS | {"encoder": str(tiny)} | o, *rest) for t, (o, *rest) in DEATHS.items()}
    answer = in_new_process("-c", SCRIPT, json.dumps(deaths), str(table), str(folder), OMP_NUM_THREADS="1")
    assert answer.code == 0, answer.err
    return folder, json.loads(answer.out.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(table, tiny, tmp_path_factory):
    """Runs that were never stopped, by their options."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def run(options) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = folder / str(len(made))
            esmtune.train(table, out=made[key], encoder=str(tiny), **OPTIONS | options)
        return made[key]

    return run


def contents(run: Path) -> dict[str, bytes]:
    names = [p for p in sorted(run.rglob("*")) if p.is_file() and p.suffix in (".safetensors", ".jsonl", ".csv")]
    return {str(p.relative_to(run)): p.read_bytes() for p in names}


@pytest.mark.parametrize("title", DEATHS)
def test_a_run_that_was_stopped_goes_on_to_the_same_end(title, stopped, whole, table, tiny):
    folder, ends = stopped
    options, *_, how = DEATHS[title]
    if how == "SIGTERM":
        assert os.waitstatus_to_exitcode(ends[title]) == 143
    else:
        assert os.waitstatus_to_exitcode(ends[title]) == -signal.SIGKILL
    out = folder / title
    assert not out.exists()  # a run is whole or not there
    said = []
    run = esmtune.train(table, out=out, encoder=str(tiny), resume=True, watch=said.append, **OPTIONS | options)
    assert run.history == json.loads(json.dumps(run.history))
    assert contents(out) == contents(whole(options))
    assert (out / "metrics.json").read_text() == (whole(options) / "metrics.json").read_text()
    assert not (folder / f"{title}.unfinished").exists()
    texts = " ".join(getattr(event, "text", "") for event in said)
    assert "Going on after step" in texts or "was trained before" in texts


def test_the_runs_differ_where_they_should(whole):
    """The comparison above could not pass on anything."""
    assert contents(whole(FULL)) != contents(whole(LORA))


def test_a_stopped_run_is_not_overwritten_unasked(table, tiny, tmp_path):
    import shutil

    out = tmp_path / "run"
    journal = tmp_path / "run.unfinished"
    journal.mkdir()
    (journal / "identity.json").write_text("{}")
    write_entry(journal / "seed-0.safetensors", ({}, {}))
    with pytest.raises(ValueError, match="Go on with --resume, or start anew with --overwrite"):
        esmtune.train(table, out=out, encoder=str(tiny), **OPTIONS)
    with pytest.raises(ValueError, match="that is another run"):
        esmtune.train(table, out=out, encoder=str(tiny), resume=True, **OPTIONS)
    shutil.rmtree(journal)
    journal.mkdir()
    (journal / "thesis.docx").write_text("mine")
    with pytest.raises(ValueError, match="holds other things"):
        esmtune.train(table, out=out, encoder=str(tiny), **OPTIONS)
    assert (journal / "thesis.docx").read_text() == "mine"


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"data_sha256": "1" * 64}, r"begun with other data \(SHA-256 000000000000\.\.\., now 111111111111\.\.\.\)"),
        ({"version": "0.2.0, edition 8"}, "begun by esmtune 0.2.0, edition 7, and this is 0.2.0, edition 8, which may"),
        ({"clip": 1.0}, r"begun with clip 0\.5, but now it is 1\.0: that is another run\. Give the same data and"),
    ],
)
def test_what_is_another_run_is_told(tmp_path, now, words):
    then = {"data_sha256": "0" * 64, "version": "0.2.0, edition 7", "clip": 0.5}
    journal = Journal(tmp_path / "run.unfinished")
    journal.open(then, resume=False)
    journal.save("seed-0", ({}, {}))
    assert journal.open(then, resume=True)
    with pytest.raises(ValueError, match=words):
        journal.open(then | now, resume=True)


def test_resume_needs_a_folder_and_says_when_there_is_nothing(table, tiny, tmp_path):
    with pytest.raises(ValueError, match="no out is given"):
        esmtune.train(table, encoder=str(tiny), resume=True)
    said = []
    esmtune.train(table, out=tmp_path / "run", encoder=str(tiny), resume=True, watch=said.append, epochs=1)
    assert any("starts at the beginning" in getattr(event, "text", "") for event in said)
    with pytest.raises(ValueError, match="exists"):
        esmtune.train(table, out=tmp_path / "run", encoder=str(tiny), resume=True, epochs=1)


def test_a_mistake_leaves_no_journal_behind(table, tiny, tmp_path):
    with pytest.raises(ValueError, match="no layer 9"):
        esmtune.train(table, out=tmp_path / "run", encoder=str(tiny), layers="9")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_stopped_before_it_had_anything_begins_anew(table, tiny, tmp_path):
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished" / "identity.json").write_text("{}")
    esmtune.train(table, out=tmp_path / "run", encoder=str(tiny), epochs=1)
    assert not (tmp_path / "run.unfinished").exists()


def test_a_run_goes_on_only_with_the_encoder_it_began_with(table, tmp_path):
    from esmtune.encoders import save_huggingface
    from esmtune.events import Terminated
    from tests.conftest import tiny_encoder

    def stop(event):
        if getattr(event, "stage", "") == "training" and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"out": tmp_path / "run", "encoder": str(tmp_path / "encoder"), **OPTIONS}
    save_huggingface(tiny_encoder(), tmp_path / "encoder")
    with pytest.raises(Terminated):
        esmtune.train(table, watch=stop, **options)
    save_huggingface(tiny_encoder(seed=1), tmp_path / "encoder")
    with pytest.raises(ValueError, match="had another encoder's SHA-256"):
        esmtune.train(table, resume=True, **options)
    with pytest.raises(ValueError, match="begun with patience 99, but now it is 98"):
        esmtune.train(table, resume=True, **options | {"patience": 98})
