"""How fast esmtune is beside its peers, on the same weights and sequences, in one run.

    OMP_NUM_THREADS=2 python benchmarks/speed.py [--rounds 5] [--only embed-8M-mixed ...] [--out FILE.json]

The contenders (benchmarks/contenders.py) take turns, each in a process of its own, so that a machine whose speed drifts
drifts for all. Prints a table and writes benchmarks/results/speed-DATE.json: for each row the median of the rounds'
ratios of seconds, theirs over ours, with their range; residues per second; the share of the best matrix product
measured in the same run that ours reaches; and the ratio of peak resident memory, ours over theirs. Weights are random:
no number depends on them. Of large encoders fewer sequences are timed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from hardware import processor

from esmtune.devices import has_bfloat16_units

HERE = Path(__file__).parent
SIZES = {"8M": (6, 320, 20), "35M": (12, 480, 20), "150M": (30, 640, 20), "650M": (33, 1280, 20)}
SEQUENCES = {"8M": 64, "35M": 32, "150M": 16, "650M": 8}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One piece of work, for all contenders that can do it."""

    work: str
    size: str
    lengths: str = "mixed"
    epochs: int = 1

    @property
    def name(self) -> str:
        return f"{self.work}-{self.size}-{self.lengths}"

    @property
    def contenders(self) -> list[str]:
        return ["ours", "default", "best", *(["esm-cpp"] if self.work == "embed" and has_esm_cpp() else [])]


ROWS = [
    *(Row(work="embed", size=size) for size in SIZES),
    *(Row(work="embed", size="8M", lengths=lengths) for lengths in ("72", "265")),
    *(Row(work="frozen", size="8M", epochs=epochs) for epochs in (5,)),
    *(Row(work=work, size=size) for work in ("lora", "full") for size in ("8M", "35M", "150M")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="rows by name, such as embed-8M-mixed")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"speed-{date.today()}.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, help="so many, for a short try")
    args = parser.parse_args()
    names = [row.name for row in ROWS]
    unknown = set(args.only or ()) - set(names)
    if unknown:
        sys.exit(f"there is no row {', '.join(sorted(unknown))}. There are: {', '.join(names)}.")
    if args.out.exists():
        sys.exit(f"{args.out} is there already: name another file with --out.")
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    peak = product_peak(args.threads)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            weights = made(row.size, Path(folder))
            rounds = [{name: measured(name, row, weights, args) for name in row.contenders} for _ in range(args.rounds)]
            found[row.name] = summary(row, rounds, peak)
            print(line(row.name, found[row.name]), flush=True)
            args.out.write_text(json.dumps({"about": about(args, peak), "rows": found}, indent=1) + "\n")


def measured(contender: str, row: Row, weights: Path, args: argparse.Namespace) -> dict[str, float]:
    """One contender's seconds, residues and peak memory."""
    command = [sys.executable, HERE / "contenders.py", contender, row.work, "--weights", weights]
    command += ["--lengths", row.lengths, "--epochs", str(row.epochs)]
    command += ["--sequences", str(args.sequences or SEQUENCES[row.size]), "--threads", str(args.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "ESMTUNE_CACHE": "none"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{contender} failed on {row.name}:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(row: Row, rounds: list[dict[str, dict[str, float]]], peak: float) -> dict[str, Any]:
    """Medians and ranges over the rounds."""
    rate = statistics.median(r["ours"]["residues"] / r["ours"]["seconds"] for r in rounds)
    mean_length = rounds[0]["ours"]["residues"] / rounds[0]["ours"]["sequences"] / row.epochs
    result: dict[str, Any] = {
        "residues_per_second": {
            name: round(statistics.median(r[name]["residues"] / r[name]["seconds"] for r in rounds), 1)
            for name in row.contenders
        },
        "peak_gib": {name: round(max(r[name]["peak_gib"] for r in rounds), 3) for name in row.contenders},
        "speed": {},
        "memory": {},
    }
    if row.work != "frozen":  # which does not compute what it counts
        result["share_of_peak"] = round(rate * operations(row, mean_length) / peak, 3)
    for name in row.contenders[1:]:
        ratios = sorted(r[name]["seconds"] / r["ours"]["seconds"] for r in rounds)
        result["speed"][name] = [round(x, 2) for x in (statistics.median(ratios), ratios[0], ratios[-1])]
        memory = [r["ours"]["peak_gib"] / r[name]["peak_gib"] for r in rounds]
        result["memory"][name] = round(statistics.median(memory), 2)
    return result


def operations(row: Row, length: float) -> float:
    """Floating-point operations a residue, of products alone: 24 dim^2 + 4 length dim a layer, thrice with gradients.

    LoRA needs no gradients of frozen weights: twice, and what its thin products take, which is little.
    """
    layers, dim, _ = SIZES[row.size]
    return layers * (24 * dim**2 + 4 * length * dim) * {"embed": 1, "lora": 2, "full": 3}[row.work]


def product_peak(threads: int) -> float:
    """The most operations a second of a matrix product [4096, k] x [k, n], in float32 and, with units, bfloat16."""
    torch.set_num_threads(threads)
    best = 0.0
    for dtype in (torch.float32, *([torch.bfloat16] if has_bfloat16_units("cpu") else [])):
        for k, n in ((320, 1280), (640, 2560), (1280, 5120)):
            a, b = torch.randn(4096, k).to(dtype), torch.randn(k, n).to(dtype)
            a @ b
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                a @ b
                seconds.append(time.perf_counter() - start)
            best = max(best, 2 * 4096 * k * n / min(seconds))
    return best


def made(size: str, folder: Path) -> Path:
    """Random weights with an LM head, which esm-cpp asks for, in transformers' format."""
    path = folder / size
    if not path.exists():
        layers, dim, heads = SIZES[size]
        code = (
            "from transformers import EsmConfig, EsmForMaskedLM\n"
            f"config = EsmConfig(vocab_size=33, hidden_size={dim}, num_hidden_layers={layers}, "
            f"num_attention_heads={heads}, intermediate_size={4 * dim}, position_embedding_type='rotary', "
            "token_dropout=True, pad_token_id=1, mask_token_id=32, max_position_embeddings=1026, "
            "layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, "
            "emb_layer_norm_before=False)\n"
            f"EsmForMaskedLM(config).save_pretrained({str(path)!r})\n"
            "import torch\nfrom safetensors.torch import load_file, save_file\n"
            f"file = {str(path / 'model.safetensors')!r}\nweights = load_file(file)\n"
            "name = 'esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq'  # esm-cpp wants one a layer\n"
            "turns = weights.pop(name.format('*'))\n"
            f"weights |= {{name.format(n): turns.clone() for n in range({layers})}}\n"
            "ends = {'.gamma': '.weight', '.beta': '.bias'}\n"
            "for name in [name for name in weights if name.endswith(tuple(ends))]:\n"
            "    weights[name.rpartition('.')[0] + ends['.' + name.rpartition('.')[2]]] = weights.pop(name)\n"
            "save_file(weights, file, metadata={'format': 'pt'})\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return path


def about(args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """When and on what it was measured."""
    from importlib.metadata import version

    import torch

    packages = ("esmtune", "torch", "transformers", "peft", *(["esm-cpp"] if has_esm_cpp() else []))
    units = [name for name, has in (("AMX", torch.cpu._is_amx_tile_supported()),
                                    ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported())) if has]  # fmt: skip
    return {
        "date": str(date.today()), "processor": processor(), "bfloat16_units": units, "threads": args.threads,
        "rounds": args.rounds, "product_peak_gflops": round(peak / 1e9),
        "sequences": args.sequences or SEQUENCES,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }  # fmt: skip


def has_esm_cpp() -> bool:
    from importlib.util import find_spec

    return find_spec("esm_cpp") is not None


def line(name: str, row: dict[str, Any]) -> str:
    ratios = "  ".join(f"{who} {m:.2f} ({low:.2f}-{high:.2f})" for who, (m, low, high) in row["speed"].items())
    memory = " ".join(f"{who} {x:.2f}" for who, x in row["memory"].items())
    share = f"{row['share_of_peak']:.0%} of peak" if "share_of_peak" in row else ""
    return f"{name:18} {row['residues_per_second']['ours']:8,.0f}/s  {ratios}  memory {memory}  {share}"


if __name__ == "__main__":
    main()
