"""Runs that know how far off they may be: from the option to the columns, and back from disk."""

import csv
import json
import random
from collections import Counter

import polars as pl
import pytest
import torch

import esmtune
from esmtune.applicability import References, sampled
from esmtune.charts import Chart
from esmtune.curation import curate_training
from esmtune.fitting import configured
from esmtune.heads import head as heads
from esmtune.outcomes import read_outcome
from esmtune.pooling import Pooled
from esmtune.sampling import drawn

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def proteins(count):
    """Proteins whose label is their share of charges, and noise."""
    order = random.Random(0)
    sequences = ["".join(order.choices(AMINO_ACIDS, k=order.randint(8, 16))) for _ in range(count)]
    return sequences, [sum(x in "KR" for x in s) - sum(x in "DE" for x in s) + order.gauss(0, 0.5) for s in sequences]


def table(kind="number"):
    sequences, labels = proteins(200)
    grades = ["low" if x < -0.7 else "high" if x > 0.7 else "middle" for x in labels]
    split = ["train"] * 90 + ["valid"] * 10 + ["calibration"] * 60 + ["test"] * 40
    frame = pl.DataFrame({"sequence": sequences, "label": labels if kind == "number" else grades, "split": split})
    if kind == "residues":
        frame = frame.with_columns(
            pl.Series("label", ["".join("+" if x in "KR" else "-" if x in "DE" else "0" for x in s) for s in sequences])
        )
    return frame if kind != "several" else frame.with_columns(pl.Series("grade", grades), pl.Series("tm", labels))


RUNS = {
    "plain": ("number", {}),
    "gaussian": ("number", {"task": {"name": "regression", "loss": "gaussian"}}),
    "quantile": ("number", {"task": {"name": "regression", "loss": "quantile"}}),
    "dropout": ("number", {"dropout_samples": 4}),
    "seeds": ("number", {"seeds": 2, "dropout_samples": 2}),
    "classes": ("classes", {"task": "multiclass"}),
    "grades": ("classes", {"task": {"name": "ordinal", "order": "low,middle,high"}}),
    "residues": ("residues", {"task": "multiclass"}),
    "temperature": ("classes", {"task": "multiclass", "scaling": "temperature", "seeds": 2}),
    "isotonic": ("classes", {"task": "multiclass", "scaling": "isotonic"}),
    "several": ("several", {"target": ["tm", "grade:multiclass"]}),
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Train what is asked for, once."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(name):
        if name not in done:
            kind, options = RUNS[name]
            done[name] = esmtune.train(table(kind), encoder=str(tiny), max_steps=12, out=folder / name, **options)
        return done[name]

    return run


@pytest.mark.parametrize("name", RUNS)
def test_a_run_counts_its_coverage_and_loads_as_it_was_saved(runs, name):
    run, (kind, _) = runs(name), RUNS[name]
    said = json.loads((run.path / "metrics.json").read_text())["calibration"]
    for figures in said["targets"].values() if name == "several" else [said]:
        assert figures["records"] == (30 if name in ("temperature", "isotonic") else 60)
        assert set(figures["levels"]) == {"0.5", "0.8", "0.9", "0.95"}
        widths = [levels["width"] for levels in figures["levels"].values()]
        assert widths == sorted(widths)
        # 40 test points, 60 calibration points: a standard deviation of .06, of which four
        assert abs(figures["levels"]["0.9"]["coverage"] - 0.9) < 0.24
    assert run.metrics["records"] == {"train": 90, "valid": 10, "calibration": 60, "test": 40}
    loaded = esmtune.load(run.path)
    assert loaded.calibration == run.predictor.calibration
    options = {"interval": 0.9, "applicability": True}
    new, old = (esmtune.predict(x, table(kind).drop("label", "split"), **options) for x in (loaded, run))
    assert new.drop("identity").equals(old.drop("identity"))
    assert new["identity"].null_count() == 200  # only the run knows its training sequences
    assert {"identity", "distance", "notes"} < set(new.columns)
    kept = pl.read_csv(run.path / "predictions.csv")
    held_out = kept["split"] != "train"
    assert kept["distance"].is_not_null().equals(held_out)
    for column in ("distance", "identity"):  # what a run says of held-out records, and of the same as new ones
        both = zip(kept.filter(held_out)[column], old.filter(held_out)[column], strict=True)
        assert all(ours == pytest.approx(theirs, abs=1e-4) for ours, theirs in both), column
    bounds = [column for column in new.columns if column.startswith(("lower", "upper", "set"))]
    wanted = {
        **{key: ["set"] for key in ("classes", "temperature", "isotonic")},
        "residues": ["set"],
        "several": ["lower_tm", "upper_tm", "set_grade"],
    }
    assert bounds == wanted.get(name, ["lower", "upper"])
    written = list(csv.DictReader((run.path / "predictions.csv").open()))
    assert all(bool(row[bounds[0]]) == (row["split"] == "test") for row in written)
    for row, again in zip(written[160:], new.rows(named=True)[160:], strict=True):
        for column in bounds:
            number = isinstance(again[column], float)
            assert (pytest.approx(again[column], abs=1e-4) == float(row[column])) if number else row[column]


def test_methods_go_by_what_is_known_of_each_point(runs):
    methods = {name: runs(name).metrics["calibration"].get("method") for name in RUNS}
    assert methods == {
        "plain": "absolute", "gaussian": "normalized", "quantile": "cqr", "dropout": "normalized",
        "temperature": "lac", "isotonic": "lac",
        "seeds": "normalized", "classes": "lac", "grades": "ordinal", "residues": "lac", "several": None,
    }  # fmt: skip
    assert len(runs("seeds").predictor.answers(["MKTV"])) == 4  # two members of two draws
    for name in ("gaussian", "quantile", "dropout"):
        assert esmtune.predict(runs(name), ["MKTV"])["spread"][0] > 0


@pytest.mark.parametrize("name", ["temperature", "isotonic"])
def test_mended_probabilities_are_everywhere_the_same(runs, name):
    run = runs(name)
    probe = table("classes")["sequence"].to_list()
    found = run.predictor.probabilities(probe)
    assert torch.tensor(list(found.values())).sum(0) == pytest.approx(torch.ones(200), abs=1e-5)
    frame = esmtune.predict(run, probe)
    for label, column in found.items():
        assert frame[f"probability_{label}"].to_list() == pytest.approx(column, abs=1e-5)
        assert run.predictions[f"probability_{label}"].to_list() == pytest.approx(column, abs=1e-4)
    test = table("classes").filter(pl.col("split") == "test")
    assert esmtune.evaluate(run, test)["scores"] == pytest.approx(run.metrics["test"], abs=1e-4)
    assert {"ece", "ece_before"} < set(run.metrics["calibration"])
    with pytest.raises(ValueError, match="mends the probabilities of classes"):
        esmtune.train(table(), scaling="temperature")


def test_scaling_agrees_with_what_it_is():
    from scipy.optimize import minimize
    from sklearn.isotonic import IsotonicRegression

    from esmtune.scaling import fit_scaling
    from esmtune.tasks import Binary, Multiclass

    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    truth = torch.multinomial(outputs.softmax(-1), 1, generator=generator)[:, 0]
    task = Multiclass.fit(["a", "b", "c"])
    found = fit_scaling("y", task, 3 * outputs[None], truth.numpy(), "temperature")

    def loss(t):
        return torch.nn.functional.cross_entropy(3 * outputs / t[0], truth).item()

    assert found.temperature == pytest.approx(minimize(loss, [1.0], tol=1e-10).x[0], rel=1e-4)
    assert found.temperature == pytest.approx(3, rel=0.2)
    yes, binary = (truth > 0).numpy(), Binary.fit(["no", "yes"])
    line = fit_scaling("y", binary, outputs[None, :, :1], yes.astype(int), "isotonic")
    p = outputs[:, 0].sigmoid().numpy()
    wanted = IsotonicRegression().fit(p, yes).predict(p)
    other = IsotonicRegression().fit(1 - p, ~yes).predict(1 - p)
    got = line(binary, outputs[:, :1])[:, 0].sigmoid().numpy()
    assert got == pytest.approx(wanted / (wanted + other), abs=1e-5)


def test_sets_of_residues_are_one_a_residue(runs):
    found = esmtune.predict(runs("residues"), ["MKTVD"], interval=0.9)["set"][0].split(";")
    assert len(found) == 5
    assert set(",".join(found).split(",")) <= {"+", "-", "0"}


def test_intervals_in_the_shell(runs, shell, tmp_path):
    data = tmp_path / "new.csv"
    data.write_text("sequence\nMKTV\nWWWWWWWWWWWWWWWWWWWWWWWU\n")
    done = shell("predict", runs("plain").path, data, "--interval", 0.8, "--applicability")
    rows = list(csv.DictReader(done.out.splitlines()))
    assert all(float(row["lower"]) < float(row["prediction"]) < float(row["upper"]) for row in rows)
    assert rows[0]["notes"] == "shorter than any training sequence (8)"
    assert rows[1]["notes"] == "longer than any training sequence (16); residues that no training sequence has (U)"
    assert float(rows[1]["distance"]) == 1
    done = shell("predict", runs("plain").path, data, "--interval", 0.99)
    assert done.code == 2
    assert "has 60 for 'label': levels up to 0.983 are possible" in " ".join(done.err.split())
    done = shell("predict", runs("classes").path, data, "--interval", 0.95, "--conditional")
    assert "are in every set" in done.err
    for arguments, said in {
        ("--interval", 90): "expected a share between 0 and 1",
        ("--conditional",): "conditional is of intervals",
        ("--interval", 0.99, "--conditional"): "takes 99 calibration points of one group",
    }.items():
        assert said in " ".join(shell("predict", runs("plain").path, data, *arguments).err.split())


def test_numbers_have_intervals_by_how_near_they_are_to_training(tiny, shell, tmp_path):
    """Near the training data errors are small, and far from it large: one width for all would be wrong for both."""
    order = random.Random(0)
    wild = "".join(order.choices(AMINO_ACIDS, k=60))

    def near():
        return "".join(order.choice(AMINO_ACIDS) if order.random() < 0.03 else x for x in wild)

    def far():
        return "".join(order.choices(AMINO_ACIDS, k=70))

    rows = [(near(), order.gauss(0, 0.1), "train") for _ in range(60)]
    for split, count in (("valid", 10), ("calibration", 120), ("test", 400)):
        rows += [(near(), order.gauss(0, 0.1), split) for _ in range(count // 2)]
        rows += [(far(), order.gauss(0, 3.0), split) for _ in range(count // 2)]
    frame = pl.DataFrame(rows, schema=["sequence", "label", "split"], orient="row")
    run = esmtune.train(frame, encoder=str(tiny), max_steps=5, out=tmp_path / "run")
    test = frame.filter(split="test")
    found = esmtune.predict(run, test, interval=0.9, conditional=True, applicability=True)
    alone = {}
    for name, group in (("near", found.filter(pl.col("identity") > 0.9)), ("far", found.filter(identity=0.0))):
        within = ((group["lower"] <= group["label"]) & (group["label"] <= group["upper"])).mean()
        # 60 calibration and 200 test points: a standard deviation of .044, of which three
        assert within == pytest.approx(0.9, abs=0.14), name
        alone[name] = (group["upper"] - group["lower"]).max()
    assert alone["far"] > 3 * alone["near"]
    everywhere = esmtune.predict(run, test, interval=0.9)
    assert (everywhere["upper"] - everywhere["lower"]).n_unique() < 5  # one width, to rounding

    test[:1].write_csv(tmp_path / "new.csv")
    options = ("--interval", 0.9, "--conditional")
    done = shell("predict", run.path, tmp_path / "new.csv", *options)
    assert "No intervals where the identity to training is 0.3 to 0.5, 0.5 to 0.7, 0.7 to 0.9" in done.err
    done = shell("predict", run.path / "predictor", tmp_path / "new.csv", *options)
    assert done.code == 0  # the file with the training sequences lies beside it
    (run.path / "training.fasta.gz").unlink()
    done = shell("predict", run.path, tmp_path / "new.csv", *options)
    assert done.code == 2
    assert "RUN/training.fasta.gz is not there" in done.err
    done = shell("predict", run.path, tmp_path / "new.csv", "--applicability")
    assert "No identity to the training sequences: RUN/training.fasta.gz is not there." in done.err
    (row,) = csv.DictReader(done.out.splitlines())
    assert row["identity"] == ""
    assert row["distance"]


def test_folds_have_bins_of_identity_too(tiny):
    """Of each record by how near it is to what the member that holds it out learned from."""
    order = random.Random(0)
    sequences, labels = proteins(60)
    sequences += [s[:-1] + order.choice(AMINO_ACIDS.replace(s[-1], "")) for s in sequences[:30]]  # a twin each
    frame = pl.DataFrame({"sequence": sequences, "label": labels + labels[:30]})
    run = esmtune.train(
        frame, encoder=str(tiny), max_steps=2, folds=3, test_fraction=0, split="random", calibration_fraction=0.9,
    )  # fmt: skip
    rows = run.predictions
    fold_of = dict(zip(sequences, rows["fold"], strict=True))
    for sequence, fold, near in zip(sequences, rows["fold"], rows["identity"], strict=True):
        others = [s for s in sequences if fold_of[s] != fold and len(s) == len(sequence)]
        same = [sum(a == b for a, b in zip(sequence, s, strict=True)) / len(s) for s in others]
        assert (near > 0.85) == (max(same, default=0) > 0.85)  # the twin counts where it is in another fold
    assert {stratum.group for stratum in run.predictor.calibration[0].strata} > {"0 to 0.3"}
    found = esmtune.predict(run, [("MKTVRQERLK")], interval=0.5, conditional=True)
    assert found["lower"].null_count() == 0


def test_sets_of_classes_with_semicolons_in_their_names_can_be_read(tiny):
    frame = table("classes").with_columns(pl.col("label").replace({"low": "low;lower", "middle": "low"}))
    run = esmtune.train(frame, encoder=str(tiny), task="multiclass", max_steps=2)
    found = [json.loads(cell) for cell in esmtune.predict(run, frame["sequence"].to_list(), interval=0.9)["set"]]
    assert set().union(*found) == {"high", "low", "low;lower"}


def test_a_predictor_without_either_says_how_to_train_one_that_has_it(tiny):
    options = {"encoder": str(tiny), "max_steps": 2, "calibration_fraction": 0.0, "references": 0}
    run = esmtune.train(table().filter(pl.col("split") != "calibration"), **options)
    assert "calibration" not in run.metrics
    assert run.metrics["records"]["valid"] == 10
    with pytest.raises(ValueError, match=r"not calibrated: .* --calibration-fraction"):
        esmtune.predict(run, ["MKTV"], interval=0.9)
    with pytest.raises(ValueError, match="train it anew"):
        esmtune.predict(run, ["MKTV"], applicability=True)
    several = (
        table()
        .with_columns(label=pl.lit("a;b"), other=pl.lit(1))[:12]
        .with_columns(pl.Series("label", ["a;b", "a", "b"] * 4), pl.Series("split", ["train"] * 12))
    )
    run = esmtune.train(several, task="multilabel", target="label", encoder=str(tiny), max_steps=2, valid_fraction=0)
    with pytest.raises(ValueError, match="no intervals or sets of a multilabel task"):
        esmtune.predict(run, ["MKTV"], interval=0.9)


def test_what_goes_on_from_a_run_is_calibrated_anew(runs, tiny):
    frame = table().filter(pl.col("split") != "calibration")
    run = esmtune.train(frame, init=str(runs("plain").path), max_steps=2)
    assert runs("plain").predictor.calibration
    assert run.predictor.calibration == ()


def test_half_of_the_validation_sequences_choose_no_weights_where_there_are_enough():
    sequences, labels = proteins(120)

    def splits(valid, **options):
        count = len(sequences)
        split = ["train"] * (count - valid) + ["valid"] * valid
        frame = pl.DataFrame({"sequence": sequences, "label": labels, "split": split})
        return Counter(r.split for r in curate_training(frame, configured(options)).dataset.records)

    assert splits(40) == {"train": 80, "valid": 20, "calibration": 20}
    assert splits(38) == {"train": 82, "valid": 38}
    assert splits(38, calibration_fraction=0.5) == {"train": 82, "valid": 19, "calibration": 19}
    assert splits(40, calibration_fraction=0.0) == {"train": 80, "valid": 40}
    assert splits(40, calibration_fraction=0.75) == {"train": 80, "valid": 10, "calibration": 30}
    with pytest.raises(ValueError, match=r"calibration_fraction is 1\.0, expected a share"):
        splits(40, calibration_fraction=1.0)


def test_what_was_trained_on_does_not_calibrate(tiny):
    """Errors of such rows are smaller than those of new ones, and intervals from them would be too narrow."""
    sequences, labels = proteins(120)
    frame = pl.DataFrame({"sequence": sequences, "label": labels, "split": ["train"] * 80 + ["valid"] * 40})
    again = frame.head(30).with_columns(pl.lit("valid").alias("split"))
    records = curate_training(pl.concat([frame, again]), configured({})).dataset.records
    learned = {r.sequence for r in records if r.split == "train"}
    kept = [r for r in records if r.split == "calibration"]
    assert len(kept) == 20
    assert not learned & {r.sequence for r in kept}

    given = again.with_columns(pl.lit("calibration").alias("split"))
    said = []
    options = {"encoder": str(tiny), "max_steps": 4, "watch": said.append}
    run = esmtune.train(pl.concat([table(), given]), **options)
    assert run.metrics["calibration"]["records"] == 60
    assert any("LEAK: 30 of 90 calibration rows" in getattr(event, "text", "") for event in said)
    only = pl.concat([table().filter(pl.col("split") != "calibration"), given])
    run = esmtune.train(only, **options)
    assert "calibration" not in run.metrics
    assert any("no intervals and no sets" in getattr(event, "text", "") for event in said)


def test_folds_pool_the_scores_of_those_that_had_not_seen_a_record(tiny):
    frame = table().filter(pl.col("split").is_in(["train", "test"]))
    run = esmtune.train(frame, encoder=str(tiny), max_steps=4, folds=3, calibration_fraction=0.5)
    assert run.metrics["records"]["calibration"] == run.metrics["calibration"]["records"] == 45
    assert run.metrics["calibration"]["method"] == "absolute"
    rows = run.predictions.filter(pl.col("split") == "train")
    errors = (rows["label"].cast(pl.Float64) - rows["prediction"]).abs()
    scores = run.predictor.calibration[0].strata[0].scores
    for score in scores:
        assert (errors - score).abs().min() < 1e-5


def test_draws_of_dropout_depend_on_the_sequence_and_the_draw_alone():
    torch.manual_seed(0)
    mlp = heads.build({"name": "mlp", "pool": "residue"}, 8, 2)
    x = torch.randn(7, 8)
    crowd = drawn(mlp, Pooled.of(x, (3, 4), torch.zeros(2).long()), ["MKT", "GGSG"], 3)
    alone = drawn(mlp, Pooled.of(x[3:], (4,), torch.ones(1).long()), ["GGSG"], 2)
    assert not mlp.training or mlp.eval()
    for one, other in zip(crowd, alone, strict=False):
        torch.testing.assert_close(one[3:], other)
    assert not torch.equal(crowd[0], crowd[1])


def test_draws_of_a_head_without_dropout_are_refused(tiny):
    with pytest.raises(ValueError, match="head 'linear' has none"):
        esmtune.train(table(), encoder=str(tiny), head="linear", dropout_samples=5, max_steps=1)


def test_distances_are_shares_of_leave_one_out_distances():
    from sklearn.neighbors import NearestNeighbors

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 4, generator=generator).half().float()
    new = torch.randn(9, 4, generator=generator).half().float() * 2
    found = References.of(vectors, ["MK"] * 50)
    nearest = NearestNeighbors(n_neighbors=5).fit(vectors.numpy())
    own = nearest.kneighbors()[0].mean(1)
    others = nearest.kneighbors(new.numpy())[0].mean(1)
    assert found.distances.numpy() == pytest.approx(sorted(own), rel=1e-5)
    assert found.distance(new) == pytest.approx([(own <= x).mean() for x in others], abs=1e-9)
    again = References.from_tensors(found.tensors())
    assert again.distance(new).equal(found.distance(new))
    assert (again.shortest, again.longest, again.residues) == (2, 2, "KM")


def test_no_more_vectors_are_kept_than_there_is_room_for():
    names = [f"M{'K' * n}" for n in range(3000)]
    assert len(sampled(names, 8, 0, most=2000)) == 2000
    assert len(sampled(names, 8960, 0, most=2000)) == (4 << 20) // (2 * 8960)
    assert sampled(["MK", "MK"], 8, 0, most=2000) == []


def test_of_residues_curves_are_kept_and_no_probabilities(runs):
    """They are those of the held-out residues, as scikit-learn draws them, and stand in the report."""
    from sklearn.metrics import roc_auc_score

    from esmtune.reporting import page_of

    run = runs("residues")
    test = table("residues").filter(split="test")
    probabilities = run.predictor.probabilities(test["sequence"].to_list())
    truth = "".join(test["label"])
    found = json.loads((run.path / "curves.json").read_text())["label"]
    assert {curve["name"] for curve in found["curves"]} == {"+", "-", "0"}
    for curve in found["curves"]:
        score = [x for own in probabilities[curve["name"]] for x in own]
        assert curve["auroc"] == pytest.approx(roc_auc_score([x == curve["name"] for x in truth], score), abs=1e-6)
        assert curve["share"] == pytest.approx(truth.count(curve["name"]) / len(truth))
    assert sum(count for *_, count in found["confidence"]["bins"]) == len(truth)
    titles = [part.title for section in page_of(read_outcome(run.path)).sections for part in section.parts
              if isinstance(part, Chart)]  # fmt: skip
    assert {"label: ROC", "label: precision and recall", "label: what probabilities mean"} <= set(titles)
    assert not (runs("classes").path / "curves.json").exists()  # predictions.csv has their probabilities
