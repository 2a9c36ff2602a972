"""How far bfloat16 moves the scores of `accuracy.py`: its runs, which predict their test rows in either precision.

    python benchmarks/precision.py --data FOLDER --runs runs [--only if1-default ...] [--seeds 0 1 2]

Takes what `accuracy.py` was given, and runs that it left in `--runs`. Training in the other precision is
`accuracy.py --precision float32 --suffix -float32`, where no two seeds are alike for other reasons too.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import torch
from accuracy import ROWS, SEEDS, table_of
from hardware import processor

import esmtune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    args = parser.parse_args()
    path = args.results / "precision.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.only:
        row = ROWS[name]
        table = table_of(row, args.data)
        for seed in args.seeds:
            run = args.runs / name / f"seed-{seed}"
            scores = {
                precision: esmtune.evaluate(run, table, subset="test", precision=precision)["scores"][row.metric]
                for precision in ("float32", "bfloat16")
            }
            moved = scores["bfloat16"] - scores["float32"]
            found.setdefault(name, {})[str(seed)] = {
                "metric": row.metric, **scores, "moved": moved, "date": datetime.now(UTC).date().isoformat(),
                "hardware": f"{processor()}, {torch.get_num_threads()} threads",
            }  # fmt: skip
            path.write_text(json.dumps(found, indent=2) + "\n")
            print(f"{name}, seed {seed}: {row.metric} {scores['float32']:.4f} in float32, {moved:+.5f} in bfloat16")


if __name__ == "__main__":
    main()
