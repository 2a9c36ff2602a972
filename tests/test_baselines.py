"""Baselines are what scikit-learn gives by hand, learn from the training rows alone, and fit every kind of label."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

import esmtune
from esmtune.alphabet import INDEX
from esmtune.baselines import Means, outputs_of_baselines
from esmtune.comparison import embedder, not_kept, usual_layers
from esmtune.descriptors import WildType, windows
from esmtune.encoders import save_huggingface
from esmtune.esm2 import Tokens
from esmtune.events import silent
from esmtune.linear import linear_map, sparse_map
from esmtune.neighbors import nearest
from esmtune.records import Censored, Marks, Record
from esmtune.ridge import CLOSE
from esmtune.tasks import Binary, Multiclass, Multilabel, Multitask, Ordinal, Regression
from tests.conftest import TEN, tiny_encoder

AMINO = "ACDEFGHIKLMNPQRSTVWY"
WILD = "MKTVRQERLKSIVRILERSKEPVSGAQLAEELS"


def proteins(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return ["M" + "".join(random.choice(list(AMINO), random.integers(20, 60))) for _ in range(count)]


def mutants(count: int, seed: int = 0, changes: int = 2) -> list[str]:
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        letters = list(WILD)
        for place in random.choice(8, changes, replace=False):
            letters[place] = random.choice(list(AMINO))
        found.append("".join(letters))
    return found


def rows(sequences, labels, **more) -> list[Record]:
    return [
        Record(id=str(i), sequence=s, labels=(x,), split="train", where="", **more)
        for i, (s, x) in enumerate(zip(sequences, labels, strict=True))
    ]


def by_hand(sequences) -> np.ndarray:
    """Composition, written another time."""
    return np.array([[Counter(s)[a] / len(s) for a in AMINO] + [np.log(len(s))] for s in sequences])


def baselines(task, train, asked, level="sequence", means=None):
    return outputs_of_baselines(task, train, asked, level, means or Means(), silent)


def test_composition_is_ridge_regression_by_scikit_learn():
    train, test = proteins(60), proteins(20, seed=1)
    y = [3 * s.count("K") / len(s) + np.sin(i) / 9 for i, s in enumerate(train)]
    task = Regression.fit(y)
    found = task.predict(baselines(task, rows(train, y), rows(test, [None] * 20))["composition"])
    scaler = StandardScaler().fit(by_hand(train))
    model = RidgeCV(np.array(CLOSE)).fit(scaler.transform(by_hand(train)), y)  # each row left out in turn
    np.testing.assert_allclose(found, model.predict(scaler.transform(by_hand(test))), atol=1e-6)


def test_weights_and_blanks_count_as_in_scikit_learn():
    train, random = proteins(60), np.random.default_rng(0)
    y, weights = [3 * s.count("K") / len(s) for s in train], random.choice([0.0, 0.5, 2.0], 60)
    y[5] = y[17] = None
    records = [replace(r, weight=float(w)) for r, w in zip(rows(train, y), weights, strict=True)]
    task = Regression.fit(y)
    found = task.predict(baselines(task, records, rows(TEN, [None] * 10))["composition"])
    kept = [i for i in range(60) if y[i] is not None and weights[i] > 0]
    x = by_hand([train[i] for i in kept])
    scaler = StandardScaler().fit(x)
    model = RidgeCV(np.array(CLOSE)).fit(
        scaler.transform(x), [y[i] for i in kept], sample_weight=[weights[i] for i in kept]
    )
    model = Ridge(alpha=model.alpha_).fit(scaler.transform(x), [y[i] for i in kept], [weights[i] for i in kept])
    np.testing.assert_allclose(found, model.predict(scaler.transform(by_hand(TEN))), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_logistic_regression_by_scikit_learn(classes):
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 4)) * [1, 5, 9, 2] + 3
    y = [str(int(n)) for n in np.digitize(x[:, 0] + random.normal(size=120), [3, 4.5][: classes - 1])]
    task = Binary.fit(y) if classes == 2 else Multiclass.fit(y)
    found_map = linear_map(x, y, np.ones(120), [1] * 120, task, seed=0)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (2 * found_map.penalty), tol=1e-10, max_iter=10_000).fit(scaler.transform(x), y)
    found = np.array(list(task.probabilities(found_map(x)).values())).T
    wanted = model.predict_proba(scaler.transform(x))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_more_numbers_than_rows_are_solved_as_well():
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 100))
    y = (x[:, 0] + random.normal(size=30) / 3).tolist()
    task = Regression.fit(y)
    found_map = linear_map(x, y, np.ones(30), [1] * 30, task, seed=0)
    scaler = StandardScaler().fit(x)
    model = Ridge(alpha=found_map.penalty).fit(scaler.transform(x), y)
    np.testing.assert_allclose(task.predict(found_map(x)), model.predict(scaler.transform(x)), atol=1e-6)
    assert found_map.penalty == RidgeCV(np.array(CLOSE)).fit(scaler.transform(x), y).alpha_


def test_one_hot_is_that_of_every_residue_at_every_position():
    train, test = mutants(80), mutants(20, seed=1)
    y = [float(s.count("K") + (s[3] == "W")) for s in train]
    task = Regression.fit(y)
    variants = WildType.of(train)
    assert variants is not None
    columns = variants.columns(train)
    x, new = variants.one_hot(train, columns), variants.one_hot(test, columns)
    found = sparse_map(x, np.array(y), np.ones(80), seed=0)(new)[:, 0]

    def full(sequences):
        """A column for each residue of each position that stands there in training; none for what never did."""
        return np.array([[s[p] == a for p in range(8) for a in sorted({t[p] for t in train})] for s in sequences]) * 1.0

    heard = [all(s[p] in {t[p] for t in train} for p in range(8)) for s in test]
    errors = [
        np.abs(Ridge(alpha=a).fit(full(train), y).predict(full(test)) - found)[heard].max()
        for a in np.logspace(-3, 3, 7)
    ]
    assert min(errors) < 1e-6
    assert "one-hot ridge" in baselines(task, rows(train, y), rows(test, [None] * 20))


def test_variants_are_told_from_other_proteins():
    assert WildType.of(mutants(20)) is not None
    assert WildType.of(proteins(20)) is None  # of several lengths
    assert WildType.of([s[:20] for s in proteins(20)]) is None  # of one, and nothing in common
    task = Regression.fit([1.0, 2.0])
    found = baselines(task, rows(proteins(20), np.arange(20.0)), rows(TEN, [None] * 10))
    assert found.keys() == {"mean", "composition", "nearest neighbor"}


def test_neighbors_are_nearest_by_count():
    train, test = mutants(50), mutants(20, seed=1)
    places, identity = nearest(test, train)
    for sequence, found, alike in zip(test, places, identity, strict=True):
        equal = [sum(a == b for a, b in zip(sequence, t, strict=True)) for t in train]
        assert found.tolist() == [i for i, n in enumerate(equal) if n == max(equal)]
        assert alike == pytest.approx(max(equal) / len(sequence))


def test_neighbors_of_several_lengths_are_nearest_by_edits():
    from rapidfuzz.distance import Levenshtein

    train, random = proteins(200), np.random.default_rng(1)
    test = [t[:10] + random.choice(list(AMINO)) + t[12:] for t in train[:30]]  # one edited, one lost
    places, identity = nearest(test, train)
    for sequence, found, alike in zip(test, places, identity, strict=True):
        every = [Levenshtein.normalized_similarity(sequence, t) for t in train]
        assert found.tolist() == [i for i, n in enumerate(every) if n == max(every)]
        assert alike == pytest.approx(max(every))
    places, identity = nearest(["WWWW"], ["GGGG", "AAAAA"])
    assert (len(places[0]), identity[0]) == (0, 0)  # nobody shares a word with it


def test_a_neighbor_says_its_label_and_a_stranger_gets_the_mean():
    task = Regression.fit([1.0, 3.0, 8.0])
    found = baselines(task, rows(["MKTVKT", "MKTVKTA", "GGGGG"], [1.0, 3.0, 8.0]), rows(["MKTVKT", "WWWW"], [None] * 2))
    assert task.predict(found["nearest neighbor"]) == pytest.approx([1, 4])
    names = Binary.fit(["a", "a", "b", "b"])
    found = baselines(names, rows(["MKTVKT", "MKTVKT", "GGGGG", "GGGGA"], "aabb"), rows(["MKTVKT"], [None]))
    assert names.probabilities(found["nearest neighbor"])["a"] == pytest.approx([2.5 / 3])


def test_the_zero_shot_score_is_the_sum_of_log_odds_at_the_wild_type():
    encoder = tiny_encoder(lm_head=True)
    train, test = mutants(60), mutants(20, seed=1)
    with torch.no_grad():
        logits = encoder.logits(Tokens.of([WILD])).double().log_softmax(-1)

    def expect(sequence):
        assert sequence == WILD  # what most of them have at each position
        return logits.numpy()

    task = Regression.fit([0.0, 1.0])
    y = np.arange(60.0)
    found = baselines(task, rows(train, y), rows(test, [None] * 20), means=Means(expect=expect))["zero-shot"]
    wanted = [
        sum((logits[i, INDEX[b]] - logits[i, INDEX[a]]).item() for i, (a, b) in enumerate(zip(WILD, s, strict=True)))
        for s in test
    ]
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-9)


def test_residues_have_their_own_mean_and_window():
    train = [Record(id=s, sequence=s, labels=tuple(float(a == "K") for a in s), split="train", where="") for s in TEN]
    labels = [x for r in train for x in r.labels]
    task = Regression.fit(labels)
    found = baselines(task, train, train, level="residue")
    assert found.keys() == {"mean", "residue identity", "composition"}
    np.testing.assert_allclose(task.predict(found["residue identity"]), labels, atol=1e-6)
    x = np.concatenate([windows(s) for s in TEN])
    scaler = StandardScaler().fit(x)
    model = RidgeCV(np.array(CLOSE)).fit(scaler.transform(x), labels)
    np.testing.assert_allclose(task.predict(found["composition"]), model.predict(scaler.transform(x)), atol=1e-5)


MARKS = [Marks(frozenset("a")), Marks(frozenset("ab")), Marks(frozenset(), frozenset("b"))]
CASES = {
    "regression": (Regression, [1.0, 2.5, None, 3.0]),
    "bounds": (Regression, [1.0, Censored(2.0, ">"), 0.5, Censored(0.1, "<")]),
    "binary": (Binary, ["no", "yes", "no", None]),
    "multiclass": (Multiclass, ["a", "b", "c", "a"]),
    "multilabel": (Multilabel, [*MARKS, None]),
    "ordinal": (Ordinal, ["1", "2", "3", "2"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sequences", [proteins(40), mutants(40)], ids=["proteins", "variants"])
def test_every_kind_of_label_has_baselines(case, sequences):
    kind, labels = CASES[case]
    labels = (labels * 10)[:40]
    task, encoder = kind.fit(labels), tiny_encoder(lm_head=True)
    embed = embedder(
        encoder, "tiny", "sequence", usual_layers(encoder, "sequence"), precision="float32", tokens_per_batch=4096,
        cache=None, kept=not_kept, watch=silent,
    )  # fmt: skip
    with torch.no_grad():
        means = Means(embed=embed, expect=lambda s: encoder.logits(Tokens.of([s])).log_softmax(-1).numpy())
        found = baselines(task, rows(sequences, labels), rows(sequences, labels), means=means)
    wanted = {"composition", "nearest neighbor", "ridge on embeddings"}
    if sequences[0][:8] != proteins(1)[0][:8]:
        wanted |= {"one-hot ridge"} | ({"zero-shot"} if case not in ("multiclass", "multilabel") else set())
    assert found.keys() - {"mean", "majority"} == wanted
    for name, outputs in found.items():
        assert outputs.shape == (40, task.num_outputs), name
        assert set(task.scores(outputs, labels)) == set(task.scores(task.baseline(40), labels))


def test_several_targets_have_what_all_of_them_have():
    train = mutants(40)
    labels = [(float(i), "ab"[i % 2]) if i % 3 else (None, "a") for i in range(40)]
    parts = [Regression.fit([x for x, _ in labels]), Binary.fit([y for _, y in labels])]
    task = Multitask.of([("tm", parts[0]), ("site", parts[1])])
    found = baselines(task, rows(train, labels), rows(train, labels))
    assert found.keys() == {"mean or majority", "composition", "one-hot ridge", "nearest neighbor"}
    assert all(outputs.shape == (40, 2) for outputs in found.values())


def test_a_baseline_that_fails_loses_no_run(tmp_path):
    said = []

    def broken(sequences):
        raise RuntimeError("out of memory")

    task = Regression.fit([1.0, 2.0])
    train = rows(proteins(20), np.arange(20.0))
    found = outputs_of_baselines(task, train, train, "sequence", Means(embed=broken), said.append)
    assert "ridge on embeddings" not in found
    assert "composition" in found
    assert "ridge on embeddings: not to be had (RuntimeError: out of memory)" in said[0].text


def table(path, sequences, splits) -> None:
    labels = [s.count("K") + i % 3 for i, s in enumerate(sequences)]
    pl.DataFrame({"sequence": sequences, "y": labels, "split": splits}).write_csv(path)


def test_a_run_says_what_was_gained(tmp_path, shell):
    with torch.no_grad():
        save_huggingface(tiny_encoder(lm_head=True), tmp_path / "encoder")
    table(tmp_path / "t.csv", mutants(60), ["train"] * 36 + ["valid"] * 12 + ["test"] * 12)
    options = ["--target", "y", "--encoder", tmp_path / "encoder", "--task", "regression", "--epochs", 1]
    answer = shell("train", tmp_path / "t.csv", *options, "--tuning", "lora", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    wanted = {"mean", "composition", "one-hot ridge", "zero-shot", "nearest neighbor", "ridge on embeddings"}
    for split in ("valid", "test"):
        assert metrics["baselines"][split].keys() == metrics["baseline_intervals"][split].keys() == wanted
        zero_shot = metrics["baselines"][split]["zero-shot"]
        assert [metric for metric, value in zero_shot.items() if value is not None] == ["spearman"]
        low, high = metrics["intervals"][split]["spearman"]
        assert low <= metrics[split]["spearman"] <= high
    assert metrics["gain"]["test"]["text"] in " ".join(answer.out.split())
    assert all(name in answer.out for name in wanted)
    assert all(len(line.rstrip()) <= 80 for line in answer.out.splitlines() if not line.startswith("Run: "))
    # The same rows, evaluated later, have the same baselines but those that must embed the training rows again.
    answer = shell("evaluate", tmp_path / "run", tmp_path / "t.csv", "--subset", "test", "--out", tmp_path / "e.json")
    assert answer.code == 0, answer.err
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["baselines"].keys() == wanted - {"ridge on embeddings"}
    for name, scores in again["baselines"].items():
        assert scores == pytest.approx(metrics["baselines"]["test"][name], abs=1e-6), name
    table(tmp_path / "t.csv", mutants(60, seed=9), ["train"] * 36 + ["valid"] * 12 + ["test"] * 12)
    answer = shell("evaluate", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["baselines"].keys() == {"mean"}  # other rows lie there now


def test_folds_are_validated_by_baselines_that_had_not_seen_the_row(tiny):
    """By a neighbor that is the row itself, all would be known exactly."""
    data = [(s, float(i)) for i, s in enumerate(proteins(30))]
    run = esmtune.train(data, encoder=tiny, folds=3, epochs=1, test_fraction=0, task="regression")
    found = run.metrics["baselines"]["valid"]
    assert {"mean", "composition", "nearest neighbor", "ridge on embeddings"} == found.keys()
    assert found["nearest neighbor"]["mae"] > 1
    assert run.metrics["gain"]["valid"]["text"].endswith("The same rows chose the weights, which flatters.")


def test_frozen_lora_and_full_are_held_against_the_same_encoder(tiny):
    """The one before training, whatever training does to it."""
    data = [(s, float(s.count("K") + i % 3)) for i, s in enumerate(proteins(40))]
    options = {"encoder": tiny, "max_steps": 3, "task": "regression", "valid_fraction": 0.2, "test_fraction": 0.2}
    runs = [esmtune.train(data, tuning=name, **options) for name in ("frozen", "lora", "full")]
    first, *others = (run.metrics["baselines"]["test"]["ridge on embeddings"] for run in runs)
    for other in others:
        assert other == pytest.approx(first, abs=1e-5)


def test_residues_of_a_run_have_baselines(tiny):
    data = pl.DataFrame({"sequence": TEN * 2, "ss": ["".join("HE"[a in "KRDE"] for a in s) for s in TEN * 2]})
    run = esmtune.train(data, target="ss", encoder=tiny, level="residue", epochs=1, test_fraction=0.3)
    found = run.metrics["baselines"]["test"]
    assert found.keys() == {"majority", "residue identity", "composition", "ridge on embeddings"}
    assert found["residue identity"]["accuracy"] == 1


def test_ridge_on_real_embeddings_reaches_what_is_known(shared, real_weights):
    """R2 .460 of IF1 with the mean of the last layer (docs/recipes.md), by scikit-learn and by ours."""
    frame = pl.read_csv(shared / "data" / "dms" / "if1_ecoli.csv")
    vectors = esmtune.embed(real_weights, frame["sequence"].to_list()).vectors
    of = dict(zip(frame["sequence"], vectors, strict=True))
    train, test = (
        rows(part["sequence"], part["label"].cast(pl.Float64))
        for part in (frame.filter(pl.col("split") == s) for s in ("train", "valid"))
    )
    task = Regression.fit([r.labels[0] for r in train])
    found = baselines(task, train, test, means=Means(embed=lambda s: np.stack([of[x] for x in s])))
    truth = [r.labels[0] for r in test]
    assert r2_score(truth, task.predict(found["ridge on embeddings"])) == pytest.approx(0.460, abs=0.001)
    assert spearmanr(truth, task.predict(found["one-hot ridge"])).statistic > 0.6
