"""Each benchmark once, as small as it can be, so that it still runs when it is wanted; nothing here is timed."""

import ast
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import TEN

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name, *options):
    """What a benchmark prints."""
    command = [sys.executable, BENCHMARKS / f"{name}.py", *map(str, options)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def table(tmp_path):
    """A small table of ten sequences, with a split."""
    frame = pl.DataFrame({"sequence": list(TEN), "label": list(range(len(TEN))), "split": ["train"] * 6 + ["test"] * 4})
    frame.write_csv(tmp_path / "data.csv")
    return tmp_path / "data.csv"


def benchmark_speed(tmp_path):
    out = tmp_path / "speed.json"
    said = run("speed", "--rounds", 1, "--only", "lora-8M-mixed", "--sequences", 2, "--threads", 1, "--out", out)
    row = json.loads(out.read_text())["rows"]["lora-8M-mixed"]
    assert set(row["speed"]) == set(row["memory"]) == {"default", "best"}
    assert 0 < row["share_of_peak"] < 1
    assert "lora-8M-mixed" in said


def benchmark_embed():
    assert "ratio" in run("embed", "--rounds", 1, "--threads", 1, "--sequences", 4)


def benchmark_cache(table, tiny):
    said = run("cache", "--weights", tiny, "--data", table, "--rounds", 1, "--out", table.with_name("cache.json"))
    assert said.startswith("10 rows, ")


def benchmark_check():
    said = run("check", "--rows", 3000, "--mean-length", 60)
    assert "planted: 3 copies, 3 relatives, 1 code" in said
    found = ast.literal_eval(said.partition("found: ")[2].splitlines()[0])
    assert found["leak"] == 3
    assert found["near-duplicates"] >= 3


def benchmark_attention(tmp_path):
    out = tmp_path / "attention.json"
    run("attention", "--rounds", 1, "--seconds", 1, "--out", out)
    assert json.loads(out.read_text())["rows"][0]["runs_ms"] > 0


@pytest.fixture
def scan(tmp_path):
    """A folder with a mutational scan of random sequences, where the benchmarks look for one."""
    draw = random.Random(0)
    rows = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=12)) for _ in range(200)]
    labels = [row.count("K") + draw.gauss(0, 0.1) for row in rows]
    split = ["train"] * 160 + ["valid"] * 40
    (tmp_path / "dms").mkdir()
    pl.DataFrame({"sequence": rows, "label": labels, "split": split}).write_csv(tmp_path / "dms" / "if1_ecoli.csv")
    return tmp_path


def benchmark_accuracy(scan, tiny):
    where = ("--weights", tiny, "--data", scan, "--runs", scan / "runs", "--results", scan)
    for seeds in ((0,), (2, 1)):  # a machine's time may end between them
        run("accuracy", *where, "--only", "if1-default", "--seeds", *seeds)
    row = json.loads((scan / "accuracy-if1-default.json").read_text())
    assert list(row["seeds"]) == ["0", "1", "2"]
    assert row["mean"] == pytest.approx(sum(seed["test"]["r2"] for seed in row["seeds"].values()) / 3)
    assert row["sd"] > 0
    assert row["ridge"] is not None
    run("precision", "--data", scan, "--runs", scan / "runs", "--results", scan, "--only", "if1-default", "--seeds", 1)
    (seed,) = json.loads((scan / "precision.json").read_text())["if1-default"].values()
    assert seed["moved"] == seed["bfloat16"] - seed["float32"]
    assert abs(seed["moved"]) < 0.1


def benchmark_coverage(scan, tiny):
    where = ("--weights", tiny, "--data", scan, "--cache", scan / "cache", "--results", scan)
    run("coverage", *where, "--only", "if1-squared", "--resamplings", 2, "--steps", 4)
    row = json.loads((scan / "coverage-if1-squared.json").read_text())
    assert (row["calibration"], row["test"]) == (30, 30)
    assert row["levels"]["0.9"]["coverage"] == [pytest.approx(0.9, abs=0.3)] * 2
