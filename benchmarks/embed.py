"""How fast sequences of mixed length are embedded, beside transformers, in one run.

    OMP_NUM_THREADS=2 python benchmarks/embed.py [--weights FOLDER] [--size esm2_t6_8M_UR50D] [--rounds 5] [--peer FILE]

Prints the ratio of residues per second, ours over theirs: the median of the rounds and their range.
Ours and theirs take turns, so that a machine whose speed drifts drifts for both. The peer is what a
user of transformers gets by default: float32, SDPA, batches of 8 in file order, padded. `--peer`
times another script instead, which prints one JSON line with `residues_per_second`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contenders import RESIDUES, drawn

import esmtune
from esmtune.config import TOKENS_PER_BATCH
from esmtune.embedding import embed_sequences
from esmtune.esm2 import Tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a Hugging Face folder; random weights otherwise")
    parser.add_argument("--size", default="esm2_t6_8M_UR50D")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--peer", help="a script to time instead of transformers in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sequences = drawn(args.sequences, "mixed")
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or random_weights(args.size, Path(folder))
        ours = our_embedding(weights, sequences)
        theirs = script(args.peer, weights, args.threads) if args.peer else peer_embedding(weights, sequences)
        rates = [(ours(), theirs()) for _ in range(args.rounds)]
    ratios = sorted(a / b for a, b in rates)
    print(f"ours   {statistics.median(a for a, _ in rates):8,.0f} residues/s")
    print(f"theirs {statistics.median(b for _, b in rates):8,.0f} residues/s")
    print(f"ratio  {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {args.rounds} rounds)")


def random_weights(size: str, folder: Path) -> str:
    encoder, _ = esmtune.load_encoder(f"random:{size}")
    esmtune.save_huggingface(encoder, folder)
    return str(folder)


def our_embedding(weights: str, sequences: list[str]) -> Callable[[], float]:
    encoder, _ = esmtune.load_encoder(weights)

    def run() -> float:
        with torch.inference_mode():
            encoder(Tokens.of(sequences[:8]))  # a warm-up, as the peer has
        start = time.perf_counter()
        embed_sequences(encoder, sequences, layers=[-1], pool="mean", precision="float32", dtype=np.dtype("float32"),
                        tokens_per_batch=TOKENS_PER_BATCH)  # fmt: skip
        return sum(map(len, sequences)) / (time.perf_counter() - start)

    return run


def peer_embedding(weights: str, sequences: list[str]) -> Callable[[], float]:
    from transformers import EsmModel

    model = EsmModel.from_pretrained(weights, add_pooling_layer=False, attn_implementation="sdpa").eval()
    rows = [torch.tensor([0, *(RESIDUES.index(r) + 4 for r in sequence), 2]) for sequence in sequences]
    batches = [
        torch.nn.utils.rnn.pad_sequence(rows[i : i + 8], batch_first=True, padding_value=1)
        for i in range(0, len(rows), 8)
    ]

    @torch.inference_mode()
    def embed(ids: torch.Tensor) -> torch.Tensor:
        mask = (ids != 1).long()
        states = model(ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def run() -> float:
        embed(batches[0])
        start = time.perf_counter()
        for ids in batches:
            embed(ids)
        return sum(map(len, sequences)) / (time.perf_counter() - start)

    return run


def script(file: str, weights: str, threads: int) -> Callable[[], float]:
    command = [sys.executable, file, "embed", "--weights", weights, "--threads", str(threads)]

    def run() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])["residues_per_second"]

    return run


if __name__ == "__main__":
    main()
