"""Write the archive of a release: `python tests/archives/write.py` once, before it is tagged, never again.

A predictor with a tiny random encoder for each task; every later version must read it and predict the same.
"""

import json
from pathlib import Path

import polars as pl
import torch

import esmtune
from esmtune.esm2 import ESM2, ESM2Config

SEQUENCES = ["MQIFVKTLTGKTITLEVEPSD", "GIGAVLKVLTTGLPALISWIKRKRQQ", "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSR", "GG"]
RESIDUES = ["HHEEC" * 4 + "H", "EC" * 13, "HEC" * 12, "HE"]
CASES = {
    "regression": {"label": [0.5, 1.5, 2.0, 4.0], "tuning": "full"},
    "binary": {"label": ["no", "yes", "yes", "no"]},
    "multiclass": {"label": ["a", "b", "c", "a"], "head": {"name": "attention"}},
    "multilabel": {"label": ["a;b", "b", "", "c"], "tuning": {"name": "lora", "rank": 2}},
    "ordinal": {"label": ["low", "high", "medium", "low"], "task": {"name": "ordinal", "order": "low,medium,high"}},
    "residues": {"label": RESIDUES, "task": "multiclass", "head": {"name": "conv", "channels": 4}},
    "targets": {"tm": [50.5, 48.0, None, 61.0], "place": ["in", "out", "in", None], "target": ["tm", "place"]},
    "ensemble": {"label": [0.5, 1.5, 2.0, 4.0], "seeds": 2, "tuning": {"name": "ia3"}},
    "mlm": {"task": "mlm", "tuning": "full", "head": None},
}


def main() -> None:
    here = Path(__file__).parent
    torch.manual_seed(0)
    encoder = ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2))
    esmtune.save_huggingface(encoder, here / "encoder", license="CC0-1.0")
    for task, given in CASES.items():
        rows = {"sequence": SEQUENCES} | {name: x for name, x in given.items() if name in ("label", "tm", "place")}
        usual = {
            "task": None if task in ("residues", "targets", "ensemble") else task,
            "head": {"name": "mlp", "hidden": 8},
        }
        options = usual | {name: x for name, x in given.items() if name not in rows}
        run = esmtune.train(
            pl.DataFrame(rows), encoder=str(here / "encoder"), epochs=20, valid_fraction=0.0, test_fraction=0.0,
            folds=1, precision="float32", cache="none", **options,
        )  # fmt: skip
        folder = here / f"{esmtune.__version__}-{task}"
        run.predictor.save(folder, self_contained=True)
        for file in folder.rglob("*.json"):
            file.write_text(file.read_text().replace(str((here / "encoder").resolve()), "a tiny random encoder"))
        expected = {
            "sequences": SEQUENCES,
            "predictions": run.predictor.predict(SEQUENCES),
            "probabilities": run.predictor.probabilities(SEQUENCES),
        }
        (folder / "expected.json").write_text(json.dumps(expected, indent=2, default=str) + "\n")
    for file in (here / "encoder").iterdir():
        file.unlink()
    (here / "encoder").rmdir()


if __name__ == "__main__":
    main()
