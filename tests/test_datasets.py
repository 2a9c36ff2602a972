"""From a messy table to records: columns, sequences, labels, tasks."""

import math
import random
from collections import Counter

import pandas as pd
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esmtune.alphabet import RESIDUES, clean
from esmtune.config import TrainConfig
from esmtune.curation import curate_labeled, curate_training
from esmtune.datasets import Columns, find_columns, read_rows
from esmtune.inference import infer_kind
from esmtune.labels import READS
from esmtune.readers import read
from esmtune.records import BadRowsError, Target
from esmtune.targets import Column, read_labels


def proteins(count):
    order = random.Random(0)
    return ["".join(order.choices("ACDEFGHIKLMNPQRSTVWY", k=30)) for _ in range(count)]


def columns_of(*names, **asked):
    return find_columns(read(pl.DataFrame({name: ["MK"] for name in names})), **asked)


def curate(labels, sequences=None, **options):
    frame = pl.DataFrame({"sequence": sequences or proteins(len(labels)), "label": labels}, strict=False)
    return curate_training(frame, TrainConfig(**({"valid_fraction": 0.0, "test_fraction": 0.0} | options))).dataset


def said(dataset, part):
    return [notice for notice in dataset.notices if part in notice]


# Columns


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("sequence label split", ("sequence", "label", None, "split")),
        ("sequence target set validation", ("sequence", "target", None, "set")),  # FLIP
        (
            "mutant mutated_sequence DMS_score DMS_score_bin",
            ("mutated_sequence", "DMS_score", None, None),
        ),  # ProteinGym
        ("Entry Organism Sequence Fitness", ("Sequence", "Fitness", "Entry", None)),
        ("id Entry accession seq y", ("seq", "y", "id", None)),
        (" Sequence |label ", (" Sequence ", "label ", None, None)),
    ],
)
def test_usual_names(names, expected):
    found = columns_of(*names.split("|" if "|" in names else " "))
    assert (found.sequence, *found.target, found.id, found.split) == expected


def test_asked_columns_come_first():
    found = columns_of("sequence", "seq2", "label", "Tm", sequence="seq2", target=("Tm",))
    assert (found.sequence, found.target) == ("seq2", ("Tm",))
    assert columns_of("sequence", "label", "ph", "Tm", target=("Tm", "ph")).target == ("Tm", "ph")


def test_what_cannot_be_told():
    with pytest.raises(ValueError, match=r"the frame: 'label' or 'score' could be the target. Say which: --target"):
        columns_of("sequence", "label", "score")
    with pytest.raises(ValueError, match=r"'sequence' or 'Seq' could be the sequence. Say which: --sequence"):
        columns_of("sequence", "Seq", "label")
    with pytest.raises(ValueError, match=r"'set' or 'split' could be the split. Say which: --split"):
        columns_of("sequence", "set", "split", "label")
    with pytest.raises(ValueError, match=r"usual name for the target .*--target Tm\. It has: sequence, Tm\."):
        columns_of("sequence", "Tm")
    with pytest.raises(ValueError, match=r"usual name for the sequence .*--sequence COLUMN\. It has: protein\."):
        columns_of("protein", target=("protein",))


@pytest.mark.parametrize("role", ["sequence", "target", "id", "split", "mask", "weight"])
def test_unknown_columns_are_answered_with_those_that_exist(role):
    with pytest.raises(ValueError, match=r"no column 'labell'. Did you mean 'label'\? It has: sequence, label\."):
        columns_of("sequence", "label", **{role: ("labell",) if role == "target" else "labell"})


def test_without_labels_a_table_needs_neither_target_nor_split():
    found = columns_of("sequence", "label", "score", "set", "split", "id", "mask", labeled=False)
    assert found == Columns(sequence="sequence", target=None, id="id", split=None)


# Sequences


def rows_of(*sequences, max_length=None, ids=None, unique_ids=False):
    frame = pl.DataFrame({"sequence": sequences} | ({"id": ids} if ids else {}))
    table = read(frame)
    return read_rows(table, find_columns(table, labeled=False), max_length=max_length, unique_ids=unique_ids)


def test_mending_is_counted():
    rows = rows_of("MKTV", "mktv", "mkTV", " MKTV", "MKTV\n", "\u00a0mktv*", "MKTV *", "MKTV*")
    assert {r.sequence for r in rows.records} == {"MKTV"}
    assert rows.problems == []
    assert rows.notices == [
        "Sequences mended: 3 in lower case, 3 with surrounding blanks, 3 with a trailing *.",
    ]


def test_nothing_mended_and_nothing_said():
    assert rows_of("MKTV", "XBUZO").notices == []


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        ("MK-TV", "'-' at position 3 is no amino acid (a gap"),
        ("MK.TV", "'.' at position 3 is no amino acid (a gap"),
        ("MK*TV", "'*' at position 3 is no amino acid (a stop codon"),
        ("MKTV**", "'*' at position 5"),
        ("MK TV", "' ' at position 3"),
        ("MKJTV", "'J' at position 3"),
        ("MK1", "'1' at position 3"),
        ("<mask>K", "'<' at position 1"),
        ("MKß", "'ß' at position 3"),
        ("m\u017fk", "'\u017f' at position 2"),  # a long s, whose upper case is S
        ("MKﬁ", "'ﬁ' at position 3"),
        ("", "the sequence is empty"),
        (" ", "the sequence is empty"),
        ("*", "the sequence is empty"),
        (None, "the sequence is empty"),
    ],
)
def test_what_is_no_sequence(sequence, reason):
    (problem,) = rows_of("MK", sequence).problems
    assert problem.reason.startswith(reason)
    assert problem.where == "the frame, row 2"
    assert str(problem).startswith(f"the frame, row 2: {reason}")


def test_a_number_is_no_sequence():
    assert rows_of(5).problems[0].reason == "the sequence is 5, expected text"


@given(st.text(max_size=8))
@example("MK")
@example("ꞵ")
def test_what_is_cleaned_is_either_refused_or_clean(text):
    try:
        cleaned = clean(text)
    except ValueError:
        return
    assert set(cleaned) <= set("ACDEFGHIKLMNPQRSTVWYXBUZO") == RESIDUES
    assert clean(cleaned) == cleaned
    assert len(cleaned) <= len(text)


def test_long_sequences_are_used_whole_unless_asked():
    long = "M" * 1023
    rows = rows_of(long, "M" * 1022)
    assert [len(r.sequence) for r in rows.records] == [1023, 1022]
    assert rows.notices == [
        "Sequences longer than the 1,022 residues that ESM-2 was trained on: 1, used whole (--max-length cuts)."
    ]
    rows = rows_of("ACDEF", "ACDE", "ACD", max_length=4)
    assert [r.sequence for r in rows.records] == ["ACDE", "ACDE", "ACD"]
    assert rows.notices == ["Sequences cut to the first 4 residues: 1."]


def test_ids():
    assert [r.id for r in rows_of("MK", "GG", ids=["007", "7"]).records] == ["007", "7"]
    assert [r.id for r in rows_of("MK", "GG", ids=["1.0", "1"]).records] == ["1.0", "1"]
    assert [r.id for r in rows_of("MK", "GG", ids=[7.0, None]).records] == ["7", "2"]
    assert [r.id for r in rows_of("MK", "GG", ids=["2", ""]).records] == ["2", "2"]
    again = rows_of("MK", "GG", "AA", ids=["a", "b", "a"])
    assert [r.id for r in again.records] == ["a", "b", "a"]
    assert again.notices == ["1 id stands in several rows (a): every row is used, and keeps its place."]
    (problem,) = rows_of("MK", "GG", "AA", ids=["a", "b", "a"], unique_ids=True).problems
    assert (problem.where, problem.reason) == ("the frame, row 3", "the id 'a' stands in the frame, row 1 already")


# Tasks


def kind_of(labels):
    return infer_kind(Column.of(with_labels(labels), 0, "one").values)[0]


def with_labels(labels):
    table = read(pl.DataFrame({"sequence": ["M"] * len(labels), "label": labels}, strict=False))
    return read_rows(table, find_columns(table), max_length=None).rows


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["0.5", "1.25", "7"], "regression"),
        ([0.5, 1.25, 7, None, math.nan], "regression"),
        (["0.5", "1.25", "NA", "", "n/a", "NaN"], "binary"),
        (["0.5", "1.25", "2.5", "NA", "", "n/a", "NaN", "null", "None"], "regression"),
        ([str(n) for n in range(100)], "regression"),
        ([1, 2, 3], "regression"),
        (["1e-3", "2.5E4", "-7"], "regression"),
        (["0", "1", "1"], "binary"),
        (["0", "1.0", "1", "0.0", "NA"], "binary"),
        ([0, 1, None], "binary"),
        ([0.0, 1.0, math.nan], "binary"),
        ([True, False, None], "binary"),
        (["true", "false"], "binary"),
        (["yes", "no", "no", ""], "binary"),
        (["yes", "no", "NA", "N/A", "NULL", "nan", "None", "<NA>"], "binary"),
        (["Na", "K"], "binary"),
        (["5", ">10"], "regression"),
        ([">10", "<=2", "0.5", "3"], "regression"),
        (["≥10", "<1"], "binary"),
        ([1.5, 1.5, 1.5], "regression"),
        (["a", "a"], "multiclass"),
        (["0.1", "0.2", "0.3", "0,4"], "regression"),
        (["0.1", "0.2", "0.3", "low"], "regression"),  # and the text is a bad row
        (["0.1", "0.2", "inf"], "regression"),
    ],
)
def test_the_task_is_told_where_it_is_clear(labels, kind):
    assert kind_of(labels) == kind


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 1, 2] * 10,
            r"3 whole numbers \(0, 1, 2\): amounts, .* or grades\? .*--task multiclass, or --task ordinal",
        ),
        (["0", "1", "unknown"] * 10, r"3 values|text of 3 values"),
        (["a", "b", "c"], r"text of 3 values \(a, b, c\)\. If they are classes, say --task multiclass"),
        (list("abcdefgh"), r"\(a, b, c, d, e, f, …\)"),
        (["yes", "no", "na"], "text of 3 values"),
        (
            ["a;b", "b", "a;c", "b;c"],
            r"are lists \(a;b, .*several classes, say --task multilabel; if .*--level residue",
        ),
        (["a", "b", "a;c"], r"say --task multiclass\. If they name several classes a row, say --task multilabel"),
        (["0,5", "1,25", "7"], r"decimal comma \(0,5, 1,25, 7\)\. Write them with a point"),
    ],
)
def test_the_task_is_asked_for_where_it_is_not(labels, message):
    with pytest.raises(ValueError, match=message):
        kind_of(labels)


def test_the_task_is_always_said():
    assert said(curate([0.5, 1.5, 2.5]), "Task: regression of 'label', the labels are numbers.")
    assert said(curate(["a", "b"]), "Task: binary of 'label', the labels take two values, a and b.")
    assert said(curate([0, 1, 2] * 9, task={"name": "multiclass"}), "Task: multiclass of 'label', as asked.")
    assert said(curate([0, 1, 2] * 9, task={"name": "regression"}), "Task: regression of 'label', as asked.")


def test_options_of_a_task_without_its_name_leave_it_to_the_labels():
    assert curate([0.5, 1.5, 2.5], task={"loss": "huber"}).kind == "regression"


def test_a_task_that_does_not_exist_comes_before_what_it_makes_of_the_labels():
    with pytest.raises(ValueError, match=r"there is no task 'regresion'. Did you mean 'regression'"):
        curate([0.5, 1.5, 2.5], task={"name": "regresion"})


# Labels


def labels_of(dataset):
    return [label for r in dataset.records for label in r.labels]


@pytest.mark.parametrize("missing", ["", " ", "NA", "na", "n/a", "NaN", "nan", "null", "None"])
def test_missing_numbers_weigh_nothing_and_are_counted(missing):
    dataset = curate(["0.5", missing, "1.5", missing, "2.5"])
    assert labels_of(dataset) == [0.5, 1.5, 2.5]
    assert said(dataset, "Rows without a label in 'label', left out: 2.")
    assert dataset.of("train") == list(dataset.records)


@pytest.mark.parametrize("frame", [pl.DataFrame, pd.DataFrame])
def test_missing_labels_of_frames(frame):
    data = frame({"sequence": proteins(4), "label": [0.5, None, 1.5, 2.5]})
    dataset = curate_training(data, TrainConfig(valid_fraction=0.0, test_fraction=0.0)).dataset
    assert labels_of(dataset) == [0.5, 1.5, 2.5]


def test_sodium_is_a_class():
    assert labels_of(curate(["Na", "K", "", " ", None], task={"name": "binary"})) == ["Na", "K"]
    assert labels_of(curate(["Na", "K", "none"], task={"name": "multiclass"})) == ["Na", "K", "none"]
    assert not said(curate(["Na", "K", ""]), "unknown")
    assert labels_of(curate(["0", "1", "na"])) == ["0", "1"]


def test_what_pandas_takes_as_missing_is_no_class(tmp_path):
    words = ["NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "Na", "none", "K"]
    path = tmp_path / "words.csv"
    path.write_text("label\n" + "\n".join(words))
    expected = [x for x in pd.read_csv(path)["label"].tolist() if isinstance(x, str)]
    dataset = curate(words, task={"name": "multiclass"})
    assert labels_of(dataset) == expected == ["Na", "none", "K"]
    assert said(dataset, "Labels taken as unknown: 10 (#N/A, <NA>, N/A, NA, NULL, NaN, None, n/a, nan, null).")
    assert said(curate(["a", "NA", "b", "NA", "NA"]), "Labels taken as unknown: 3 (NA).")


def test_no_missing_labels_and_nothing_said():
    assert not said(curate([0.5, 1.5, 2.5]), "without a label")


def test_one_class_however_it_is_written():
    for labels in (["0", "1", "0.0", "1.0"], [0, 1, 0, 1], [0.0, 1.0, None, 1.0], [" 0", "1 ", "0.00", "1"]):
        assert set(labels_of(curate(labels))) == {"0", "1"}
    versions = ["1.10", "1.1", "007", "7", "01.0", "1"]
    assert labels_of(curate(versions, task={"name": "multiclass"})) == versions
    with_gaps = pd.DataFrame({"sequence": proteins(4), "label": [0, 1, None, 1]})
    dataset = curate_training(with_gaps, TrainConfig(valid_fraction=0.0, test_fraction=0.0)).dataset
    assert labels_of(dataset) == ["0", "1", "1"]


def test_booleans_and_categories_are_classes():
    for values in ([True, False, None], ["True", "False", ""], ["true", "FALSE", "NA"]):
        assert labels_of(curate(values)) == ["true", "false"]
    categories = pl.DataFrame({"sequence": proteins(2), "label": pl.Series(["b", "a"], dtype=pl.Categorical)})
    dataset = curate_training(categories, TrainConfig(valid_fraction=0.0, test_fraction=0.0)).dataset
    assert labels_of(dataset) == ["b", "a"]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=6, unique=True))
def test_numbers_are_read_exactly(values):
    rows = [*with_labels(values), *with_labels([*map(repr, values)])]
    target = Target(name="label", kind="regression", form="one")
    labeled = read_labels(rows, [target], [Column.of(rows, 0, "one")], READS)
    assert [label for r in labeled.records for label in r.labels] == [*values, *values]
    assert labeled.problems == []


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("high", "the label 'high' is no number"),
        ("<high", "the label '<high' is no number"),
        ("<0,5", "the label '<0,5' is no number; write a decimal point, not a comma"),
        (">inf", "the label '>inf' is not finite"),
        ("true", "the label 'true' is no number"),
        ("1_000", "the label '1_000' is no number"),
        ("0,5", "the label '0,5' is no number; write a decimal point, not a comma"),
        ("inf", "the label 'inf' is not finite"),
        ("-Infinity", "the label '-Infinity' is not finite"),
        ("1e999", "the label '1e999' is not finite"),
    ],
)
def test_what_is_no_number(label, reason):
    with pytest.raises(BadRowsError) as error:
        curate(["0.5", "1.5", label, "2.5"], task={"name": "regression"})
    (problem,) = error.value.problems
    assert (problem.where, problem.reason) == ("the frame, row 3", reason)
    dataset = curate(["0.5", "1.5", label, "2.5"], task={"name": "regression"}, skip_bad_rows=True)
    assert labels_of(dataset) == [0.5, 1.5, 2.5]
    assert said(dataset, f"Left out the frame, row 3: {reason}.")


def test_nothing_can_be_learned():
    with pytest.raises(ValueError, match=r"all 3 training labels in 'label' are 1.5: with one value nothing"):
        curate([1.5, 1.5, 1.5])
    with pytest.raises(ValueError, match=r"all 2 training labels in 'label' are 'a': with one class nothing"):
        curate(["a", "a", ""])
    with pytest.raises(ValueError, match=r"no training row is left that has a label in 'label'"):
        curate(["", None])
    with pytest.raises(ValueError, match=r"--task binary needs two classes, 'label' has 3. Say --task multiclass"):
        curate(["a", "b", "c"], task={"name": "binary"})


def test_bad_rows_come_in_the_order_of_the_file_and_before_what_follows_from_them():
    sequences = ["MK", "M-", "MK", "G.", "GG"]
    with pytest.raises(BadRowsError) as error:
        curate(["1", "2", "x", "3", "inf"], sequences, task={"name": "regression"})
    assert [p.where for p in error.value.problems] == [f"the frame, row {n}" for n in (2, 3, 4, 5)]


def test_a_class_that_training_lacks():
    frame = pl.DataFrame(
        {
            "sequence": proteins(6),
            "label": list("abcabd"),
            "split": ["train", "train", "valid", "valid", "test", "test"],
        }
    )
    config = TrainConfig(task={"name": "multiclass"})
    with pytest.raises(BadRowsError) as error:
        curate_training(frame, config)
    assert [str(p) for p in error.value.problems] == [
        "the frame, row 3: the class 'c' of this valid row is in no training row",
        "the frame, row 6: the class 'd' of this test row is in no training row",
    ]
    kept = curate_training(frame, TrainConfig(task={"name": "multiclass"}, skip_bad_rows=True)).dataset
    assert Counter(r.split for r in kept.records) == {"train": 2, "valid": 1, "test": 1}
    assert len(kept.problems) == 2


# Evaluation


def evaluated(frame, subset=None, classes=(), kind="regression", skip=False):
    table = read(frame)
    return curate_labeled(
        table, find_columns(table), targets=[Target(name="label", kind=kind, form="one")], classes={"label": classes},
        subset=subset, max_length=None, skip_bad_rows=skip,
    )  # fmt: skip


def test_evaluation_takes_every_labeled_row_or_those_of_one_split():
    frame = pl.DataFrame(
        {"sequence": proteins(4), "label": [1, 2, 3, None], "split": ["train", "test", "test", "test"]}
    )
    assert labels_of(evaluated(frame)) == [1, 2, 3]
    dataset = evaluated(frame, "test")
    assert labels_of(dataset) == [2, 3]
    assert said(dataset, "left out: 1.")


def test_evaluation_of_all_rows_does_not_ask_what_their_splits_are_called():
    frame = pl.DataFrame({"sequence": proteins(2), "label": [1, 2], "split": ["fold 1", None]})
    assert labels_of(evaluated(frame)) == [1, 2]
    with pytest.raises(BadRowsError):
        evaluated(frame, "test")


def test_evaluation_knows_the_classes_of_the_predictor():
    frame = pl.DataFrame({"sequence": proteins(3), "label": ["1.0", "0", "2"]})
    with pytest.raises(BadRowsError, match=r"row 3: the predictor does not know the class '2'; it knows 0, 1"):
        evaluated(frame, classes=("0", "1"), kind="binary")
    assert labels_of(evaluated(frame, classes=("0", "1"), kind="binary", skip=True)) == ["1", "0"]


def test_evaluation_spells_classes_as_the_predictor_does():
    frame = pl.DataFrame({"sequence": proteins(3), "label": ["true", "False", "NA"]})
    assert labels_of(evaluated(frame, classes=("False", "True"), kind="binary")) == ["True", "False"]
    assert labels_of(evaluated(frame, classes=("false", "true"), kind="binary")) == ["true", "false"]
    assert labels_of(evaluated(frame, classes=("NA", "False", "True"), kind="multiclass")) == ["True", "False", "NA"]


def test_evaluation_without_what_it_needs():
    frame = pl.DataFrame({"sequence": proteins(2), "label": [1, 2]})
    with pytest.raises(ValueError, match=r"no split column to take the test rows by. Say which it is: --split"):
        evaluated(frame, "test")
    with pytest.raises(ValueError, match=r"no row of the frame has a label in 'label'"):
        evaluated(frame.with_columns(label=pl.lit("")))


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        (["sequence", "tm"], "--target tm. It has"),
        (["protein", "tm"], "--target tm. It has"),
        (["protein", "id"], "--target COLUMN. It has"),
        (["sequence", "id", "tm", "kd"], "--target COLUMN. It has"),
    ],
)
def test_a_target_that_cannot_be_found_is_asked_for_by_the_only_name_it_can_have(columns, advice):
    frame = pl.DataFrame({name: ["MK"] for name in columns})
    with pytest.raises(ValueError, match=f"Say which it is: {advice}"):
        find_columns(read(frame), sequence=columns[0])
