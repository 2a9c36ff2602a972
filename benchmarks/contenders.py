"""One measurement of one contender, in a process of its own, so that its peak memory is its own.

    python benchmarks/contenders.py CONTENDER WORK --weights FOLDER --lengths mixed|N --sequences N [--epochs N]

Contenders: ours; default (transformers and PEFT as their users run them: float32, batches of 8 in file order, padded);
best (sorted by length, bfloat16 where the processor has units for it); esm-cpp (embed alone).
Works: embed; frozen (so many epochs of a head on an encoder that does not move); lora and full (steps of 8 sequences).
Prints one JSON line: seconds, residues (no <cls>, <eos>, padding), and peak resident memory in GiB.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESIDUES = "LAGVSERTIDPKQNFYMHWC"
STEP = 8  # sequences in a step and in a padded batch
RANK = 8
HIDDEN = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["ours", "default", "best", "esm-cpp"])
    parser.add_argument("work", choices=["embed", "frozen", "lora", "full"])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--lengths", default="mixed")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sequences = drawn(args.sequences, args.lengths)
    import torch

    from esmtune.memory import GIB, peak_memory

    torch.set_num_threads(args.threads)
    contender: Callable[..., float] = {"ours": ours, "esm-cpp": esm_cpp}.get(args.contender, peer)
    seconds = contender(args, sequences)
    print(json.dumps({
        "seconds": seconds, "sequences": len(sequences), "residues": sum(map(len, sequences)) * args.epochs,
        "peak_gib": peak_memory().process / GIB,  # ru_maxrss would begin with that of the process that started this one
    }))  # fmt: skip


def drawn(count: int, lengths: str) -> list[str]:
    """Sequences of one length, or of log-normal length from 30 to 1,022 with mean about 317."""
    draw = random.Random(0)
    sizes = [max(30, min(1022, int(draw.lognormvariate(5.6, 0.6)))) for _ in range(count)]
    if lengths != "mixed":
        sizes = [int(lengths)] * count
    return ["".join(draw.choices(RESIDUES, k=size)) for size in sizes]


def labels_of(sequences: Sequence[str]) -> list[float]:
    draw = random.Random(1)
    return [draw.gauss(0, 1) for _ in sequences]


def ours(args: Any, sequences: list[str]) -> float:
    """The seconds of `esmtune.embed`, of an epoch of `esmtune.train`, or of a first frozen run but its start."""
    import esmtune
    from esmtune.events import Notice, Progress

    if args.work == "embed":
        import numpy as np

        from esmtune.devices import choose_precision
        from esmtune.embedding import embed_sequences

        held = choose_precision("auto", "cpu")  # as esmtune.embed does
        encoder, _ = esmtune.load_encoder(args.weights, held=held)
        options: dict[str, Any] = {
            "layers": [-1], "pool": "mean", "precision": "auto", "dtype": np.dtype("float32"),
            "tokens_per_batch": esmtune.config.TOKENS_PER_BATCH,
        }  # fmt: skip
        embed_sequences(encoder, sequences[:STEP], **options)
        start = time.perf_counter()
        embed_sequences(encoder, sequences, **options)
        return time.perf_counter() - start

    times: list[tuple[str, int, float]] = []

    def watch(event: Notice | Progress) -> None:
        if isinstance(event, Progress):
            times.append((event.stage, event.done, time.perf_counter()))

    steps = -(-len(sequences) // STEP)
    tuning: dict[str, Any] = {
        "frozen": "frozen",
        "full": "full",
        "lora": {"name": "lora", "rank": RANK, "targets": "query,key,value,out,expand,contract"},
    }
    epochs = args.epochs if args.work == "frozen" else args.epochs + 1  # the first warms up
    esmtune.train(
        [*zip(sequences, labels_of(sequences), strict=True)], encoder=args.weights, tuning=tuning[args.work],
        layers="-1", global_batch_size=STEP, epochs=epochs, folds=1, valid_fraction=0, test_fraction=0, cache="none",
        watch=watch,
    )  # fmt: skip
    trained = [(done, at) for stage, done, at in times if stage == "training"]
    if args.work == "frozen":  # from before the first batch is embedded, which is as long as the others are
        embedded = [at for stage, _, at in times if stage in ("embedding", "measuring")]
        first = (embedded[-1] - embedded[0]) / max(1, len(embedded) - 1)
        return trained[-1][1] - embedded[0] + first
    begin = next(at for done, at in trained if done == steps)
    return trained[-1][1] - begin


def peer(args: Any, sequences: list[str]) -> float:
    """The seconds of transformers' EsmModel, with PEFT for LoRA, in a plain loop of PyTorch."""
    import torch
    from torch import nn
    from transformers import EsmModel

    from esmtune.devices import has_bfloat16_units

    is_best = args.contender == "best"
    in_bfloat16 = is_best and has_bfloat16_units("cpu")
    labels = torch.tensor(labels_of(sequences))
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i])) if is_best else range(len(sequences))
    rows = [torch.tensor([0, *(RESIDUES.index(r) + 4 for r in sequences[i]), 2]) for i in order]
    labels = labels[torch.tensor(list(order))]
    batches = [
        (nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=1), labels[start : start + STEP])
        for start in range(0, len(rows), STEP)
        if (some := rows[start : start + STEP])
    ]
    model = EsmModel.from_pretrained(args.weights, add_pooling_layer=False, attn_implementation="sdpa")
    head = nn.Sequential(nn.Linear(model.config.hidden_size, HIDDEN), nn.ReLU(), nn.Dropout(0.25), nn.Linear(HIDDEN, 1))

    def pooled(ids: torch.Tensor) -> torch.Tensor:
        mask = (ids != 1).long()
        states = model(ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    if args.work == "embed":
        model.eval()
        if in_bfloat16:
            model.bfloat16()

        def work() -> None:
            with torch.inference_mode():
                for ids, _ in batches:
                    pooled(ids)

        with torch.inference_mode():
            pooled(batches[0][0])
    else:
        if args.work == "lora":
            from peft import LoraConfig, get_peft_model

            maps = ["query", "key", "value", "dense"]
            model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules=maps))
        elif args.work == "frozen":
            model.requires_grad_(False)
        model.train(args.work != "frozen")
        weights = [w for part in (model, head) for w in part.parameters() if w.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4)

        def step(ids: torch.Tensor, wanted: torch.Tensor) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
                with torch.set_grad_enabled(args.work != "frozen"):
                    features = pooled(ids)
                loss = (head(features).squeeze(1).float() - wanted).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def work() -> None:
            for _ in range(args.epochs):
                for batch in batches:
                    step(*batch)

        step(*batches[0])
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def esm_cpp(args: Any, sequences: list[str]) -> float:
    """The seconds of esm-cpp in float32 with its scheduler; it gives logits, of which no mean is taken."""
    import esm_cpp

    if args.work != "embed":
        sys.exit("esm-cpp does not train.")
    model = esm_cpp.Model.load_from_safetensors(str(Path(args.weights) / "model.safetensors"))
    tokenizer = esm_cpp.Tokenizer()
    ids = [tokenizer.encode(sequence) for sequence in sequences]
    model.forward_scheduled(ids[:STEP])
    start = time.perf_counter()
    model.forward_scheduled(ids)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
