"""The report and the model card of a run, from the files of its folder alone."""

import json
import re
import shlex
import shutil
import sys

import numpy as np
import polars as pl
import pytest
import runs_on_disk
from conftest import TEN, in_new_process
from runs_on_disk import HOSTILE

import esmtune
from esmtune import pages, reporting
from esmtune.bins import bin_of, told_apart
from esmtune.cards import card, header_of, marked
from esmtune.charts import MOST_POINTS, agreement_chart
from esmtune.circumstances import hidden, repeating
from esmtune.confusions import confusion
from esmtune.discrimination import confidence_of
from esmtune.evidence import by_record
from esmtune.judgments import verdict
from esmtune.outcomes import read_outcome
from esmtune.pages import Chart, Page, Rows, Section, Text, rendered
from esmtune.points import cells_of
from esmtune.reporting import page_of

pytest.importorskip("plotly", reason="the extra report is not installed")


def charts(page: Page) -> dict[str, Chart]:
    return {part.title: part for section in page.sections for part in section.parts if isinstance(part, Chart)}


def words(page: Page) -> str:
    found = [page.title, page.subtitle]
    for section in page.sections:
        for part in section.parts:
            found += [
                str(getattr(part, name)) for name in ("text", "items", "rows", "description") if hasattr(part, name)
            ]
    return "\n".join(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return runs_on_disk.everything(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return runs_on_disk.classes(tmp_path_factory.mktemp("sites") / "run")


# --- What is read -------------------------------------------------------------------------------


def test_points_are_the_held_out_labels_and_predictions(whole):
    outcome = read_outcome(whole)
    points = outcome.points(outcome.targets[0])
    frame = pl.read_csv(whole / "predictions.csv", infer_schema_length=1000).filter(pl.col("split") == "test")
    numbers = frame.filter(~pl.col("label").str.starts_with(">"))
    assert points.bounds == 1
    assert len(points) == numbers.height
    np.testing.assert_allclose(points.labels, numbers["label"].cast(pl.Float64))
    np.testing.assert_allclose(points.errors, (numbers["prediction"] - numbers["label"].cast(pl.Float64)).abs())
    np.testing.assert_allclose(points.upper - points.lower, 8)
    assert outcome.digests is not None
    assert len(set(outcome.digests)) == outcome.predictions.height


def test_residues_come_one_by_one_from_every_form(tmp_path):
    letters = read_outcome(runs_on_disk.residues(tmp_path / "letters"))
    points = letters.points(letters.targets[0])
    test = letters.predictions.filter(pl.col("split") == "test")
    assert len(points) == test["label"].str.len_chars().sum()
    _records, errors = by_record(points)
    first = test.row(0, named=True)
    assert errors[0] == np.mean([a != b for a, b in zip(first["label"], first["prediction"], strict=True)])
    separated = read_outcome(runs_on_disk.residues(tmp_path / "numbers", form="separated"))
    points = separated.points(separated.targets[0])
    cells = ";".join(separated.predictions.filter(pl.col("split") == "test")["label"]).split(";")
    assert len(points) == sum(cell != "nan" for cell in cells)
    assert points.residue.min() == 1
    assert cells_of('["a", null]', "list") == ["a", ""]
    assert cells_of(None, "one") == [""]


def test_several_classes_at_once_and_what_is_unknown_of_them(tmp_path):
    names = ("a", "b", "c")
    rows = [{"id": f"p{n}", "split": "test", "length": 5, "label": "a;?b" if n % 2 else ";", "prediction": "a"}
            | {f"probability_{c}": p for c, p in zip(names, (0.9, 0.8, 0.1), strict=True)}
            for n in range(12)]  # fmt: skip
    metrics = {"task": "multilabel", "target": "go", "test": {"auprc": 0.5}, "records": {"test": 12}}
    task = {"name": "multilabel", "classes": list(names)}
    target = [{"name": "go", "kind": "multilabel", "form": "one"}]
    outcome = read_outcome(runs_on_disk.write(tmp_path / "run", metrics=metrics, rows=rows, targets=target, task=task))
    points = outcome.points(outcome.targets[0])
    assert points.errors.tolist() == pytest.approx([2 / 3, 0.0] * 6)
    assert "go: each class by itself" in words_of_tables(page_of(outcome))


def words_of_tables(page: Page) -> list[str]:
    return [part.caption for section in page.sections for part in section.parts if isinstance(part, Rows)]


def test_each_of_several_targets_has_its_charts(tmp_path):
    rows = [{"id": f"p{n}", "split": "test", "length": 9, "label_tm": n / 3, "label_site": "in" if n % 2 else "out",
             "prediction_tm": n / 3 + 1, "prediction_site": "in", "probability_site_out": 0.3,
             "probability_site_in": 0.7} for n in range(30)]  # fmt: skip
    targets = [{"name": "tm", "kind": "regression", "form": "one"}, {"name": "site", "kind": "binary", "form": "one"}]
    task = {"name": "multitask", "names": ["tm", "site"],
            "tasks": [{"name": "regression"}, {"name": "binary", "classes": ["out", "in"]}]}  # fmt: skip
    metrics = {"task": "multitask", "target": "tm, site", "records": {"test": 30},
               "test": {"tm.spearman": 1.0, "site.mcc": None, "mean": None}}  # fmt: skip
    outcome = read_outcome(runs_on_disk.write(tmp_path / "run", metrics=metrics, rows=rows, targets=targets, task=task))
    found = charts(page_of(outcome))
    assert {"tm: predicted against measured", "site: confusion matrix", "site: ROC"} <= found.keys()


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, shell, name, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / name).unlink()
    answer = shell("report", run)
    assert answer.code == 2
    assert name in answer.err
    assert "Name the folder that train wrote" in answer.err


def test_a_file_that_is_broken_is_refused(tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        esmtune.report(run)


def test_everything_that_may_be_deleted_may_be_absent(tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("run.toml", "history.jsonl", "environment.json", "split.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "predictor")
    assert esmtune.report(run).is_file()
    assert (run / "README.md").is_file()


# --- What is shown ------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_is_the_runs_own(whole):
    page = page_of(read_outcome(whole))
    first = page.sections[0]
    gain = json.loads((whole / "metrics.json").read_text())["gain"]["test"]["text"]
    assert first.parts[0] == Text(gain)
    told = words(Page("", "", (first,), ""))
    assert "same side" in told or "Related sequences stand on one side" in told
    assert "80 of 80" not in told
    assert "at least 50 % identity" in told
    assert "still stand on both sides: 1" in told


def test_every_section_is_there_that_has_something_to_say(whole, sites, tmp_path):
    names = {section.name for section in page_of(read_outcome(whole)).sections if section.parts}
    assert names == {"verdict", "scores", "agreement", "calibration", "split", "errors", "worst", "labels", "training",
                     "members", "data", "asked", "repeating", "citing", "environment", "files"}  # fmt: skip
    names = {section.name for section in page_of(read_outcome(sites)).sections if section.parts}
    assert "classes" in names
    assert "agreement" not in names
    residues = page_of(read_outcome(runs_on_disk.residues(tmp_path / "residues")))
    assert len([title for title in charts(residues) if " along " in title]) == 3


def test_what_matters_and_is_absent_is_said(tmp_path):
    rows = [{"id": "a", "split": "train", "label": 1.0, "prediction": 1.1}]
    target = [{"name": "tm", "kind": "regression", "form": "one"}]
    bare = {"task": "regression", "target": "tm", "records": {"train": 1, "valid": 0, "test": 0}, "baselines": {}}
    outcome = read_outcome(
        runs_on_disk.write(tmp_path / "bare", metrics=bare, rows=rows, targets=target, task={"name": "regression"})
    )
    assert "Nothing was held out" in verdict(outcome)
    rows = [{"id": f"p{n}", "split": "valid", "label": n, "prediction": n + 1} for n in range(30)]
    valid = bare | {"valid": {"spearman": 1.0, "rmse": 1.0}, "records": {"train": 9, "valid": 30, "test": 0}}
    outcome = read_outcome(
        runs_on_disk.write(tmp_path / "valid", metrics=valid, rows=rows, targets=target, task={"name": "regression"})
    )
    told = words(page_of(outcome))
    for said in ("No rows were kept for a test", "There are no intervals", "There are no baselines", "not calibrated",
                 "Nobody looked how near", "not examined", "did not write down lengths"):  # fmt: skip
        assert said in told
    assert "No rows were kept for a test" in card(outcome)


def test_figures_are_such_as_plotly_takes(whole, sites, tmp_path):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    colors = re.compile(r'"@(\w+)"')
    css = pages._asset("page.css")
    for run in (
        whole,
        sites,
        runs_on_disk.residues(tmp_path / "r"),
        runs_on_disk.residues(tmp_path / "n", form="separated"),
    ):
        for chart in charts(page_of(read_outcome(run))).values():
            text = json.dumps(chart.figure, allow_nan=False)
            for name in colors.findall(text):
                assert css.count(f"--{name}:") == 2, name  # for light and dark
            graph_objects.Figure(json.loads(colors.sub('"#123456"', text)))  # refuses what it does not know


def test_confusion_is_scikit_learns(sites):
    from sklearn.metrics import confusion_matrix, roc_auc_score

    outcome = read_outcome(sites)
    points = outcome.points(outcome.targets[0])
    expected = confusion_matrix(points.labels, points.predictions, labels=list(points.classes))
    np.testing.assert_array_equal(confusion(points), expected)
    roc = charts(page_of(outcome))["site: ROC"].figure["data"]
    area = roc_auc_score(points.labels == "nucleus", points.probabilities[:, 0])
    assert any(line.get("name") == f"nucleus ({area:.3f})" for line in roc)


def test_many_classes_are_joined_and_that_is_said(tmp_path):
    outcome = read_outcome(runs_on_disk.classes(tmp_path / "run", count=600, names=[f"class {n}" for n in range(40)]))
    chart = charts(page_of(outcome))["site: confusion matrix"]
    assert len(chart.figure["data"][0]["x"]) == 25
    assert "24 commonest of 40" in chart.note
    points = outcome.points(outcome.targets[0])
    assert confusion(points).sum() == len(points)


def test_reliability_is_scikit_learns():
    from sklearn.calibration import calibration_curve

    random = np.random.default_rng(0)
    confidence = random.uniform(0.4, 0.999, 500)
    right = random.random(500) < confidence
    share, mean = calibration_curve(right, confidence, n_bins=10)
    found = confidence_of(right, confidence).bins
    np.testing.assert_allclose([b[0] for b in found], mean)
    np.testing.assert_allclose([b[1] for b in found], share)


def test_the_interval_of_a_mean_error_is_scipys():
    from scipy import stats

    errors = np.random.default_rng(0).exponential(size=30)
    found = bin_of("x", errors)
    low, high = stats.t.interval(0.95, 29, errors.mean(), stats.sem(errors))
    assert (found.low, found.high) == pytest.approx((max(0, low), high))


def test_bins_of_numbers_that_are_close_have_names_that_tell_them_apart():
    for values in ([299.6, 299.9, 300.2, 300.5, 301.2], [-1e-9, 2e-9, 3e-6], [0.0, 1e6, 1e6 + 1], [0.1, 0.1 + 1e-14]):
        texts = told_apart(np.array(values))
        assert len(set(texts)) == len(values), texts
        assert [float(text.replace(",", "")) for text in texts] == pytest.approx(values, rel=0.1, abs=1e-9)


def test_many_points_are_counted_in_cells_and_that_is_said():
    random = np.random.default_rng(0)
    x = random.normal(size=150_000)
    chart = agreement_chart("t", x, x + random.normal(size=150_000), [], description="d")
    cells = chart.figure["data"][0]
    assert "150,000 points are counted" in chart.note
    assert sum(n for row in cells["customdata"] for n in row if n) == 150_000
    assert len(json.dumps(chart.figure)) < 200_000
    few = agreement_chart("t", x[:MOST_POINTS], x[:MOST_POINTS], [""] * MOST_POINTS, description="d")
    assert not few.note
    assert len(few.figure["data"][0]["x"]) == MOST_POINTS


def test_worst_cases_are_those_with_the_largest_errors(whole):
    section = next(s for s in page_of(read_outcome(whole)).sections if s.name == "worst")
    first = section.parts[0].rows[0]
    assert first[0].startswith("p199")
    assert first[section.parts[0].columns.index("absolute error")] == "40.0"


PROTEINS = [a[n % 9 :] + b[: n + 9] for n, (a, b) in enumerate(zip(TEN * 3, (TEN[3:] + TEN[:3]) * 3, strict=True))]
NUMBERS = [(7 * n % 13) / 3 for n in range(30)]
NAMES = ["in", "out", "mid"] * 10
EVERY_KIND = {
    "seeds": ({"tm": NUMBERS}, {"target": "tm", "seeds": 2}, {"agreement", "members"}),
    "folds": ({"tm": NUMBERS}, {"target": "tm", "folds": 3, "test_fraction": 0.0}, {"agreement", "members"}),
    "bounds": ({"tm": [">4" if x > 3.5 else str(x) for x in NUMBERS]}, {"target": "tm"}, {"agreement"}),
    "binary": ({"s": [x.replace("mid", "in") for x in NAMES]}, {"task": "binary", "target": "s"}, {"classes"}),
    "ordinal": ({"s": ["1", "2", "3"] * 10}, {"task": "ordinal", "target": "s"}, {"classes"}),
    "multilabel": ({"go": ["a;b", "b", ";"] * 10}, {"task": "multilabel", "target": "go"}, {"classes"}),
    "columns": ({"a": [0, 1, 1] * 10, "b": [1, 0, 1] * 10}, {"task": "multilabel", "target": ("a", "b")}, {"classes"}),
    "several": ({"tm": NUMBERS, "site": NAMES}, {"target": ("tm", "site:multiclass")}, {"agreement", "classes"}),
    "letters": ({"ss": [("HEC" * 40)[: len(s)] for s in PROTEINS]}, {"target": "ss", "level": "residue"},
                {"classes", "examples"}),
    "numbers": ({"x": [";".join(f"{n * p % 7}.5" for p in range(len(s))) for n, s in enumerate(PROTEINS)]},
                {"target": "x", "level": "residue"}, {"agreement", "examples"}),
    "mlm": ({}, {"task": "mlm", "epochs": 1}, {"training"}),
    "nothing": ({"tm": NUMBERS}, {"target": "tm", "valid_fraction": 0.0, "test_fraction": 0.0}, {"training"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind_of_run_that_is_trained_has_its_report(name, tiny, tmp_path):
    labels, options, expected = EVERY_KIND[name]
    frame = pl.DataFrame({"sequence": PROTEINS} | labels)
    options = {"epochs": 2, "valid_fraction": 0.2, "test_fraction": 0.4} | options
    said = []
    esmtune.train(frame, encoder=str(tiny), out=tmp_path / "run", watch=said.append, **options)
    assert not [event.text for event in said if "report" in getattr(event, "text", "")]
    assert (tmp_path / "run" / "report.html").is_file()
    found = {section.name for section in page_of(read_outcome(tmp_path / "run")).sections if section.parts}
    assert expected <= found


def test_a_baseline_that_does_better_is_named_whatever_was_compared_with(tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["baselines"]["test"]["one-hot ridge"] = {"spearman": 0.9, "rmse": 1.0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    for run_path, said in ((run, True), (whole, False)):
        outcome = read_outcome(run_path)
        first = [part for part in page_of(outcome).sections[0].parts if isinstance(part, Text)]
        assert any("one-hot ridge (0.900)" in part.text and part.warning for part in first) == said
        assert ("one-hot ridge (0.900)" in card(outcome)) == said


def test_wrong_classes_are_shown_with_their_sets_surest_first(sites):
    outcome = read_outcome(sites)
    points = outcome.points(outcome.targets[0])
    (table,) = next(s for s in page_of(outcome).sections if s.name == "worst").parts
    assert list(table.columns) == ["id", "measured", "predicted", "probability", "90 % set", "length"]
    assert all(row[1] != row[2] and row[4] == f"{row[2]}, nucleus" for row in table.rows)
    surest = points.probabilities.max(1)[points.errors == 1].max()
    assert table.rows[0][3] == f"{surest:.3f}"


# --- How it is written --------------------------------------------------------------------------


def test_nothing_of_the_users_becomes_markup(whole, sites):
    for run in (whole, sites):
        text = esmtune.report(run).read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert "alert(1)" in text
        scripts = re.findall(r"<script([^>]*)>", text)
        assert [s for s in scripts if not s] == [""]  # ours; all others are data
        assert all("application/" in s for s in scripts if s)
        assert text.count("</title>") == 1
        assert "{{7*7}}" in text
        for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
            json.loads(data)
        figures = "".join(re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL))
        assert "<" not in figures
        assert "\u2028" not in figures


def test_the_file_needs_no_other_and_says_what_may_run(whole):
    text = esmtune.report(whole).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    own = re.sub(r"<script type=\"application/gzip\".*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!#)", own)
    assert "@import" not in own
    assert "url(" not in own
    assert len(text) < 3_000_000


def test_no_path_of_the_machine_is_told(whole):
    esmtune.report(whole, overwrite=True)
    for name in ("report.html", "README.md"):
        text = (whole / name).read_text(encoding="utf-8")
        assert "/somewhere/private" not in text
        assert "my data.csv" in text


def test_without_charts_there_is_no_library():
    page = Page("t", "s", (Section("a", "A", (Text("x"),)), Section("b", "B")), "f")
    text = rendered(page)
    assert len(text) < 20_000
    assert "library" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert 'id="b"' not in text


def test_charts_have_words_for_who_does_not_see_them(whole):
    for chart in charts(page_of(read_outcome(whole))).values():
        assert len(chart.description) > 20


# --- The model card -----------------------------------------------------------------------------


def test_the_card_is_one_that_hugging_face_reads(whole, sites, tmp_path):
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    for run in (whole, sites, runs_on_disk.residues(tmp_path / "r")):
        outcome = read_outcome(run)
        found = ModelCard(card(outcome))
        assert found.data.library_name == "esmtune"
        assert found.data.base_model == "facebook/esm2_t6_8M_UR50D"
        assert found.data.license == "mit"
        header = header_of(outcome)
        _, results = model_index_to_eval_results(header["model-index"])
        values = {result.metric_name: result.metric_value for result in results}
        assert sorted(values.values()) == sorted(v for v in outcome.scores.values())
        assert len(found.data.eval_results) == len(outcome.scores)
    assert header_of(read_outcome(sites))["pipeline_tag"] == "text-classification"
    assert "pipeline_tag" not in header_of(read_outcome(whole))


def test_an_encoder_from_a_folder_is_no_base_model(tmp_path, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    spec = json.loads((run / "predictor" / "predictor.json").read_text())
    spec["encoder"] |= {"name": "/home/someone/weights/mine", "license": None}
    (run / "predictor" / "predictor.json").write_text(json.dumps(spec))
    outcome = read_outcome(run)
    assert not {"base_model", "license"} & header_of(outcome).keys()
    text = card(outcome)
    assert "/home" not in text
    assert "The license of the encoder's weights is not known" in text


def test_the_card_tells_how_good_how_to_use_and_how_to_cite(whole):
    text = card(read_outcome(whole))
    for said in ("10.1126/science.ade2574", "esmtune predict", "esmtune.load('run')", "ridge on embeddings",
                 "\\[0.800, 0.900\\]", "at least 50 % identity", "91 % of the test records",
                 "unit that tm"):  # fmt: skip
        assert said in text, said
    compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "card", "exec")
    assert HOSTILE.splitlines()[0] not in text
    assert marked("a|b\n<i>") == r"a\|b &lt;i&gt;"


# --- Made by train, made anew -------------------------------------------------------------------

TABLE = [(sequence, n + 0.5) for n, sequence in enumerate(TEN)] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("trained")
    lines = "\n".join(f"p{n},{s},{y}" for n, (s, y) in enumerate(TABLE))
    (folder / "stability.csv").write_text(f"id,sequence,tm\n{lines}\n")
    said = []
    run = esmtune.train(folder / "stability.csv", target="tm", encoder=str(tiny), epochs=2, out=folder / "run",
                        test_fraction=0.3, watch=said.append)  # fmt: skip
    assert not [event for event in said if "report" in getattr(event, "text", "")]
    return run


def test_train_writes_both(trained):
    assert (trained.path / "report.html").is_file()
    assert (trained.path / "README.md").read_text().startswith("---\nlibrary_name: esmtune\nlicense: cc0-1.0\n")
    lengths = pl.read_csv(trained.path / "predictions.csv")["length"].to_list()
    assert lengths == [len(sequence) for sequence, _ in TABLE]


def test_the_command_that_a_report_names_repeats_the_run(trained, shell, monkeypatch, tmp_path):
    command = shlex.split(repeating(read_outcome(trained.path)).replace("\\\n", ""))
    assert command[:3] == ["esmtune", "train", "stability.csv"]
    assert "--epochs" in command
    monkeypatch.chdir(trained.path.parent)
    encoder = command.index("--encoder") + 1
    command[encoder] = trained.config.encoder  # it stood in a folder
    assert shell(*command[1:], "--out", tmp_path / "again").code == 0
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (trained.path / "predictions.csv").read_bytes()


def test_report_is_made_anew_and_a_card_is_kept(trained, shell):
    (trained.path / "report.html").unlink()
    (trained.path / "README.md").write_text("mine")
    answer = shell("report", trained.path)
    assert answer.code == 0
    assert (trained.path / "report.html").is_file()
    assert "left as it is" in answer.err
    assert (trained.path / "README.md").read_text() == "mine"
    assert shell("report", trained.path, "--overwrite").code == 0
    assert (trained.path / "README.md").read_text() != "mine"


def test_train_leaves_the_page_out_when_asked(tiny, tmp_path, shell):
    (tmp_path / "t.csv").write_text("sequence,tm\n" + "".join(f"{s},{y}\n" for s, y in TABLE))
    answer = shell(
        "train",
        tmp_path / "t.csv",
        "--target",
        "tm",
        "--encoder",
        tiny,
        "--epochs",
        1,
        "--report=false",
        "--out",
        tmp_path / "run",
    )
    assert answer.code == 0
    assert not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "README.md").is_file()


def test_without_the_extra_train_names_it_and_report_refuses(tiny, tmp_path, monkeypatch, trained):
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    said = []
    run = esmtune.train(TABLE, encoder=str(tiny), epochs=1, out=tmp_path / "run", watch=said.append)
    assert any("esmtune[report]" in getattr(event, "text", "") for event in said)
    assert not (run.path / "report.html").exists()
    assert (run.path / "README.md").exists()
    with pytest.raises(ValueError, match=r"esmtune\[report\]"):
        esmtune.report(trained.path)


def test_a_report_that_fails_loses_no_run(tiny, tmp_path, monkeypatch):
    def fail(outcome):
        raise KeyError("planted")

    monkeypatch.setattr(reporting, "page_of", fail)
    said = []
    run = esmtune.train(TABLE, encoder=str(tiny), epochs=1, out=tmp_path / "run", watch=said.append)
    assert any("planted" in getattr(event, "text", "") for event in said)
    assert esmtune.load(run.path)
    assert not list(run.path.glob(".*"))


def test_a_report_needs_no_torch(whole):
    code = "import sys, esmtune; esmtune.report(sys.argv[1]); print(sorted({'torch', 'plotly'} & set(sys.modules)))"
    answer = in_new_process("-c", code, whole)
    assert answer.code == 0, answer.err
    assert answer.out.strip() == "[]"


def test_what_a_split_hides_is_told_by_its_method(tmp_path, whole):
    outcome = read_outcome(whole)
    assert any("farthest" in text for text in hidden(outcome))
    assert sys.modules["esmtune.circumstances"].HIDDEN.keys() >= sys.modules["esmtune.circumstances"].METHODS.keys()
