"""How much faster a second frozen run is, on embeddings that the first one kept: whole commands, imports included.

    OMP_NUM_THREADS=2 python benchmarks/cache.py --weights ESM2_8M --data gb1/three_vs_rest.csv [--rows N] [--rounds 3]

The first run begins with an empty cache, which `--cache` names and keeps; the others take another seed of the head.
Prints the seconds of all, and the ratio of the first to the median of the others with its range, and writes them to
benchmarks/results/cache-DATE.json, with date, processor and versions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import polars as pl
from hardware import processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="the first so many rows of each split")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="a folder that is not there yet")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"cache-{date.today()}.json")
    args = parser.parse_args()
    if args.cache and args.cache.exists():
        sys.exit(f"{args.cache} is there already: name a new folder.")
    if args.out.exists():
        sys.exit(f"{args.out} is there already: name another file with --out.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = pl.read_csv(args.data)
        if args.rows:
            frame = frame.group_by("split", maintain_order=True).head(args.rows)
        frame.write_csv(folder / "data.csv")
        cache = args.cache or folder / "cache"
        seconds = [run(folder, args.weights, seed, cache) for seed in range(args.rounds + 1)]
    first, others = seconds[0], seconds[1:]
    ratios = sorted(first / other for other in others)
    print(f"{frame.height:,} rows, {frame['sequence'].str.len_chars().sum():,} residues")
    print(f"first {first:,.1f} s, then {', '.join(f'{x:.1f}' for x in others)} s")
    print(f"ratio {first / statistics.median(others):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    found = {
        "date": date.today().isoformat(), "processor": processor(), "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: version(name) for name in ("esmtune", "torch", "numpy")}, "rows": frame.height,
        "residues": int(frame["sequence"].str.len_chars().sum()), "first_seconds": round(first, 1),
        "other_seconds": [round(x, 1) for x in others], "ratio": round(first / statistics.median(others), 2),
    }  # fmt: skip
    args.out.write_text(json.dumps(found, indent=1) + "\n")


def run(folder: Path, weights: str, seed: int, cache: Path) -> float:
    """Seconds of a whole `esmtune train`, the head's first weights drawn from a seed."""
    command = [sys.executable, "-m", "esmtune", "train", folder / "data.csv", "--encoder", weights]
    command += ["--seed", str(seed), "--out", folder / f"run-{seed}", "--cache", cache]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
