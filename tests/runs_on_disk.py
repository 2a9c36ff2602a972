"""Folders of runs as training writes them, with all that a run may hold, for the tests of what reads them."""

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HOSTILE = "<script>alert(1)</script>|`x`\"'&</title>\u2028{{7*7}}"
ENCODER = {"name": "esm2_t6_8M_UR50D", "sha256": "ab" * 32, "license": "MIT", "num_layers": 6, "embed_dim": 320,
           "num_heads": 20}  # fmt: skip


def write(
    folder: Path, *, metrics: dict[str, Any], rows: Sequence[dict[str, Any]], targets: list[dict[str, str]],
    task: dict[str, Any], config: dict[str, Any] | None = None, history: Sequence[dict[str, Any]] = (),
) -> Path:  # fmt: skip
    """A run of whatever is given."""
    import tomli_w

    (folder / "predictor").mkdir(parents=True)
    spec = {"format_version": 2, "encoder": ENCODER, "tuning": {"name": "frozen"}, "layers": [0, 6],
            "head": {"name": "mlp", "hidden": 256}, "task": task, "targets": targets, "max_length": None}  # fmt: skip
    (folder / "predictor" / "predictor.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in history), encoding="utf-8")
    options = {"data": "/somewhere/private/my data.csv", "encoder": ENCODER["name"], "epochs": 3,
               "head": {"name": "mlp", "hidden": 256}, "target": [t["name"] for t in targets],
               "report": True}  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(options | (config or {})), encoding="utf-8")
    environment = {"versions": {"esmtune": "0.2.0", "torch": "2.13"}, "device": "cpu", "data_sha256": "cd" * 32,
                   "notices": ["Split: at random."]}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    with (folder / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_split(folder: Path, rows: Sequence[dict[str, Any]], sequences: Sequence[str]) -> None:
    """The split.csv of a run."""
    with (folder / "split.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "sequence_sha256", "split"))
        for row, sequence in zip(rows, sequences, strict=True):
            writer.writerow((row["id"], hashlib.sha256(sequence.encode()).hexdigest(), row["split"]))


def splits(count: int) -> list[str]:
    return ["train"] * (count // 2) + ["valid"] * (count // 10) + ["test"] * (count - count // 2 - count // 10)


def everything(folder: Path, *, seed: int = 0, count: int = 200, noise: float = 0.3, name: str = "tm") -> Path:
    """A regression with every key that a run may have, hostile texts among them."""
    random = np.random.default_rng(7)
    labels = random.normal(50, 5, count)
    said = labels + np.random.default_rng(seed).normal(0, noise * 5, count)
    identity, lengths = random.uniform(0.2, 1, count), random.integers(40, 400, count)
    rows = [
        {"id": f"p{n}{HOSTILE if n in (0, count - 1) else ''}", "split": split, "length": int(lengths[n]),
         "label": labels[n],
         "prediction": said[n], "spread": 0.5, "lower": said[n] - 4 if split == "test" else "",
         "upper": said[n] + 4 if split == "test" else "", "identity": "" if split == "train" else round(identity[n], 4),
         "distance": round(identity[n], 3)}
        for n, split in enumerate(splits(count))
    ]  # fmt: skip
    rows[-1]["prediction"] = labels[-1] + 40  # the worst case, with a hostile id
    rows[-2]["label"] = ">60"
    tested = sum(row["split"] == "test" for row in rows)
    scores = {"spearman": 0.85, "pearson": 0.86, "r2": 0.72, "rmse": 2.5, "mae": 1.9}
    base = {"spearman": None, "pearson": None, "r2": -0.01, "rmse": 5.0, "mae": 4.0}
    ridge = {"spearman": 0.7, "pearson": 0.7, "r2": 0.5, "rmse": 3.5, "mae": 2.9}
    metrics = {
        "task": "regression", "target": name, "level": "sequence", "encoder": ENCODER["name"], "tuning": "frozen",
        "records": {"train": count // 2, "valid": count // 10, "test": tested},
        "valid": scores, "test": scores,
        "baselines": {"valid": {"mean": base, "ridge on embeddings": ridge},
                      "test": {"mean": base, "ridge on embeddings": ridge}},
        "intervals": {"test": {m: [v - 0.05, v + 0.05] for m, v in scores.items()}},
        "baseline_intervals": {"test": {"mean": {"rmse": [4.5, 5.5]},
                                        "ridge on embeddings": {"spearman": [0.6, 0.78]}}},
        "gain": {"test": {"metric": "spearman", "baseline": "ridge on embeddings", "difference": 0.15, "low": 0.08,
                          "high": 0.22, "text": "On 80 test proteins Spearman is .850 [.80, .90], .150 [.08, .22] "
                          "above the best baseline, ridge on embeddings: more than chance."}},
        "best": {"step": 30, "epoch": 3, "metric": "spearman"},
        "split": {"method": "identity", "seed": 0, "identity": 0.3, "coverage": 0.8, "violations": 1, "families": 40,
                  "pairs": [["p1" + HOSTILE, "p2"]], "text": "Split by identity, at 30 % over 80 %: 40 families."},
        "by_identity": {"test": [{"from": 0.0, "to": 0.3, "records": 30, "scores": scores | {"spearman": 0.6}},
                                 {"from": 0.5, "to": 0.7, "records": tested - 30, "scores": scores}]},
        "by_mutations": {"test": [{"mutations": 1, "records": 30, "scores": scores},
                                  {"mutations": 10, "records": tested - 30, "scores": scores}]},
        "calibration": {"method": "absolute", "records": 50,
                        "levels": {str(x): {"coverage": x + 0.01, "width": 8.0} for x in (0.5, 0.8, 0.9, 0.95)}},
        "data": {"rows": count + 3, "findings": [
            {"name": "conflict", "severity": "warning", "count": 2, "text": f"2 sequences have other labels {HOSTILE}",
             "ids": ["p1", HOSTILE]},
            {"name": "near-duplicates", "severity": "note", "count": 4, "text": "4 sequences are nearly the same.",
             "ids": []}]},
        "members": {f"seed-{n}": {"valid": scores, "test": scores | {"spearman": 0.8 + n / 100}} for n in range(3)},
        "collapsed": ["seed-1"], "test_mean": scores, "test_sd": dict.fromkeys(scores, 0.01),
        "learning_curve": [{"share": s, "records": int(s * 100), "repeats": 3,
                            "scores": scores | {"spearman": 0.5 + s / 3},
                            "sd": {"spearman": 0.02} if s < 1 else None} for s in (0.1, 0.2, 0.5, 1.0)],
        "more_labels": {"metric": "spearman", "records": 200, "gain": 0.03, "low": 0.01, "high": 0.05,
                        "text": "Twice the labels would bring about +.030 Spearman."},
    }  # fmt: skip
    history = [{"member": f"seed-{m}", "step": 10 * e, "epoch": e, "train_loss": 1 / e, "learning_rate": 1e-3,
                "valid_loss": 1.1 / e, "valid": {"spearman": 1 - 1 / (e + 1)}}
               for m in range(3) for e in (1, 2, 3)]  # fmt: skip
    targets = [{"name": name, "kind": "regression", "form": "one"}]
    task = {"name": "regression", "center": 50.0, "spread": 5.0, "loss_name": "squared"}
    write(folder, metrics=metrics, rows=rows, targets=targets, task=task, history=history)
    write_split(folder, rows, [f"SEQ{row['id']}" for row in rows])
    return folder


def classes(
    folder: Path, *, seed: int = 0, count: int = 200, right: float = 0.8,
    names: Sequence[str] = ("nucleus", HOSTILE, "membrane"), kind: str = "multiclass",
) -> Path:  # fmt: skip
    """A classification, with probabilities and sets."""
    random, own = np.random.default_rng(3), np.random.default_rng(seed)
    truth = random.integers(len(names), size=count)
    said = np.where(own.random(count) < right, truth, own.integers(len(names), size=count))
    probabilities = own.dirichlet(np.ones(len(names)), count)
    order = np.sort(probabilities, axis=1)[:, ::-1]
    for n, chosen in enumerate(said):
        rest = [c for c in range(len(names)) if c != chosen]
        probabilities[n, chosen], probabilities[n, rest] = order[n, 0], order[n, 1:]
    rows = [
        {
            "id": f"p{n}",
            "split": split,
            "length": 50 + n,
            "label": names[truth[n]],
            "prediction": names[said[n]],
            "set": f"{names[said[n]]};{names[0]}" if split == "test" else "",
        }
        | {f"probability_{name}": probabilities[n, c] for c, name in enumerate(names)}
        for n, split in enumerate(splits(count))
    ]
    scores = {"accuracy": 0.8, "balanced_accuracy": 0.79, "mcc": 0.7, "f1": 0.78, "auroc": 0.9, "auprc": 0.85}
    tested = sum(row["split"] == "test" for row in rows)
    metrics = {"task": kind, "target": "site", "level": "sequence", "encoder": ENCODER["name"], "tuning": "frozen",
               "records": {"train": count // 2, "valid": count // 10, "test": tested}, "valid": scores, "test": scores,
               "baselines": {"test": scores | {"mcc": 0.0, "accuracy": 0.4}, "valid": scores},
               "calibration": {"method": "lac", "records": 50, "ece": 0.03, "ece_before": 0.07,
                               "levels": {"0.9": {"coverage": 0.91, "width": 1.7}}}}  # fmt: skip
    task = {"name": kind, "classes": list(names), "shares": [1 / len(names)] * len(names)}
    write(folder, metrics=metrics, rows=rows, targets=[{"name": "site", "kind": kind, "form": "one"}], task=task)
    write_split(folder, rows, [f"SEQ{row['id']}" for row in rows])
    return folder


def residues(folder: Path, *, form: str = "letters") -> Path:
    """A task per residue: classes as letters, or numbers."""
    random = np.random.default_rng(1)
    rows = []
    for n, split in enumerate(splits(40)):
        length = int(random.integers(20, 60))
        if form == "letters":
            truth = "".join(random.choice(list("HEC"), length))
            said = "".join(c if random.random() < 0.8 else "C" for c in truth)
        else:
            values = random.normal(size=length)
            truth = ";".join("nan" if x > 2 else f"{x:.4g}" for x in values)
            said = ";".join(f"{x:.4g}" for x in values + random.normal(0, 0.2, length))
        rows.append({"id": f"p{n}", "split": split, "length": length, "label": truth, "prediction": said})
    kind = "multiclass" if form == "letters" else "regression"
    scores = {"accuracy": 0.8, "mcc": 0.7} if form == "letters" else {"spearman": 0.9, "rmse": 0.2}
    metrics = {"task": kind, "target": "ss3", "level": "residue", "encoder": "x", "tuning": "full",
               "records": {"train": 20, "valid": 4, "test": 16}, "test": scores, "baselines": {}}  # fmt: skip
    task = {"name": kind, "classes": ["H", "E", "C"]} if form == "letters" else {"name": kind}
    return write(folder, metrics=metrics, rows=rows, targets=[{"name": "ss3", "kind": kind, "form": form}], task=task)
