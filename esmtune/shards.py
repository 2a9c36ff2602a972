"""A shard of the cache: one safetensors file with digests of sequences, and what an encoder's layers gave for them."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

DIGEST = 32  # bytes
_DTYPES = {"F32": np.float32, "U8": np.uint8, "I64": np.int64}

Vectors = tuple[Float[np.ndarray, "_ dim"], ...]  # of one sequence, an array a layer


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the cache, mapped into memory."""

    file: Path
    about: dict[str, str]
    sums: Any  # the checksum of each array, as it was written
    digests: np.ndarray  # of each sequence
    starts: np.ndarray  # where each sequence's points begin and the last one's end
    layers: Mapping[int, np.ndarray]  # for each layer [points, dim]

    @classmethod
    def open(cls, file: Path) -> "Shard | None":
        """Map a file; None if it is gone or no shard."""
        try:
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                if size > file.stat().st_size:
                    return None
                header = json.loads(opened.read(size))
            about = header.pop("__metadata__")
            arrays = {
                name: np.memmap(
                    file, _DTYPES[x["dtype"]], "c", 8 + size + x["data_offsets"][0], tuple(x["shape"])
                ).view(np.ndarray)  # whose slices cost less
                for name, x in header.items()
            }
            digests, starts = arrays.pop("digests"), arrays.pop("starts")
            layers = {int(name.removeprefix("layer.")): rows for name, rows in arrays.items()}
            sums = json.loads(about["checksums"])
            known = {name: str(about[name]) for name in ("encoder", "sha256", "pool", "precision")}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):  # damaged
            return None
        return cls(file=file, about=known, sums=sums, digests=digests, starts=starts, layers=layers)

    def keys(self) -> list[bytes]:
        """The digest of each sequence."""
        digests = self.digests.tobytes()
        return [digests[start : start + DIGEST] for start in range(0, len(digests), DIGEST)]

    def is_whole(self) -> bool:
        """Whether every number is the one that was written."""
        arrays = {"digests": self.digests, "starts": self.starts}
        arrays |= {f"layer.{layer}": rows for layer, rows in self.layers.items()}
        return self.sums == {name: _checksum(array) for name, array in arrays.items()}


def packed(
    about: Mapping[str, str], layers: Sequence[int], sequences: Sequence[str], vectors: Sequence[Vectors]
) -> bytes:
    """The bytes of a shard, with a checksum of each array."""
    counts = [len(arrays[0]) for arrays in vectors]
    tensors = {
        f"layer.{layer}": np.concatenate([arrays[number] for arrays in vectors]) for number, layer in enumerate(layers)
    }
    digests = np.frombuffer(b"".join(map(digest_of, sequences)), np.uint8).reshape(-1, DIGEST)
    tensors |= {"digests": digests, "starts": np.cumsum([0, *counts], dtype=np.int64)}
    sums = {name: _checksum(array) for name, array in tensors.items()}
    return save(tensors, {**about, "checksums": json.dumps(sums)})


def digest_of(sequence: str) -> bytes:
    """What a sequence goes by."""
    return hashlib.sha256(sequence.encode()).digest()


def _checksum(array: np.ndarray) -> str:
    return str(zlib.crc32(memoryview(np.ascontiguousarray(array))))  # pyright: ignore[reportArgumentType]
