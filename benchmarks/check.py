"""How long `esmtune check` takes, and how much memory, on synthetic proteins: the whole command, imports included.

    OMP_NUM_THREADS=2 python benchmarks/check.py [--rows 1000000] [--mean-length 300]

Writes a CSV of random proteins with labels and a split, in which one in 1,000 sequences stands in a second row, one in
1,000 is a relative of another in a tenth of its residues, and one label is 9999. Prints seconds, the peak of resident
memory, and how much of what was planted was found.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
PORTION = 10_000
APART = 1000  # rows from one planted copy to the next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--mean-length", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table, out = Path(name) / "proteins.csv", Path(name) / "check.json"
        residues = write(table, args.rows, args.mean_length)
        size = table.stat().st_size / 2**20
        start = time.perf_counter()
        command = [sys.executable, "-m", "esmtune", "check", table, "--out", out]
        subprocess.run(command, check=True, env=os.environ, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        findings = {finding["name"]: finding["count"] for finding in json.loads(out.read_text())["findings"]}
    planted = -(-args.rows // APART)
    print(f"{args.rows:,} rows, {residues:,} residues, {size:,.0f} MiB")
    print(f"{seconds:,.1f} s ({used.ru_utime + used.ru_stime:,.1f} s of processor), {used.ru_maxrss / 2**20:.2f} GiB")
    print(f"planted: {planted:,} copies, {planted:,} relatives, 1 code; found: {findings}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


def write(path: Path, rows: int, mean_length: int) -> int:
    """Write the table; returns its number of residues."""
    rng = np.random.default_rng(0)
    residues, before = 0, ""
    with path.open("w", encoding="ascii") as file:
        file.write("id,sequence,label,split\n")
        for first in range(0, rows, PORTION):
            count = min(PORTION, rows - first)
            lengths = np.clip(rng.gamma(3.5, mean_length / 3.5, count), 30, 1022).astype(int)
            text = LETTERS[rng.integers(0, len(LETTERS), lengths.sum())].tobytes().decode()
            ends = np.cumsum(lengths)
            labels = rng.normal(50, 10, count)
            for place, (end, length) in enumerate(zip(ends, lengths, strict=True)):
                row = first + place
                sequence = text[end - length : end]
                if row % APART == 1:  # of the row before, in another split
                    sequence = before
                elif row % APART == 2:
                    sequence = exchanged(before, rng)
                before = sequence
                label = 9999.0 if row == 7 else labels[place]
                split = ("train", "valid", "test")[row % APART] if row % APART < 3 else "train"
                file.write(f"P{row:07d},{sequence},{label:.4f},{split}\n")
                residues += len(sequence)
    return residues


def exchanged(sequence: str, rng: np.random.Generator) -> str:
    """The sequence with a tenth of its residues exchanged."""
    letters = list(sequence)
    for place in rng.choice(len(letters), len(letters) // 10, replace=False):
        letters[place] = "W" if letters[place] != "W" else "A"
    return "".join(letters)


if __name__ == "__main__":
    main()
