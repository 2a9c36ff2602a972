"""Bad input ends with a sentence, exit code 2, and nothing written."""

import gzip
import json
import random

import polars as pl
import pytest
from conftest import TEN, in_new_process

import esmtune
from esmtune.config import TrainConfig
from esmtune.curation import curate_training
from esmtune.idle import idle

NOWHERE = "random:no_such_encoder"  # so that a test fails if the encoder is looked for before the data is read


def table(*rows, header="id,sequence,label"):
    """A CSV file of good rows with others after them: the first of `rows` stands in line 12."""
    good = [f"good{n},{sequence},{n + 0.5}" for n, sequence in enumerate(TEN)]
    return "\n".join([header, *good, *rows, ""]).encode()


def classes(*labels, split=None):
    lines = [f"{s},{label}" for s, label in zip(TEN * 3, labels, strict=False)]
    if split:
        lines = [f"{line},{name}" for line, name in zip(lines, split, strict=True)]
    return "\n".join([f"sequence,label{',split' if split else ''}", *lines, ""]).encode()


AT = "data.csv, line {}"  # what a message says of the place of a row
BAD_ROWS = {
    "digit": (table("x,MK1V,1"), [AT.format(12), "(x)", "'1' at position 3 is no amino acid"]),
    "letter": (table("x,MKJV,1"), [AT.format(12), "'J' at position 3 is no amino acid"]),
    "beyond ASCII": (table("x,MKß,1"), [AT.format(12), "'ß' at position 3 is no amino acid"]),
    "dash": (table("x,MK-V,1"), [AT.format(12), "'-' at position 3", "a gap of an alignment"]),
    "point": (table("x,MK.V,1"), [AT.format(12), "'.' at position 3", "a gap of an alignment"]),
    "inner stop": (table("x,MK*V*,1"), [AT.format(12), "'*' at position 3", "a stop codon"]),
    "inner blank": (table("x,MK V,1"), [AT.format(12), "' ' at position 3"]),
    "empty sequence": (table("x,,1"), [AT.format(12), "the sequence is empty"]),
    "blank sequence": (table("x, * ,1"), [AT.format(12), "the sequence is empty"]),
    "text target": (table("x,MKTV,high"), [AT.format(12), "the label 'high' is no number"]),
    "decimal comma": (table('x,MKTV,"1,5"'), [AT.format(12), "'1,5' is no number; write a decimal point"]),
    "infinite target": (table("x,MKTV,inf"), [AT.format(12), "the label 'inf' is not finite"]),
    "negative infinite target": (table("x,MKTV,-Infinity"), [AT.format(12), "is not finite"]),
    "huge target": (table("x,MKTV,1e999"), [AT.format(12), "is not finite"]),
    "after lines within cells": (
        table('"one\ntwo\n\nthree",MKTV,1', "", "x,MK-V,1"),
        [AT.format(17), "'-' at position 3"],
    ),
    "unknown split": (
        classes(*"ababab", split=["train", "train", "train", "train", "holdout", "test"]),
        [AT.format(6), "the split is 'holdout'; it can be train, valid, calibration or test"],
    ),
    "empty split": (
        classes(*"ababab", split=["train", "train", "train", "train", "", "test"]),
        [AT.format(6), "the split is empty; it can be train, valid, calibration or test"],
    ),
    "strange class in valid": (
        classes("0", "1", "0", "1", "2", "0", split=["train"] * 4 + ["valid", "test"]) + b"",
        [AT.format(6), "the class '2' of this valid row is in no training row"],
    ),
    "strange class in test": (
        classes("0", "1", "0", "1", "0", "2", split=["train"] * 4 + ["valid", "test"]),
        [AT.format(7), "the class '2' of this test row is in no training row"],
    ),
}
CLASSES_ASKED = ("strange class in valid", "strange class in test")

BAD_FILES = {
    "missing": ("data.csv", None, [], ["data.csv cannot be read: No such file"]),
    "folder": ("", None, [], ["is a folder, expected a file"]),
    "format": ("data.xlsx", b"x", [], [".xlsx is no known format", "CSV, TSV, Parquet, JSON lines or FASTA"]),
    "empty": ("data.csv", b"", [], ["data.csv is empty"]),
    "blank": ("data.csv", b"\n \n", [], ["data.csv is empty"]),
    "only a byte order mark": ("data.csv", b"\xef\xbb\xbf", [], ["data.csv is empty"]),
    "no rows": ("data.csv", b"sequence,label\n", [], ["data.csv has no rows", "sequence, label"]),
    "Latin-1": ("data.csv", table("µ,MKTV,1").decode().encode("latin-1"), [], [AT.format(12), "not UTF-8"]),
    "UTF-16": ("data.csv", table().decode().encode("utf-16"), [], [AT.format(1), "not UTF-8"]),
    "truncated gzip": ("data.csv.gz", gzip.compress(table())[:-20], [], ["cannot be decompressed", "complete?"]),
    "no gzip": ("data.csv.gz", table(), [], ["cannot be decompressed"]),
    "ragged": ("data.csv", table("x,MKTV,1,2"), [], [AT.format(12), "number of fields is 4, but 3 in the header"]),
    "open quotation mark": ("data.csv", table('x,"MKTV,1', "y,MKTV,2"), [], [AT.format(12), "quotation mark"]),
    "semicolons": ("data.csv", table().replace(b",", b";"), [], ["separated by semicolons"]),
    "JSON": ("data.jsonl", b'{"sequence": "MK", "label": 1}\n{"sequence": "MK"\n', [], ["jsonl, line 2: no JSON"]),
    "JSON of no objects": ("data.jsonl", b"[1]\n", [], ["jsonl, line 1: expected an object"]),
    "FASTA": ("data.fasta", b"MKTV\n", [], ["cannot be read as FASTA", "line 1"]),
    "Parquet": ("data.parquet", b"PAR1", [], ["cannot be read as Parquet"]),
    "two columns of one name": ("data.csv", b"sequence,label,label\nMK,1,2\n", [], ["two columns are called 'label'"]),
    "unknown target": (
        "data.csv", table(), ["--target", "lable"],
        ["no column 'lable'", "Did you mean 'label'?", "It has: id, sequence, label"],
    ),
    "unknown sequence": ("data.csv", table(), ["--sequence", "x"], ["no column 'x'", "It has: id, sequence, label"]),
    "unknown id": ("data.csv", table(), ["--id", "x"], ["no column 'x'", "It has: id, sequence, label"]),
    "unknown split": ("data.csv", table(), ["--split", "x"], ["'x' is neither a column", "columns are id, sequence"]),
    "no target": (
        "data.csv", table(header="id,sequence,Tm"), [], ["usual name for the target", "It has: id, sequence, Tm"],
    ),
    "no sequence": ("data.csv", table(header="id,p,label"), [], ["usual name for the sequence", "id, p, label"]),
    "two targets": (
        "data.csv", table(header="score,sequence,label"), [], ["'score' or 'label' could be the target", "--target"],
    ),
    "constant target": (
        "data.csv", classes(*["0.5"] * 6), [], ["training labels in 'label' are 0.5", "nothing can be learned"],
    ),
    "one class": ("data.csv", classes(*"aaaaaa"), [], ["training labels in 'label' are 'a'", "with one class"]),
    "no label": ("data.csv", classes(*[""] * 6), [], ["no training row is left that has a label"]),
    "no training row": (
        "data.csv", classes(*"abab", split=["test"] * 4), [], ["no training row is left that has a label"],
    ),
    "too many classes": (
        "data.csv", classes(*"abcabc"), ["--task", "binary"], ["--task binary needs two classes", "--task multiclass"],
    ),
    "text": ("data.csv", classes(*"abcabc"), [], ["text of 3 values (a, b, c)", "--task multiclass"]),
    "few integers": (
        "data.csv", classes(*"012" * 5), [],
        ["3 whole numbers (0, 1, 2)", "--task regression, --task multiclass, or --task ordinal"],
    ),
    "decimal commas": (
        "data.tsv", b"sequence\tlabel\nMK\t0,5\nGG\t1,5\nAA\t2,5\n", [], ["decimal comma", "Write them with a point"],
    ),
    "unknown task": ("data.csv", table(), ["--task", "regresion"], ["no task 'regresion'", "'regression'"]),
    "a share of all": ("data.csv", table(), ["--test-fraction", "1"], ["test_fraction is 1", "below 1"]),
    "shares of all": (
        "data.csv", table(), ["--test-fraction", "0.5", "--valid-fraction", "0.5"], ["leave nothing to train on"],
    ),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that must hold no other file after a test than the test put there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(answer, place, *messages, beside=()):
    """Check how a command was refused, and that it left nothing."""
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert answer.err.startswith("esmtune: ")
    for message in messages:
        assert message in answer.err, answer.err
    assert sorted(path.name for path in place.rglob("*")) == sorted(beside)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row(shell, place, name):
    content, messages = BAD_ROWS[name]
    (place / "data.csv").write_bytes(content)
    task = ["--task", "multiclass"] if name in CLASSES_ASKED else []
    answer = shell("train", place / "data.csv", "--encoder", NOWHERE, "--out", place / "out", *task)
    refused(answer, place, "1 row cannot be used:", *messages, "--skip-bad-rows", beside=["data.csv"])


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file(shell, place, name):
    file, content, options, messages = BAD_FILES[name]
    if content is not None:
        (place / file).write_bytes(content)
    answer = shell("train", place / file, "--encoder", NOWHERE, "--out", place / "out", *options)
    refused(answer, place, *messages, beside=[file] if content is not None else [])


def test_without_a_bad_row_the_encoder_is_looked_for(shell, place):
    """The other side of NOWHERE: what the tests above refuse is refused because of the data."""
    (place / "data.csv").write_bytes(table())
    answer = shell("train", place / "data.csv", "--encoder", NOWHERE, "--out", place / "out")
    assert answer.code == 2
    assert "no_such_encoder" in answer.err
    assert [path.name for path in place.rglob("*")] == ["data.csv"]


def test_many_bad_rows(shell, place):
    (place / "data.csv").write_bytes(table(*(f"x{n},MK-V,1" if n % 2 else f"x{n},MKTV,unclear" for n in range(1234))))
    options = ["--task", "regression", "--encoder", NOWHERE]
    answer = shell("train", place / "data.csv", "--out", place / "out", *options)
    refused(answer, place, "1,234 rows cannot be used:", "… and 1,214 more", beside=["data.csv"])
    lines = [line for line in answer.err.splitlines() if "data.csv, line" in line]
    assert [line.split("line ")[1].split(" ")[0] for line in lines] == [str(n) for n in range(12, 32)]
    assert [("at position 3" in line) != ("is no number" in line) for line in lines] == [True] * 20


def test_twenty_bad_rows_are_all_of_them(shell, place):
    (place / "data.csv").write_bytes(table(*(f"x{n},MK-V,1" for n in range(20))))
    answer = shell("train", place / "data.csv", "--encoder", NOWHERE, "--out", place / "out")
    refused(answer, place, "20 rows cannot be used:", AT.format(31), beside=["data.csv"])
    assert "more" not in answer.err


def test_a_class_that_only_the_other_files_have(shell, place):
    (place / "train.csv").write_bytes(classes(*"abab"))
    (place / "valid.csv").write_bytes(classes(*"abc"))
    (place / "test.csv").write_bytes(classes(*"bada"))
    answer = shell(
        "train", "train.csv", "--valid", "valid.csv", "--test", "test.csv", "--task", "multiclass",
        "--encoder", NOWHERE, "--out", "out",
    )  # fmt: skip
    refused(
        answer, place, "2 rows cannot be used:", "valid.csv, line 4: the class 'c' of this valid row",
        "test.csv, line 4: the class 'd' of this test row", beside=["train.csv", "valid.csv", "test.csv"],
    )  # fmt: skip


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_file_beside_a_split_column(shell, place, part):
    (place / "data.csv").write_bytes(classes(*"abab", split=["train", "train", "valid", "test"]))
    (place / "other.csv").write_bytes(classes(*"ab"))
    answer = shell("train", "data.csv", f"--{part}", "other.csv", "--encoder", NOWHERE, "--out", "out")
    refused(answer, place, f"'split', and there is a file for {part} too", beside=["data.csv", "other.csv"])


@pytest.mark.parametrize("part", ["valid", "test"])
def test_bad_rows_of_the_other_files(shell, place, part):
    (place / "data.csv").write_bytes(table())
    (place / "other.csv").write_bytes(b"sequence,label\nMK,1\nM-,2\n,3\nMK,x\n")
    answer = shell("train", "data.csv", f"--{part}", "other.csv", "--encoder", NOWHERE, "--out", "out")
    refused(answer, place, "3 rows", *(f"other.csv, line {n}" for n in (3, 4, 5)), beside=["data.csv", "other.csv"])
    answer = shell("train", "data.csv", f"--{part}", "none.csv", "--encoder", NOWHERE, "--out", "out")
    refused(answer, place, "none.csv cannot be read", beside=["data.csv", "other.csv"])
    answer = shell("train", "data.csv", f"--{part}", "data.csv", "--encoder", NOWHERE, "--out", "out")
    refused(answer, place, "is the same file as", beside=["data.csv", "other.csv"])


def test_a_run_that_is_there_already(shell, place):
    (place / "data.csv").write_bytes(table())
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("mine")
    answer = shell("train", "data.csv", "--encoder", NOWHERE, "--out", "out")
    refused(answer, place, "out exists. Write another name, or --overwrite", beside=["data.csv", "mine", "out"])
    answer = shell("train", "data.csv", "--encoder", NOWHERE, "--out", "data.csv")
    refused(answer, place, "data.csv is a file", beside=["data.csv", "mine", "out"])


def test_data_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "data.csv").write_bytes(table("x,MK-V,1"))
    program = (
        "import sys; from esmtune import cli\n"
        f"sys.argv = ['esmtune', 'train', 'data.csv', '--encoder', '{NOWHERE}', '--out', 'out']\n"
        "try: cli.main()\n"
        "finally: print([name for name in ('torch', 'lightning_fabric', 'sklearn', 'scipy') if name in sys.modules])\n"
    )
    answer = in_new_process("-c", program, cwd=tmp_path)
    assert (answer.code, answer.out) == (2, "[]\n")
    assert "'-' at position 3" in answer.err


# --skip-bad-rows


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Two short runs on the tiny encoder: of numbers, and of two classes."""
    from esmtune import train

    folder = tmp_path_factory.mktemp("runs")
    for name, labels in (("numbers", [n + 0.5 for n in range(10)]), ("classes", ["no", "yes"] * 5)):
        train(list(zip(TEN, labels, strict=True)), encoder=str(tiny), epochs=1, out=folder / name)
    return folder


def test_skipped_rows_are_listed_and_the_rest_is_used(shell, place, tiny):
    bad = ["x1,MK-V,1", "x2,,1", "x3,MKTV,high", "x4,MKTV,inf", "x5,MKTV,47.0 C"]
    (place / "data.csv").write_bytes(table(*bad))
    answer = shell(
        "train", "data.csv", "--encoder", tiny, "--out", "out", "--skip-bad-rows", "--epochs", "1"
    )  # fmt: skip
    assert answer.code == 0, answer.err
    for n, reason in enumerate(("'-'", "is empty", "no number", "not finite", "without its unit"), start=12):
        (line,) = [line for line in answer.err.splitlines() if f"Left out data.csv, line {n} " in line]
        assert reason in line
    predictions = pl.read_csv(place / "out" / "predictions.csv")
    assert sorted(predictions["id"].to_list()) == [f"good{n}" for n in range(10)]


def test_more_than_twenty_skipped_rows_are_all_listed(shell, place):
    (place / "data.csv").write_bytes(table(*(f"x{n},MK-V,1" for n in range(30))))
    answer = shell("train", "data.csv", "--encoder", NOWHERE, "--out", "out", "--skip-bad-rows")
    assert sum("Left out data.csv, line" in line for line in answer.err.splitlines()) == 30


def test_skipping_leaves_nothing(shell, place):
    (place / "data.csv").write_bytes(b"sequence,label\nM-,1\nM-,2\n")
    answer = shell("train", "data.csv", "--encoder", NOWHERE, "--out", "out", "--skip-bad-rows")
    refused(answer, place, "no training row is left that has a label", beside=["data.csv"])


# Evaluate


def test_evaluate(shell, place, runs):
    (place / "data.csv").write_bytes(table("x,MK-V,1", "y,MKTV,high", "z,MKTV,1e999"))
    evaluate = ("evaluate", runs / "numbers", "data.csv", "--out", "scores.json")
    refused(shell(*evaluate), place, "3 rows", *(AT.format(n) for n in (12, 13, 14)), beside=["data.csv"])
    refused(shell(*evaluate, "--target", "x"), place, "no column 'x'", "id, sequence, label", beside=["data.csv"])
    refused(shell(*evaluate, "--subset", "test"), place, "no split column", "--split COLUMN", beside=["data.csv"])
    answer = shell(*evaluate, "--skip-bad-rows")
    assert answer.code == 0
    assert answer.err.count("Left out data.csv, line") == 3
    assert json.loads((place / "scores.json").read_text())["records"] == 10
    refused(shell(*evaluate), place, "scores.json exists", beside=["data.csv", "scores.json"])


def test_evaluate_knows_its_classes(shell, place, runs):
    (place / "data.csv").write_bytes(classes("no", "yes", "maybe", ""))
    answer = shell("evaluate", runs / "classes", "data.csv", "--out", "scores.json")
    refused(answer, place, "data.csv, line 4: the predictor does not know the class 'maybe'", beside=["data.csv"])
    (place / "data.csv").write_bytes(classes("", "", "NA"))
    refused(shell("evaluate", runs / "classes", "data.csv", "--out", "s.json"), place, beside=["data.csv"])


# Predict


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("run", ["numbers", "classes"])
def test_predict_gives_every_row_back(shell, place, runs, run, suffix):
    rows = [
        ("007", TEN[0], "first", None), ("007", "MK-V", "a gap", "gap"), ("", "", "empty", "is empty"),
        ("x", "mkTV* ", "mended", None), ("y", "MK*V", "stop", "stop codon"), ("z", None, "nothing", "is empty"),
        ("w", "MKJV", "letter", "'J'"), ("v", "M" * 1500, "long", None), ("007", TEN[0], "copy", None),
    ]  # fmt: skip
    frame = pl.DataFrame(rows, schema=["id", "protein", "notes", "expected"], orient="row")
    frame.write_parquet(place / "data.parquet")
    answer = shell(
        "predict", runs / run, "data.parquet", "--sequence", "protein", "--out", f"out{suffix}", "--skip-bad-rows"
    )
    assert answer.code != 0  # there is nothing to skip: every row comes back
    answer = shell("predict", runs / run, "data.parquet", "--sequence", "protein", "--out", f"out{suffix}")
    assert answer.code == 0, answer.err
    assert "Rows without a prediction: 5 of 9, the first data.parquet, row 2" in answer.err
    from esmtune.readers import read

    out = read(f"out{suffix}").frame
    added = ["probability_no", "probability_yes"] if run == "classes" else []
    assert out.columns == [*frame.columns, "prediction", *added, "problem"]
    assert out["notes"].to_list() == frame["notes"].to_list()
    assert out["id"].to_list() == frame["id"].to_list()
    for row, expected in zip(out.to_dicts(), frame["expected"].to_list(), strict=True):
        assert (expected is None) == (row["problem"] in (None, ""))
        assert (expected is None) == (row["prediction"] not in (None, ""))
        assert expected is None or expected in row["problem"]
    assert out["prediction"][0] == out["prediction"][8]


def test_predict_where_no_row_is_good(shell, place, runs):
    (place / "data.csv").write_text("sequence\nM-\n\n\nM.\n")
    assert shell("predict", runs / "numbers", "data.csv", "--out", "out.csv").code == 0
    assert pl.read_csv(place / "out.csv")["problem"].is_not_null().to_list() == [True, True]


def test_predict_takes_a_table_with_several_ids_and_any_splits(shell, place, runs):
    (place / "data.csv").write_text("id,accession,set,split,sequence\n1,2,x,y,MK\n1,2,x,y,GG\n")
    assert shell("predict", runs / "numbers", "data.csv", "--out", "out.csv").code == 0
    assert pl.read_csv(place / "out.csv").height == 2


def test_predict_refuses_what_it_cannot_put_beside_its_predictions(shell, place, runs):
    predict = ("predict", runs / "numbers", "data.csv", "--out")
    (place / "data.csv").write_text("protein,label\nMK,1\n")
    refused(shell(*predict, "out.csv"), place, "usual name for the sequence", "protein, label", beside=["data.csv"])
    answer = shell(*predict, "out.csv", "--sequence", "x")
    refused(answer, place, "no column 'x'", "It has: protein, label", beside=["data.csv"])
    refused(shell(*predict, "out.xlsx"), place, ".xlsx is no format for table", beside=["data.csv"])
    refused(shell(*predict, "data.csv"), place, "data.csv exists", beside=["data.csv"])
    for name in ("prediction", "problem"):
        (place / "data.csv").write_text(f"sequence,{name}\nMK,1\n")
        refused(shell(*predict, "out.csv"), place, f"has a column {name!r} already", beside=["data.csv"])
    for content in (b"", b"sequence\n", b"sequence\nMK,1\n", "sequence\nµ\n".encode("latin-1")):
        (place / "data.csv").write_bytes(content)
        refused(shell(*predict, "out.csv"), place, "data.csv", beside=["data.csv"])


# Embed


def test_embed(shell, place, tiny):
    (place / "data.csv").write_bytes(table("x,MK-V,1", "y,,1", "good0,MKTV,1"))
    embed = ("embed", NOWHERE, "data.csv", "--out")
    answer = shell(*embed, "out.npz")
    refused(answer, place, "3 rows", *(AT.format(n) for n in (12, 13, 14)), "--skip-bad-rows", beside=["data.csv"])
    refused(shell(*embed, "out.csv"), place, ".csv is no format for embeddings", ".npz", beside=["data.csv"])
    refused(shell(*embed, "out.npz", "--sequence", "x"), place, "no column 'x'", beside=["data.csv"])
    (place / "none.csv").write_bytes(b"sequence\nM-\n")
    answer = shell("embed", NOWHERE, "none.csv", "--out", "out.npz", "--skip-bad-rows")
    assert answer.code == 2
    assert "no row of none.csv can be embedded" in answer.err
    (place / "none.csv").unlink()
    answer = shell("embed", tiny, "data.csv", "--out", "out.npz", "--skip-bad-rows")
    assert answer.code == 0
    assert answer.err.count("Left out data.csv, line") == 3


def test_embed_asks_neither_for_labels_nor_for_splits(shell, place, tiny):
    (place / "data.csv").write_text("sequence,split,set\nMK,fold 1,\nGG,,x\n")
    assert shell("embed", tiny, "data.csv", "--out", "out.parquet").code == 0
    assert pl.read_parquet(place / "out.parquet")["id"].to_list() == ["2", "3"]


# --- Options that have no say ----------------------------------------------------------------------

TWENTY = [("MKTV" + "ACDEFGHIKLMNPQRSTVWY"[: place + 1], place / 7) for place in range(20)]
STRANGERS = [("".join(random.Random(n).choices("ACDEFGHIKLMNPQRSTVWY", k=40)), n / 7) for n in range(20)]
PARTED = pl.DataFrame(
    {
        "sequence": [s for s, _ in TWENTY],
        "label": [x for _, x in TWENTY],
        "split": ["train"] * 12 + ["valid"] * 4 + ["test"] * 4,
    }
)


@pytest.mark.parametrize(
    ("table", "options", "names"),
    [
        (PARTED, {"identity": 0.5}, "identity"),
        (PARTED, {"valid_fraction": 0.2, "test_fraction": 0.3}, "test-fraction|valid-fraction"),
        (TWENTY, {"split": "random", "folds": 4, "valid_fraction": 0.2}, "valid-fraction"),
        (TWENTY, {"split": "random", "identity": 0.5}, "identity"),
        (TWENTY, {"folds": 1, "valid_fraction": 0.0, "patience": 3, "valid_window": 2}, "patience and --valid-window"),
        (PARTED, {"encoder_learning_rate": 1e-3}, "encoder-learning-rate"),
        (PARTED, {"head": {"name": "ridge"}, "schedule": "linear", "epochs": 7}, "epochs and --schedule"),
        (PARTED, {"layers": "-1", "mix": True}, "mix"),
        (PARTED, {"head": {"name": "ridge"}, "mix": True}, "mix"),
        (PARTED, {}, ""),
        (TWENTY, {"folds": 4, "patience": 3, "metric": "rmse", "valid_window": 2}, ""),
        (STRANGERS, {"split": "identity", "identity": 0.5, "layers": "0,1", "mix": True}, ""),
        (PARTED, {"tuning": {"name": "full"}, "encoder_learning_rate": 1e-3, "patience": 2, "seeds": 2}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_have_no_say_are_named(table, options, names):
    config = TrainConfig(**options)
    said = idle(config, curate_training(table, config))
    assert [text.split(" ha")[0].removeprefix("--") for text in said] == [name for name in names.split("|") if name]


def test_a_run_that_is_repeated_is_told_of_no_option(tiny):
    """Its configuration has all that was decided, which nobody asked for."""
    for options in ({"head": "ridge", "max_steps": 5}, {"epochs": 3, "folds": 1, "valid_fraction": 0.0}):
        config = esmtune.train(TWENTY, encoder=str(tiny), **options).config
        given = [name.split("_")[0] for name in options]
        said = [text for text in idle(config, curate_training(TWENTY, config)) if not text.startswith("--max-steps")]
        assert said == [], given


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="mutations 3 is of --split mutations"):
        curate_training(TWENTY, TrainConfig(mutations=3))
    with pytest.raises(ValueError, match="target says that labels are regression, but task is binary"):
        curate_training(TWENTY, TrainConfig(target=("label:regression",), task={"name": "binary"}))


def test_bad_rows_are_refused_before_a_search_for_relatives(monkeypatch):
    searched = []

    def with_splits(*_, **__):
        searched.append(True)
        raise ValueError("searched")

    monkeypatch.setattr("esmtune.curation.with_splits", with_splits)
    rows = [(sequence, float(number)) for number, sequence in enumerate(TEN)] + [("MK!V", 1.0)]
    for given, error in (({}, "1 row cannot be used"), ({"skip_bad_rows": True}, "searched")):
        with pytest.raises(ValueError, match=error):
            curate_training(rows, TrainConfig(target=None, **given))
    assert searched == [True]
