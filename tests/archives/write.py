"""Write the archive of a release: `python tests/archives/write.py` once, before it is tagged, never again.

A predictor with a tiny random encoder for each task; every later version must read it and predict the same.
"""

import json
from pathlib import Path

import torch

import esmtune
from esmtune.esm2 import ESM2, ESM2Config

SEQUENCES = ["MQIFVKTLTGKTITLEVEPSD", "GIGAVLKVLTTGLPALISWIKRKRQQ", "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSR", "GG"]
LABELS = {"regression": [0.5, 1.5, 2.0, 4.0], "binary": ["no", "yes", "yes", "no"], "multiclass": ["a", "b", "c", "a"]}


def main() -> None:
    here = Path(__file__).parent
    torch.manual_seed(0)
    encoder = ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2))
    esmtune.save_huggingface(encoder, here / "encoder", license="CC0-1.0")
    for task, labels in LABELS.items():
        run = esmtune.train(
            list(zip(SEQUENCES, labels, strict=True)), task=task, encoder=str(here / "encoder"), epochs=20,
            head={"name": "mlp", "hidden": 8}, tuning="full" if task == "regression" else "frozen",
            valid_fraction=0.0, test_fraction=0.0,
        )  # fmt: skip
        folder = here / f"{esmtune.__version__}-{task}"
        run.predictor.save(folder, self_contained=True)
        file = folder / "predictor.json"
        file.write_text(file.read_text().replace(str((here / "encoder").resolve()), "a tiny random encoder"))
        expected = {
            "sequences": SEQUENCES,
            "predictions": run.predictor.predict(SEQUENCES),
            "probabilities": run.predictor.probabilities(SEQUENCES),
        }
        (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    for file in (here / "encoder").iterdir():
        file.unlink()
    (here / "encoder").rmdir()


if __name__ == "__main__":
    main()
