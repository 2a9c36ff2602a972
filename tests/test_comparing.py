"""Several runs compared: on what they share, with tests of pairs that agree with SciPy and scikit-learn."""

import json
import shutil

import numpy as np
import pytest
import runs_on_disk
from scipy import stats

import esmtune
from esmtune.contests import holm, paired_test
from esmtune.outcomes import read_outcome
from esmtune.points import Points
from esmtune.records import Target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs_on_disk.everything(folder / "good", seed=1, noise=0.2)
    runs_on_disk.everything(folder / "poor", seed=2, noise=1.0)
    runs_on_disk.everything(folder / "alike", seed=3, noise=0.2)
    runs_on_disk.classes(folder / "sites", seed=1, right=0.9)
    runs_on_disk.classes(folder / "guesses", seed=2, right=0.3)
    return folder


def points_of(run):
    outcome = read_outcome(run)
    return outcome.points(outcome.targets[0])


def test_scores_are_those_of_scipy_on_the_shared_records(folder):
    found = esmtune.compare(folder / "good", folder / "poor")
    assert found.runs == ("good", "poor")
    assert found.records == 80
    assert not found.notes
    for run in found.runs:
        points = points_of(folder / run)
        assert found.scores["tm"][run]["spearman"] == pytest.approx(
            stats.spearmanr(points.labels, points.predictions)[0]
        )
        assert found.scores["tm"][run]["mae"] == pytest.approx(np.abs(points.labels - points.predictions).mean())


def test_regressions_are_tested_by_wilcoxon(folder):
    (pair,) = esmtune.compare(folder / "good", folder / "poor").pairs
    first, second = points_of(folder / "good"), points_of(folder / "poor")
    assert pair.test == "Wilcoxon"
    assert pair.p == pytest.approx(stats.wilcoxon(first.errors, second.errors).pvalue)
    assert pair.difference > 0
    assert pair.low > 0
    assert "more than chance" in pair.text
    (pair,) = esmtune.compare(folder / "poor", folder / "good").pairs
    assert pair.difference < 0
    assert "good is better than that of poor" in pair.text
    (pair,) = esmtune.compare(folder / "good", folder / "alike").pairs
    assert pair.low < 0 < pair.high
    assert "no more than chance" in pair.text


def test_the_interval_is_that_of_scipys_bootstrap(folder):
    (pair,) = esmtune.compare(folder / "good", folder / "poor").pairs
    a, b = points_of(folder / "good"), points_of(folder / "poor")

    def difference(labels, one, two):
        return stats.spearmanr(labels, one)[0] - stats.spearmanr(labels, two)[0]

    data = (a.labels, a.predictions, b.predictions)
    oracle = stats.bootstrap(data, difference, paired=True, vectorized=False, n_resamples=1000, method="percentile",
                             rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
    assert (pair.low, pair.high) == pytest.approx((oracle.low, oracle.high), abs=0.04)


def test_classes_are_tested_by_mcnemar(folder):
    (pair,) = esmtune.compare(folder / "sites", folder / "guesses").pairs
    first, second = points_of(folder / "sites"), points_of(folder / "guesses")
    ours = int(((first.errors == 0) & (second.errors == 1)).sum())
    theirs = int(((first.errors == 1) & (second.errors == 0)).sum())
    assert pair.test == "McNemar"
    assert pair.p == pytest.approx(2 * stats.binom.cdf(min(ours, theirs), ours + theirs, 0.5))
    from sklearn.metrics import matthews_corrcoef

    apart = matthews_corrcoef(*map(list, (first.labels, first.predictions)))
    apart -= matthews_corrcoef(*map(list, (second.labels, second.predictions)))
    assert pair.difference == pytest.approx(apart)


def test_residues_are_tested_by_their_proteins(tmp_path):
    a = points_of(runs_on_disk.residues(tmp_path / "a"))
    name, p = paired_test(a, a)
    assert (name, p) == ("Wilcoxon", 1.0)


def test_copies_of_a_sequence_are_one_witness(folder, tmp_path):
    runs = []
    for name in ("sites", "guesses"):
        run = shutil.copytree(folder / name, tmp_path / name)
        rows = read_outcome(run).predictions.to_dicts()
        runs_on_disk.write_split(run, rows, [f"SEQ{n // 2}" for n in range(len(rows))])
        runs.append(run)
    (pair,) = esmtune.compare(*runs).pairs
    first, second = map(points_of, runs)
    apart = (first.errors - second.errors).reshape(-1, 2).mean(1)
    assert pair.test == "Wilcoxon"
    assert pair.p == pytest.approx(stats.wilcoxon(apart).pvalue)


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    assert holm([None, 0.9]) == [None, 0.9]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_several_pairs_are_corrected(folder):
    found = esmtune.compare(folder / "good", folder / "poor", folder / "alike")
    assert len(found.pairs) == 3
    assert [pair.p_holm for pair in found.pairs] == holm([pair.p for pair in found.pairs])


def test_under_no_difference_p_is_uniform():
    random, zero = np.random.default_rng(0), np.zeros(40)

    def drawn():
        return Points(
            target=Target(name="tm", kind="regression", form="one"), reads="number", record=np.arange(40),
            residue=np.zeros(40, int), labels=zero, predictions=random.normal(size=40), classes=(), probabilities=None,
            lower=None, upper=None, sets=None,
        )  # fmt: skip

    found = [paired_test(drawn(), drawn())[1] for _ in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_only_shared_records_count_and_that_is_said(folder, tmp_path):
    other = shutil.copytree(folder / "poor", tmp_path / "fewer")
    lines = (other / "predictions.csv").read_text().split("\n")
    splits = (other / "split.csv").read_text().split("\n")
    (other / "predictions.csv").write_text("\n".join(lines[:-11] + lines[-6:]))
    (other / "split.csv").write_text("\n".join(splits[:-11] + splits[-6:]))
    found = esmtune.compare(folder / "good", other)
    assert found.records == 75
    assert "differ (good 80, fewer 75)" in found.notes[0]
    kept = esmtune.compare(other, folder / "good")
    assert kept.pairs[0].difference == pytest.approx(-found.pairs[0].difference)


def test_the_same_id_with_another_sequence_is_another_record(folder, tmp_path):
    other = shutil.copytree(folder / "poor", tmp_path / "other")
    rows = read_outcome(other).predictions.to_dicts()
    runs_on_disk.write_split(other, rows, ["another"] * len(rows))
    with pytest.raises(ValueError, match="share no test record"):
        esmtune.compare(folder / "good", other)


def test_without_a_split_file_ids_and_labels_are_matched_and_that_is_said(folder, tmp_path):
    other = shutil.copytree(folder / "poor", tmp_path / "old")
    (other / "split.csv").unlink()
    found = esmtune.compare(folder / "good", other)
    assert found.records == 80
    assert "id and label alone" in found.notes[0]


def test_a_run_that_learned_the_others_test_records_is_told_of(folder, tmp_path):
    other = shutil.copytree(folder / "poor", tmp_path / "leaky")
    for name in ("predictions.csv", "split.csv"):
        lines = (other / name).read_text().split("\n")
        lines[-6:-1] = [line.replace(",test", ",train") for line in lines[-6:-1]]
        (other / name).write_text("\n".join(lines))
    found = esmtune.compare(folder / "good", other)
    assert any("5 sequences that good was tested on leaky was trained on" in note for note in found.notes)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (("good",), "two runs or more"),
        (("good", "good"), "given twice"),
        (("good", "sites"), "compare runs of the same targets"),
        (("good", "nothing"), "no folder of a run"),
    ],
)
def test_what_cannot_be_compared_is_refused(folder, shell, runs, said):
    answer = shell("compare", *(folder / run for run in runs))
    assert answer.code == 2
    assert said in answer.err


def test_another_place_of_judging_is_refused(folder, tmp_path):
    other = shutil.copytree(folder / "poor", tmp_path / "valid")
    metrics = json.loads((other / "metrics.json").read_text())
    del metrics["test"]
    (other / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="by its valid records"):
        esmtune.compare(folder / "good", other)


def test_classes_in_another_order_are_the_same(folder, tmp_path):
    other = shutil.copytree(folder / "guesses", tmp_path / "turned")
    spec = json.loads((other / "predictor" / "predictor.json").read_text())
    spec["task"]["classes"].reverse()
    (other / "predictor" / "predictor.json").write_text(json.dumps(spec))
    found = esmtune.compare(folder / "guesses", other)
    assert found.pairs[0].difference == 0
    assert found.scores["site"]["guesses"] == pytest.approx(found.scores["site"]["turned"])


def test_the_shell_prints_one_table_and_writes_page_and_json(folder, shell, tmp_path):
    pytest.importorskip("plotly", reason="the extra report is not installed")
    answer = shell("compare", folder / "good", folder / "poor", "--out", tmp_path / "found.json")
    assert answer.code == 0
    assert "Spearman" in answer.out
    assert "more than chance" in answer.out
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["runs"] == ["good", "poor"]
    assert written["pairs"][0]["test"] == "Wilcoxon"
    assert shell("compare", folder / "good", folder / "poor", "--out", tmp_path / "page.html").code == 0
    assert "2 runs compared" in (tmp_path / "page.html").read_text()
    assert shell("compare", folder / "good", folder / "poor", "--out", tmp_path / "page.html").code == 2
    answer = shell("compare", folder / "good", folder / "poor", "--out", tmp_path / "page.txt")
    assert answer.code == 2
    assert ".html, .json" in answer.err
