"""How often intervals and sets hold the truth, over resamplings of real data, and what calibration costs in accuracy.

    python benchmarks/coverage.py --weights ESM2_8M --data FOLDER                # about an hour on two shared cores
    python benchmarks/coverage.py --weights ESM2_8M --data FOLDER --only if1-squared --resamplings 5

`--weights` is a Hugging Face folder of ESM-2 8M. `--data` holds dms/if1_ecoli.csv, dms/pten_human.csv (Vieira et al.
2025) and scl/scl2205.csv.gz, each with columns sequence and label. The encoder is frozen and computes once, into
`--cache`. Each resampling draws anew which rows are for training (60 %), for the choice of weights (10 %), for
calibration (15 %) and for test (15 %), trains a small head (one hidden layer of 64) for 400 steps, and counts what the
intervals of the test rows hold. Of `choosing-...` each resampling is trained twice by the default recipe, with and
without half of the validation rows (20 %) kept for calibration.
"""

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hardware import processor
from scipy.stats import betabinom

import esmtune
from esmtune.readers import read

FILES = {"if1": "dms/if1_ecoli.csv", "pten": "dms/pten_human.csv", "scl": "scl/scl2205.csv.gz"}
ROWS = {
    **{f"{data}-{loss}": {"task": {"name": "regression", "loss": loss}} for loss in ("squared", "gaussian", "quantile")
       for data in ("if1", "pten")},
    "if1-seeds": {"seeds": 5},
    "if1-dropout": {"dropout_samples": 20},
    "scl-classes": {"task": {"name": "multiclass"}},
}  # fmt: skip
HEAD = {"name": "mlp", "hidden": 64, "depth": 1}
MOST = 3000  # proteins of scl, cut to their first 300 residues, so that embedding takes minutes
SHARES = {"train": 0.6, "valid": 0.1, "calibration": 0.15, "test": 0.15}


def table(name: str, folder: Path) -> pl.DataFrame:
    """Each sequence once, with its label as text."""
    frame = read(folder / FILES[name]).frame.unique("sequence", keep="first", maintain_order=True)
    if name == "scl":
        frame = frame.sample(MOST, seed=0).with_columns(pl.col("sequence").str.slice(0, 300))
        frame = frame.unique("sequence", keep="first", maintain_order=True)
        common = pl.col("label").count().over("label") >= 20  # a class must be in every part
        frame = frame.filter(common)
    return frame.select("sequence", "label")


def drawn(frame: pl.DataFrame, shares: dict[str, float], seed: int) -> pl.DataFrame:
    """The same with a column that says which part each row is in."""
    sizes = [round(share * frame.height) for share in shares.values()]
    sizes[0] += frame.height - sum(sizes)
    split = np.repeat(list(shares), sizes)
    np.random.default_rng(seed).shuffle(split)
    return frame.with_columns(pl.Series("split", split.tolist()))


def covered(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train on each resampling and read what the run says of its intervals."""
    frame = table(name.split("-")[0], args.data)
    found, scores = [], []
    for seed in range(args.resamplings):
        run = esmtune.train(
            drawn(frame, SHARES, seed), encoder=str(args.weights), cache=str(args.cache), seed=seed,
            max_steps=args.steps, head=HEAD, **ROWS[name],
        )  # fmt: skip
        found.append(run.metrics["calibration"])
        scores.append(run.metrics["test"]["mcc" if name.startswith("scl") else "r2"])
        print(name, seed, found[-1]["levels"]["0.9"], round(scores[-1], 3), flush=True)
    tests = run.metrics["records"]["test"]
    return {
        "method": found[0]["method"],
        "calibration": found[0]["records"],
        "test": tests,
        "score": scores,
        "levels": {level: summary(found, level, tests) for level in found[0]["levels"]},
    }


def summary(found: list[dict[str, Any]], level: str, tests: int) -> dict[str, Any]:
    """Coverage and width over resamplings, and what the sizes of calibration and test allow."""
    coverage = [figures["levels"][level]["coverage"] for figures in found]
    count = found[0]["records"]
    rank = int(np.ceil((count + 1) * float(level) - 1e-9))
    expected = betabinom(tests, rank, count + 1 - rank)
    return {
        "coverage": coverage,
        "mean": statistics.fmean(coverage),
        "sd": statistics.stdev(coverage),
        "expected_mean": expected.mean() / tests,
        "expected_sd": expected.std() / tests,
        "width": statistics.fmean(figures["levels"][level]["width"] for figures in found),
    }


def choosing(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Test scores with all of the validation rows, and with half of them kept for calibration."""
    frame = table(name, args.data)
    shares = {"train": 0.6, "valid": 0.2, "test": 0.2}
    scores: dict[str, list[float]] = {"half": [], "all": []}
    for seed in range(args.resamplings):
        for label, fraction in (("half", None), ("all", 0.0)):
            run = esmtune.train(
                drawn(frame, shares, seed), encoder=str(args.weights), cache=str(args.cache), seed=seed,
                calibration_fraction=fraction,
            )  # fmt: skip
            scores[label].append(run.metrics["test"]["r2"])
        print("choosing", name, seed, scores["half"][-1], scores["all"][-1], flush=True)
    gaps = [half - whole for half, whole in zip(scores["half"], scores["all"], strict=True)]
    return {"r2": scores, "difference": statistics.fmean(gaps), "sd": statistics.stdev(gaps)}


def main() -> None:
    every = [*ROWS, "choosing-if1", "choosing-pten"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("coverage-cache"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--resamplings", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    args = parser.parse_args()
    for name in args.only:
        found = choosing(name.removeprefix("choosing-"), args) if name.startswith("choosing") else covered(name, args)
        found = {
            "row": name, "resamplings": args.resamplings, **found,
            **({} if name.startswith("choosing") else {"steps": args.steps}),
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": f"{processor()}, {torch.get_num_threads()} threads",
            "versions": {"esmtune": esmtune.__version__, "torch": torch.__version__, "numpy": np.__version__},
        }  # fmt: skip
        (args.results / f"coverage-{name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
