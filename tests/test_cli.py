"""The shell: quick, quiet where nobody watches, and every option reaches the run."""

import json
import re
import tomllib

import numpy as np
import polars as pl
import pytest

import esmtune
from tests.conftest import TEN, in_new_process

HEADER = "id,sequence,tm,note\n"


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "tm.csv"
    rows = [f'P{i},{s},{len(s) / 7:.3f},"007, {i}"' for i, s in enumerate(TEN)]
    file.write_text(HEADER + "\n".join(rows) + "\n")
    return file


@pytest.fixture
def run(table, tiny, tmp_path, shell):
    answer = shell("train", table, "--target", "tm", "--encoder", tiny, "--epochs", 2, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    return tmp_path / "run"


def test_help_imports_nothing_heavy():
    """Half a second is what the house allows; torch alone takes longer, so it must not be imported."""
    code = "import sys; from esmtune import cli; print([m for m in ('torch', 'polars', 'sklearn') if m in sys.modules])"
    assert in_new_process("-c", code).out.strip() == "[]"


def test_importing_the_package_leaves_no_trace():
    code = (
        "import sys, typing, importlib; old = set(sys.modules); import esmtune; print(sorted(set(sys.modules) - old))"
    )
    assert in_new_process("-c", code).out.strip() == "['esmtune']"


def test_an_option_of_a_part_without_a_value_is_true(table, tiny, tmp_path, shell):
    for number, options in enumerate((["--tuning.rslora", "--epochs", "1"], ["--epochs", "1", "--tuning.rslora"])):
        answer = shell("train", table, "--target", "tm", "--encoder", tiny, "--tuning", "lora", *options,
                       "--out", tmp_path / f"run-{number}")  # fmt: skip
        assert answer.code == 0, answer.err
        assert tomllib.loads((tmp_path / f"run-{number}" / "run.toml").read_text())["tuning"]["rslora"] is True
    answer = shell("train", table, "--target", "tm", "--encoder", tiny, "--head.hidden", "--epochs", "1")
    assert answer.code == 2
    assert "'hidden'" in answer.err
    bare = shell("train", table, "--target", "tm", "--encoder", tiny, "--head", "--epochs", "1")
    assert bare.code != 0
    assert "'true'" not in bare.err
    assert "'true'" in answer.err


def test_a_run_that_is_none_is_refused(table, tmp_path, shell):
    answer = shell("predict", tmp_path / "nowhere", table)
    assert answer.code == 2
    assert "nowhere is no run and no predictor" in answer.err


def test_bad_data_is_answered_before_torch_is_imported(tmp_path):
    (tmp_path / "t.csv").write_text("sequence,target\nMKTV,1.5\nMK1V,2.5\n")
    code = (
        "import sys, esmtune\n"
        "try: esmtune.train('t.csv')\n"
        "except ValueError as error: print('line 3' in str(error), 'torch' in sys.modules)"
    )
    assert in_new_process("-c", code, cwd=tmp_path).out.strip() == "True False"


def test_every_command_has_help(shell):
    answer = shell("--help")
    for command in ("train", "evaluate", "predict", "embed"):
        assert command in answer.out
        text = shell(command, "--help")
        assert text.code == 0
        assert "--" in text.out
    assert shell("--version").out.strip() == esmtune.__version__


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "t.csv", "--epoch", "3"], "Did you mean --epochs"),
        (["train", "t.csv", "--epochs", "three"], "three"),
        (["train", "t.csv", "--epochs", "0"], "epochs is 0, expected 1 or more"),
        (["train", "t.csv", "--valid-fraction", "1.5"], "valid_fraction is 1.5, expected a share"),
        (["train"], "--data requires an argument"),
        (["trian"], "trian"),
        (["train", "--config", "none.toml"], "no configuration file none.toml"),
        (["train", "t.csv", "--init-skip", "head"], "no init is given"),
        (["embed", "esm2_t6_8M", "t.csv", "--out", "e.npz", "--pool", "max"], "max"),
        (["embed", "esm2_t6_8M", "t.csv", "--out", "e.txt"], ".npz"),
        (["predict", "run", "t.csv", "--out", "p.xlsx"], ".parquet"),
    ],
)
def test_a_wrong_command_line_ends_with_a_sentence(shell, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    answer = shell(*arguments)
    assert answer.code == 2
    assert sentence in " ".join(answer.err.replace("│", " ").split())
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_configuration_file_is_named(shell, tmp_path):
    (tmp_path / "run.toml").write_text("epochs = = 3\n")
    answer = shell("train", "t.csv", "--config", tmp_path / "run.toml")
    assert answer.code == 2
    assert "run.toml is no TOML: Invalid value (at line 1, column 10)" in " ".join(answer.err.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--head", "mpl"], "there is no head 'mpl'. Did you mean 'mlp'? There are: attention, conv, "),
        (["--head.hiden", "3", "--head", "mlp"], "has no option 'hiden'. Did you mean 'hidden'?"),
        (["--head", "mlp", "--head.hidden", "few"], "head 'mlp', option 'hidden': got 'few', expected int"),
        (["--head", "mlp", "--head.pool", "max"], "it can be 'mean', 'cls'"),
        (["--head", "mlp", "--head.dropout", "1"], "dropout is a share from 0 to below 1, got 1.0"),
        (
            ["--tuning.layers", "3"],
            "tuning 'frozen' has no option 'layers'. It has: none. Those with 'layers': last",
        ),
        (["--tuning", "last", "--tuning.layers", "9"], "the encoder has 2: write 1 to that"),
        (["--tuning", "lorax"], "there is no tuning 'lorax'. Did you mean 'lora'?"),
        (["--task", "rank"], "there is no task 'rank'"),
        (
            ["--task", "regression", "--task.loss", "cubic"],
            "there is no loss 'cubic'. There are: absolute, gaussian, huber",
        ),
        (
            ["--task.loss", "focal"],
            "the loss 'focal' is of classes, which these labels are not. Take absolute, gaussian",
        ),
        (["--split", "radnom"], "nor a way to split. Did you mean 'random'? Its columns are "),
        (["--metric", "auroc"], "there is no metric 'auroc' for regression"),
        (["--accelerator", "cuda"], "there is no accelerator 'cuda' here"),
    ],
)
def test_a_wrong_part_or_option_is_named_and_nothing_is_written(table, tiny, tmp_path, shell, arguments, sentence):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    before = sorted(tmp_path.iterdir())
    answer = shell("train", table, "--target", "tm", "--encoder", tiny, "--out", tmp_path / "x", *arguments)
    assert answer.code == 2
    assert sentence in answer.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        ["--head", "mpl"],
        ["--tuning.rank", "4"],
        ["--task.loss", "focal"],
        ["--task", "multiclass", "--task.loss", "gaussian"],
        ["--task", "mlm", "--head.hidden", "64"],
    ],
)
def test_a_wrong_part_is_told_before_an_encoder_is_read(table, shell, monkeypatch, wrong):
    monkeypatch.setattr("esmtune.composition.find_encoder", lambda *names, **options: pytest.fail("it was read"))
    target = () if "mlm" in wrong else ("--target", "tm")
    answer = shell("train", table, *target, "--encoder", "esm2_t48_15B_UR50D", *wrong)
    assert answer.code == 2
    assert wrong[-2].split(".")[-1] in answer.err or wrong[-1] in answer.err
    assert "import its module" not in answer.err or "mpl" in wrong


def test_a_run_has_all_its_files(run, table, tiny):
    assert sorted(p.name for p in run.iterdir()) == [
        "README.md", "environment.json", "history.jsonl", "last", "metrics.json", "predictions.csv", "predictor",
        "report.html", "run.toml", "split.csv", "training.fasta.gz",
    ]  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["records"] == {"train": 8, "valid": 1, "test": 1}
    assert (
        set(metrics["test"])
        == set(metrics["baselines"]["test"]["mean"])
        == {"spearman", "pearson", "r2", "rmse", "mae"}
    )
    assert metrics["test"]["spearman"] is None  # of one record nobody knows
    assert metrics["best"]["metric"] == "loss"
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [1, 2]
    predictions = pl.read_csv(run / "predictions.csv")
    assert predictions.columns == ["id", "split", "length", "label", "prediction", "distance"]
    assert predictions["id"].to_list() == [f"P{i}" for i in range(10)]
    test = predictions.filter(pl.col("split") == "test")
    assert abs(test["prediction"][0] - test["label"][0]) == pytest.approx(metrics["test"]["mae"], rel=1e-4)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["encoder"] == str(tiny)
    assert any("split is random" in notice for notice in environment["notices"])
    config = tomllib.loads((run / "run.toml").read_text())
    assert config["data"] == str(table)
    assert config["target"] == ["tm"]
    assert config["head"] == {"name": "mlp", "pool": "mean", "hidden": 256, "depth": 2, "dropout": 0.25, "ridge": True}


def test_a_configuration_repeats_the_run(run, tmp_path, shell, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = tmp_path / "again"
    assert shell("train", "--config", run / "run.toml", "--out", again).code == 0
    for name in ("metrics.json", "predictions.csv", "predictor/weights.safetensors", "run.toml"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    assert shell("train", "--config", run / "run.toml", "--seed", 1).code == 0  # into a folder of its own
    assert tomllib.loads((tmp_path / "runs" / "tm" / "run.toml").read_text())["seed"] == 1
    (tmp_path / "wrong.toml").write_text("epocs = 3\n")
    answer = shell("train", "tm.csv", "--config", tmp_path / "wrong.toml")
    assert answer.code == 2
    assert "epocs" in answer.err


def test_every_number_of_the_reference_tutorial_can_be_set(table, tiny, tmp_path, shell):
    options = ["--tuning", "full", "--head", "mlp", "--head.hidden", 12, "--head.dropout", 0.1, "--micro-batch-size", 2,
               "--global-batch-size", 4, "--max-steps", 3, "--encoder-learning-rate", 1e-5,
               "--head-learning-rate", 1e-3,
               "--task", "regression", "--task.loss", "huber", "--log", "csv", "tensorboard"]  # fmt: skip
    assert shell("train", table, "--target", "tm", "--encoder", tiny, "--out", tmp_path / "r", *options).code == 0
    config = tomllib.loads((tmp_path / "r" / "run.toml").read_text())
    assert config["head"] == {"name": "mlp", "pool": "mean", "hidden": 12, "depth": 2, "dropout": 0.1, "ridge": False}
    assert config["tuning"] == {"name": "full", "layer_decay": 1.0}
    assert config["task"] == {"name": "regression", "loss": "huber", "ranking_weight": 0.0, "scale": "linear"}
    assert (config["micro_batch_size"], config["global_batch_size"], config["max_steps"]) == (2, 4, 3)
    assert (
        len((tmp_path / "r" / "logs" / "csv" / "metrics.csv").read_text().splitlines()) == 3
    )  # header, epochs 1 and 2
    assert list((tmp_path / "r" / "logs" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_predict_gives_every_row_back(run, tmp_path, shell, suffix):
    lines = ["x0,mktvrq,1", "x1,MK1V,2", "x2,,3", "x2, GGSG* ,4", "x4,MK-V,5"]
    (tmp_path / "new.csv").write_text("name,sequence,extra\n" + "\n".join(lines) + "\n")
    out = tmp_path / f"out{suffix}"
    answer = shell("predict", run, tmp_path / "new.csv", "--out", out)
    assert answer.code == 0
    assert "Rows without a prediction: 3 of 5" in answer.err
    read = {".csv": pl.read_csv, ".tsv": lambda p: pl.read_csv(p, separator="\t"), ".parquet": pl.read_parquet}
    frame = read.get(suffix, pl.read_ndjson)(out)
    assert frame.columns == ["name", "sequence", "extra", "prediction", "problem"]
    assert frame["name"].to_list() == ["x0", "x1", "x2", "x2", "x4"]
    assert [x is None for x in frame["prediction"].to_list()] == [False, True, True, False, True]
    assert [x is None for x in frame["problem"].to_list()] == [True, False, False, True, False]
    expected = esmtune.load(run).predict(["MKTVRQ", "GGSG"])
    assert [x for x in frame["prediction"].to_list() if x is not None] == pytest.approx(expected, rel=1e-5)
    assert shell("predict", run, tmp_path / "new.csv", "--out", out).code == 2  # it exists
    assert shell("predict", run, tmp_path / "new.csv", "--out", out, "--overwrite").code == 0


def test_predict_prints_csv_and_nothing_else(run, table, shell):
    answer = shell("predict", run, table)
    lines = answer.out.splitlines()
    assert lines[0] == "id,sequence,tm,note,prediction,problem"
    assert len(lines) == 11
    assert lines[1].startswith(f'P0,{TEN[0]},8.143,"007, 0",')


def test_predict_a_table_of_which_no_row_can_be_predicted(run, tmp_path, shell):
    (tmp_path / "bad.csv").write_text("sequence\nM1\nM2\n")
    answer = shell("predict", run, tmp_path / "bad.csv")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "sequence,prediction,problem"
    assert len(answer.out.splitlines()) == 3


def test_predict_refuses_to_hide_a_column(run, tmp_path, shell):
    (tmp_path / "new.csv").write_text("sequence,prediction\nMKTV,1\n")
    answer = shell("predict", run, tmp_path / "new.csv")
    assert answer.code == 2
    assert "has a column 'prediction' already" in answer.err


def test_predict_classes_with_probabilities(tiny, tmp_path, shell):
    rows = "".join(f"{s},{['ab', 'c'][i % 2]}\n" for i, s in enumerate(TEN))
    (tmp_path / "t.csv").write_text("sequence,label\n" + rows)
    assert shell("train", tmp_path / "t.csv", "--encoder", tiny, "--epochs", 1, "--out", tmp_path / "r").code == 0
    assert shell("predict", tmp_path / "r", tmp_path / "t.csv", "--out", tmp_path / "p.csv").code == 0
    frame = pl.read_csv(tmp_path / "p.csv")
    assert frame.columns == ["sequence", "label", "prediction", "probability_ab", "probability_c", "problem"]
    total = frame["probability_ab"] + frame["probability_c"]
    assert total.to_list() == pytest.approx([1.0] * 10, abs=1e-6)
    winner = np.where(frame["probability_ab"] > frame["probability_c"], "ab", "c")
    assert frame["prediction"].to_list() == winner.tolist()


def test_evaluate_agrees_with_scikit_learn(run, table, shell, tmp_path):
    from scipy.stats import spearmanr
    from sklearn.metrics import r2_score

    answer = shell("evaluate", run, table, "--out", tmp_path / "scores.json")
    assert answer.code == 0
    assert "spearman" in answer.out
    result = json.loads((tmp_path / "scores.json").read_text())
    labels = pl.read_csv(table)["tm"].to_numpy()
    predictions = np.array(esmtune.load(run).predict(TEN))
    assert result["records"] == 10
    assert result["scores"]["spearman"] == pytest.approx(spearmanr(labels, predictions).statistic)
    assert result["scores"]["r2"] == pytest.approx(r2_score(labels, predictions), abs=1e-6)
    train = pl.read_csv(run / "predictions.csv").filter(pl.col("split") == "train")["label"].mean()
    assert result["baselines"]["mean"]["mae"] == pytest.approx(np.abs(labels - train).mean(), abs=1e-6)
    assert result["baselines"]["mean"]["spearman"] is None


def test_evaluate_a_subset(tiny, tmp_path, shell):
    splits = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    rows = "".join(f"{s},{len(s) / 7},{x}\n" for s, x in zip(TEN, splits, strict=True))
    (tmp_path / "t.csv").write_text("sequence,label,split\n" + rows)
    answer = shell("train", tmp_path / "t.csv", "--encoder", tiny, "--epochs", 1, "--out", tmp_path / "r")
    assert "6 train, 2 valid, 2 test" in answer.err
    assert "random" not in answer.err
    shell("evaluate", tmp_path / "r", tmp_path / "t.csv", "--subset", "test", "--out", tmp_path / "s.json")
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["records"] == 2
    assert scores["trained_on"] == 0
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert scores["scores"]["rmse"] == pytest.approx(metrics["test"]["rmse"], abs=1e-5)


def test_evaluate_says_what_was_trained_on(tiny, tmp_path, shell):
    rows = [(s, len(s) / 7) for s in TEN]
    (tmp_path / "t.csv").write_text("sequence,label\n" + "".join(f"{s},{x}\n" for s, x in rows))
    options = ["--encoder", tiny, "--epochs", 1, "--test-fraction", 0.2, "--folds", 1]
    shell("train", tmp_path / "t.csv", *options, "--out", tmp_path / "r")
    learned = pl.read_csv(tmp_path / "r/split.csv")["split"].to_list().count("train")
    answer = shell("evaluate", tmp_path / "r", tmp_path / "t.csv", "--out", tmp_path / "all.json")
    assert f"LEAK: {learned} of 10 rows have a sequence that the predictor was trained on" in answer.err
    assert "--split RUN/split.csv" in answer.err
    assert json.loads((tmp_path / "all.json").read_text())["trained_on"] == learned
    split = ["--split", tmp_path / "r/split.csv"]
    options = [*split, "--subset", "test", "--out", tmp_path / "s.json"]
    answer = shell("evaluate", tmp_path / "r", tmp_path / "t.csv", *options)
    assert "LEAK" not in answer.err
    scores, metrics = (json.loads((tmp_path / name).read_text()) for name in ("s.json", "r/metrics.json"))
    assert (scores["records"], scores["trained_on"]) == (2, 0)
    assert scores["scores"]["rmse"] == pytest.approx(metrics["test"]["rmse"], abs=1e-5)
    assert "say which is to be scored" in shell("evaluate", tmp_path / "r", tmp_path / "t.csv", *split).err
    refused = shell("evaluate", tmp_path / "r", tmp_path / "t.csv", "--split", "random", "--subset", "test")
    assert "draws a split" in refused.err
    (tmp_path / "t.csv").write_text("sequence,label,split\n" + "".join(f"{s},{x},train\n" for s, x in rows))
    answer = shell("evaluate", tmp_path / "r/predictor", tmp_path / "t.csv")
    assert "LEAK" in answer.err  # the training sequences lie beside the predictor
    (tmp_path / "r/training.fasta.gz").unlink()
    answer = shell("evaluate", tmp_path / "r", tmp_path / "t.csv")
    assert "All rows are scored, 10 of which the column 'split' says train for." in answer.err


def test_dna_is_predicted_with_a_word(run, shell, tmp_path):
    (tmp_path / "dna.csv").write_text("sequence\nATGAAAACCGTGCGCCAGGAA\nMKTV\n")
    for verb in (("predict", run), ("embed", run, "--out", tmp_path / "e.npz")):
        answer = shell(verb[0], verb[1], tmp_path / "dna.csv", *verb[2:])
        assert answer.code == 0
        assert "1 of 2 sequences has the letters of DNA or RNA alone" in answer.err


def test_a_prediction_imports_nothing_that_trains(run, table, tmp_path):
    """Torch's compiler alone takes as long to import as all the rest of a prediction of ten sequences."""
    esmtune.load(run).save(tmp_path / "whole", self_contained=True)
    for predictor in (run, tmp_path / "whole"):
        code = (
            f"import sys, esmtune; esmtune.predict({str(predictor)!r}, {str(table)!r});"
            "heavy = ('torch._dynamo', 'lightning_fabric', 'sklearn', 'scipy', 'peft', 'sympy');"
            "print([name for name in heavy if name in sys.modules])"
        )
        assert in_new_process("-c", code).out.strip() == "[]"


def test_columns_that_are_there_already_can_be_told_from_new_ones(run, table, shell, tmp_path):
    shell("predict", run, table, "--out", tmp_path / "once.csv")
    refused = shell("predict", run, tmp_path / "once.csv")
    assert "has a column 'prediction' already" in refused.err
    assert "--prefix new_" in refused.err
    shell("predict", run, tmp_path / "once.csv", "--prefix", "new_", "--out", tmp_path / "twice.csv")
    frame = pl.read_csv(tmp_path / "twice.csv")
    assert frame["new_prediction"].to_list() == frame["prediction"].to_list()
    assert "new_problem" in frame.columns


def test_embed_from_the_shell(run, table, tiny, tmp_path, shell):
    for encoder in (tiny, run):
        out = tmp_path / "e.npz"
        answer = shell("embed", encoder, table, "--layers", 0, -1, "--dtype", "float16", "--out", out, "--overwrite")
        assert answer.code == 0
        arrays = np.load(out)
        assert arrays["id"].tolist() == [f"P{i}" for i in range(10)]
        assert arrays["embedding"].shape == (10, 2, 32)
        assert arrays["embedding"].dtype == np.float16
    answer = shell("embed", tiny, table, "--layers", 7, "--out", tmp_path / "f.npz")
    assert answer.code == 2
    assert "there is no layer 7: this encoder has 0 (the embeddings) to 2" in answer.err


def test_python_takes_the_options_of_the_shell(tiny, tmp_path):
    import inspect

    from esmtune.config import TrainConfig

    parameters = inspect.signature(esmtune.train).parameters
    assert set(TrainConfig.__dataclass_fields__) < set(parameters)
    with pytest.raises(ValueError, match=r"train has no option 'epoch'\. Did you mean 'epochs'"):
        esmtune.train([("MKTV", 1.0)], epoch=3)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"seq": list(TEN), "y": [len(s) / 7 for s in TEN]})
    run = esmtune.train(frame, encoder=str(tiny), epochs=1, seed=3)
    same = esmtune.train(list(zip(frame["seq"], frame["y"], strict=True)), encoder=str(tiny), epochs=1, seed=3)
    assert run.predictor.predict(TEN) == same.predictor.predict(TEN)
    table = esmtune.predict(run.predictor, frame)
    assert table.columns == ["seq", "y", "prediction", "problem"]
    scores = esmtune.evaluate(run.predictor, frame, target="y")
    assert scores["records"] == 10
    assert esmtune.embed(str(tiny), list(TEN), pool="residue").vectors.shape == (sum(map(len, TEN)), 32)


def test_it_is_quiet_where_nobody_watches(run, table, shell):
    answer = shell("predict", run, table)
    assert re.fullmatch(r"Computed on cpu in float32\. Peak memory: \S+ GiB\.\n", answer.err)  # and no bar
