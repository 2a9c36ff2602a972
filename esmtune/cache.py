"""Vectors of sequences, kept on disk between runs, so that a frozen encoder computes each of them once.

A shard is one safetensors file: digests of sequences, and what an encoder's layers gave for them. It
is written under another name, flushed and renamed, never changed, and refused if its checksum
differs: writers do not wait for each other, and a kill at any moment leaves whole shards.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from esmtune.config import CACHE_GB, Pooling
from esmtune.writers import whole_file

VERSION = 1  # of the shards, and of every number that an encoder gives: raised when one of them changes
DIGEST = 32  # bytes
SHARD_BYTES = 128 << 20  # what is collected before it is written
SHARD_SECONDS = 120.0  # how long it is collected: a kill loses no more work than this and a batch
ABANDONED = 24 * 3600  # seconds after which a file that was never renamed is no longer being written

Vectors = tuple[Float[np.ndarray, "_ dim"], ...]  # of one sequence, an array a layer


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All that decides what numbers a sequence gets, but the sequence itself and the layer."""

    sha256: str  # of the encoder's weights
    shape: tuple[int, int, int]  # layers, channels, heads
    pool: Pooling
    precision: str
    device: str  # cpu, cuda, ...: their rounding differs

    @property
    def name(self) -> str:
        """The folder of its shards."""
        text = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a cache has of one kind."""

    encoder: str
    sha256: str
    pool: str
    precision: str
    layers: tuple[int, ...]
    sequences: int
    bytes: int
    used: float  # when, in seconds since 1970


class Cache:
    """Shards in a folder, of at most so many bytes; what was not used for longest goes first.

    >>> import tempfile
    >>> kind = Kind(sha256="0" * 64, shape=(6, 320, 20), pool="mean", precision="float32", device="cpu")
    >>> cache = Cache(Path(tempfile.mkdtemp()))
    >>> cache.write(kind, "8M", (6,), ["MKTV"], [(np.ones((1, 320), np.float32),)])
    >>> [found is not None for found in cache.read(kind, (6,), ["MKTV", "GG"])]
    [True, False]
    """

    def __init__(self, folder: Path, limit: int = CACHE_GB << 30):
        self.folder, self.limit = folder, limit

    def read(self, kind: Kind, layers: Sequence[int], sequences: Sequence[str]) -> list[Vectors | None]:
        """What is kept of sequences, mapped and not loaded: memory is taken when numbers are looked at."""
        found: dict[bytes, dict[int, np.ndarray]] = {digest_of(sequence): {} for sequence in sequences}
        for file in sorted((self.folder / kind.name).glob("*.safetensors")):
            shard = Shard.open(file)
            useful = {layer: rows for layer, rows in shard.layers.items() if layer in layers} if shard else {}
            hits = [(row, key) for row, key in enumerate(shard.keys()) if key in found] if shard and useful else []
            if not shard or not hits:
                continue
            if not shard.is_whole():
                file.unlink(missing_ok=True)
                continue
            _touch(file)
            starts = shard.arrays["starts"].tolist()
            for row, key in hits:
                found[key] |= {layer: rows[starts[row] : starts[row + 1]] for layer, rows in useful.items()}
        have = {key: tuple(f[x] for x in layers) if f.keys() >= set(layers) else None for key, f in found.items()}
        return [have[digest_of(sequence)] for sequence in sequences]

    def write(
        self, kind: Kind, encoder: str, layers: Sequence[int], sequences: Sequence[str], vectors: Sequence[Vectors]
    ) -> None:
        """Add a shard, and make room for it; where there is none, nothing is kept."""
        if not sequences:
            return
        counts = [len(arrays[0]) for arrays in vectors]
        tensors = {
            f"layer.{layer}": np.concatenate([arrays[number] for arrays in vectors])
            for number, layer in enumerate(layers)
        }
        digests = np.frombuffer(b"".join(map(digest_of, sequences)), np.uint8).reshape(-1, DIGEST)
        tensors |= {"digests": digests, "starts": np.cumsum([0, *counts], dtype=np.int64)}
        sums = {name: _checksum(array) for name, array in tensors.items()}
        about = {"encoder": encoder, **{name: str(value) for name, value in asdict(kind).items()}}
        content = save(tensors, {**about, "checksums": json.dumps(sums)})
        if not self._make_room(len(content)):
            return
        folder = self.folder / kind.name
        folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # sequences can be told from what is kept
        with whole_file(folder / f"{uuid.uuid4().hex}.safetensors") as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def contents(self) -> list[Kept]:
        """What there is, by encoder, pool and precision."""
        kept = []
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            shards = [shard for file in folder.glob("*.safetensors") if (shard := Shard.open(file))]
            if shards:
                about = shards[0].about
                kept.append(
                    Kept(
                        encoder=about["encoder"], sha256=about["sha256"], pool=about["pool"],
                        precision=about["precision"],
                        layers=tuple(sorted({layer for shard in shards for layer in shard.layers})),
                        sequences=len(set().union(*(shard.keys() for shard in shards))),
                        bytes=sum(shard.file.stat().st_size for shard in shards),
                        used=max(shard.file.stat().st_mtime for shard in shards),
                    )
                )  # fmt: skip
        return kept

    def clear(self) -> None:
        """Forget everything; what another process has mapped stays readable to it."""
        for folder in self.folder.glob("*"):
            if folder.is_dir() and all(_is_ours(file) for file in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be kept, if need be in place of all that is there."""
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        there = sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))
        return size <= min(self.limit, (shutil.disk_usage(folder).free + there) // 2)

    def _make_room(self, size: int) -> bool:
        """Delete the shards that were not used for longest, until so much more may be kept."""
        now = time.time()
        shards = []
        for file in self.folder.glob("*/*"):
            try:
                status = file.stat()
            except OSError:  # another process was faster
                continue
            if file.suffix == ".safetensors":
                shards.append((status.st_mtime, status.st_size, file))
            elif _is_ours(file) and now - status.st_mtime > ABANDONED:
                file.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        total = sum(s for _, s, _ in shards) + size
        limit = min(self.limit, (shutil.disk_usage(self.folder).free + total - size) // 2)
        if size > limit:
            return False
        for _, freed, file in sorted(shards):
            if total <= limit:
                break
            file.unlink(missing_ok=True)
            total -= freed
        return True


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the cache, mapped into memory."""

    file: Path
    about: dict[str, str]
    arrays: Mapping[str, np.ndarray]  # digests, starts, and for each layer [points, dim]

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
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(file=file, about=about, arrays=arrays) if {"digests", "starts"} <= arrays.keys() else None

    @property
    def layers(self) -> dict[int, np.ndarray]:
        """The vectors of each layer."""
        return {int(n.removeprefix("layer.")): array for n, array in self.arrays.items() if n.startswith("layer.")}

    def keys(self) -> list[bytes]:
        """The digest of each sequence."""
        digests = self.arrays["digests"].tobytes()
        return [digests[start : start + DIGEST] for start in range(0, len(digests), DIGEST)]

    def is_whole(self) -> bool:
        """Whether every number is the one that was written."""
        return json.loads(self.about["checksums"]) == {name: _checksum(array) for name, array in self.arrays.items()}


_DTYPES = {"F32": np.float32, "U8": np.uint8, "I64": np.int64}


class Collector:
    """Vectors on their way to a cache, written a shard at a time."""

    def __init__(self, cache: Cache | None, kind: Kind | None, encoder: str, layers: Sequence[int]):
        self.cache, self.kind, self.encoder, self.layers = cache, kind, encoder, layers
        self._sequences: list[str] = []
        self._vectors: list[Vectors] = []
        self._bytes = 0
        self._since = time.monotonic()

    def add(self, sequences: Sequence[str], vectors: Sequence[Vectors]) -> None:
        """Take in a whole batch; shards end where batches end."""
        if self.cache is None or self.kind is None:
            return
        self._sequences += sequences
        self._vectors += vectors
        self._bytes += sum(array.nbytes for arrays in vectors for array in arrays)
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self.cache is not None and self.kind is not None:
            self.cache.write(self.kind, self.encoder, self.layers, self._sequences, self._vectors)
        self._sequences, self._vectors, self._bytes = [], [], 0
        self._since = time.monotonic()


def digest_of(sequence: str) -> bytes:
    """What a sequence goes by."""
    return hashlib.sha256(sequence.encode()).digest()


def cache_at(name: str | None) -> Cache | None:
    """The cache in a folder; by `none` no cache; without a name $ESMTUNE_CACHE, or esmtune in the user's cache folder.

    It holds $ESMTUNE_CACHE_GB of 2**30 bytes at most, 20 if that is not set, and half of what the disk has free.

    Raises:
        ValueError: if $ESMTUNE_CACHE_GB is no number.
    """
    name = name or os.environ.get("ESMTUNE_CACHE")
    if name == "none":
        return None
    size = os.environ.get("ESMTUNE_CACHE_GB") or str(CACHE_GB)
    try:
        limit = int(float(size) * 2**30)
    except (ValueError, OverflowError):
        raise ValueError(f"ESMTUNE_CACHE_GB is {size!r}, expected a number.") from None
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esmtune"
    return Cache(Path(name) if name else usual, limit)


def _checksum(array: np.ndarray) -> str:
    return str(zlib.crc32(memoryview(np.ascontiguousarray(array))))  # pyright: ignore[reportArgumentType]


def _touch(file: Path) -> None:
    with suppress(OSError):  # gone, or another's
        os.utime(file)


def _is_ours(file: Path) -> bool:
    return file.suffix == ".safetensors" or (file.suffix == ".tmp" and ".safetensors." in file.name)
