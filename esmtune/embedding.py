"""Vectors of sequences, from any layers of an encoder."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from esmtune.batching import Budget, by_length
from esmtune.config import Pooling, Precision
from esmtune.esm2 import ESM2, Tokens
from esmtune.events import Progress, Watcher, silent
from esmtune.pooling import POOLS


@torch.inference_mode()
def embed_sequences(
    encoder: ESM2,
    sequences: Sequence[str],
    *,
    layers: Sequence[int],
    pool: Pooling,
    precision: Precision,
    dtype: np.dtype,
    tokens_per_batch: int,
    watch: Watcher = silent,
) -> np.ndarray:
    """Embed clean sequences, in their order.

    Returns [sequences, dim], or with pool "residue" [residues, dim], the residues of all sequences
    end to end; several layers make one axis more, before dim. `precision` is what the encoder
    computes in, and is converted to; `dtype` what the numbers are kept in; pooling is done in float32.

    Raises:
        ValueError: for a layer that the encoder does not have.
    """
    for name, value, known in (("pool", pool, tuple(POOLS)), ("precision", precision, get_args(Precision)),
                               ("dtype", str(dtype), ("float32", "float16"))):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}.")
    wanted = [encoder.layer_index(layer) for layer in layers]
    encoder = encoder.cast(torch.bfloat16 if precision == "bfloat16" else torch.float32).eval()
    lengths = [len(s) for s in sequences]
    counts = lengths if pool == "residue" else [1] * len(sequences)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(int)
    shape = (len(wanted), encoder.config.embed_dim) if len(wanted) > 1 else (encoder.config.embed_dim,)
    vectors = np.empty((int(starts[-1]), *shape), dtype)
    done = 0
    for batch in by_length(range(len(sequences)), lengths, Budget(tokens=tokens_per_batch)):
        tokens = Tokens.of([sequences[i] for i in batch]).to(encoder.embed_tokens.weight.device)
        pooled = [POOLS[pool](x) for x in encoder.representations(tokens, wanted)]
        rows = (torch.stack(pooled, dim=1) if len(pooled) > 1 else pooled[0]).cpu().numpy()
        first = 0
        for index in batch:
            vectors[starts[index] : starts[index + 1]] = rows[first : first + counts[index]]
            first += counts[index]
        done += len(batch)
        watch(Progress("embedding", done, len(sequences), "sequences"))
    return vectors
