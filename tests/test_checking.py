"""What `check` finds: everything that is planted, and nothing in a clean table."""

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from conftest import TEN, in_new_process

import esmtune
from esmtune.checking import check
from esmtune.examination import said
from esmtune.findings import Finding, Name

ROOT = Path(__file__).parents[1]
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
ROWS = 300


def protein(rng: np.random.Generator, length: int) -> str:
    return "M" + "".join(rng.choice(list(LETTERS), length - 1))


def clean_table(seed: int = 0, rows: int = ROWS) -> dict[str, list]:
    """Unrelated proteins of mixed length with normal labels and classes that depend on nothing."""
    rng = np.random.default_rng(seed)
    return {
        "id": [f"P{number:05d}" for number in range(rows)],
        "sequence": [protein(rng, int(length)) for length in rng.integers(50, 200, rows)],
        "label": [round(float(x), 4) for x in rng.normal(50, 10, rows)],
        "place": [str(x) for x in rng.choice(["nucleus", "membrane", "cytosol"], rows)],
        "split": [("train", "train", "train", "valid", "test")[number % 5] for number in range(rows)],
    }


def found(table: dict[str, list], **options) -> dict[str, Finding]:
    """The findings in a table, by name."""
    if "place" in options.get("target", ()):
        options |= {"task": "multiclass"}
    result = check(pl.DataFrame(table, strict=False), **options)
    return {finding.name: finding for finding in result.findings}


def changed(**columns) -> dict[str, list]:
    """A clean table with other cells: {row: value} of some columns."""
    table = clean_table()
    for name, cells in columns.items():
        for row, value in cells.items():
            table[name][row] = value
    return table


def mutated(sequence: str, places) -> str:
    return "".join("WA"[x == "W"] if place in set(places) else x for place, x in enumerate(sequence))


# --- Nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", ["label", "place"])
def test_nothing_is_found_in_a_clean_table(seed, target):
    assert found(clean_table(seed), target=[target]) == {}


def test_lengths_and_labels_are_counted_as_numpy_counts_them():
    table = changed(label={0: None, 1: None})
    result = check(pl.DataFrame(table), target=["label"])
    lengths = [len(sequence) for sequence in table["sequence"][2:]]
    assert (result.rows, result.labeled, result.residues) == (ROWS, ROWS - 2, sum(lengths))
    assert result.splits == {"train": 178, "valid": 60, "test": 60}
    assert result.lengths is not None
    assert result.lengths.quarter == np.percentile(lengths, 25)
    (labels,) = result.labels
    assert (labels.known, labels.missing, labels.numbers.median) == (ROWS - 2, 2, np.median(table["label"][2:]))
    result = check(pl.DataFrame(table), target=["place"], task="multiclass")
    assert result.labels[0].classes == {
        name: table["place"].count(name)
        for name in sorted(set(table["place"]), key=lambda name: -table["place"].count(name))
    }


# --- Copies --------------------------------------------------------------------------------------


def test_copies_are_told_apart_by_split_and_label():
    first = clean_table()["sequence"]
    table = changed(
        sequence={1: first[0], 3: first[2], 8: first[7], 12: first[11], 13: first[11]},
        label={0: 50.0, 1: 50.1, 2: 50.0, 3: 50.1, 7: 10.0, 8: 90.0, 11: 10.0, 12: 90.0},
    )
    names = found(table, target=["label"])
    assert names.keys() == {"leak", "leak-conflict", "conflict", "duplicate"}
    assert (names["leak"].count, names["leak"].ids) == (
        3,
        ("P00002", "P00003", "P00007", "P00008", "P00011", "P00012", "P00013"),
    )
    assert "3 of the 60 valid rows" in names["leak"].text
    assert (names["leak-conflict"].count, names["leak-conflict"].ids[:2]) == (2, ("P00007", "P00008"))
    assert (names["conflict"].count, names["conflict"].ids) == (1, ("P00011", "P00012"))
    assert (names["duplicate"].count, names["duplicate"].ids) == (1, ("P00001",))


def test_classes_conflict_where_they_differ_at_all():
    first = clean_table()["sequence"]
    table = changed(sequence={1: first[0], 3: first[2]}, place={0: "nucleus", 1: "nucleus", 2: "nucleus", 3: "cytosol"})
    names = found(table, target=["place"])
    assert names.keys() == {"duplicate", "leak", "leak-conflict"}


def test_replicates_conflict_by_their_spread_and_not_by_their_number():
    """Seventy rows of the wild type span more than the spread of all labels, and agree all the same."""
    rng = np.random.default_rng(0)
    table = clean_table()
    wild = table["sequence"][0]
    for row in range(0, 250, 5):
        table["sequence"][row], table["label"][row] = wild, 50 + float(rng.normal(0, 4))
    own = [table["label"][row] for row in range(0, 250, 5)]
    assert max(own) - min(own) > np.std(table["label"])
    assert found(table, target=["label"]).keys() == {"duplicate"}


def test_labels_of_residues_conflict_at_one_residue():
    rows = [(sequence, "H" * (len(sequence) - 1) + "EC"[place % 2]) for place, sequence in enumerate(TEN)]
    rows.append((TEN[0], "C" + rows[0][1][1:]))
    result = check(rows, valid_fraction=0.0, test_fraction=0.0, task="multiclass")
    assert result.level == "residue"
    assert "conflict" in [finding.name for finding in result.findings]


# --- Relatives -----------------------------------------------------------------------------------


def longest_common_subsequence(one: str, other: str) -> int:
    row = [0] * (len(other) + 1)
    for x in one:
        before = row
        row = [0]
        for place, y in enumerate(other):
            row.append(before[place] + 1 if x == y else max(before[place + 1], row[place]))
    return row[-1]


def test_identity_is_the_longest_common_subsequence():
    from esmtune.kinship import identity_of

    rng = np.random.default_rng(1)
    for _ in range(20):
        one, other = protein(rng, int(rng.integers(5, 60))), protein(rng, int(rng.integers(5, 60)))
        expected = longest_common_subsequence(one, other) / min(len(one), len(other))
        assert identity_of(one, other) == pytest.approx(expected)
        assert identity_of(one, other, 0.9) in (0.0, identity_of(one, other))


@pytest.mark.parametrize("length", [12, 25, 60, 300, 900])
def test_relatives_just_above_the_threshold_are_found(length):
    """Of 200 proteins with a tenth of their residues exchanged at random at most one is missed; strangers are not."""
    from esmtune.kinship import near_pairs

    rng = np.random.default_rng(length)
    known = [protein(rng, length) for _ in range(200)]
    places = [rng.choice(length, int(0.1 * length + 1e-9), replace=False) for _ in known]
    asked = [mutated(sequence, own) for sequence, own in zip(known, places, strict=True)]
    strangers = [protein(rng, length) for _ in range(200)]
    pairs = near_pairs(asked + strangers, known)
    assert all(one == other and identity >= 0.9 for one, other, identity in pairs)
    assert len(pairs) >= (199 if length > 12 else 190)


def test_relatives_with_gaps_are_found_and_fragments_are_not():
    from esmtune.kinship import near_pairs

    rng = np.random.default_rng(0)
    one = protein(rng, 200)
    asked = [one[:80] + one[90:], one[:50] + "GGSGG" + one[50:], one[20:], one[:100], "HHHHHHSSG" + one]
    assert [query for query, _, _ in near_pairs(asked, [protein(rng, 200), one])] == [0, 1, 2, 4]


@pytest.mark.parametrize("empty", [[], ["MK"], ["M", "K"]])
def test_sequences_too_short_to_compare_have_no_relatives(empty):
    from esmtune.kinship import near_pairs

    assert near_pairs(empty, ["MK", "MKTV"]) == near_pairs([TEN[0]], empty) == []


def test_relatives_across_splits_are_found():
    first = clean_table()["sequence"]
    table = changed(sequence={3: mutated(first[0], [10]), 4: mutated(first[1], [10, 20])})
    names = found(table, target=["label"])
    assert names.keys() == {"near-duplicates"}
    assert (names["near-duplicates"].count, names["near-duplicates"].ids) == (2, ("P00003", "P00004"))
    assert "1 of the 60 valid rows and 1 of the 60 test rows" in names["near-duplicates"].text
    table["split"][3] = table["split"][4] = "train"
    assert found(table, target=["label"]) == {}


def test_variants_of_one_protein_are_said_in_one_sentence():
    wild = protein(np.random.default_rng(0), 120)
    rng = np.random.default_rng(1)
    table = clean_table()
    table["sequence"] = [mutated(wild, rng.choice(120, 3, replace=False)) for _ in range(ROWS)]
    assert found(table, target=["label"]).keys() <= {"variants", "duplicate", "leak", "leak-conflict", "conflict"}
    assert found(table, target=["label"])["variants"].severity == "note"
    table["sequence"][:100] = clean_table()["sequence"][:100]  # a third of them is unrelated
    assert "variants" not in found(table, target=["label"])


# --- Numbers -------------------------------------------------------------------------------------


def with_labels(labels, **options) -> dict[str, Finding]:
    return found(clean_table() | {"label": list(labels)}, target=["label"], **options)


RNG = np.random.default_rng(5)
NORMAL = RNG.normal(50, 10, ROWS).round(4)
SHUFFLED = RNG.permutation(ROWS)


def replaced(labels, cells) -> list[float]:
    labels = [float(x) for x in labels]
    for row, value in cells.items():
        labels[row] = value
    return labels


PLANTED_NUMBERS = {
    "two values": (SHUFFLED % 2, "two-values", ROWS, {"task": "regression"}),
    "grades": (SHUFFLED % 4, "whole-numbers", ROWS, {"task": "regression"}),
    "a rank": (SHUFFLED + 1, "rank", ROWS, {}),
    "a share of ranks": (SHUFFLED / ROWS, "rank", ROWS, {}),
    "a row number": (np.arange(ROWS), "rank", ROWS, {}),
    "sorted": (np.sort(NORMAL), "row-order", ROWS, {}),
    "a unit": (replaced(NORMAL * 10, {7: 0.5}), "outliers", 1, {}),
    "a thousandfold": (replaced(NORMAL, {7: 51000.0, 9: 48000.0}), "outliers", 2, {}),
    "-999": (replaced(NORMAL, dict.fromkeys(range(40), -999.0)), "sentinel", 40, {}),
    "9999": (replaced(NORMAL, {3: 9999.0}), "sentinel", 1, {}),
    "-1": (replaced(abs(NORMAL), dict.fromkeys(range(5), -1.0)), "sentinel", 5, {}),
    "concentrations": (10 ** RNG.uniform(-2, 4, ROWS), "orders-of-magnitude", ROWS, {}),
    "a limit": (np.minimum(NORMAL, 60.0), "limit", int((NORMAL >= 60).sum()), {}),
    "one valid label": (replaced(NORMAL, dict.fromkeys(range(3, ROWS, 5), 50.0)), "constant", 60, {}),
    "a shift": (NORMAL + [30 * (row % 5 == 4) for row in range(ROWS)], "shift", 60, {}),
}


@pytest.mark.parametrize("what", PLANTED_NUMBERS)
def test_what_is_planted_among_numbers_is_found(what):
    labels, name, count, options = PLANTED_NUMBERS[what]
    names = with_labels(labels, **options)
    assert name in names
    assert names[name].count == count
    allowed = {"a row number": {"shift"}, "one valid label": {"shift"}}
    assert names.keys() <= {name, *allowed.get(what, ())}


def test_ids_of_labels_that_stand_out_are_given():
    assert with_labels(replaced(NORMAL * 10, {7: 0.5}))["outliers"].ids == ("P00007",)
    assert with_labels(replaced(NORMAL, {3: 9999.0}))["sentinel"].ids == ("P00003",)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal", "laplace"])
def test_tails_are_no_outliers(seed, draw):
    rng = np.random.default_rng(seed)
    labels = getattr(rng, draw)(size=ROWS)
    assert with_labels(labels).keys() & {"outliers", "sentinel"} == set()


def test_zeros_are_no_limit():
    assert "limit" not in with_labels(np.where(NORMAL < 40, 0.0, NORMAL))


def test_length_and_labels_correlate_as_scipy_has_it():
    from scipy.stats import spearmanr

    table = clean_table()
    lengths = np.array([len(sequence) for sequence in table["sequence"]])
    table["label"] = list(lengths + np.random.default_rng(0).normal(0, 40, ROWS))
    finding = found(table, target=["label"])["length"]
    rho, p = spearmanr(lengths, table["label"])
    assert finding.severity == "warning"
    assert f"Spearman {rho:.2f}, n {ROWS}, p {p:.1g}" in finding.text


def test_a_shift_is_as_scipy_has_it():
    from scipy.stats import ks_2samp

    labels, splits = PLANTED_NUMBERS["a shift"][0], np.array(clean_table()["split"])
    result = ks_2samp(labels[splits == "train"], labels[splits == "test"], method="asymp")
    assert f"D {result.statistic:.2f}, p {result.pvalue:.1g}" in with_labels(labels)["shift"].text


def test_of_several_targets_each_is_named():
    table = clean_table() | {"other": replaced(NORMAL, {3: 9999.0})}
    result = check(pl.DataFrame(table), target=["label", "other"])
    (finding,) = result.findings
    assert finding.name == "sentinel"
    assert "in 'other'" in finding.text
    assert [labels.target for labels in result.labels] == ["label", "other"]


# --- Classes -------------------------------------------------------------------------------------


def test_what_is_planted_among_classes_is_found():
    table = changed(place={0: "vacuole", 5: "vacuole"})
    names = found(table, target=["place"])
    assert names.keys() == {"rare-class"}
    assert "vacuole (2)" in names["rare-class"].text
    one_sided = clean_table() | {"place": ["b" if row % 50 == 7 else "a" for row in range(ROWS)]}
    names = found(one_sided, target=["place"])
    assert names["imbalance"].count == 294
    assert "98.0%" in names["imbalance"].text
    table = clean_table()
    table["place"] = [
        "cytosol" if s == "test" and x == "nucleus" else x for x, s in zip(table["place"], table["split"], strict=True)
    ]
    names = found(table, target=["place"])
    assert names.keys() == {"missing-class", "shift"}
    assert "No test row has the class nucleus" in names["missing-class"].text


def test_classes_and_lengths_go_together_as_scipy_has_it():
    from scipy.stats import kruskal

    table = clean_table()
    lengths = np.array([len(sequence) for sequence in table["sequence"]])
    noisy = lengths + np.random.default_rng(0).normal(0, 40, ROWS)
    table["place"] = ["small" if x < 120 else "large" for x in noisy]
    place = np.array(table["place"])
    h, _ = kruskal(lengths[place == "small"], lengths[place == "large"])
    assert f"{h / (ROWS - 1):.0%} of the variance" in found(table, target=["place"])["length"].text


def test_classes_of_several_are_counted_each():
    table = clean_table() | {"label": ["a;b" if row % 2 else "b;c" for row in range(ROWS)]}
    table["label"][0] = "d"
    result = check(pl.DataFrame(table), target=["label"], task="multilabel")
    assert result.labels[0].classes == {"b": 299, "a": 150, "c": 149, "d": 1}
    assert [finding.name for finding in result.findings] == ["rare-class"]


# --- Sequences and ids ---------------------------------------------------------------------------


def test_dna_stops_and_a_little_of_it_warns(tmp_path):
    rng = np.random.default_rng(0)
    genes = ["".join(rng.choice(list("ACGT"), 90)) for _ in range(ROWS)]
    assert found(changed(sequence={0: genes[0]}), target=["label"])["nucleotides"].severity == "warning"
    table = clean_table() | {"sequence": genes}
    finding = found(table, target=["label"])["nucleotides"]
    assert (finding.severity, finding.count) == ("error", ROWS)
    with pytest.raises(ValueError, match="letters of DNA or RNA alone"):
        esmtune.train(pl.DataFrame(table), target="label", out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_is_planted_among_sequences_is_found():
    first = clean_table()["sequence"]
    assert found(changed(sequence={0: "MKXXXXXXTV" * 6}), target=["label"])["ambiguous"].ids == ("P00000",)
    assert found(changed(sequence={0: "MKTV"}), target=["label"])["short"].ids == ("P00000",)
    tagged = {row: first[row] + "LEHHHHHH" for row in range(100)}
    assert found(changed(sequence=tagged), target=["label"])["tag"].count == 100
    linked = {row: "MGSSGSSGS" + first[row] for row in range(ROWS)}
    assert "GSSGSS" in found(changed(sequence=linked), target=["label"])["tag"].text


@pytest.mark.parametrize(
    ("id", "name"),
    [("2-Sep", "date-ids"), ("1-Mar-21", "date-ids"), ("Sep-02", "date-ids"), ("2021-03-01", "date-ids"),
     ("3/1/2021", "date-ids"), ("2.31E+19", "date-ids"), ("SEPT2", "date-names"), ("MARCH1", "date-names"),
     ("DEC1", "date-names")],
)  # fmt: skip
def test_ids_that_a_spreadsheet_took_for_dates_are_found(id, name):
    finding = found(changed(id={5: id}), target=["label"])[name]
    assert (finding.count, finding.ids) == (1, (id,))


@pytest.mark.parametrize("id", ["1MAR_A", "P2-Septin", "10-20", "A1-2", "MARK1", "SEPTIN2", "1e10", "15036_1_1_1"])
def test_other_ids_are_no_dates(id):
    assert found(changed(id={5: id}), target=["label"]) == {}


def test_labels_that_are_missing_in_one_split_more_than_in_another_are_found():
    table = changed(label=dict.fromkeys(range(4, 200, 5)))
    names = found(table, target=["label"])
    assert names.keys() == {"missing-labels"}
    assert "67% of test" in names["missing-labels"].text
    assert found(changed(label=dict.fromkeys(range(40))), target=["label"]) == {}


# --- What stops ----------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_an_error_unless_they_are_left_out():
    table = changed(sequence={5: "MK1V"}, label={})
    table["split"][7] = "holdout"
    names = found(table, target=["label"])
    assert (names["bad-rows"].severity, names["bad-rows"].count) == ("error", 2)
    assert names["bad-rows"].ids == ("P00005", "P00007")
    assert "'1' at position 3" in names["bad-rows"].text
    assert found(table, target=["label"], skip_bad_rows=True)["bad-rows"].severity == "warning"


def test_labels_that_are_all_equal_are_an_error():
    finding = with_labels([1.5] * ROWS)["nothing-to-learn"]
    assert finding.severity == "error"
    assert "nothing can be learned" in finding.text


def test_the_command_prints_tables_and_ends_with_1_where_something_stops(shell, tmp_path):
    pl.DataFrame(clean_table()).write_csv(tmp_path / "clean.csv")
    pl.DataFrame(changed(sequence={5: "MK1V"})).write_csv(tmp_path / "bad.csv")
    answer = shell("check", tmp_path / "clean.csv", "--target", "label", "--out", tmp_path / "clean.json")
    assert answer.code == 0
    assert "Nothing odd was found." in answer.out
    assert re.search(r"^label +300 +0 ", answer.out, re.MULTILINE)
    written = json.loads((tmp_path / "clean.json").read_text())
    assert (written["rows"], written["findings"]) == (ROWS, [])
    answer = shell("check", tmp_path / "bad.csv", "--target", "label")
    assert answer.code == 1
    assert "error bad-rows: 1 row cannot be used" in answer.out
    answer = shell("check", tmp_path / "clean.csv", "--target", "lable")
    assert answer.code == 2
    assert "Did you mean 'label'" in answer.err or "label" in answer.err
    answer = shell("check", tmp_path / "clean.csv", "--target", "label", "--out", tmp_path / "clean.json")
    assert answer.code == 2
    assert "exists" in answer.err
    answer = shell("check", tmp_path / "clean.csv", "--target", "place", "--task", "multiclass")
    assert "membrane" in answer.out


def test_train_says_warnings_and_writes_all_findings(tiny, tmp_path):
    first = clean_table(rows=40)
    first["sequence"][4] = first["sequence"][0]
    first["sequence"][8] = "MKTV"
    events = []
    esmtune.train(
        pl.DataFrame(first), target="label", encoder=str(tiny), max_steps=1, out=tmp_path / "run", watch=events.append,
        accelerator="cpu",
    )  # fmt: skip
    texts = [event.text for event in events if hasattr(event, "text")]
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]
    names = [finding["name"] for finding in written["findings"]]
    assert written["rows"] == 40
    assert names[0] == "leak"
    assert "short" in names
    assert all(finding.keys() == {"name", "severity", "count", "text", "ids"} for finding in written["findings"])
    assert sum("Data (leak)" in text for text in texts) == 1


def test_nothing_heavy_is_imported_for_a_look():
    code = "import sys, esmtune; esmtune.check([('MKTV', 1.0), ('GGS', 2.5)] * 3); sys.exit('torch' in sys.modules)"
    assert in_new_process("-c", code).code == 0


# --- Real data -----------------------------------------------------------------------------------


def test_the_leak_of_scl2205_is_found_and_named(shared):
    path = shared / "data" / "scl" / "scl2205.csv.gz"
    names = {finding.name: finding for finding in check(path, task="multiclass").findings}
    frame = pl.read_csv(path)
    groups = frame.group_by("sequence").agg("id", pl.col("split").n_unique(), pl.col("label").n_unique())
    across = groups.filter(pl.col("split") > 1)
    assert (across.height, groups.filter(pl.col("label") > 1).height) == (25, 9)
    assert names["leak"].count == 25
    assert set(names["leak"].ids) == set(across["id"].explode())
    torn = across.filter(pl.col("label") > 1)
    assert set(names["leak-conflict"].ids) == set(torn["id"].explode())
    assert names["leak-conflict"].count + names["conflict"].count == 9
    both = set(names["leak-conflict"].ids) | set(names["conflict"].ids)
    assert both == set(groups.filter(pl.col("label") > 1)["id"].explode())


REAL = {
    "gb1/three_vs_rest.csv": ({}, {"shift", "variants", "tag"}),
    "dms/if1_ecoli.csv": ({}, {"leak", "duplicate", "variants"}),  # the wild type, again for each silent mutation
    "dms/pten_human.csv": ({}, {"leak", "duplicate", "variants"}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_raise_no_false_alarm(shared, name):
    options, expected = REAL[name]
    result = check(shared / "data" / name, **options)
    assert {finding.name for finding in result.findings} == expected
    assert not result.has_errors


# --- The page ------------------------------------------------------------------------------------


def test_the_page_explains_every_finding_and_no_other():
    page = (ROOT / "docs" / "data-checks.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == sorted(get_args(Name))
    rooms = ("copies", "kinship", "number_findings", "class_findings", "sequence_findings", "examination", "checking")
    code = "".join((ROOT / "esmtune" / f"{room}.py").read_text() for room in rooms)
    given = set(re.findall(r'name="([\w-]+)"|"name": "([\w-]+)"', code))
    assert {a or b for a, b in given} == set(get_args(Name))
    for name, severity in re.findall(r'name="([\w-]+)", severity="(\w+)"', code):
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert severity in row.split("|")[2], name


def test_notes_are_said_by_their_names_alone():
    notes = [Finding(name=name, severity="note", count=1, text="") for name in ("short", "tag")]
    assert said(notes) == ["Data: 2 notes (short, tag): esmtune check tells what is meant."]
    assert said([]) == []
