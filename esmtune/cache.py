"""Vectors of sequences, kept on disk between runs, so that a frozen encoder computes each of them once.

It is made of shards, each a file that is written under another name, flushed and renamed, never changed, and refused if
its checksums differ: writers do not wait for each other, and a kill at any moment leaves whole shards.
"""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from esmtune.config import CACHE_GB, Pooling
from esmtune.events import Notice, Watcher
from esmtune.shards import Shard, Vectors, digest_of, packed
from esmtune.writers import whole_file

VERSION = 1  # of the shards, and of every number that an encoder gives: raised when one of them changes
UNWRITABLE = (
    "CACHE: nothing can be written to {} ({}), so that these embeddings are not kept for other runs. Name another "
    "folder with --cache or ESMTUNE_CACHE, or none."
)
SHARD_BYTES = 128 << 20  # what is collected before it is written
SHARD_SECONDS = 120.0  # how long it is collected: a kill loses no more work than this and a batch
ABANDONED = 24 * 3600  # seconds after which a file that was never renamed is no longer being written

# What it wrote and nothing else is counted, replaced or cleared: the folder may be one that holds other things too.
FOLDER = re.compile("[0-9a-f]{32}")
SHARD, UNFINISHED = re.compile(r"[0-9a-f]{32}\.safetensors"), re.compile(r"\.[0-9a-f]{32}\.safetensors\.\d+\.tmp")


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
    True
    >>> [found is not None for found in cache.read(kind, (6,), ["MKTV", "GG"])]
    [True, False]
    """

    def __init__(self, folder: Path, limit: int = CACHE_GB << 30):
        self.folder, self.limit = folder, limit
        self.is_writable = True  # as far as is known

    def read(self, kind: Kind, layers: Sequence[int], sequences: Sequence[str]) -> list[Vectors | None]:
        """What is kept of sequences, mapped and not loaded: memory is taken when numbers are looked at."""
        found: dict[bytes, dict[int, np.ndarray]] = {digest_of(sequence): {} for sequence in sequences}
        for file in self._files(SHARD, self.folder / kind.name):
            shard = Shard.open(file)
            useful = {layer: rows for layer, rows in shard.layers.items() if layer in layers} if shard else {}
            hits = [(row, key) for row, key in enumerate(shard.keys()) if key in found] if shard and useful else []
            if not shard or not hits:
                continue
            if not shard.is_whole():
                _delete(file)
                continue
            _touch(file)
            starts = shard.starts.tolist()
            for row, key in hits:
                found[key] |= {layer: rows[starts[row] : starts[row + 1]] for layer, rows in useful.items()}
        have = {key: tuple(f[x] for x in layers) if f.keys() >= set(layers) else None for key, f in found.items()}
        return [have[digest_of(sequence)] for sequence in sequences]

    def write(
        self, kind: Kind, encoder: str, layers: Sequence[int], sequences: Sequence[str], vectors: Sequence[Vectors]
    ) -> bool:
        """Add a shard, and make room for it; where there is none, nothing is kept. Returns whether it is.

        Raises:
            OSError: if it cannot be written.
        """
        if not sequences:
            return True
        about = {"encoder": encoder, **{name: str(value) for name, value in asdict(kind).items()}}
        content = packed(about, layers, sequences, vectors)
        if not self._make_room(len(content)):
            return False
        folder, clearings = self.folder / kind.name, 3
        while True:
            folder.mkdir(mode=0o700, exist_ok=True)  # others' business is not which sequences are kept
            try:
                with whole_file(folder / f"{uuid.uuid4().hex}.safetensors") as temporary, temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                return True
            except FileNotFoundError:  # another process cleared the cache meanwhile
                clearings -= 1
                if not clearings:
                    raise

    def contents(self) -> list[Kept]:
        """What there is, by encoder, pool and precision."""
        kept = []
        for folder in self._folders():
            there = [(time, size, shard) for time, size, file in self._shards(folder) if (shard := Shard.open(file))]
            if there:
                shards = [shard for _, _, shard in there]
                about = shards[0].about
                kept.append(
                    Kept(
                        encoder=about["encoder"], sha256=about["sha256"], pool=about["pool"],
                        precision=about["precision"],
                        layers=tuple(sorted({layer for shard in shards for layer in shard.layers})),
                        sequences=len(set().union(*(shard.keys() for shard in shards))),
                        bytes=sum(size for _, size, _ in there),
                        used=max(time for time, _, _ in there),
                    )
                )  # fmt: skip
        return kept

    def clear(self) -> None:
        """Forget everything; what another process has mapped stays readable to it, and what it is writing stays."""
        self._delete_abandoned()
        for folder in self._folders():
            for file in self._files(SHARD, folder):
                _delete(file)
            with suppress(OSError):  # somebody put something else into it
                folder.rmdir()

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may be kept, if need be in place of all that is there."""
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        there = sum(size for _, size, _ in self._shards())
        return size <= min(self.limit, (shutil.disk_usage(folder).free + there) // 2)

    def _make_room(self, size: int) -> bool:
        """Delete the shards that were not used for longest, until so much more may be kept."""
        self._delete_abandoned()
        shards = self._shards()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        total = sum(s for _, s, _ in shards) + size
        limit = min(self.limit, (shutil.disk_usage(self.folder).free + total - size) // 2)
        if size > limit:
            return False
        for _, freed, file in sorted(shards):
            if total <= limit:
                break
            _delete(file)
            total -= freed
        return True

    def _delete_abandoned(self) -> None:
        """Delete files that nobody is writing any more."""
        now = time.time()
        for folder in self._folders():
            for file in self._files(UNFINISHED, folder):
                with suppress(OSError):  # another process was faster
                    if now - file.stat().st_mtime > ABANDONED:
                        file.unlink()

    def _folders(self) -> list[Path]:
        """The folders of each kind."""
        return [path for path in _inside(self.folder) if FOLDER.fullmatch(path.name) and path.is_dir()]

    def _files(self, form: re.Pattern[str], folder: Path) -> list[Path]:
        return [path for path in _inside(folder) if form.fullmatch(path.name)]

    def _shards(self, *folders: Path) -> list[tuple[float, int, Path]]:
        """When each shard was last used, its bytes, and where it is, in some folders or in all."""
        found = []
        for folder in folders or self._folders():
            for file in self._files(SHARD, folder):
                with suppress(OSError):  # another process was faster
                    status = file.stat()
                    found.append((status.st_mtime, status.st_size, file))
        return found


class Collector:
    """Vectors on their way to a cache, written a shard at a time; if that fails it is said, and work goes on."""

    def __init__(self, cache: Cache | None, kind: Kind | None, encoder: str, layers: Sequence[int], watch: Watcher):
        self.cache, self.kind, self.encoder, self.layers, self.watch = cache, kind, encoder, layers, watch
        self._sequences: list[str] = []
        self._vectors: list[Vectors] = []
        self._bytes = 0
        self._since = time.monotonic()
        self.is_whole = cache is not None  # whether the cache took in all that there was

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
        is_kept = False
        if self.cache is not None and self.kind is not None and self.cache.is_writable:
            try:
                is_kept = self.cache.write(self.kind, self.encoder, self.layers, self._sequences, self._vectors)
            except OSError as error:
                self.watch(Notice(UNWRITABLE.format(self.cache.folder, error.strerror or error)))
                self.cache.is_writable = False
        self.is_whole = self.is_whole and is_kept
        self._sequences, self._vectors, self._bytes = [], [], 0
        self._since = time.monotonic()


def cache_at(name: str | None) -> Cache | None:
    """The cache in a folder; by `none` no cache; without a name $ESMTUNE_CACHE, or esmtune in the user's cache folder.

    It holds $ESMTUNE_CACHE_GB of 2**30 bytes at most, 20 if that is not set, and half of what the disk has free.

    Raises:
        ValueError: if $ESMTUNE_CACHE_GB is no number, or a file has the name of the folder.
    """
    name = name or os.environ.get("ESMTUNE_CACHE")
    if name == "none":
        return None
    size = os.environ.get("ESMTUNE_CACHE_GB") or str(CACHE_GB)
    try:
        limit = int(float(size) * 2**30)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise ValueError(f"ESMTUNE_CACHE_GB is {size!r}, expected a number, 0 or more.")
    folder = Path(name) if name else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esmtune"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the cache {folder} is a file, expected a folder: name another, or none.")
    return Cache(folder, limit)


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing if it is gone, as another process may have cleared it."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _touch(file: Path) -> None:
    with suppress(OSError):  # gone, or another's
        os.utime(file)


def _delete(file: Path) -> None:
    with suppress(OSError):  # gone, or not ours to delete
        file.unlink()
