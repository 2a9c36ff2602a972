"""The loop: what moves, what does not, and that no way of cutting the work up changes the numbers."""

import itertools
import json

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import esmtune
from esmtune import events
from esmtune.esm2 import Tokens
from esmtune.masking import Masking, masked
from esmtune.tasks import task
from esmtune.tuning import tuning
from tests.conftest import TEN, in_new_process, tiny_encoder

LENGTHS = [(sequence, len(sequence) / 100) for sequence in TEN]
EVERYTHING = {"valid_fraction": 0.0, "test_fraction": 0.0, "folds": 1, "head": "mlp"}


TEN_UNLABELED = pl.DataFrame({"sequence": TEN})


def train(tiny, rows=LENGTHS, **options):
    return esmtune.train(rows, encoder=str(tiny), **{"tuning": "full", **EVERYTHING, **options})


SHORT = tuple(sequence[:16] for sequence in TEN)
NUMBERS = [round(0.37 * number**1.5, 2) for number in range(10)]
BY_HEART = {"epochs": 150, "global_batch_size": 10, "encoder_learning_rate": 1e-4, "head_learning_rate": 3e-3, "ema": 0,
            "head": {"name": "mlp", "dropout": 0.0}}  # fmt: skip
# Labels of ten sequences for every task, and for some of them of every residue.
LABELS = {
    "regression": {"label": NUMBERS},
    "binary": {"label": list("abaabbabab")},
    "multiclass": {"label": list("abcabcabcc")},
    "multilabel": {"label": ["a;b", "a", "b;c", "c", "a;c", ";", "a;b;c", "b", "c;a", "b"]},
    "ordinal": {"label": [1, 3, 2, 1, 2, 3, 3, 1, 2, 2]},
    "multitask": {"tm": NUMBERS, "place": list("xyxyxyyxyx")},
    "residue-regression": {"label": [";".join(f"{ord(c) / 10:.1f}" for c in s) for s in SHORT]},
    "residue-multiclass": {"label": ["".join("AVG"[ord(c) % 3] for c in s) for s in SHORT]},
}


def test_every_task_is_memorized_here():
    assert {name.removeprefix("residue-") for name in LABELS} | {"mlm"} == set(task)


@pytest.mark.parametrize("name", LABELS)
def test_ten_sequences_can_be_memorized_by_every_task(tiny, name):
    columns = LABELS[name]
    kind = None if len(columns) > 1 else name.removeprefix("residue-")
    table = pl.DataFrame({"sequence": SHORT, **columns})
    tuning = "full" if "residue" in name else "frozen"
    run = train(tiny, table, task=kind, target=list(columns), tuning=tuning, **BY_HEART)
    predictions = run.predictions
    for column in columns:
        end = f"_{column}" if len(columns) > 1 else ""
        told, found = predictions[f"label{end}"], predictions[f"prediction{end}"]
        if name == "residue-regression":
            told, found = (pl.Series([float(x) for cell in cells for x in cell.split(";")]) for cells in (told, found))
        if told.dtype == pl.Float64:
            assert found.to_list() == pytest.approx(told.to_list(), abs=0.2)
        else:
            assert found.to_list() == told.to_list()


@pytest.mark.parametrize("name", list(tuning))
def test_ten_sequences_can_be_memorized_by_every_tuning(tiny, name):
    spec = {"name": name} | {"last": {"layers": 1}, "probe-then-full": {"probe_epochs": 20}}.get(name, {})
    run = train(tiny, list(zip(SHORT, NUMBERS, strict=True)), tuning=spec, **BY_HEART)
    assert run.predictor.predict(SHORT) == pytest.approx(NUMBERS, abs=0.2)
    assert run.metrics["tuning"] == name


def test_ten_sequences_can_be_memorized_by_language_modeling(tiny, tmp_path):
    seen = pl.DataFrame({"sequence": [sequence[:40] for sequence in TEN]})
    options = {"task": "mlm", "epochs": 600, "global_batch_size": 10, "encoder_learning_rate": 3e-3,
               "head_learning_rate": 3e-3, "ema": 0.0, "head": None}  # fmt: skip
    run = train(tiny, seen, out=tmp_path / "run", **options)
    losses = [entry["train_loss"] for entry in run.history]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])  # .41: other residues are hidden in every epoch
    found = esmtune.evaluate(run.path, seen)
    assert found["scores"]["perplexity"] < 0.5 * found["baselines"]["majority"]["perplexity"]
    short = [train(tiny, seen, **options | {"epochs": 3}).history for _ in range(2)]
    assert short[0] == short[1]  # what is hidden comes of the seed


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("tuning", ["frozen", {"name": "last", "layers": 1}, "full"], ids=str)
def test_what_should_move_moves_and_nothing_else_does(tiny, tuning, head):
    """VenusFactory2 put weights in the optimizer that got no gradient."""
    before = esmtune.load_encoder(tiny)[0].state_dict()
    run = train(tiny, tuning=tuning, head=head, max_steps=2)
    after = run.predictor.encoder.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    weights = set(before) - {"frequency"}
    if tuning == "frozen":
        assert moved == set()
    elif tuning == "full":
        # <pad>, <mask> and other rows of the embedding have no token here, the matrix as a whole moves.
        assert moved == weights
    else:
        assert moved == {name for name in weights if name.startswith(("layers.1.", "norm."))}
    fresh = train(tiny, tuning=tuning, head=head, max_steps=2, head_learning_rate=0.0, encoder_learning_rate=0.0)
    start, end = fresh.predictor.head.state_dict(), run.predictor.head.state_dict()
    follows = set() if tuning == "frozen" else {"standardize.center"}  # what all sequences drift by alike
    learned = {n for n in start if "standardize" not in n and "beside" not in n}  # which is solved, of enough rows
    assert {n for n in start if not torch.equal(start[n], end[n])} == learned | follows


@pytest.mark.parametrize("tuning", ["frozen", "full"])
@pytest.mark.parametrize(
    "cut",
    [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"tokens_per_batch": 1}, {"tokens_per_batch": 70}],
    ids=str,
)
def test_micro_batches_change_nothing(tiny, cut, tuning):
    """The loss is the sum over the global batch divided by its count, dropout is each sequence's own."""
    options = {"tuning": tuning, "max_steps": 6, "global_batch_size": 8, "valid_fraction": 0.2, "warmup": 0.3}
    whole, parts = train(tiny, **options), train(tiny, **options, **cut)
    agree(whole.history, parts.history, whole.predictor.state_dict(), parts.predictor.state_dict())


@pytest.mark.parametrize("cut", [{"micro_batch_size": 1}, {"micro_batch_size": 3}], ids=str)
def test_micro_batches_change_nothing_but_rounding_in_bfloat16(tiny, cut):
    """Losses by 2 %, of which .7 % are seen; one rounding is .4 %."""
    options = {"tuning": "full", "max_steps": 6, "global_batch_size": 8, "valid_fraction": 0.2, "warmup": 0.3}
    whole, parts = (train(tiny, precision="bfloat16", **options, **more) for more in ({}, cut))
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=0.02)
    assert whole.history[-1]["train_loss"] < 0.8 * whole.history[0]["train_loss"]  # steps move more than that


def test_a_step_on_kept_features_is_one_pass_however_long_the_sequences(tiny, monkeypatch):
    """Of several passes a loss that compares points would need the outputs first."""
    monkeypatch.delattr("esmtune.gradients._gradient_of_outputs")
    run = train(tiny, tuning="frozen", max_steps=2, global_batch_size=10, tokens_per_batch=max(map(len, TEN)))
    assert run.history[-1]["step"] == 2
    with pytest.raises(NameError):
        train(tiny, max_steps=2, global_batch_size=10, tokens_per_batch=max(map(len, TEN)))


def agree(history, other_history, weights, other_weights):
    """Equal to 1e-5, of what it is or of one: float32 sums in another order, of whose gradients Adam makes weights.

    Losses of validation rows are of all these weights at once: to 3e-5 (1.01e-5 with AVX512 on an Intel Xeon).
    """
    assert len(history) == len(other_history)
    for one, other in zip(history, other_history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5, abs=1e-5)
        assert one.get("valid_loss") == pytest.approx(other.get("valid_loss"), rel=3e-5, abs=1e-5)
    assert weights.keys() == other_weights.keys()
    for name in weights:
        # Nothing sees the bias of the keys (softmax) or of the last norm (the moving center takes it off): their
        # gradient is rounding alone, which Adam magnifies. The center follows the latter.
        if not name.endswith(("key.bias", "encoder.norm.bias", "head.standardize.center")):
            torch.testing.assert_close(weights[name], other_weights[name], rtol=0, atol=1e-5)


TWO_DEVICES = """
import esmtune, json, sys
if __name__ == "__main__":
    rows, encoder, options, out = json.loads(sys.argv[1])
    run = esmtune.train([tuple(row) for row in rows], encoder=encoder, out=out, watch=print, **options)
    print(json.dumps(run.history))
"""


def test_two_processes_give_the_numbers_of_one(tiny, tmp_path):
    """Also where one of them has no micro-batch: the last global batch of an epoch holds a single sequence."""
    options = {"tuning": "full", "max_steps": 5, "global_batch_size": 3, "valid_fraction": 0.2, "test_fraction": 0.1,
               "accelerator": "cpu", "self_contained": True, "folds": 1}  # fmt: skip
    one = esmtune.train(LENGTHS, encoder=str(tiny), out=tmp_path / "one", **options)
    assert one.metrics["records"] == {"train": 7, "valid": 2, "test": 1}
    script = tmp_path / "two.py"
    script.write_text(TWO_DEVICES)
    argument = json.dumps([LENGTHS, str(tiny), {**options, "devices": 2, "log": ["csv"]}, str(tmp_path / "two")])
    two = in_new_process(script, argument, OMP_NUM_THREADS="1")
    assert two.code == 0, two.err
    history = json.loads(two.out.splitlines()[-1])
    assert "Progress(stage='training'" in two.out  # what the processes say is heard
    weights = [load_file(tmp_path / name / "predictor" / "weights.safetensors") for name in ("one", "two")]
    agree(one.history, history, *weights)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert metrics[0]["test"]["mae"] == pytest.approx(metrics[1]["test"]["mae"], abs=1e-5)
    assert len((tmp_path / "two" / "logs" / "csv" / "metrics.csv").read_text().splitlines()) == 1 + len(history)


STARTED_OUTSIDE = """
import os, sys
import esmtune.cli, esmtune.provisions
least = 64 if os.environ["RANK"] == "1" else 4096  # as if the second process had less memory
esmtune.provisions.tokens_that_fit = lambda *args: least
esmtune.cli.main()
"""


def test_processes_that_torchrun_started_divide_steps_alike_and_one_of_them_speaks(tiny, tmp_path):
    options = {"tuning": "full", "epochs": 2, "global_batch_size": 8, "folds": 1, "split": "random"}
    one = esmtune.train(LENGTHS, encoder=str(tiny), **options)
    (tmp_path / "two.py").write_text(STARTED_OUTSIDE)
    rows = [f"{sequence},{label}" for sequence, label in LENGTHS]
    (tmp_path / "ten.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    start = ["-m", "torch.distributed.run", "--nproc-per-node=2", "two.py", "train", "ten.csv", f"--encoder={tiny}"]
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "thesis.txt").write_text("mine")
    given += ["--devices=2", "--accelerator=cpu", "--out=out", "--overwrite"]
    refused = in_new_process(*start, *given, OMP_NUM_THREADS="1", cwd=tmp_path)
    assert refused.code
    assert "out.unfinished is where a run keeps what it needs to go on, but holds other things" in refused.err
    assert (tmp_path / "out.unfinished" / "thesis.txt").read_text() == "mine"
    (tmp_path / "out.unfinished" / "thesis.txt").unlink()
    two = in_new_process(*start, *given, OMP_NUM_THREADS="1", cwd=tmp_path)
    assert two.code == 0, two.err
    assert two.out.count("Run: out") == 1
    assert two.err.count("Task: regression") == 1
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    agree(one.history, history, {}, {})
    assert not (tmp_path / "out.unfinished").exists()


SEVERAL = """
import esmtune, json, os, signal, sys
from esmtune import events, gradients

what, table, encoder, out = sys.argv[1:]
options = {"tuning": "full", "epochs": 3, "global_batch_size": 3, "valid_fraction": 0.3, "test_fraction": 0.1,
           "checkpoint_minutes": 60, "devices": 2, "accelerator": "cpu", "overwrite": what != "resume", "folds": 1}

def step(*args):
    raise RuntimeError("std::bad_alloc")

if what == "memory":
    gradients.backward = step

def watch(event):
    if isinstance(event, events.Progress) and event.stage == "training" and event.done == 3:
        if what == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "raise":
            raise RuntimeError("nobody looks any more")

if __name__ == "__main__":
    try:
        if what == "raise":
            options["epochs"] = 100_000
        run = esmtune.train(table, encoder=encoder, out=out, watch=watch, resume=what == "resume", **options)
        print(json.dumps(run.history))
    except events.Terminated:
        sys.exit(143)
"""


def test_several_processes_stop_together(tiny, tmp_path):
    """Asked by SIGTERM, which leaves what is needed to go on to the same end; by a watcher; or for want of memory."""
    (tmp_path / "script.py").write_text(SEVERAL)
    rows = [f"{sequence},{label}" for sequence, label in LENGTHS]
    (tmp_path / "ten.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")

    def script(what, out):
        return in_new_process("script.py", what, "ten.csv", tiny, out, OMP_NUM_THREADS="1", cwd=tmp_path)

    stopped = script("stop", "out")
    assert stopped.code == 143, stopped.err
    assert (tmp_path / "out.unfinished" / "seed-0.safetensors").is_file()
    on, whole = script("resume", "out"), script("whole", "other")
    assert on.code == 0, on.err
    assert json.loads(on.out) == json.loads(whole.out)
    raised = script("raise", "out")
    assert raised.err.rstrip().endswith("RuntimeError: nobody looks any more")
    scarce = script("memory", "out")
    assert "ValueError: memory ran out in one of several processes" in scarce.err.splitlines()[-1]


def test_labels_stay_with_their_sequences(tiny):
    """biotrainer paired a batch sorted by length with labels that were not; order in the table changes nothing."""
    table = [(sequence, float(i)) for i, sequence in enumerate(TEN)]
    run = train(tiny, table, task={"name": "regression", "ranking_weight": 0.0}, epochs=1, global_batch_size=5,
                encoder_learning_rate=0.0, head_learning_rate=0.0,
                head={"name": "mlp", "dropout": 0.0})  # fmt: skip
    alone = np.array([run.predictor.predict([sequence])[0] for sequence in TEN])
    errors = (alone - np.arange(10)) / np.std(np.arange(10))
    assert run.history[0]["train_loss"] == pytest.approx(np.mean(errors**2), abs=1e-5)
    frame = run.predictions
    assert frame["id"].to_list() == [str(i + 1) for i in range(10)]
    assert frame["label"].to_list() == [label for _, label in table]
    assert frame["prediction"].to_list() == pytest.approx(alone.tolist(), abs=1e-5)


def test_test_records_are_read_once_at_the_end(tiny, monkeypatch):
    """ColabSaprot and the transformers notebook choose by the test set."""
    from esmtune import esm2
    from esmtune.baselines import Means

    monkeypatch.setattr("esmtune.standards._means", lambda *_: Means())  # which look at embeddings after the last step
    seen = []
    read = esm2.Tokens.of.__func__
    monkeypatch.setattr(
        esm2.Tokens, "of", classmethod(lambda cls, sequences, *a: seen.extend(sequences) or read(cls, sequences, *a))
    )
    stages = []
    for kind in ("frozen", "full"):
        seen.clear()
        stages.clear()
        at_stage = {}

        def watch(event, stages=stages, at_stage=at_stage):
            if isinstance(event, events.Progress):
                stages.append(event.stage)
                at_stage.setdefault(event.stage, len(seen))

        run = train(tiny, tuning=kind, valid_fraction=0.2, test_fraction=0.2, epochs=2, watch=watch)
        places = run.predictions.filter(run.predictions["split"] == "test")["id"]
        tests = {TEN[int(place) - 1] for place in places}
        assert len(tests) == 2
        assert stages[-1] in ("testing", "predicting")
        assert sum(sequence in tests for sequence in seen) == 2  # each test record once
        first = min(seen.index(sequence) for sequence in tests)
        assert first >= at_stage["predicting" if kind == "full" else "training"]
        assert {sequence for sequence in seen[first:] if sequence in TEN} == tests


def test_a_run_repeats_from_its_seed(tiny):
    one, same, other = (train(tiny, epochs=2, valid_fraction=0.2, seed=seed) for seed in (1, 1, 2))
    for name, weight in one.predictor.state_dict().items():
        assert torch.equal(weight, same.predictor.state_dict()[name])
    assert [e["train_loss"] for e in one.history] == [e["train_loss"] for e in same.history]
    assert [e["train_loss"] for e in one.history] != [e["train_loss"] for e in other.history]


@pytest.mark.parametrize("seed", [0, 1 << 15, (1 << 32) - 1])
def test_any_seed_will_do(tiny, seed):
    assert train(tiny, max_steps=1, seed=seed).config.seed == seed
    with pytest.raises(ValueError, match="seed is 4294967296, expected less than"):
        train(tiny, seed=1 << 32)


def test_training_leaves_the_global_random_state_alone(tiny):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(tiny, max_steps=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("window", [1, 3])
def test_the_best_weights_are_kept(tiny, window):
    """By the mean over the last evaluations, once there are so many; the best one until then."""
    options = {"epochs": 12, "valid_fraction": 0.3, "metric": "loss", "encoder_learning_rate": 3e-3, "patience": 3}
    told = []
    run = train(tiny, **options, valid_window=window, watch=told.append)
    losses = [entry["valid_loss"] for entry in run.history]
    means = [np.mean(losses[end - window : end]) for end in range(window, len(losses) + 1)]
    assert [entry["recent"] for entry in run.history] == pytest.approx([None] * (window - 1) + means)
    best = int(np.argmin(means)) + window - 1
    assert run.metrics["best"] == {"step": run.history[best]["step"], "epoch": best + 1, "metric": "loss"}
    assert len(losses) == min(12, best + 1 + 3)
    assert run.metrics["valid"]["rmse"] == pytest.approx(run.history[best]["valid"]["rmse"], abs=1e-6)
    kept = [min(losses[:end]) for end in range(1, window)]  # by which a search gives up
    kept += [losses[int(np.argmin(means[:end])) + window - 1] for end in range(1, len(means) + 1)]
    assert [e.scores["loss"] for e in told if isinstance(e, events.Progress) and e.scores] == kept


def test_the_rate_that_is_told_is_the_heads(tiny):
    options = {"head_learning_rate": 3e-3, "encoder_learning_rate": 1e-5, "schedule": "constant", "warmup": 0.0}
    for way in ("full", {"name": "full", "layer_decay": 0.5}, "lora"):
        run = train(tiny, tuning=way, max_steps=1, **options)
        assert [entry["learning_rate"] for entry in run.history] == [3e-3]


def test_no_epoch_is_chosen_before_there_are_evaluations_enough(tiny):
    """One evaluation of few rows is high by chance: of a window that is as long as the run only the last is chosen."""
    run = train(tiny, epochs=4, valid_fraction=0.3, valid_window=5, patience=1)
    assert run.config.valid_window == 4
    assert [entry["recent"] is None for entry in run.history] == [True, True, True, False]
    assert run.metrics["best"]["epoch"] == 4


def test_the_second_stage_is_chosen_by_its_own_epochs(tiny):
    """Of which it may have fewer than the whole run."""
    way = {"name": "probe-then-full", "probe_epochs": 10}
    options = {"valid_fraction": 0.3, "global_batch_size": 8, "metric": "loss", "encoder_learning_rate": 1e-3}
    run = train(tiny, tuning=way, max_steps=11, **options)
    last = run.history[-1]
    assert run.config.valid_window == 2
    assert last["recent"] == last["valid_loss"]
    before = min(entry["recent"] for entry in run.history[:-1] if entry["recent"] is not None)
    assert (run.metrics["best"]["step"] == last["step"] and "stage" not in last) == (last["recent"] < before)


def test_the_learning_rate_rises_and_falls():
    from esmtune.config import TrainConfig
    from esmtune.optimization import Schedule

    schedule = Schedule(TrainConfig(max_steps=100, warmup=0.1).completed("full", 10), 10)
    factors = [schedule.factor(step) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([i / 11 for i in range(1, 11)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)  # halfway down the cosine
    assert factors[-1] < 0.001
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_steps_are_counted_through_the_epochs(tiny):
    run = train(tiny, max_steps=5, global_batch_size=4)
    assert [(e["step"], e["epoch"]) for e in run.history] == [(3, 1), (5, 2)]
    run = train(tiny, epochs=2, global_batch_size=4)
    assert [(e["step"], e["epoch"]) for e in run.history] == [(3, 1), (6, 2)]


def test_a_diverging_run_stops_and_keeps_the_weights_from_before(tiny, tmp_path, shell):
    said = []
    options = {"head_learning_rate": 1e38, "clip": 1e38, "epochs": 30, "valid_fraction": 0.3, "global_batch_size": 2}
    run = train(tiny, out=tmp_path / "run", watch=said.append, **options)
    assert run.diverged
    (found,) = run.metrics["diverged"].values()
    assert found["ids"]
    sentence = " ".join(getattr(event, "text", "") for event in said)
    assert f"DIVERGED: at step {found['step']:,} (epoch {found['epoch']})" in sentence
    assert all(name in sentence for name in found["ids"])
    assert "lower --encoder-learning-rate" in sentence
    assert all(weight.isfinite().all() for weight in run.predictor.state_dict().values())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["diverged"] == run.metrics["diverged"]
    table = tmp_path / "ten.csv"
    table.write_text("sequence,target\n" + "".join(f"{s},{x}\n" for s, x in LENGTHS))
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    answer = shell("train", table, "--encoder", tiny, "--tuning", "full", "--out", tmp_path / "shell", *flags)
    assert answer.code == 3


def test_random_weights_are_said_everywhere(tmp_path, shell):
    table = tmp_path / "ten.csv"
    table.write_text("sequence,target\n" + "".join(f"{s},{x}\n" for s, x in LENGTHS))
    out = tmp_path / "run"
    options = ["--encoder", "random:esm2_t6_8M_UR50D", "--max-steps", 1, "--folds", 1, "--out", out]
    answer = shell("train", table, *options)
    assert answer.code == 0
    assert "RANDOM" in answer.err
    assert "random:esm2_t6_8M_UR50D" in answer.err
    for file in ("run.toml", "metrics.json", "environment.json", "predictor/predictor.json"):
        assert "random:esm2_t6_8M_UR50D" in (out / file).read_text(), file
    for command in (["predict", out, table], ["evaluate", out, table]):
        assert "RANDOM" in shell(*command).err
    assert "RANDOM" in shell("embed", out, table, "--out", tmp_path / "e.npz").err
    assert "random" in str(np.load(tmp_path / "e.npz")["encoder"])


def test_the_head_may_be_given_whole(tiny):
    run = train(tiny, head={"name": "mlp", "hidden": 8, "dropout": 0.5, "pool": "cls"}, max_steps=1)
    assert run.predictor.spec.head == {
        "name": "mlp",
        "hidden": 8,
        "depth": 2,
        "dropout": 0.5,
        "pool": "cls",
        "ridge": False,
    }
    assert run.predictor.head.hidden.weight.shape == (8, 96)  # three layers side by side


def test_heads_that_see_residues_see_two_layers_unless_asked(tiny):
    for name, layers in [("mlp", "0,1,2"), ("attention", "1,2"), ("light-attention", "1,2"), ("conv", "1,2")]:
        assert train(tiny, head=name, max_steps=1).config.layers == layers
    assert train(tiny, head="attention", layers="all", max_steps=1).config.layers == "0,1,2"


def test_auto_counts_sequences_and_not_residues(tiny):
    rows = [(sequence, "HE"[:1] * (len(sequence) - 1) + "E") for sequence in TEN]
    assert train(tiny, rows, tuning="auto", max_steps=1).config.tuning["name"] == "frozen"


def test_all_steps_of_both_stages_are_no_more_than_asked_for(tiny):
    for limit, probed in [(3, 3), (12, 10)]:
        run = train(tiny, tuning={"name": "probe-then-full", "probe_epochs": 2}, max_steps=limit, global_batch_size=2)
        steps = {stage: max((e["step"] for e in run.history if e.get("stage") == stage), default=0)
                 for stage in ("probe", None)}  # fmt: skip
        assert steps == {"probe": probed, None: limit - probed}
        assert any("the encoder does not move" in text for text in run.notices) is (limit == 3)


def test_a_new_language_model_expects_every_symbol_alike(tiny):
    run = train(tiny, TEN_UNLABELED, task="mlm", max_steps=1, encoder_learning_rate=0.0, valid_fraction=0.3)
    assert run.metrics["valid"]["perplexity"] == pytest.approx(33, rel=0.1)
    assert list(run.metrics["baselines"]["valid"]) == ["majority"]  # there was no language model before


def test_the_baseline_guesses_the_residues_that_the_predictor_guesses(tiny):
    found = [
        train(tiny, TEN_UNLABELED, task={"name": "mlm", "masked": share}, max_steps=1, valid_fraction=0.3)
        for share in (0.15, 0.6)
    ]
    one, other = (run.metrics["baselines"]["valid"]["majority"]["perplexity"] for run in found)
    assert one != other


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_language_model_is_held_against_itself_before(tmp_path, tuning):
    encoder = tiny_encoder(lm_head=True)
    esmtune.save_huggingface(encoder, tmp_path / "encoder")
    options = {"task": "mlm", "tuning": tuning, "max_steps": 30, "valid_fraction": 0.3, "test_fraction": 0.3}
    run = esmtune.train(TEN_UNLABELED, encoder=str(tmp_path / "encoder"), out=tmp_path / "run", **options)
    splits = pl.read_csv(tmp_path / "run" / "split.csv")["split"].to_list()

    def perplexity(places):
        losses = []
        for place in places:
            tokens, must = masked(Tokens.of([TEN[place]], torch.tensor([place])), Masking())
            truth = Tokens.of([TEN[place]]).ids[1:-1][must]
            with torch.inference_mode():
                losses += (-encoder.logits(tokens)[must].log_softmax(1)[range(len(truth)), truth]).tolist()
        return pytest.approx(np.exp(np.mean(losses)), rel=1e-5)

    before = run.metrics["baselines"]["test"]["before adaptation"]["perplexity"]
    assert before == perplexity([place for place, split in enumerate(splits) if split == "test"])
    assert before != pytest.approx(run.metrics["test"]["perplexity"], rel=1e-3)
    further = esmtune.train(TEN_UNLABELED, init=str(tmp_path / "run"), **options)
    assert further.metrics["baselines"]["test"]["before adaptation"] == pytest.approx(run.metrics["test"], rel=1e-5)
    still = {"encoder_learning_rate": 0.0, "head_learning_rate": 0.0, "task": {"name": "mlm", "masked": 0.6}}
    same = esmtune.train(TEN_UNLABELED, init=str(tmp_path / "run"), **options | still)
    assert same.metrics["baselines"]["test"]["before adaptation"] == pytest.approx(same.metrics["test"], rel=1e-5)


def test_options_without_effect_are_refused(tiny):
    rows = [(sequence, "ab"[place % 2]) for place, sequence in enumerate(TEN)]
    with pytest.raises(ValueError, match=r"gamma is 3\.0, but the loss 'cross-entropy' has none"):
        train(tiny, rows, task={"name": "binary", "gamma": 3.0})
    with pytest.raises(ValueError, match="compares the sequences of a step, but --global-batch-size is 1"):
        train(tiny, task={"name": "regression", "loss": "pairwise"}, global_batch_size=1)
    for name in ("head_learning_rate", "ema"):
        with pytest.raises(ValueError, match=f"{name} is inf, expected 0 or more"):
            train(tiny, **{name: float("inf")})
    for clip in (0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="expected more than 0"):
            train(tiny, clip=clip)


def test_the_same_sequence_on_both_sides_of_a_split_is_said(tiny):
    said = []
    rows = pl.DataFrame({"sequence": [*TEN, TEN[0], TEN[1]], "label": [float(x) for x in range(12)],
                         "split": ["train"] * 8 + ["valid", "test", "test", "train"]})  # fmt: skip
    train(tiny, rows, max_steps=1, folds=None, watch=said.append)
    texts = [getattr(event, "text", "") for event in said]
    assert [text for text in texts if "(leak)" in text] == [
        "Data (leak): 1 sequence stands in more than one split (1 of the 2 test rows are trained on too). There the "
        "scores measure memory, not prediction. Leave each sequence in one split only."
    ]
