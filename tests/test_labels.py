"""Every kind of label, per sequence and per residue: told, read, refused, averaged, and written again."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import esmtune
from esmtune.config import TrainConfig
from esmtune.curation import curate_labeled, curate_training
from esmtune.datasets import find_columns, read_rows
from esmtune.labels import READS, UNKNOWN_NUMBERS, written
from esmtune.outcomes import read_outcome
from esmtune.readers import read
from esmtune.records import BadRowsError, Censored, Marks, Target
from esmtune.targets import Column, read_labels
from tests.conftest import TEN

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def proteins(count, lengths=(30,)):
    order = random.Random(0)
    return ["".join(order.choices(AMINO_ACIDS, k=lengths[n % len(lengths)])) for n in range(count)]


def curated(columns, **options):
    frame = columns if isinstance(columns, pl.DataFrame) else pl.DataFrame(columns, strict=False)
    options = {"valid_fraction": 0.0, "test_fraction": 0.0} | options
    if isinstance(options.get("task"), str):
        options["task"] = {"name": options["task"]}
    return curate_training(frame, TrainConfig(**options))


def curate(columns, **options):
    return curated(columns, **options).dataset


def labels_of(dataset):
    return [r.labels for r in dataset.records]


def said(dataset, part):
    return [notice for notice in dataset.notices if part in notice]


def reasons(columns, **options):
    with pytest.raises(BadRowsError) as error:
        curate(columns, **options)
    return [problem.reason for problem in error.value.problems]


# Per residue

SEQUENCES = ["MKTV", "GG", "MKTVRQ", "AVLI", "GGSG"]


def test_letters():
    dataset = curate({"sequence": SEQUENCES, "labels": ["CCHH", "HE", "CHEEEC", "EEEE", "CCCC"]})
    assert dataset.targets == (Target(name="labels", kind="multiclass", form="letters"),)
    assert (dataset.level, dataset.kind) == ("residue", "multiclass")
    assert labels_of(dataset)[2] == ("C", "H", "E", "E", "E", "C")
    assert dataset.notices[0] == "Task: multiclass of 'labels', one letter a residue."


def test_two_letters_are_binary():
    dataset = curate({"sequence": SEQUENCES, "label": ["0011", "10", "001100", "0101", "1010"]})
    assert (dataset.targets[0].kind, dataset.targets[0].form) == ("binary", "letters")
    assert labels_of(dataset)[1] == ("1", "0")


def test_separated():
    cells = ["0.5;nan;1e-1;2", "1;0", "0.1;;0.3;NaN;0.5;0.6", "1;2;3;4.5", ""]
    dataset = curate({"sequence": SEQUENCES, "label": cells})
    assert dataset.targets == (Target(name="label", kind="regression", form="separated"),)
    assert labels_of(dataset)[0] == (0.5, None, 0.1, 2.0)
    assert labels_of(dataset)[2] == (0.1, None, 0.3, None, 0.5, 0.6)
    assert dataset.notices[0] == "Task: regression of 'label', one number a residue, separated by ;."
    assert said(dataset, "Rows without a label in 'label', left out: 1.")
    assert said(dataset, "Residues without a label in 'label', which do not count: 3 of 16.")


def test_names_of_residues_are_classes_without_being_asked_about():
    cells = ["coil;coil;helix;turn", "turn;NA", "coil;coil;coil;coil;coil;helix", "turn;turn;turn;turn", None]
    dataset = curate({"sequence": SEQUENCES, "label": cells})
    assert (dataset.targets[0].kind, dataset.targets[0].form) == ("multiclass", "separated")
    assert labels_of(dataset)[1] == ("turn", None)
    assert said(dataset, "Labels taken as unknown: 1 (NA).")


def test_few_whole_numbers_of_residues_are_asked_about():
    columns = {"sequence": SEQUENCES, "label": ["0;1;2;0", "1;2", "0;0;0;1;1;2", "0;0;0;0", "1;1;1;1"]}
    with pytest.raises(ValueError, match=r"3 whole numbers \(0, 1, 2\).*--task regression.*--task ordinal"):
        curate(columns)
    dataset = curate(columns, task="ordinal")
    assert labels_of(dataset)[0] == ("0", "1", "2", "0")
    assert dataset.notices[0] == "Task: ordinal of 'label', as asked, one name a residue, separated by ;."


LISTS = [[0.5, None, 1.5, 2.0], [1.0, 0.0], [0.1] * 5 + [math.nan], None, [0.5, 1.0, 1.5, 2.0]]


@pytest.mark.parametrize("source", ["polars", "pandas", "numpy", "jsonl", "parquet", "array"])
def test_lists(source, tmp_path):
    columns = {"sequence": SEQUENCES, "label": LISTS}
    data = pl.DataFrame(columns, strict=False)
    if source == "pandas":
        data = pd.DataFrame(columns)
    elif source == "numpy":
        cells = [np.array(x or [9.0] * 4, dtype=float) for x in LISTS]
        data = pd.DataFrame({"sequence": SEQUENCES, "label": cells}).drop(3)
    elif source == "array":
        data = data[[0, 4]].with_columns(pl.col("label").list.to_array(4))
    elif source == "jsonl":
        rows = [{"sequence": s, "label": x} for s, x in zip(SEQUENCES, LISTS, strict=True)]
        rows[2]["label"] = [0.1] * 5 + [None]
        data = tmp_path / "data.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
    elif source == "parquet":
        data.write_parquet(tmp_path / "data.parquet")
        data = tmp_path / "data.parquet"
    dataset = curate_training(data, TrainConfig(valid_fraction=0.0, test_fraction=0.0)).dataset
    assert dataset.targets == (Target(name="label", kind="regression", form="list"),)
    expected = [(0.5, None, 1.5, 2.0), (1.0, 0.0), (0.1,) * 5 + (None,), (0.5, 1.0, 1.5, 2.0)]
    assert labels_of(dataset) == ([expected[0], expected[3]] if source == "array" else expected)
    assert dataset.notices[0] == "Task: regression of 'label', a list of one number a residue."


def test_lists_of_names_and_of_booleans():
    names = curate({"sequence": ["MKT", "GG"], "label": [["a", "b", None], ["c", "a"]]})
    assert names.targets == (Target(name="label", kind="multiclass", form="list"),)
    assert labels_of(names) == [("a", "b", None), ("c", "a")]
    flags = curate({"sequence": ["MKT", "GG"], "label": [[True, False, None], [False, True]]})
    assert (flags.targets[0].kind, labels_of(flags)[0]) == ("binary", ("true", "false", None))


@pytest.mark.parametrize(
    ("sequences", "labels", "kind"),
    [
        (["MKTVR"] * 9 + ["GGGGG"], [str(12345 + n) for n in range(10)], "regression"),
        (["MKTVR"] * 9 + ["GGGGG"], [12345 + n for n in range(10)], "regression"),
        (["MKTVR"] * 9 + ["GGGGG"], [f"0.{123 + n}" for n in range(10)], "regression"),
        (["MKT"] * 10, [f">{10 + n}" for n in range(9)] + ["0.5"], "regression"),
        (["M", "K", "T", "V"], ["a", "b", "a", "b"], "binary"),
        (["MK", "GGSG", "M", "AVLI", "GG"], ["yes", "no", "no", "yes", "no"], "binary"),
        (["MKTVRQ", "GGSGAA"], ["in out", "out in"], "binary"),
    ],
)
def test_labels_of_a_sequence_stay_what_they_are(sequences, labels, kind):
    dataset = curate({"sequence": sequences, "label": labels})
    assert dataset.targets == (Target(name="label", kind=kind, form="one"),)


def test_long_rows_of_digits_are_no_numbers():
    order = random.Random(1)
    sequences = proteins(20, (40, 57, 64))
    labels = ["1" + "".join(order.choices("01", k=len(s) - 1)) for s in sequences]
    assert curate({"sequence": sequences, "label": labels}).targets[0].form == "letters"


def test_names_of_classes_as_long_as_peptides_are_asked_about():
    columns = {"sequence": proteins(10, (3,)), "label": ["pos", "neg"] * 5}
    with pytest.raises(ValueError, match=r"\(neg, pos\) have as many letters .*--level sequence or --level residue"):
        curate(columns)
    assert labels_of(curate(columns, level="sequence"))[0] == ("pos",)
    assert labels_of(curate(columns, level="residue"))[0] == ("p", "o", "s")


def test_level_is_forced():
    columns = {"sequence": ["MKTVR", "GGGGG", "MKTVA"], "label": ["10000", "11000", "12000"]}
    assert labels_of(curate(columns, level="residue"))[1] == ("1", "1", "0", "0", "0")
    assert labels_of(curate(columns))[1] == (11000.0,)
    columns = {"sequence": ["MK", "G"], "label": ["0.5;1.5", "2.5"]}
    assert labels_of(curate(columns, level="residue")) == [(0.5, 1.5), (2.5,)]
    assert labels_of(curate(columns, level="residue", task="multiclass")) == [("0.5", "1.5"), ("2.5",)]


def test_rows_that_do_not_fit_name_both_lengths():
    sequences, labels = proteins(20, (56,)), ["HE" * 28] * 20
    labels[3], labels[7], labels[9] = "H" * 57, "H", "H" * 20 + " " + "E" * 35
    assert reasons({"sequence": sequences, "label": labels}, level="residue") == [
        "57 labels for 56 residues",
        "1 label for 56 residues",
        "residue 21 has a blank for a label; write a letter, or ? where it is unknown",
    ]
    labels = [";".join(map(str, range(56)))] * 20
    labels[5] += ";1"
    assert reasons({"sequence": sequences, "label": labels}) == ["57 labels for 56 residues"]
    lists = [[0.5 + n for n in range(56)]] * 19 + [[0.5, 1.5]]
    assert reasons({"sequence": sequences, "label": lists}) == ["2 labels for 56 residues"]
    kept = curate({"sequence": sequences, "label": lists}, skip_bad_rows=True)
    assert len(kept.records) == 19


def test_a_bad_label_of_a_residue_is_named_with_its_place():
    columns = {"sequence": ["MKT", "GG", "AV"], "label": ["0.5;1;high", "1.5;2", "2;inf"]}
    assert reasons(columns, task="regression") == [
        "the label of residue 3 'high' is no number",
        "the label of residue 2 'inf' is not finite",
    ]


def test_entries_of_too_few_rows_for_a_majority():
    columns = {"sequence": ["MKT", "GG"], "label": ["0.5;1;2", "1.5;2;3"]}
    expected = [
        f"the label {text!r} is no number; --level residue reads one entry a residue" for text in columns["label"]
    ]
    assert reasons(columns, task="regression") == expected
    assert reasons(columns, task="regression", level="residue") == ["3 labels for 2 residues"]


def test_lists_that_fit_nothing():
    with pytest.raises(ValueError, match=r"the labels are lists, but few .*--task multilabel; --level residue"):
        curate({"sequence": SEQUENCES, "label": [["a", "b", "c"]] * 5})


def test_the_sequence_is_mended_before_labels_are_counted_and_cut_after():
    columns = {"sequence": [" mktv*", "GGSG"], "label": ["CHEH", "EECC"]}
    assert labels_of(curate(columns))[0] == ("C", "H", "E", "H")
    dataset = curate(columns, max_length=2)
    assert labels_of(dataset) == [("C", "H"), ("E", "E")]
    assert [r.sequence for r in dataset.records] == ["MK", "GG"]
    assert dataset.targets[0].kind == "multiclass"


@given(st.lists(st.text("ACDE", min_size=1, max_size=9), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_label_stays_with_its_residue(sequences):
    """Each residue's label is made from it and its place, so that no shift or mix-up goes unseen."""
    sequences = ["AAC", *sequences]
    cells = [";".join(f"{ord(a) + n / 100:.2f}" for n, a in enumerate(s)) for s in sequences]
    columns = {"sequence": sequences, "label": cells}
    for record in curate(columns, level="residue", max_length=5, task="regression").records:
        assert len(record.labels) == len(record.sequence) <= 5
        assert record.labels == tuple(round(ord(a) + n / 100, 2) for n, a in enumerate(record.sequence))


# Masks


@pytest.mark.parametrize(
    "mask", [["0110", "11"], ["0;1;1;0", "1;1"], [[0, 1, 1, 0], [1, 1]], [[False, True, True, False], [True, True]]]
)
def test_masked_positions_do_not_count_and_their_letters_are_no_classes(mask):
    dataset = curate({"sequence": ["MKTV", "GG"], "label": ["-HEX", "HE"], "mask": mask})
    assert labels_of(dataset) == [(None, "H", "E", None), ("H", "E")]
    assert dataset.targets[0].kind == "binary"


def test_a_mask_by_another_name_is_asked_for():
    columns = {"sequence": ["MKTV", "GG"], "label": ["CHEX", "HE"], "resolved": ["1110", "11"]}
    assert labels_of(curate(columns))[0] == ("C", "H", "E", "X")
    found = curated(columns, mask="resolved")
    assert labels_of(found.dataset)[0] == ("C", "H", "E", None)
    assert found.columns.mask == "resolved"


def test_a_mask_is_of_residues():
    columns = {"sequence": proteins(3), "label": [0.5, 1.5, 2.5], "mask": ["x", None, "1"]}
    assert curated(columns).columns.mask is None
    with pytest.raises(ValueError, match=r"mask 'mask' is of residues, but 'label' has one label a sequence"):
        curate(columns, mask="mask")


def test_masks_that_cannot_be_read():
    columns = {
        "sequence": ["MKTV", "GG", "MKTV", "AVLI", "GGG"],
        "label": ["CHEC", "HE", "CHEC", "CHEC", ""],
        "mask": ["111", "12", None, "1111", "1"],
    }
    assert reasons(columns) == [
        "3 mask values for 4 residues",
        "the mask of residue 2 is '2', expected 0 or 1",
        "the mask is empty, expected 0 or 1 for each of 4 residues",
    ]


def test_a_letter_for_what_is_unknown():
    dataset = curate({"sequence": ["MKTV", "GG", "M"], "label": ["?HE?", "HE", "?"]})
    assert labels_of(dataset) == [(None, "H", "E", None), ("H", "E")]
    assert dataset.targets[0].kind == "binary"
    assert said(dataset, "Labels taken as unknown: 3 (?).")
    assert said(dataset, "Residues without a label in 'label', which do not count: 2 of 6.")
    names = curate({"sequence": ["MKTV", "GG"], "label": ["?;H;E;?", "H;E"]}, level="residue")
    assert labels_of(names)[0] == ("?", "H", "E", "?")  # among names it is one


def test_a_class_of_a_saved_predictor_is_no_unknown_letter():
    target = Target(name="ss", kind="multiclass", form="letters")
    columns = {"sequence": ["MKTV"], "label": ["?HE?"]}
    assert labels_of(evaluated(columns, [target], {"ss": ("?", "E", "H")})) == [("?", "H", "E", "?")]
    assert labels_of(evaluated(columns, [target], {"ss": ("E", "H")})) == [(None, "H", "E", None)]


def test_masked_labels_that_a_run_wrote_are_letters_and_read_again(tiny, tmp_path):
    sequences = proteins(12, (6, 7, 8, 9))
    columns = {
        "sequence": sequences,
        "ss": [("CHE" * 3)[: len(s)] for s in sequences],
        "mask": ["01" + "1" * (len(s) - 3) + "0" for s in sequences],
        "split": ["train"] * 6 + ["valid"] * 3 + ["test"] * 3,
    }
    run = esmtune.train(pl.DataFrame(columns), target="ss", encoder=str(tiny), max_steps=2, out=tmp_path / "run")
    frame = pl.read_csv(tmp_path / "run" / "predictions.csv")
    expected = ["".join("?" if m == "0" else x for x, m in zip(ss, mask, strict=True))
                for ss, mask in zip(columns["ss"], columns["mask"], strict=True)]  # fmt: skip
    assert frame["label"].to_list() == expected
    assert frame["prediction"].str.len_chars().to_list() == [len(s) for s in sequences]
    again = pl.DataFrame({"sequence": sequences, "ss": frame["label"], "split": frame["split"]})
    assert labels_of(curate(again, target=("ss",))) == labels_of(curate(columns, target=("ss",)))
    assert esmtune.evaluate(run.predictor, again, subset="test")["scores"] == run.metrics["test"]
    outcome = read_outcome(tmp_path / "run")
    points = outcome.points(outcome.targets[0])
    assert points is not None
    assert len(points) == sum(map(len, sequences[-3:])) - 2 * 3


def test_a_row_masked_throughout_has_no_label():
    dataset = curate({"sequence": ["MKTV", "GG", "AV"], "label": ["CHEC", "HE", "XX"], "mask": ["1111", "11", "00"]})
    assert [r.sequence for r in dataset.records] == ["MKTV", "GG"]


def test_one_file_with_a_mask_and_one_without(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("sequence,label,mask\nMKTV,CHEC,1110\nGG,HE,11\n")
    test.write_text("sequence,label\nMKTV,CHEC\n")
    with pytest.raises(ValueError, match=r"train\.csv has a mask and .*test\.csv has none"):
        curate_training(train, TrainConfig(test=str(test)))


def test_the_secondary_structures(shared):
    frame = pl.read_csv(shared / "data/ss3/ss3.csv.gz", infer_schema=False).head(400)
    dataset = curate(frame)
    assert dataset.targets == (Target(name="labels", kind="multiclass", form="letters"),)
    assert sum(x is not None for r in dataset.records for x in r.labels) == sum(m.count("1") for m in frame["mask"])
    assert {x for r in dataset.records for x in r.labels} == {"C", "E", "H", None}


def test_the_disorder(shared):
    frame = pl.read_csv(shared / "data/disorder/trizod.csv.gz", infer_schema=False).head(400)
    dataset = curate(frame, target=("scores",))
    assert dataset.targets == (Target(name="scores", kind="regression", form="separated"),)
    assert dataset.records[0].labels[:3] == (None, 0.5183, 0.3233)
    numbers = [float(x) for cell in frame["scores"] for x in cell.split(";") if x not in ("nan", "")]
    assert [x for r in dataset.records for x in r.labels if x is not None] == numbers


# Several classes

A, B, AB, NONE = (Marks(frozenset(names)) for names in ("a", "b", "ab", ""))


@pytest.mark.parametrize("cells", [["a", "b;a", ";", "", "b"], [["a"], ["b", "a"], [], None, ["b"]]])
def test_several_classes_in_a_cell(cells):
    dataset = curate({"sequence": proteins(5), "label": cells}, task="multilabel")
    assert dataset.targets == (Target(name="label", kind="multilabel", form="one"),)
    assert labels_of(dataset) == [(A,), (AB,), (NONE,), (B,)]
    assert said(dataset, "Rows without a label in 'label', left out: 1.")


def test_several_classes_are_no_residues():
    dataset = curate({"sequence": ["MK", "GG", "AV", "LI"], "label": ["a;b", "b;c", "c;a", "b;a"]}, task="multilabel")
    assert dataset.level == "sequence"
    with pytest.raises(ValueError, match=r"several classes a residue are written as a list of lists"):
        curate({"sequence": ["MK", "GG"], "label": ["a;b", "b;c"]}, task="multilabel", level="residue")


def test_several_classes_a_residue():
    cells = [[["a"], ["a", "b"], []], [None, ["b"]]]
    dataset = curate({"sequence": ["MKT", "GG"], "label": cells}, task="multilabel")
    assert dataset.targets == (Target(name="label", kind="multilabel", form="list"),)
    assert labels_of(dataset) == [(A, AB, NONE), (None, B)]


@pytest.mark.parametrize("dtype", ["text", "bool", "int", "float", "words"])
def test_a_column_for_each_class(dtype):
    a, b = [1, 0, 0, 1, None], [0, 1, 0, None, None]
    make = {
        "text": lambda x: "" if x is None else str(x),
        "bool": lambda x: None if x is None else bool(x),
        "int": lambda x: x,
        "float": lambda x: math.nan if x is None else float(x),
        "words": lambda x: "NA" if x is None else str(bool(x)).upper(),
    }[dtype]
    frame = pd.DataFrame({"sequence": proteins(5), "a": [*map(make, a)], "b": [*map(make, b)]})
    options = {"target": ("a", "b"), "task": {"name": "multilabel"}, "valid_fraction": 0.0, "test_fraction": 0.0}
    dataset = curate_training(frame, TrainConfig(**options)).dataset
    assert dataset.targets == (Target(name="a,b", kind="multilabel", form="columns"),)
    assert labels_of(dataset) == [(A,), (B,), (NONE,), (Marks(frozenset("a"), frozenset("b")),)]
    assert (dataset.kind, dataset.level) == ("multilabel", "sequence")
    assert dataset.notices[0] == "Task: multilabel of 'a,b', as asked, a column for each class."


def test_columns_that_are_not_0_or_1():
    columns = {"sequence": proteins(3), "a": ["1", "maybe", "0"], "b": ["0", "1", "1"]}
    expected = "in 'a', the label 'maybe' is neither 0 nor 1, as several columns of a multilabel task must be"
    assert reasons(columns, target=("a", "b"), task="multilabel") == [expected]
    with pytest.raises(ValueError, match=r"'x,y' gives a class its name, which cannot have , or ; in it"):
        curate({"sequence": proteins(1), "x,y": [1], "b": [0]}, target=("x,y", "b"), task="multilabel")


def test_a_class_that_all_have_or_none_is_said():
    columns = {
        "sequence": proteins(4),
        "a": [1, 1, 1, 1],
        "b": [0, 1, 0, 1],
        "c": [0, 0, None, 0],
        "d": [1, None, 1, 1],
    }
    dataset = curate(columns, target=("a", "b", "c", "d"), task="multilabel")
    assert said(dataset, "In 'a,b,c,d' no training row has c: of that nothing can be learned.")
    assert said(dataset, "In 'a,b,c,d' every training row has a, d: of that nothing can be learned.")
    with pytest.raises(ValueError, match=r"all 2 training labels in 'label' are a;b: with one class nothing"):
        curate({"sequence": proteins(2), "label": ["a;b", "b;a"]}, task="multilabel")


# Several targets


def test_several_targets_have_each_their_kind_and_blanks():
    columns = {
        "sequence": proteins(4),
        "tm": ["54.5", "", "48.5", ""],
        "loc": ["membrane", "nucleus", "", ""],
        "active": [True, False, None, None],
    }
    columns = {name: [*cells, cells[0]] for name, cells in columns.items()} | {"sequence": proteins(5)}
    columns["tm"][-1] = "60.5"
    dataset = curate(columns, target=("tm", "loc", "active"))
    assert dataset.targets == (
        Target(name="tm", kind="regression", form="one"),
        Target(name="loc", kind="binary", form="one"),
        Target(name="active", kind="binary", form="one"),
    )
    assert dataset.kind == "multitask"
    assert labels_of(dataset) == [
        ((54.5, "membrane", "true"),),
        ((None, "nucleus", "false"),),
        ((48.5, None, None),),
        ((60.5, "membrane", "true"),),
    ]
    assert said(dataset, "Rows without a label in 'tm' and 'loc' and 'active', left out: 1.")
    assert [text for text in dataset.notices if text.startswith("Task: ")] == [
        "Task: regression of 'tm', the labels are numbers.",
        "Task: binary of 'loc', the labels take two values, membrane and nucleus.",
        "Task: binary of 'active', the labels take two values, false and true.",
    ]


def test_each_of_several_targets_has_a_kind_of_its_own():
    columns = {"sequence": proteins(30), "tm": [x + 0.5 for x in range(30)], "grade": [0, 1, 2] * 10}
    columns |= {"loc": ["a", "b", "c"] * 10, "go": ["x;y", "y"] * 15, "a:b": ["p", "q"] * 15}
    with pytest.raises(ValueError, match=r"'grade': .* --target grade:regression, --target grade:mult"):
        curate(columns, target=("tm", "grade"))
    with pytest.raises(ValueError, match=r"'loc': .* say --target loc:multiclass"):
        curate(columns, target=("tm", "loc"))
    with pytest.raises(ValueError, match=r"'go': .* --target go:multilabel"):
        curate(columns, target=("tm", "go"))
    dataset = curate(columns, target=("tm", "grade:ordinal", "loc:multiclass", "go:multilabel", "a:b"))
    kinds = {target.name: target.kind for target in dataset.targets}
    assert kinds == {
        "tm": "regression", "grade": "ordinal", "loc": "multiclass", "go": "multilabel", "a:b": "binary",
    }  # fmt: skip
    assert labels_of(dataset)[1][0][:3] == (1.5, "1", "b")
    assert curate(columns, target=("grade:ordinal",)).kind == "ordinal"
    with pytest.raises(ValueError, match="no task 'grades'"):
        curate(columns, target=("tm", "grade:grades"))
    with pytest.raises(ValueError, match="mlm is not of one column"):
        curate(columns, target=("tm", "grade:mlm"))
    with pytest.raises(ValueError, match="no column 'grad:ordinal'"):
        curate(columns, target=("tm", "grad:ordinal"))


def test_a_run_of_several_targets_is_repeated_from_its_configuration(tiny, tmp_path):
    rows = pl.DataFrame({"sequence": proteins(30), "tm": [float(x) for x in range(30)], "grade": [0, 1, 2] * 10})
    rows.write_csv(tmp_path / "d.csv")
    options = {"encoder": str(tiny), "max_steps": 2}
    run = esmtune.train(tmp_path / "d.csv", target=["tm:regression", "grade:ordinal"], out=tmp_path / "run", **options)
    assert run.config.target == ("tm:regression", "grade:ordinal")
    again = esmtune.train(tmp_path / "d.csv", target=run.config.target, **options)
    assert again.history == run.history
    assert esmtune.evaluate(tmp_path / "run", tmp_path / "d.csv")["records"] == 30


def test_bounds_alone_are_asked_about():
    columns = {"sequence": proteins(6), "y": [">10", "<0.1", ">20", "<0.1", ">10", ">10"]}
    with pytest.raises(ValueError, match=r"the labels are bounds alone \(<0\.1, >10, >20\)"):
        curate(columns)
    assert curate(columns, task="regression").kind == "regression"
    assert curate(columns, task="multiclass").kind == "multiclass"
    columns["y"][2] = ">10"
    assert curate(columns).kind == "binary"
    with pytest.raises(ValueError, match=r"the labels are bounds alone \(>10\)"):
        curate(columns | {"y": [">10"] * 6})


@pytest.mark.parametrize(("kind", "value"), [("regression", 1.0), ("multiclass", "1"), ("ordinal", "1")])
def test_a_task_is_that_of_all_targets(kind, value):
    columns = {"sequence": proteins(4), "x": [1, 0, 2, None], "y": [0, 1, None, 2]}
    dataset = curate(columns, target=("x", "y"), task=kind)
    assert {target.kind for target in dataset.targets} == {kind}
    assert labels_of(dataset)[0][0][0] == value
    assert labels_of(dataset)[2][0][1] is None


def test_several_targets_of_residues():
    columns = {"sequence": ["MKT", "GG"], "ss": ["HHE", "CC"], "rsa": ["0.5;nan;1.5", "0.1;2.5"], "mask": ["111", "10"]}
    dataset = curate(columns, target=("ss", "rsa"))
    assert dataset.level == "residue"
    assert labels_of(dataset) == [(("H", 0.5), ("H", None), ("E", 1.5)), (("C", 0.1), None)]


def test_targets_of_different_levels():
    columns = {"sequence": SEQUENCES, "ss": ["CCHH", "HE", "CHEEEC", "EEEE", "CCCC"], "tm": [1.5, 2, 3, 4, 5]}
    with pytest.raises(ValueError, match=r"'ss' has a label for each residue, 'tm' has one for the sequence"):
        curate(columns, target=("ss", "tm"))


def test_what_is_wrong_with_several_targets_names_the_one():
    columns = {"sequence": proteins(3), "x": ["1.5", "high", "2.5"], "y": ["2", "3", "low"]}
    assert reasons(columns, target=("x", "y"), task="regression") == [
        "in 'x', the label 'high' is no number",
        "in 'y', the label 'low' is no number",
    ]
    with pytest.raises(ValueError, match=r"all 3 training labels in 'y' are 1\.0"):
        curate({"sequence": proteins(3), "x": [1.5, 2, 3], "y": [1, 1, 1]}, target=("x", "y"), task="regression")
    with pytest.raises(ValueError, match=r"no training row is left that has a label in 'y'"):
        curate({"sequence": proteins(3), "x": [1.5, 2, 3], "y": [None] * 3}, target=("x", "y"), task="regression")
    with pytest.raises(ValueError, match=r"target names 'x' twice"):
        curate(columns, target=("x", "x"))
    with pytest.raises(ValueError, match=r"several targets make a multitask by themselves"):
        curate(columns, target=("x", "y"), task="multitask")


def test_grades_of_several_targets_have_each_their_order(tiny):
    rows = {"sequence": list(TEN), "x": ["low", "high"] * 5, "y": ["some", "none", "all", "none", "some"] * 2}
    options = {"encoder": str(tiny), "target": ("x:ordinal", "y:ordinal"), "folds": 1, "valid_fraction": 0,
               "test_fraction": 0, "max_steps": 1, "cache": "none"}  # fmt: skip
    run = esmtune.train(pl.DataFrame(rows), task={"order": "low,high;none,some,all"}, **options)
    assert [part.classes for _, part, _ in run.predictor.task.parts()] == [("low", "high"), ("none", "some", "all")]
    for order, text in (
        ("low,high", "order is 'low,high', which leaves out all, none, some"),
        ("low,high;none,some,all;a", "which are 3 orders, but targets with grades are 2"),
    ):
        with pytest.raises(ValueError, match=text):
            esmtune.train(pl.DataFrame(rows), task={"order": order}, **options)


def test_several_classes_of_each_residue_come_in_a_list():
    texts, lists = ["a;b", "a", "b", "b"], [["a", "b"], ["a"], ["b"], ["b"]]
    found = [
        labels_of(curate({"sequence": proteins(3, (4,)), "y": [cell] * 3}, target=("y",), task="multilabel"))
        for cell in (texts, lists)
    ]
    assert found[0] == found[1] == [(AB, A, B, B)] * 3


def test_a_loss_that_no_target_takes_comes_with_those_there_are(tiny):
    rows = {"sequence": list(TEN), "x": [1.5, 2, 3, 4, 5] * 2, "y": ["a", "b"] * 5}
    with pytest.raises(ValueError, match=r"option loss 'hubber'\. Of numbers: .*huber.*; of classes: .*focal"):
        esmtune.train(pl.DataFrame(rows), encoder=str(tiny), target=("x", "y"), task={"loss": "hubber"})


def test_classes_of_held_out_rows_that_training_lacks():
    splits = ["train", "train", "valid", "test"]
    columns = {"sequence": proteins(4), "split": splits, "x": [1.5, 2, 3, 4], "y": ["a", "b", "a", "c"]}
    assert reasons(columns, target=("x", "y:multiclass")) == [
        "the class 'c' in 'y' of this test row is in no training row"
    ]
    columns = {"sequence": ["MK", "GG", "AVL", "LI"], "split": splits, "label": ["HE", "EC", "HEX", "HE"]}
    assert reasons(columns) == ["the class 'X' of residue 3 of this valid row is in no training row"]
    columns = {"sequence": proteins(4), "split": splits, "label": ["a;b", "b", "a;z", ";"]}
    assert reasons(columns, task="multilabel") == ["the class 'z' of this valid row is in no training row"]


# Bounds


def test_bounds():
    labels = [">10", "<0.1", ">= 10", "≤0.5", "≥1e3", "<=-2", "5", "0.25"]
    dataset = curate({"sequence": proteins(8), "label": labels})
    assert dataset.kind == "regression"
    expected = [(10.0, ">"), (0.1, "<"), (10.0, ">"), (0.5, "<"), (1000.0, ">"), (-2.0, "<")]
    assert labels_of(dataset) == [*((Censored(*x),) for x in expected), (5.0,), (0.25,)]
    assert said(dataset, "Labels that are bounds, such as >10: 6.")


# A user's own task


@pytest.mark.parametrize(("reads", "expected"), [("number", 1.0), ("name", "1"), ("names", Marks(frozenset("1")))])
def test_what_the_labels_of_a_users_own_task_are(reads, expected, monkeypatch):
    from esmtune.tasks import task

    own = type("Own", (), {"reads": reads})
    monkeypatch.setitem(task._parts, "own", own)
    dataset = curate({"sequence": proteins(3), "label": [1, 2, 3]}, task="own")
    assert labels_of(dataset)[0] == (expected,)


# Language modeling


def test_language_modeling_needs_no_labels():
    found = curated({"seq": ["mktv", "GG", "AVL"], "tm": [1, 2, None]}, task="mlm")
    assert found.dataset.targets == (Target(name="sequence", kind="mlm", form="letters"),)
    assert labels_of(found.dataset) == [tuple("MKTV"), ("G", "G"), tuple("AVL")]
    assert (found.dataset.kind, found.columns.target, found.folds) == ("mlm", None, 1)
    assert labels_of(curate({"sequence": ["MKTV"]}, task="mlm", max_length=2)) == [("M", "K")]
    split = curate({"sequence": proteins(100)}, task="mlm", valid_fraction=0.1, test_fraction=0.2)
    assert [len(split.of(name)) for name in ("train", "valid", "test")] == [70, 10, 20]
    for option, value in (("target", ("tm",)), ("mask", "tm"), ("level", "residue")):
        with pytest.raises(ValueError, match=f"task mlm reads sequences alone: leave out {option}"):
            curate({"sequence": ["MK"], "tm": [1]}, task="mlm", **{option: value})


def test_a_residue_that_training_lacks_is_no_stranger_to_language_modeling():
    dataset = curate({"sequence": ["MK", "UO"], "split": ["train", "valid"]}, task="mlm")
    assert len(dataset.records) == 2
    table = read(pl.DataFrame({"seq": ["MKX", "GG"]}))
    found = curate_labeled(
        table, find_columns(table, target=()), targets=dataset.targets, classes={"sequence": tuple("MKXG")},
        subset=None, max_length=None, skip_bad_rows=False,
    )  # fmt: skip
    assert labels_of(found) == [("M", "K", "X"), ("G", "G")]


# Weights


def test_weights_have_a_mean_of_1_over_the_training_rows():
    columns = {"sequence": proteins(4), "label": [1.5, 2, 3, 4], "w": ["1", 0, 5, 2.0]}
    columns["split"] = ["train", "train", "train", "valid"]
    dataset = curate(columns, weight="w")
    assert [r.weight for r in dataset.records] == [0.5, 0.0, 2.5, 1.0]
    assert dataset.records[0].weight == 0.5


def test_weights_are_only_used_if_asked_for():
    dataset = curate({"sequence": proteins(3), "label": [1.5, 2, 3], "weight": [12000.5, 40000, 9]})
    assert {r.weight for r in dataset.records} == {1.0}


@pytest.mark.parametrize("weight", ["", "-1", "nan", "inf", "heavy", ">1"])
def test_weights_that_are_none(weight):
    columns = {"sequence": proteins(3), "label": [1.5, 2, 3], "w": ["1", weight, "2"]}
    assert reasons(columns, weight="w") == [f"the weight is {weight!r}, expected a number, 0 or more"]


def test_weights_of_nothing():
    columns = {"sequence": proteins(3), "label": [1.5, 2, 3], "w": [0, 0, 0]}
    with pytest.raises(ValueError, match=r"all 3 training rows have the weight 0 in 'w'"):
        curate(columns, weight="w")


def test_a_test_file_needs_no_weights_but_a_validation_file_does(tmp_path):
    train, other = tmp_path / "train.csv", tmp_path / "other.csv"
    train.write_text("sequence,label,w\nMKTV,0.5,1\nGG,1.5,3\nAV,2.5,2\n")
    other.write_text("sequence,label\nMKTV,0.5\n")
    options = {"weight": "w", "valid_fraction": 0.0}
    dataset = curate_training(train, TrainConfig(test=str(other), **options)).dataset
    assert [r.weight for r in dataset.of("train")] == [0.5, 1.5, 1.0]
    with pytest.raises(ValueError, match=r"other\.csv has no column 'w'"):
        curate_training(train, TrainConfig(valid=str(other), **options))


# Replicates

TWICE = {"sequence": ["MK", "MK", "MK", "GG", "AV", "AV"], "label": [1.0, 2.0, 4.5, 7.0, 3.0, 5.0]}


def test_replicates_are_reported_and_kept():
    dataset = curate(TWICE)
    spread = math.sqrt((2 * np.var([1, 2, 4.5], ddof=1) + 1 * np.var([3, 5], ddof=1)) / 3)
    assert len(dataset.records) == 6
    expected = f"Replicates: 5 rows of 2 sequences, standard deviation {spread:.3g} (pooled); kept as they are"
    assert said(dataset, f"{expected} (--replicates mean averages).")
    assert not said(curate({"sequence": proteins(3), "label": [1.5, 2, 3]}), "Replicates")


def test_replicates_are_averaged():
    dataset = curate(TWICE | {"id": list("abcdef")}, replicates="mean")
    assert [(r.id, r.sequence, r.labels) for r in dataset.records] == [
        ("a", "MK", (2.5,)),
        ("d", "GG", (7.0,)),
        ("e", "AV", (4.0,)),
    ]
    assert [r.weight for r in dataset.records] == [1.5, 0.5, 1.0]
    assert said(dataset, "averaged: 6 rows became 3.")


def test_replicates_of_different_weight():
    dataset = curate(TWICE | {"w": [1, 1, 2, 1, 0, 0]}, replicates="mean", weight="w")
    assert [r.labels for r in dataset.records] == [(3.0,), (7.0,), (4.0,)]
    assert [r.weight for r in dataset.records] == pytest.approx([4 / 5 * 3, 1 / 5 * 3, 0.0])


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 5)), min_size=2, max_size=6), st.floats(-9, 9))
def test_the_mean_of_replicates_pulls_as_they_do(pairs, prediction):
    """The squared loss has the same gradient, which is what weights that add up are for."""
    assume(len({y for y, _ in pairs}) > 1)
    columns = {"sequence": ["MK"] * len(pairs) + ["GG"], "label": [*(y for y, _ in pairs), 99.0]}
    columns["w"] = [*(w for _, w in pairs), 1.0]
    pulls = []
    for how in ("keep", "mean"):
        records = curate(columns, weight="w", replicates=how).records
        other = next(r.weight for r in records if r.sequence == "GG")  # that of this row is 1 before it is normalized
        pulls.append(sum(r.weight / other * (prediction - r.labels[0]) for r in records if r.sequence == "MK"))
    assert pulls[0] == pytest.approx(pulls[1], rel=1e-9, abs=1e-9)


def test_replicates_with_other_blanks_keep_their_weights():
    """Together they would pull on each target with the weight of both."""
    columns = {"sequence": ["MK"] * 4 + ["GG"], "a": [1.0, None, 3.0, None, 7.0], "b": [None, 5.0, None, 9.0, 2.0]}
    dataset = curate(columns | {"w": [1, 6, 1, 2, 5]}, target=("a", "b"), weight="w", replicates="mean")
    assert [r.labels for r in dataset.records] == [((2.0, None),), ((None, 6.0),), ((7.0, 2.0),)]
    assert [r.weight for r in dataset.records] == pytest.approx([2 / 5, 8 / 5, 1.0])
    assert said(dataset, "averaged: 5 rows became 3.")
    dataset = curate(columns | {"w": [1, 1, 1, 1, 2]}, target=("a", "b"), weight="w", replicates="mean")
    assert [(r.labels, r.weight) for r in dataset.records] == [(((2.0, 7.0),), 1.0), (((7.0, 2.0),), 1.0)]


def test_replicates_of_different_splits_stay_apart():
    columns = TWICE | {"split": ["train", "test", "train", "train", "valid", "valid"]}
    dataset = curate(columns, replicates="mean")
    assert [(r.sequence, r.split, r.labels) for r in dataset.records] == [
        ("MK", "train", (2.75,)),
        ("MK", "test", (2.0,)),
        ("GG", "train", (7.0,)),
        ("AV", "valid", (4.0,)),
    ]


def test_bounds_are_left_out_of_the_mean():
    columns = TWICE | {"label": ["1", ">2", "4", "7", "3", "<5"]}
    dataset = curate(columns, replicates="mean")
    assert [r.labels[0] for r in dataset.records] == [2.5, Censored(2.0, ">"), 7.0, 3.0, Censored(5.0, "<")]


def test_residues_are_averaged_each():
    columns = {"sequence": ["MK", "MK", "GG"], "label": ["1;nan", "2;3.5", "0;1"]}
    assert labels_of(curate(columns, replicates="mean")) == [(1.5, 3.5), (0.0, 1.0)]
    columns = {"sequence": ["MK", "MK", "GG"], "x": [1.5, None, 3], "y": [None, 2.5, 4]}
    columns = {name: [*cells, "AV" if name == "sequence" else 9.5] for name, cells in columns.items()}
    assert labels_of(curate(columns, replicates="mean", target=("x", "y"))) == [
        ((1.5, 2.5),),
        ((3.0, 4.0),),
        ((9.5, 9.5),),
    ]


def test_classes_have_no_mean():
    columns = {"sequence": ["MK", "MK", "GG", "GG"], "label": ["a", "b", "a", "a"]}
    assert said(
        curate(columns), "Replicates: 4 rows of 2 sequences, 1 sequence with labels that differ; kept as they are."
    )
    with pytest.raises(ValueError, match=r"--replicates mean averages numbers, but 'label' is binary"):
        curate(columns, replicates="mean")


# Evaluation


def evaluated(columns, targets, classes=None, **options):
    table = read(pl.DataFrame(columns, strict=False))
    asked = {name: options.pop(name) for name in ("target", "mask") if name in options}
    options = {"subset": None, "max_length": None, "skip_bad_rows": False} | options
    return curate_labeled(
        table,
        find_columns(table, **asked),
        targets=targets,
        classes=classes or {t.name: () for t in targets},
        **options,
    )


def test_evaluation_of_residues():
    target = Target(name="ss", kind="multiclass", form="letters")
    known = {"ss": ("C", "E", "H")}
    columns = {"sequence": ["MKTV", "GG"], "label": ["CHEX", "HE"], "mask": ["1110", "11"]}
    assert labels_of(evaluated(columns, [target], known))[0] == ("C", "H", "E", None)
    assert labels_of(evaluated(columns, [target], known, max_length=1)) == [("C",), ("H",)]
    columns["mask"] = ["1111", "11"]
    with pytest.raises(BadRowsError, match=r"does not know the class 'X' of residue 4; it knows C, E, H"):
        evaluated(columns, [target], known)
    assert len(evaluated(columns, [target], known, skip_bad_rows=True).records) == 1


def test_evaluation_reads_labels_in_the_form_of_the_predictor():
    columns = {"sequence": ["MKTVR", "GGGGG"], "label": ["10101", "11111"]}
    residues = Target(name="label", kind="binary", form="letters")
    assert labels_of(evaluated(columns, [residues], {"label": ("0", "1")}))[0] == ("1", "0", "1", "0", "1")
    assert labels_of(evaluated(columns, [Target(name="label", kind="regression", form="one")]))[0] == (10101.0,)


def test_evaluation_of_several_targets_goes_by_their_order():
    targets = [Target(name="tm", kind="regression", form="one"), Target(name="loc", kind="multiclass", form="one")]
    known = {"tm": (), "loc": ("a", "b")}
    columns = {"sequence": proteins(3), "melting": [1.5, None, 2.5], "place": ["a", "b", "z"]}
    with pytest.raises(BadRowsError, match=r"row 3: the predictor does not know the class 'z' in 'loc'; it knows a, b"):
        evaluated(columns, targets, known, target=("melting", "place"))
    columns["place"][2] = None
    dataset = evaluated(columns, targets, known, target=("melting", "place"))
    assert labels_of(dataset) == [((1.5, "a"),), ((None, "b"),), ((2.5, None),)]
    with pytest.raises(ValueError, match=r"has 2 columns of labels \(tm, loc\), but place is to hold them"):
        evaluated(columns, targets, known, target=("place",))


def test_evaluation_of_several_classes():
    columns = {"sequence": proteins(2), "a": [1, 0], "b": [None, 1]}
    target = Target(name="a,b", kind="multilabel", form="columns")
    dataset = evaluated(columns, [target], {"a,b": ("a", "b")}, target=("a", "b"))
    assert labels_of(dataset) == [(Marks(frozenset("a"), frozenset("b")),), (B,)]


# Written as they were read

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Z", "C"], exclude_characters=";?"), min_size=1, max_size=5
).filter(lambda x: x.lower() not in {"true", "false", *UNKNOWN_NUMBERS} and not x.replace(".", "").isdigit())
LETTERS = st.sampled_from("CEH-_01x.")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=16).map(lambda x: float(f"{x:.6g}"))
BOUNDS = st.builds(Censored, NUMBERS, st.sampled_from("<>"))
MARKS = st.builds(
    lambda yes, no: Marks(yes, no - yes), st.frozensets(NAMES, max_size=3), st.frozensets(NAMES, max_size=2)
)
VALUES = {"number": NUMBERS | BOUNDS, "name": NAMES, "names": MARKS}
KINDS = {"number": "regression", "name": "multiclass", "names": "multilabel"}


def read_again(target, cell, length):
    table = read(pl.DataFrame({"sequence": ["M" * length], "label": [cell]}, strict=False))
    rows = read_rows(table, find_columns(table), max_length=None).rows
    labeled = read_labels(rows, [target], [Column.of(rows, 0, target.form)], READS)
    assert labeled.problems == []
    return labeled.records[0].labels


@pytest.mark.parametrize("reads", sorted(VALUES))
@pytest.mark.parametrize("form", ["one", "letters", "separated", "list"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_written_reads_as_it_was(form, reads, data):
    if reads == "names" and form in ("letters", "separated"):
        return  # not a form of these
    one = LETTERS if form == "letters" and reads == "name" else VALUES[reads]
    size = (1, 1) if form == "one" else (1, 8)
    values = tuple(data.draw(st.lists(st.none() | one, min_size=size[0], max_size=size[1])))
    target = Target(name="label", kind=KINDS[reads], form=form)
    assert read_again(target, written(target, values), len(values)) == values


def test_how_labels_are_written():
    def cell(form, *values):
        return written(Target(name="x", kind="", form=form), values)

    assert cell("letters", "H", "H", "E") == "HHE"
    assert cell("letters", "H", "coil", "E") == "H;coil;E"
    assert cell("letters", "H", None) == "H?"
    assert cell("letters", None, None) == "??"
    assert cell("letters", "?", None) == "?;nan"  # a class of a predictor from before ? meant anything
    assert cell("letters", 0.25, 1.0) == "0.25;1"
    assert cell("separated", 1 / 3, None, 2.0, Censored(10.0, ">")) == "0.333333;nan;2;>10"
    assert cell("list", 1 / 3, None) == [1 / 3, None]
    assert cell("list", "a", None) == ["a", None]
    assert cell("list", 1.5, Censored(0.1, "<")) == ["1.5", "<0.1"]
    assert cell("one", 1 / 3) == 1 / 3
    assert cell("one", None) is None
    assert cell("one", "a") == "a"
    assert cell("one", Censored(0.1, "<")) == "<0.1"
    assert cell("one", AB) == cell("columns", AB) == "a;b"
    assert cell("one", NONE) == ";"


def test_bad_data_need_no_torch():
    program = (
        "import sys, polars as pl\n"
        "from esmtune.config import TrainConfig\n"
        "from esmtune.curation import curate_training\n"
        "for kind in (None, 'regression', 'binary', 'multiclass', 'multilabel', 'ordinal', 'mlm'):\n"
        "    config = TrainConfig(task={'name': kind} if kind else None)\n"
        "    target = {} if kind == 'mlm' else {'label': ['0', '1'] * 2}\n"
        "    curate_training(pl.DataFrame({'sequence': ['MK', 'GG', 'AV', 'LI'], **target}), config)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_classes_of_residues_in_several_columns_are_targets_of_their_own():
    columns = {"sequence": ["MKTV", "GGSG", "AVLI"], "a": ["0101", "1100", "0011"], "b": ["1000", "0110", "0101"]}
    with pytest.raises(ValueError, match="without --task: --target a:binary b:binary"):
        curate(columns, target=("a", "b"), task="multilabel", level="residue")
    found = curate(columns, target=("a:binary", "b:binary"), level="residue")
    assert (found.level, [target.form for target in found.targets]) == ("residue", ["letters", "letters"])
