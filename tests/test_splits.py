"""The split: what the data say wins, and what is drawn is fair, repeatable and said."""

import random
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmtune.config import TrainConfig
from esmtune.curation import curate_training
from esmtune.partition import RELATED
from esmtune.records import BadRowsError, Marks, Record
from esmtune.splits import folds_of, split_at_random

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def proteins(count, seed=0):
    order = random.Random(seed)
    return ["".join(order.choices(LETTERS, k=30)) for _ in range(count)]


def record(sequence, label=0.0):
    return Record(id="", sequence=sequence, labels=(label,), split=None, where="")


def curate(frame, **options):
    return curate_training(frame, TrainConfig(**options)).dataset


def test_shares():
    drawn = split_at_random([record(s) for s in proteins(1000)], valid=0.1, test=0.2, stratify=False, seed=0)
    assert Counter(r.split for r in drawn) == {"train": 700, "valid": 100, "test": 200}


def test_each_class_alike():
    labels = ["a"] * 600 + ["b"] * 300 + ["c"] * 100
    records = [record(s, label) for s, label in zip(proteins(1000), labels, strict=True)]
    drawn = split_at_random(records, valid=0.1, test=0.1, stratify=True, seed=3)
    counts = Counter((r.labels[0], r.split) for r in drawn)
    for label, size in (("a", 600), ("b", 300), ("c", 100)):
        assert counts[label, "test"] == counts[label, "valid"] == size / 10


def test_many_small_classes_add_up():
    records = [record(s, str(n // 4)) for n, s in enumerate(proteins(400))]
    drawn = split_at_random(records, valid=0.1, test=0.1, stratify=True, seed=0)
    counts = Counter(r.split for r in drawn)
    assert abs(counts["test"] - 40) <= 1
    assert abs(counts["valid"] - 40) <= 1
    assert {r.labels[0] for r in drawn if r.split == "train"} == {str(n) for n in range(100)}


def test_the_seed_decides_and_nothing_else():
    records = [record(s) for s in proteins(100)]
    options = {"valid": 0.2, "test": 0.2, "stratify": False}
    first = split_at_random(records, seed=1, **options)
    random.seed(99)
    assert split_at_random(records, seed=1, **options) == first
    assert split_at_random(records, seed=2, **options) != first


@given(
    st.lists(st.tuples(st.sampled_from("ACDEFGHIKL"), st.sampled_from("xyz")), min_size=1, max_size=40),
    st.integers(0, 5),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_copies_stay_together_and_no_class_leaves_training(pairs, seed, stratify):
    records = [record(sequence, label) for sequence, label in pairs]
    drawn = split_at_random(records, valid=0.3, test=0.4, stratify=stratify, seed=seed)
    assert [(r.sequence, r.labels[0]) for r in drawn] == pairs
    sides = {(r.sequence, r.split) for r in drawn}
    assert len(sides) == len({sequence for sequence, _ in pairs})
    if stratify:
        assert {r.labels[0] for r in drawn if r.split == "train"} == {label for _, label in pairs}
    assert any(r.split == "train" for r in drawn)


MANY = [
    Marks(frozenset("a")),
    Marks(frozenset("ab"), frozenset("c")),
    Marks(frozenset("c")),
    Marks(frozenset()),
    ("x", 1.0),
    ("y", None),
    (None, 2.0),
]


@given(
    st.lists(st.tuples(st.sampled_from("ACDEFGHIKL"), st.sampled_from(MANY)), min_size=1, max_size=30),
    st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_no_class_leaves_training_whatever_labels_are(pairs, seed):
    def named(records):
        marks = {name for r in records for x in r.labels if isinstance(x, Marks) for name in x.yes}
        return marks | {x[0] for r in records for x in r.labels if isinstance(x, tuple)} - {None}

    records = [record(sequence, label) for sequence, label in pairs]
    drawn = split_at_random(records, valid=0.3, test=0.4, stratify=False, seed=seed)
    assert named([r for r in drawn if r.split == "train"]) == named(records)


def test_no_class_of_residues_leaves_training():
    records = [Record(id="", sequence=s, labels=tuple("HE"), split=None, where="") for s in proteins(19)]
    records.append(Record(id="", sequence="MK", labels=("H", "rare"), split=None, where=""))
    for seed in range(10):
        drawn = split_at_random(records, valid=0.3, test=0.4, stratify=False, seed=seed)
        assert drawn[-1].split == "train"


@given(
    st.lists(st.tuples(st.sampled_from("ACDEFGHIKL"), st.sampled_from("xyz")), min_size=1, max_size=40),
    st.integers(2, 6),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_folds(pairs, folds, stratify):
    records = [record(sequence, label) for sequence, label in pairs]
    found = folds_of(records, folds, stratify, 0)
    assert len(found) == len(records)
    assert found == folds_of(records, folds, stratify, 0)
    assert len({(r.sequence, n) for r, n in zip(records, found, strict=True)}) == len({s for s, _ in pairs})
    sizes = Counter({n: len({r.sequence for r, m in zip(records, found, strict=True) if m == n}) for n in range(folds)})
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_have_each_class_alike():
    records = [record(s, label) for s, label in zip(proteins(100), ["a"] * 60 + ["b"] * 40, strict=True)]
    counts = Counter((r.labels[0], n) for r, n in zip(records, folds_of(records, 5, True, 1), strict=True))
    assert {counts["a", n] for n in range(5)} == {12}
    assert {counts["b", n] for n in range(5)} == {8}
    assert folds_of(records, 5, True, 1) != folds_of(records, 5, True, 2)


@pytest.mark.parametrize(("valid", "test"), [(0.5, 0.5), (0.9, 0.2), (-0.1, 0.1)])
def test_shares_that_leave_nothing(valid, test):
    with pytest.raises(ValueError, match=r"leave nothing to train on"):
        split_at_random([record("MK")], valid=valid, test=test, stratify=False, seed=0)


def numbers(count=100, **columns):
    return pl.DataFrame({"sequence": proteins(count), "label": [n + 0.5 for n in range(count)], **columns})


def test_a_split_column_always_wins():
    split = ["test"] * 50 + ["valid"] * 20 + ["train"] * 30
    dataset = curate(numbers(split=split), valid_fraction=0.3, test_fraction=0.3)
    assert [r.split for r in dataset.records] == split
    assert not any(RELATED in notice for notice in dataset.notices)
    assert any("30 train, 20 valid, 50 test" in notice for notice in dataset.notices)


def test_a_split_column_without_validation_lends_some_of_its_training_rows():
    split = ["test"] * 20 + ["train"] * 80
    dataset = curate(numbers(split=split), valid_fraction=0.25)
    assert [r.split == "test" for r in dataset.records] == [name == "test" for name in split]
    assert Counter(r.split for r in dataset.records) == {"train": 60, "valid": 20, "test": 20}
    (notice,) = (notice for notice in dataset.notices if RELATED in notice)
    assert "(valid drawn at random, seed 0)" in notice


def test_a_split_column_without_test_rows_gets_none():
    dataset = curate(numbers(split=["valid"] * 20 + ["train"] * 80))
    assert Counter(r.split for r in dataset.records) == {"train": 80, "valid": 20}
    assert any("no test rows" in notice for notice in dataset.notices)


def test_no_split_column():
    dataset = curate(numbers(), folds=1)
    assert Counter(r.split for r in dataset.records) == {"train": 80, "valid": 10, "test": 10}
    (notice,) = (notice for notice in dataset.notices if "No sequences related at 30% identity were found" in notice)
    assert "valid and test drawn at random, seed 0" in notice
    assert [r.split for r in curate(numbers(), folds=1).records] == [r.split for r in dataset.records]
    assert [r.split for r in curate(numbers(), folds=1, seed=1).records] != [r.split for r in dataset.records]


@pytest.mark.parametrize("frame", [numbers(), numbers(3)], ids=["no shares", "too few rows for a share"])
def test_nothing_drawn_and_nothing_said_of_it(frame):
    shares = {"valid_fraction": 0.0, "test_fraction": 0.0} if frame.height > 3 else {}
    dataset = curate(frame, **shares)
    assert {r.split for r in dataset.records} == {"train"}
    assert not any("random" in notice for notice in dataset.notices)


def test_classes_are_drawn_alike_and_rare_ones_stay_in_training():
    frame = pl.DataFrame({"sequence": proteins(101), "label": ["a"] * 50 + ["b"] * 50 + ["rare"]})
    dataset = curate(frame, task={"name": "multiclass"}, test_fraction=0.2)
    counts = Counter((r.labels[0], r.split) for r in dataset.records)
    assert counts["a", "test"] == counts["b", "test"] == 10
    assert counts["rare", "train"] == 1
    assert any("each class alike" in notice for notice in dataset.notices)


def test_separate_files(tmp_path):
    names = {}
    for seed, part in enumerate(("train", "valid", "test")):
        names[part] = str(tmp_path / f"{part}.csv")
        pl.DataFrame({"seq": proteins(10, seed), "fitness": [n + seed / 10 for n in range(10)]}).write_csv(names[part])
    dataset = curate(names["train"], valid=names["valid"], test=names["test"])
    assert [r.split for r in dataset.records] == ["train"] * 10 + ["valid"] * 10 + ["test"] * 10
    assert dataset.records[10].where == f"{names['valid']}, line 2"
    assert not any(RELATED in notice for notice in dataset.notices)
    only_test = curate(names["train"], test=names["test"], folds=1)
    assert Counter(r.split for r in only_test.records) == {"train": 9, "valid": 1, "test": 10}
    assert {r.where.split(",")[0] for r in only_test.records if r.split == "test"} == {names["test"]}
    only_valid = curate(names["train"], valid=names["valid"])
    assert Counter(r.split for r in only_valid.records) == {"train": 10, "valid": 10}


def test_separate_files_keep_to_the_columns_of_the_first(tmp_path):
    train, test = str(tmp_path / "train.csv"), str(tmp_path / "test.csv")
    numbers(20).write_csv(train)
    other = numbers(20).select("sequence", pl.col("label").alias("score"), pl.lit("fold 3").alias("split"))
    other.write_csv(test)
    with pytest.raises(ValueError, match=r"test\.csv has no column 'label'.* It has: sequence, score, split"):
        curate(train, test=test)
    other.with_columns(pl.col("score").alias("label"), pl.lit("x").alias("seq")).write_csv(test)
    assert sum(r.split == "test" for r in curate(train, test=test).records) == 20


def test_a_file_and_a_split_column(tmp_path):
    train, test = str(tmp_path / "train.csv"), str(tmp_path / "test.csv")
    numbers(20, split=["train"] * 20).write_csv(train)
    numbers(10).write_csv(test)
    with pytest.raises(ValueError, match=r"train\.csv has a split column, 'split', and there is a file for test too"):
        curate(train, test=test)


def test_one_file_cannot_be_both(tmp_path):
    train, copy = str(tmp_path / "train.csv"), str(tmp_path / "copy.csv")
    numbers(20).write_csv(train)
    numbers(20).write_csv(copy)
    with pytest.raises(ValueError, match=r"copy\.csv is the same file as .*train\.csv"):
        curate(train, test=copy)


def test_frames_for_validation_are_refused_before_anything_is_computed():
    config = TrainConfig()
    object.__setattr__(config, "valid", numbers(10))  # which the types forbid, and nothing else does outside the tests
    with pytest.raises(ValueError, match=r"valid is a DataFrame, expected the path of a file.*column split"):
        curate_training(numbers(20), config)


FLIP = {
    "bool": ([True, False, False, None], ["valid", "train", "test", "train"]),
    "text": (["True", "False", "False", "nan"], ["valid", "train", "test", "train"]),
    "gaps": ([1.0, 0.0, 0.0, float("nan")], ["valid", "train", "test", "train"]),
    "test rows stay": (["True", "False", "True", ""], ["valid", "train", "test", "train"]),
}


@pytest.mark.parametrize("name", FLIP)
def test_the_validation_column_of_flip(name):
    flags, expected = FLIP[name]
    frame = pl.DataFrame(
        {
            "sequence": proteins(4),
            "target": [1.5, 2.5, 3.5, 4.5],
            "set": ["train", "train", "test", "train"],
            "validation": flags,
        }
    )
    dataset = curate(frame)
    assert [r.split for r in dataset.records] == expected
    assert not any(RELATED in notice for notice in dataset.notices)


def test_names_of_splits():
    names = ["train", "Training", " TRAIN ", "valid", "Validation", "val", "dev", "test", "TESTING"]
    dataset = curate(numbers(9, split=names))
    assert [r.split for r in dataset.records] == ["train"] * 3 + ["valid"] * 4 + ["test"] * 2


def test_unknown_and_empty_names_of_splits():
    with pytest.raises(BadRowsError) as error:
        curate(numbers(6, split=["train", "test", "holdout", "", " ", None]))
    assert [p.reason for p in error.value.problems] == [
        "the split is 'holdout'; it can be train, valid, calibration or test",
        *["the split is empty; it can be train, valid, calibration or test"] * 3,
    ]


def folds_in(frame, **options):
    return curate_training(frame, TrainConfig(**options)).folds


@pytest.mark.parametrize(
    ("count", "options", "folds"),
    [
        (20, {}, 5),
        (20, {"folds": 1}, 1),
        (20, {"folds": 3}, 3),
        (20, {"seeds": 3}, 1),
        (20, {"valid_fraction": 0.0}, 1),
        (3, {}, 1),
        (1000, {}, 1),
        (94, {}, 5),
        (494, {}, 5),  # the encoder is frozen: folds cost next to nothing
        (500, {}, 1),
        (94, {"tuning": {"name": "full"}}, 5),
        (100, {"tuning": {"name": "full"}}, 1),
        (200, {"tuning": {"name": "auto"}}, 5),
        (300, {"tuning": {"name": "auto"}}, 1),
        (200, {"valid_fraction": 0.2}, 1),  # which was asked for
        (40, {"valid_fraction": 0.25}, 1),
        (1000, {"folds": 10}, 10),
    ],
)
def test_few_rows_are_validated_in_folds(count, options, folds):
    found = curate_training(numbers(count), TrainConfig(test_fraction=0.2, split="random", **options))
    assert found.folds == folds
    splits = Counter(r.split for r in found.dataset.records)
    assert splits["test"] == round(count * 0.2)
    if folds > 1:
        assert splits["valid"] == 0
        assert any(f"{folds} folds of train for validation" in text for text in found.dataset.notices)
        assert not any("no validation rows" in text for text in found.dataset.notices)


@pytest.mark.parametrize("method", [None, "random", "stratified", "identity"])
def test_the_test_rows_do_not_depend_on_folds(method):
    """Nor on the tuning, which decides on folds: a search that leaves it open must not see those of its winner."""
    families = [p[:place] + "W" + p[place + 1 :] for p in proteins(40) for place in range(5)]
    families = proteins(200) if method in ("random", "stratified") else families
    frame = pl.DataFrame({"sequence": families, "label": ["ab"[n % 2] for n in range(len(families))]})
    found = [
        {
            r.id
            for r in curate_training(frame, TrainConfig(split=method, **options)).dataset.records
            if r.split == "test"
        }
        for options in ({}, {"tuning": {"name": "lora"}}, {"folds": 1}, {"folds": 3})
    ]
    assert found[0]
    assert found == [found[0]] * 4


def test_folds_are_for_rows_whose_split_the_data_leave_open():
    split = ["train"] * 16 + ["valid"] * 4
    assert folds_in(numbers(20, split=split)) == 1
    assert folds_in(numbers(20, split=["train"] * 16 + ["test"] * 4)) == 5
    with pytest.raises(ValueError, match=r"folds take the training rows in turn .*the data say which"):
        folds_in(numbers(20, split=split), folds=5)
    with pytest.raises(ValueError, match=r"folds is 19, but there are only 18 training sequences"):
        folds_in(numbers(20), folds=19)


def test_replicates_stay_in_one_fold_and_one_split():
    sequences = proteins(20) * 3
    frame = pl.DataFrame({"sequence": sequences, "label": [n / 10 for n in range(60)]})
    dataset = curate(frame, test_fraction=0.25)
    assert len({(r.sequence, r.split) for r in dataset.records}) == 20
