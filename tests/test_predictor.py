"""A predictor on disk: whole or not at all, the same after loading, and refused when it is not what was saved."""

import json
import math
import shutil
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import esmtune
from esmtune import writers
from esmtune.esm2 import Tokens
from tests.conftest import TEN

ROWS = [(sequence, len(sequence) / 100) for sequence in TEN]
CLASSES = [(sequence, "long" if len(sequence) > 45 else "short") for sequence in TEN]
ARCHIVES = Path(__file__).parent / "archives"


def train(tiny, rows=ROWS, **options):
    options = {"epochs": 2, "valid_fraction": 0.0, "test_fraction": 0.0, "folds": 1, **options}
    return esmtune.train(rows, encoder=None if "init" in options else str(tiny), **options)


@pytest.mark.parametrize("tuning", ["frozen", {"name": "last", "layers": 1}, "full"], ids=["frozen", "last", "full"])
@pytest.mark.parametrize("rows", [ROWS, CLASSES], ids=["regression", "binary"])
def test_saved_equals_loaded_bit_for_bit(tiny, tmp_path, tuning, rows):
    predictor = train(tiny, rows, tuning=tuning).predictor
    predictor.save(tmp_path / "p")
    loaded = esmtune.load(tmp_path / "p", verify=True)
    assert torch.equal(loaded.outputs(list(TEN)), predictor.outputs(list(TEN)))
    assert loaded.predict(TEN) == predictor.predict(TEN)
    assert loaded.task == predictor.task
    state = predictor.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in loaded.state_dict().items())
    loaded.save(tmp_path / "again")
    names = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("p", "again")]
    assert names[0] == names[1]


def test_what_moved_is_saved_and_nothing_else(tiny, tmp_path):
    def saved(**options):
        run = train(tiny, out=tmp_path / "run", overwrite=True, **options)
        return {n for n in load_file(run.path / "predictor" / "weights.safetensors") if n.startswith("encoder.")}

    everything = {f"encoder.{name}" for name in esmtune.load_encoder(tiny)[0].state_dict()}
    assert saved(tuning="frozen") == set()
    last = saved(tuning={"name": "last", "layers": 1})
    assert last == {n for n in everything if n.startswith(("encoder.layers.1.", "encoder.norm."))}
    assert saved(tuning="full") == everything
    assert saved(tuning="frozen", self_contained=True) == everything


def test_a_self_contained_predictor_needs_no_other_file(tiny, tmp_path):
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny, encoder)
    kept = train(encoder, out=tmp_path / "kept", self_contained=True)
    lean = train(encoder, out=tmp_path / "lean")
    moved = encoder.rename(tmp_path / "elsewhere")
    assert esmtune.load(tmp_path / "kept").predict(TEN) == kept.predictor.predict(TEN)
    with pytest.raises(ValueError, match=r"was trained on the encoder .*encoder, which it needs.*--encoder PATH"):
        esmtune.load(tmp_path / "lean")
    assert esmtune.load(tmp_path / "lean", encoder=str(moved)).predict(TEN) == lean.predictor.predict(TEN)


def test_other_encoder_weights_are_refused(tiny, tmp_path):
    from tests.conftest import tiny_encoder

    run = train(tiny, out=tmp_path / "run")
    esmtune.save_huggingface(tiny_encoder(seed=1), tmp_path / "other")
    with pytest.raises(ValueError, match="holds other weights"):
        esmtune.load(run.path, encoder=str(tmp_path / "other"))


def damage(change):
    """A way to damage a saved predictor, by its file and its new content."""
    return pytest.param(change, id=change.__name__)


def truncated(folder):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def edited(folder):
    file = folder / "weights.safetensors"
    weights = load_file(file)
    weights["head.out.bias"] += 1
    save_file(weights, file)


def no_weights(folder):
    (folder / "weights.safetensors").unlink()


def no_json(folder):
    (folder / "predictor.json").write_text('{"format_version": 1')


def no_version(folder):
    (folder / "predictor.json").write_text("{}")


def half_a_spec(folder):
    (folder / "predictor.json").write_text('{"format_version": 1, "encoder": {}}')


def later_version(folder):
    content = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").write_text(json.dumps(content | {"format_version": 3}))


def unknown_head(folder):
    content = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").write_text(json.dumps(content | {"head": {"name": "transformer"}}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (truncated, "is not the file that was saved"),
        (edited, "is not the file that was saved"),
        (no_weights, "cannot be read"),
        (no_json, "cannot be read"),
        (no_version, "no format_version"),
        (half_a_spec, "is damaged"),
        (later_version, "reads up to 2. Upgrade it"),
        (unknown_head, "there is no head 'transformer'"),
    ],
)
def test_a_damaged_predictor_is_refused_with_a_sentence(tiny, tmp_path, shell, change, sentence):
    run = train(tiny, out=tmp_path / "run")
    change(run.path / "predictor")
    with pytest.raises(ValueError, match=sentence):
        esmtune.load(run.path)
    table = tmp_path / "t.csv"
    table.write_text("sequence\nMKTV\n")
    answer = shell("predict", run.path, table, "--out", tmp_path / "out.csv")
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out.csv").exists()


def test_golden_rows_are_public_and_verified(tiny, tmp_path):
    run = train(tiny, out=tmp_path / "run")
    file = run.path / "predictor" / "predictor.json"
    content = json.loads(file.read_text())
    assert len(content["golden"]) == 3
    assert not {row["sequence"] for row in content["golden"]} & set(TEN)
    for row in content["golden"]:
        assert row["outputs"] == pytest.approx(run.predictor.outputs([row["sequence"]])[0].tolist(), abs=1e-6)
    content["golden"][1]["outputs"][0] += 0.1
    file.write_text(json.dumps(content))
    esmtune.load(run.path)
    with pytest.raises(ValueError, match="outputs of the golden rows differ"):
        esmtune.load(run.path, verify=True)


def test_a_failure_while_saving_leaves_nothing(tiny, tmp_path, monkeypatch):
    predictor = train(tiny).predictor

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("esmtune.folders.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        predictor.save(tmp_path / "deep" / "p")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_failure_while_writing_a_run_leaves_what_was_there(tiny, tmp_path, monkeypatch):
    first = train(tiny, out=tmp_path / "run", log=["csv"])
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    metrics = (tmp_path / "run" / "metrics.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("esmtune.folders.save_file", lambda *_: (_ for _ in ()).throw(OSError("full")))
        for name, overwrite in (("run", True), ("new", False)):
            with pytest.raises(OSError, match="full"):
                train(tiny, out=tmp_path / name, overwrite=overwrite, seed=1, log=["csv"])
    left = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if "unfinished" not in str(p))
    assert left == files
    assert train(tiny, out=tmp_path / "new", seed=1, log=["csv"], resume=True).path == tmp_path / "new"
    assert not (tmp_path / "new.unfinished").exists()
    assert (tmp_path / "run" / "metrics.json").read_bytes() == metrics
    assert esmtune.load(tmp_path / "run").predict(TEN) == first.predictor.predict(TEN)
    train(tiny, out=tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "logs").exists()  # of the first run


def test_saving_overwrites_nothing_but_a_predictor(tiny, tmp_path):
    predictor = train(tiny).predictor
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    with pytest.raises(ValueError, match=r"holds 'chapter.txt', and would be lost"):
        predictor.save(tmp_path / "thesis")
    with pytest.raises(ValueError, match="is a file, and would be lost"):
        predictor.save(tmp_path / "thesis" / "chapter.txt")
    predictor.save(tmp_path / "p")
    predictor.save(tmp_path / "p")


def test_labels_too_large_for_numbers_are_refused(tiny):
    with pytest.raises(ValueError, match="have no finite spread: rescale them"):
        train(tiny, [(s, 1e200 * (-1) ** i) for i, s in enumerate(TEN)], task="regression")
    large = train(tiny, [(s, x * 1e40) for s, x in ROWS])
    assert large.predictions["prediction"].to_list() == pytest.approx(large.predictor.predict(TEN))


def test_loading_leaves_the_global_random_state_alone(tiny, tmp_path):
    run = train(tiny, out=tmp_path / "run")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    esmtune.load(run.path)
    assert torch.equal(torch.rand(1), expected)


def test_the_baseline_of_a_continued_run_is_of_its_own_labels(tiny, tmp_path):
    first = train(tiny, out=tmp_path / "first")
    shifted = [(sequence, label + 100) for sequence, label in ROWS]
    second = train(tiny, shifted, init=str(first.path), valid_fraction=0.3)
    known = second.predictions
    training = known.filter(known["split"] == "train")["label"].mean()
    errors = known.filter(known["split"] == "valid")["label"] - training
    assert second.metrics["baselines"]["valid"]["mean"]["mae"] == pytest.approx(errors.abs().mean())


@pytest.mark.parametrize("prefix", ["head.", "head.standardize", "encoder.layers.1"])
def test_what_starts_anew_is_standardized_anew(tiny, tmp_path, prefix):
    first = train(tiny, tuning="full", out=tmp_path / "first")
    second = train(tiny, init=str(first.path), init_skip=(prefix,), head_learning_rate=0.0)
    with torch.no_grad():
        features = second.predictor.pooled(Tokens.of(TEN)).features
    torch.testing.assert_close(second.predictor.head.standardize.center, features.mean(0), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="take encoder random:NAME instead of init"):
        train(tiny, init=str(first.path), init_skip=("encoder",))


def test_a_whole_folder_takes_the_place_of_the_old(tmp_path):
    for text in ("old", "new"):
        with writers.whole_folder(tmp_path / "f") as folder:
            (folder / text).write_text(text)
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_predict_mends_and_refuses(tiny):
    predictor = train(tiny).predictor
    assert predictor.predict([" mktv* "]) == predictor.predict(["MKTV"])
    with pytest.raises(ValueError, match=r"sequence 2 of 2: '1' at position 3"):
        predictor.predict(["MKTV", "MK1V"])
    with pytest.raises(ValueError, match=r"write \[sequence\]"):
        predictor.predict("MKTV")
    assert predictor.predict([]) == []


def test_max_length_holds_for_predictions_too(tiny):
    predictor = train(tiny, max_length=20).predictor
    assert predictor.predict([TEN[0]]) == predictor.predict([TEN[0][:20]])
    assert predictor.predict([TEN[0]]) != train(tiny).predictor.predict([TEN[0]])


def test_company_and_budget_do_not_change_predictions(tiny):
    predictor = train(tiny).predictor
    together = predictor.predict(TEN)
    assert together == pytest.approx([predictor.predict([s])[0] for s in TEN], abs=1e-5)
    assert together == pytest.approx(predictor.predict(TEN, tokens_per_batch=1), abs=1e-5)
    assert predictor.predict(TEN[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_loading_imports_nothing_that_a_file_names(tiny, tmp_path):
    run = train(tiny, out=tmp_path / "run")
    file = run.path / "predictor" / "predictor.json"
    content = json.loads(file.read_text())
    content["task"]["name"] = "os.system"
    file.write_text(json.dumps(content))
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"there is no task 'os.system'. There are: binary, mlm, multiclass"):
        esmtune.load(run.path)
    assert not {m for m in set(sys.modules) - before if not m.startswith("esmtune")}


# --- Starting from a saved predictor ------------------------------------------------------------


def test_init_goes_on_from_all_weights(tiny, tmp_path):
    said = []
    first = train(tiny, tuning="full", out=tmp_path / "first")
    shifted = [(sequence, label + 1) for sequence, label in ROWS]
    second = train(tiny, shifted, init=str(first.path), head_learning_rate=0.0, watch=lambda e: said.append(str(e)))
    assert second.predictor.predict(TEN) == first.predictor.predict(TEN)  # the unit is the first run's
    assert any("weights loaded; new: none" in text for text in said)
    loaded = len(first.predictor.state_dict())
    assert any(f"From {first.path}: {loaded} weights loaded" in text for text in said)
    assert second.predictor.moved == first.predictor.moved  # its encoder is still not the one named, so it is saved
    second.predictor.save(tmp_path / "second")
    assert esmtune.load(tmp_path / "second").predict(TEN) == second.predictor.predict(TEN)


def test_init_skip_starts_anew_and_says_so(tiny, tmp_path):
    said = []
    first = train(tiny, tuning="full", out=tmp_path / "first")
    second = train(tiny, CLASSES, init=str(first.path), init_skip=("head",), head="linear", head_learning_rate=0.0,
                   watch=lambda e: said.append(str(e)))  # fmt: skip
    state = first.predictor.state_dict()
    for name, weight in second.predictor.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(weight, state[name])
    assert second.predictor.task.classes == ("long", "short")
    new = "new: head.out.bias, head.out.weight, head.standardize.center, head.standardize.spread."
    assert any(new in text for text in said)


def test_init_skip_of_one_layer(tiny, tmp_path):
    first = train(tiny, tuning="full", out=tmp_path / "first")
    second = train(tiny, init=str(first.path), init_skip=("encoder.layers.1",), head_learning_rate=0.0)
    state = first.predictor.state_dict()
    changed = {n for n, w in second.predictor.state_dict().items() if not torch.equal(w, state[n])}
    assert changed
    assert all(name.startswith(("encoder.layers.1.", "head.standardize.")) for name in changed)


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (ROWS, {"init_skip": ("haed",)}, "no weight of .* begins with 'haed'. There are: encoder.embed_tokens"),
        (CLASSES, {}, "is a regression, but the data is a binary. Start its head anew: --init-skip head"),
        (ROWS, {"head": "linear"}, "does not fit the head that is asked for"),
        (ROWS, {"head": {"name": "mlp", "hidden": 5}}, "does not fit the head"),
    ],
    ids=["prefix", "task", "head", "hidden"],
)
def test_what_init_cannot_do_is_said(tiny, tmp_path, rows, options, sentence):
    first = train(tiny, out=tmp_path / "first")
    with pytest.raises(ValueError, match=sentence):
        train(tiny, rows, init=str(first.path), **options)


@pytest.mark.parametrize(
    ("before", "asked", "loss", "weight"),
    [({}, {}, "squared", 3.0), ({}, {"loss": "pairwise"}, "pairwise", 0.0),
     ({"loss": "pairwise"}, {}, "pairwise", 0.0), ({"loss": "huber"}, {"ranking_weight": 1.0}, "huber", 1.0),
     ({"scale": "normal"}, {"scale": "auto"}, "squared", 3.0)],
    ids=str,
)  # fmt: skip
def test_a_run_that_goes_on_is_repeated_by_its_file(tiny, tmp_path, before, asked, loss, weight):
    """Its task is the one that it started from, but for what was asked for."""
    first = train(tiny, out=tmp_path / "first", task={"name": "regression", **before})
    options = {"init": str(first.path), "max_steps": 3}
    second = train(tiny, out=tmp_path / "second", task={"name": "regression", **asked}, **options)
    saved = tomllib.loads((tmp_path / "second" / "run.toml").read_text())["task"]
    assert (saved["loss"], saved["ranking_weight"]) == (loss, weight)
    again = train(tiny, task=saved, **options)
    assert again.predictor.predict(TEN) == second.predictor.predict(TEN)


def test_a_run_of_classes_that_goes_on_is_repeated_by_its_file(tiny, tmp_path):
    first = train(tiny, CLASSES, out=tmp_path / "first", task={"loss": "focal", "label_smoothing": 0.1})
    options = {"init": str(first.path), "max_steps": 3}
    second = train(tiny, CLASSES, out=tmp_path / "second", **options)
    saved = tomllib.loads((tmp_path / "second" / "run.toml").read_text())["task"]
    assert (saved["loss"], saved["label_smoothing"]) == ("focal", 0.1)
    assert train(tiny, CLASSES, task=saved, **options).predictor.predict(TEN) == second.predictor.predict(TEN)


def test_an_order_beside_a_loss_of_nothing_but_the_order_is_refused(tiny, tmp_path):
    first = train(tiny, out=tmp_path / "first", task={"name": "regression", "loss": "pairwise"})
    with pytest.raises(ValueError, match="the loss pairwise that this run goes on with is of nothing but the order"):
        train(tiny, init=str(first.path), task={"name": "regression", "ranking_weight": 1.0})


def test_several_targets_go_on_each_with_what_was_asked_for(tiny, tmp_path):
    frame = pl.DataFrame({"sequence": TEN, "a": range(10), "b": [x**2 for x in range(10)]})
    first = train(tiny, frame, target=("a", "b"), out=tmp_path / "first")
    options = {"target": ("a", "b"), "init": str(first.path)}
    second = train(tiny, frame, task={"ranking_weight": 0.5}, **options)
    assert [part.ranking_weight for part in second.predictor.task.tasks] == [0.5, 0.5]
    assert [part.center for part in second.predictor.task.tasks] == [part.center for part in first.predictor.task.tasks]
    with pytest.raises(ValueError, match="predicts a, b, in this order, but the data has b, a: name them so"):
        train(tiny, frame, **{**options, "target": ("b", "a")})


def test_a_strange_class_needs_a_new_head(tiny, tmp_path):
    first = train(tiny, CLASSES, out=tmp_path / "first")
    rows = [(s, "giant" if label == "long" else label) for s, label in CLASSES]
    with pytest.raises(ValueError, match="has no class giant"):
        train(tiny, rows, init=str(first.path))


def test_an_encoder_may_come_from_a_run(tiny, tmp_path):
    first = train(tiny, tuning="full", out=tmp_path / "first")
    second = esmtune.train(CLASSES, encoder=str(first.path), epochs=1, valid_fraction=0.0, test_fraction=0.0)
    state = first.predictor.encoder.state_dict()
    assert all(torch.equal(w, state[n]) for n, w in second.predictor.encoder.state_dict().items())
    second.predictor.save(tmp_path / "second")
    assert esmtune.load(tmp_path / "second").predict(TEN) == second.predictor.predict(TEN)


@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
def test_predictions_are_in_the_precision_that_was_learned_in(tiny, tmp_path, monkeypatch, trained):
    """Rounding is seen beside what tells variants apart, so it is said where that cannot be had."""
    monkeypatch.delenv("ESMTUNE_PRECISION", raising=False)
    start = "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG" * 4
    alike = [(start[:place] + "A" + start[place + 1 :], float(place)) for place in range(40, 52)]
    other = [(start[place : place + 9], float(place)) for place in range(40, 52)]
    attention = train(tiny, alike, head="attention", precision=trained)
    assert attention.predictor.is_delicate
    for rows, is_delicate in ((alike, True), (other, False)):
        train(tiny, rows, out=tmp_path / str(is_delicate), precision=trained)
        for has_units in (True, False):
            monkeypatch.setattr("esmtune.devices.has_bfloat16_units", lambda device, has=has_units: has)
            said = []
            loaded = esmtune.load(tmp_path / str(is_delicate))
            assert (loaded.is_delicate, loaded.spec.precision) == (is_delicate, trained)
            assert loaded.takes("cpu") == ("bfloat16" if has_units and trained == "bfloat16" else "float32")
            esmtune.evaluate(tmp_path / str(is_delicate), rows, watch=lambda event, said=said: said.append(str(event)))
            is_other = is_delicate and loaded.takes("cpu") != trained
            assert any("PRECISION: this predictor learned" in text for text in said) == is_other
            loaded.precision = "bfloat16"
            assert loaded.takes("cpu") == "bfloat16"


# --- Predictors of every release -----------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.name for p in ARCHIVES.iterdir() if p.is_dir()))
def test_predictors_of_every_release_predict_the_same(name):
    predictor = esmtune.load(ARCHIVES / name, verify=True)
    expected = json.loads((ARCHIVES / name / "expected.json").read_text())
    predictor.precision = "float32"
    predictions = flat(json.loads(json.dumps(predictor.predict(expected["sequences"]), default=str)))
    wanted = flat(expected["predictions"])
    numbers = [isinstance(x, float) for x in wanted]
    assert [isinstance(x, float) for x in predictions] == numbers
    for got, expect in zip(predictions, wanted, strict=True):
        assert got == (pytest.approx(expect, rel=1e-4) if isinstance(expect, float) else expect)  # on another processor
    columns = predictor.probabilities(expected["sequences"])
    assert columns.keys() == expected["probabilities"].keys()
    for label, column in columns.items():
        assert flat(column) == pytest.approx(flat(expected["probabilities"][label]), abs=1e-4)
    assert not any(math.isnan(x) for x in predictions if isinstance(x, float))


def flat(values):
    """What is in lists and tuples of any depth."""
    return [x for value in values for x in (flat(value) if isinstance(value, list | tuple) else [value])]
