"""What each way of attention costs on a processor, by precision, size of a head, length and direction.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--precision float32] [--rounds 5] [--seconds 170] [--out FILE]

The ways take turns, and processor time is counted, so that a busy machine is busy for all. Prints a line
for each case: milliseconds of PyTorch's fused attention for each run of equal lengths (`runs`), and of the others as
shares of it; below 1 is faster. `esmtune/attention.py` has the crossover points that come of it.
"""

import argparse
import json
import random
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from hardware import processor

from esmtune.spans import Spans
from esmtune.ways import WAYS

COMPARED = ("runs", "plain", "tiled", "padded")
HEADS = 20
TOKENS = 1000
DRAW = random.Random(0)


def drawn(median: float, spread: float) -> tuple[int, ...]:
    """Lengths drawn log-normally, until there are enough tokens."""
    lengths: list[int] = []
    while sum(lengths) < TOKENS:
        lengths.append(max(5, min(1024, int(DRAW.lognormvariate(median, spread)))))
    return tuple(lengths)


def cases() -> dict[str, tuple[int, ...]]:
    mixed = {"around 15": drawn(2.7, 0.4), "around 300": drawn(5.6, 0.6)}
    equal = {f"all {length}": (length,) * max(1, TOKENS // length) for length in (32, 100, 317, 1000)}
    in_order = {f"{name}, by length": tuple(sorted(lengths, reverse=True)) for name, lengths in mixed.items()}
    return equal | mixed | in_order


def measured(lengths: tuple[int, ...], size: int, dtype: torch.dtype, direction: str, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time of each way, medians."""
    q, k, v = (torch.randn(sum(lengths), HEADS, size).to(dtype) for _ in "qkv")
    spans = Spans(lengths, torch.device("cpu"))
    for x in (q, k, v):
        x.requires_grad_(direction == "backward")

    def once(name: str) -> float:
        start = time.process_time()
        with torch.inference_mode(direction == "forward"):
            y = WAYS[name].compute(q, k, v, spans)
            if direction == "backward":
                torch.autograd.grad(y, (q, k, v), y.detach())
        return 1000 * (time.process_time() - start)

    times: dict[str, list[float]] = {name: [] for name in COMPARED}
    for number in range(rounds + 1):
        for name in COMPARED:
            spent = once(name)
            if number:  # the first is a warm-up
                times[name].append(spent)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=170, help="start no further case after so long")
    parser.add_argument("--out", type=Path, help="a .json file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin, rows = time.monotonic(), []
    for size in (16, 32, 64):
        for direction in ("forward", "backward"):
            for name, lengths in cases().items():
                if time.monotonic() - begin > args.seconds:
                    continue
                took = measured(lengths, size, getattr(torch, args.precision), direction, args.rounds)
                shares = {way: round(took[way] / took["runs"], 2) for way in COMPARED[1:]}
                rows.append({"head": size, "direction": direction, "lengths": name, "sequences": len(lengths),
                             "tokens": sum(lengths), "runs_ms": round(took["runs"], 2), **shares})  # fmt: skip
                print(f"head {size:2}  {direction:8}  {name:21}  runs {took['runs']:7.1f} ms  {shares}", flush=True)
    if args.out:
        units = {"amx": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
        said = {"date": str(date.today()), "hardware": f"{processor()}, {args.threads} threads", "units": units,
                "torch": torch.__version__, "precision": args.precision, "heads": HEADS, "rounds": args.rounds,
                "rows": rows}  # fmt: skip
        args.out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
