"""Vectors of sequences, from any layers of an encoder; what was computed before comes from a cache."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from esmtune.batching import Budget, remaining
from esmtune.cache import Cache, Collector, Kind
from esmtune.config import Pooling, Precision
from esmtune.devices import choose_precision, products
from esmtune.encoders import encoder_digest
from esmtune.esm2 import ESM2, Tokens
from esmtune.events import Progress, Watcher, silent
from esmtune.pooling import POOLS
from esmtune.shards import Vectors
from esmtune.shortage import halving


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
    cache: Cache | None = None,
    name: str = "",
    sha256: str | None = None,
    watch: Watcher = silent,
) -> np.ndarray:
    """Embed clean sequences, in their order; each of them once, however often it is there.

    Returns [sequences, dim], or with pool "residue" [residues, dim], the residues of all sequences
    end to end; several layers make one axis more, before dim. `precision` is what the encoder's
    matrix products are computed in, `dtype` what the numbers are kept in.
    What the `cache` has is not computed, and what is computed is added, under the encoder's `name`; the digest of its
    weights is `sha256`, if that is known.

    Raises:
        ValueError: for a layer that the encoder does not have.
    """
    for option, value, known in (("pool", pool, tuple(POOLS)), ("precision", precision, get_args(Precision)),
                                 ("dtype", str(dtype), ("float32", "float16"))):  # fmt: skip
        if value not in known:
            raise ValueError(f"{option} is {value!r}, expected one of {', '.join(known)}.")
    wanted = tuple(encoder.layer_index(layer) for layer in layers)
    kind = kind_of(encoder, pool, precision, sha256) if cache else None
    encoder = encoder.eval()
    lengths = [len(s) for s in sequences]
    counts = lengths if pool == "residue" else [1] * len(sequences)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(int)
    shape = (len(wanted), encoder.config.embed_dim) if len(wanted) > 1 else (encoder.config.embed_dim,)
    vectors = np.empty((int(starts[-1]), *shape), dtype)
    places: dict[str, list[int]] = {}
    for place, sequence in enumerate(sequences):
        places.setdefault(sequence, []).append(place)

    def put(sequence: str, arrays: Vectors) -> None:
        rows = np.stack(arrays, axis=1) if len(wanted) > 1 else np.concatenate(arrays)
        for place in places[sequence]:
            vectors[starts[place] : starts[place + 1]] = rows

    kept = cache.read(kind, wanted, list(places)) if cache and kind else [None] * len(places)
    for sequence, arrays in zip(places, kept, strict=True):
        if arrays is not None:
            put(sequence, arrays)
    collector = Collector(cache, kind, name, wanted, watch)
    firsts = [found[0] for found in places.values()]
    missing = [first for first, arrays in zip(firsts, kept, strict=True) if arrays is None]
    done = len(sequences) - sum(len(places[sequences[first]]) for first in missing)
    for batch in remaining(firsts, missing, lengths, Budget(tokens=tokens_per_batch)):
        parts = halving(batch, lambda part: vectors_of(encoder, [sequences[i] for i in part], wanted, pool, precision))
        found = [arrays for _, part in parts for arrays in part]
        for index, arrays in zip(batch, found, strict=True):
            put(sequences[index], arrays)
            done += len(places[sequences[index]])
        collector.add([sequences[i] for i in batch], found)
        watch(Progress("embedding", done, len(sequences), "sequences"))
    collector.flush()
    return vectors


def vectors_of(
    encoder: ESM2, batch: Sequence[str], layers: Sequence[int], pool: Pooling, precision: Precision
) -> list[Vectors]:
    """What the layers of an encoder say about each sequence of a batch, in one pass."""
    tokens = Tokens.of(batch).to(encoder.embed_tokens.weight.device)
    counts = [len(sequence) if pool == "residue" else 1 for sequence in batch]
    with products(precision, tokens.ids.device):
        representations = encoder.representations(tokens, layers)
    by_layer = [POOLS[pool](x).cpu().split(counts) for x in representations]
    return [tuple(part.numpy() for part in parts) for parts in zip(*by_layer, strict=True)]


def kind_of(encoder: ESM2, pool: Pooling, precision: Precision, sha256: str | None = None) -> Kind:
    """What decides the numbers that an encoder gives, where it is now; `sha256` is its digest, if that is known."""
    shape, device = encoder.config, encoder.embed_tokens.weight.device.type
    return Kind(
        sha256=sha256 or encoder_digest(encoder), shape=(shape.num_layers, shape.embed_dim, shape.num_heads),
        pool=pool, precision=choose_precision(precision, device), device=device,
    )  # fmt: skip
