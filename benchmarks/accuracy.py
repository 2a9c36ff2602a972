"""Accuracy with default settings, beside published results of the same model size and ridge on embeddings.

    python benchmarks/accuracy.py --weights ESM2_8M --data FOLDER --runs runs       # everything: a day on two cores
    python benchmarks/accuracy.py --weights ESM2_8M --data FOLDER --runs runs --only gb1-frozen --seeds 0

`--weights` is a Hugging Face folder of ESM-2 8M. `--data` holds gb1/three_vs_rest.csv, ss3/ss3.csv.gz (both of
Schmirler et al. 2024, https://doi.org/10.1038/s41467-024-51844-2) and dms/if1_ecoli.csv, dms/pten_human.csv
(Vieira et al. 2025), each with columns sequence, label and split. Runs lie in `--runs`; one that was stopped goes on,
one that is there is read. Each seed's result is written to `--results` as soon as it is there, beside those of other
seeds that earlier calls left: all scores, every option, versions.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hardware import processor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import esmtune
from esmtune import events
from esmtune.metrics import regression_scores
from esmtune.readers import read

SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: data, options beside the defaults, what is compared, was published, is to be reached."""

    data: str
    options: dict[str, Any]
    metric: str
    published: float | None
    target: float | None
    is_dms: bool = False  # its `valid` rows are the test here, and a part of `train` is drawn for early stopping


GB1, SS3 = "gb1/three_vs_rest.csv", "ss3/ss3.csv.gz"
IF1, PTEN = "dms/if1_ecoli.csv", "dms/pten_human.csv"
ROWS = {
    "gb1-frozen": Row(data=GB1, options={"tuning": "frozen"}, metric="spearman", published=0.818, target=0.82),
    "gb1-lora": Row(data=GB1, options={"tuning": "lora"}, metric="spearman", published=0.846, target=0.88),
    "gb1-full": Row(data=GB1, options={"tuning": "full"}, metric="spearman", published=0.883, target=0.89),
    "ss3-frozen": Row(data=SS3, options={"tuning": "frozen"}, metric="accuracy", published=0.753, target=0.75),
    "ss3-lora": Row(data=SS3, options={"tuning": "lora"}, metric="accuracy", published=0.759, target=None),
    "ss3-full": Row(data=SS3, options={"tuning": "full"}, metric="accuracy", published=0.761, target=0.765),
    "if1-default": Row(data=IF1, options={}, metric="r2", published=0.499, target=0.55, is_dms=True),
    "pten-default": Row(data=PTEN, options={}, metric="r2", published=0.466, target=0.50, is_dms=True),
}


def table_of(row: Row, folder: Path) -> pl.DataFrame:
    """The data of a row; of a mutational scan the rows that were stopped on are the test, and no others are given."""
    frame = read(folder / row.data).frame
    if row.is_dms:
        frame = frame.with_columns(pl.col("split").replace({"valid": "test"}))
    if "labels" in frame.columns:  # published: the first 1,022 residues of each
        cut = [pl.col(name).str.slice(0, 1022) for name in ("sequence", "labels", "mask")]
        frame = frame.with_columns(cut)
    return frame


def run(name: str, row: Row, seed: int, kept: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Train one seed with the defaults, or read what an earlier call made and `kept` of it; what is to be kept now."""
    hardware = f"{processor()}, {torch.get_num_threads()} threads"
    folder = args.runs / f"{name}{args.suffix}" / f"seed-{seed}"
    if (folder / "metrics.json").is_file():
        hardware = kept.get("hardware", "unknown")  # it may not have been this machine
    else:
        options = {"encoder": str(args.weights), "seed": seed, "precision": args.precision, **row.options}
        esmtune.train(table_of(row, args.data), out=folder, resume=True, watch=say, **options)
    metrics = json.loads((folder / "metrics.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    config = (folder / "run.toml").read_text().replace(str(args.weights.resolve()), "ESM2_8M")
    return {
        "test": metrics["test"],
        "valid": metrics["valid"],
        "ridge": metrics["baselines"]["test"].get("ridge on embeddings", {}).get(row.metric),
        "epoch": metrics.get("best", {}).get("epoch"),  # of few labels each fold has its own
        "seconds": environment["seconds"],
        "date": datetime.fromtimestamp((folder / "metrics.json").stat().st_mtime, UTC).date().isoformat(),
        "hardware": hardware,
        "versions": environment["versions"],
        "edition": environment.get("edition"),  # of how trainings go, within a version
        "config": config,
    }


def summary(name: str, row: Row, seeds: dict[str, dict[str, Any]], base: float | None) -> dict[str, Any]:
    """The row over the seeds that there are."""
    scores = [seed["test"][row.metric] for seed in seeds.values()]
    ridges = [seed["ridge"] for seed in seeds.values() if seed.get("ridge") is not None]
    return {
        "row": name,
        **asdict(row),
        "mean": statistics.fmean(scores),
        "sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "ridge": base if base is not None or not ridges else statistics.fmean(ridges),
        "reached": row.target is None or statistics.fmean(scores) >= row.target,
        "seeds": seeds,
    }


def ridge(row: Row, args: argparse.Namespace) -> float:
    """Ridge regression on the mean embeddings of the last layer, its penalty by leave-one-out on the training rows."""
    frame = table_of(row, args.data)
    cache = args.runs / f"{Path(row.data).name.split('.')[0]}-{args.weights.name}-{args.precision}.npy"
    if not cache.is_file():
        sequences = frame["sequence"].to_list()
        vectors = esmtune.embed(args.weights, sequences, precision=args.precision, watch=say).vectors
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, vectors)
    x, y = np.load(cache), frame["label"].cast(pl.Float64).to_numpy()
    train, test = ((frame["split"] == name).to_numpy() for name in ("train", "test"))
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 6, 17))).fit(x[train], y[train])
    return regression_scores(y[test], model.predict(x[test]))[row.metric] or 0.0


def say(event: events.Notice | events.Progress) -> None:
    """Print notices, and a line for each hundredth step."""
    if isinstance(event, events.Notice):
        print(event.text, flush=True)
    elif event.stage == "training" and event.done % 100 == 0:
        print(f"{event.done:,} of {event.total:,} steps, {event.note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--suffix", default="", help="at the end of the names of results")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        row, path = ROWS[name], args.results / f"accuracy-{name}{args.suffix}.json"
        kept = json.loads(path.read_text()).get("seeds", {}) if path.is_file() else {}
        base = ridge(row, args) if row.metric != "accuracy" else None
        for seed in args.seeds:
            kept[str(seed)] = run(name, row, seed, kept.get(str(seed), {}), args)
            result = summary(name, row, dict(sorted(kept.items(), key=lambda item: int(item[0]))), base)
            path.write_text(json.dumps(result, indent=2) + "\n")
        beside = "" if result["ridge"] is None else f", ridge {result['ridge']:.3f}"
        target = "" if result["target"] is None else f", to reach {result['target']:.3f}"
        scores = ", ".join(f"{seed['test'][row.metric]:.3f}" for seed in result["seeds"].values())
        spread = "" if result["sd"] is None else f" ± {result['sd']:.4f}"
        print(
            f"{name}: {result['metric']} {result['mean']:.4f}{spread} ({scores}), "
            f"published {result['published']:.3f}{target}{beside}",
            flush=True,
        )


if __name__ == "__main__":
    main()
