"""One function per file format, to a file. Add yours at the end.

Everything is written under a temporary name and then renamed, so that a reader finds a whole
file or none.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from esmtune.registry import Registry

table_writer: Registry[Callable[[pl.DataFrame, Path], None]] = Registry("table format")


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors of sequences, in the order of the ids.

    `vectors` is [sequences, dim], or [residues, dim] with the residues of all sequences end to end
    and `lengths` to tell them apart; with several layers, a layer axis stands before dim.
    """

    ids: list[str]
    vectors: np.ndarray
    lengths: list[int] | None
    about: Mapping[str, str]  # encoder, layers, pooling: written along where the format has room

    def each(self) -> list[np.ndarray]:
        """One array a sequence."""
        if self.lengths is None:
            return list(self.vectors)
        return np.split(self.vectors, np.cumsum(self.lengths)[:-1])


embeddings_writer: Registry[Callable[[Embeddings, Path], None]] = Registry("embeddings format")


def check_out(
    path: Path, *, overwrite: bool, kind: Literal["table", "embeddings", "scores", "comparison", "folder"]
) -> None:
    """Refuse, before anything is computed, a place that cannot be written to or would be overwritten.

    Raises:
        ValueError: with what to write instead.
    """
    if kind != "folder":
        known = {"table": list(table_writer), "embeddings": list(embeddings_writer), "scores": [".json"]} | {
            "comparison": [".html", ".json"]
        }
        known = known[kind]
        if path.suffix.lower() not in known:
            raise ValueError(
                f"{path}: {path.suffix or 'no suffix'} is no format for {kind}. There are: {', '.join(known)}."
            )
    if path.exists() and not (kind == "folder" and path.is_dir() and not any(path.iterdir())):
        if path.is_dir() != (kind == "folder"):
            raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'file'}. Write another name.")
        if not overwrite:
            raise ValueError(f"{path} exists. Write another name, or --overwrite.")
        if kind == "folder" and not any((path / name).exists() for name in ("run.toml", "predictor", "trials.log")):
            raise ValueError(f"{path} is a folder with other things than a run in it. Write another name.")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: {parent} is not a folder that one may write to.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes `path` at the end if nothing went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for its owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which takes the place of `path` at the end if nothing went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in temporary.iterdir():
            if file.is_file():
                file.chmod(0o666 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in the format of the suffix."""
    with whole_file(path) as temporary:
        table_writer[path.suffix.lower()](frame, temporary)


def write_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write embeddings in the format of the suffix."""
    with whole_file(path) as temporary:
        embeddings_writer[path.suffix.lower()](embeddings, temporary)


def write_json(value: object, path: Path) -> None:
    """Write a JSON file; a number that is not finite is refused."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@table_writer(".csv")
def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Comma-separated text with a header."""
    flat(frame, nested=False).write_csv(path)


@table_writer(".tsv")
def write_tsv(frame: pl.DataFrame, path: Path) -> None:
    """Tab-separated text with a header."""
    flat(frame, nested=False).write_csv(path, separator="\t")


@table_writer(".parquet")
def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Apache Parquet."""
    frame.write_parquet(path)


@table_writer(".jsonl")
def write_json_lines(frame: pl.DataFrame, path: Path) -> None:
    """One JSON object a line."""
    flat(frame, nested=True).write_ndjson(path)


def flat(frame: pl.DataFrame, *, nested: bool) -> pl.DataFrame:
    """What a format has no room for, as text: bytes, and unless it may be `nested`, lists, structs and durations."""
    columns = []
    for name, dtype in frame.schema.items():
        is_nested, is_foreign = dtype.is_nested(), dtype in (pl.Binary, pl.Duration)
        if "Binary" in str(dtype) or (not nested and (is_nested or is_foreign)):
            write = partial(json.dumps, default=_as_text) if is_nested else _as_text
            texts = [None if x is None else write(x) for x in frame[name].to_list()]
            columns.append(pl.Series(name, texts, dtype=pl.String))
    return frame.with_columns(columns)


def _as_text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


@embeddings_writer(".npz")
def write_npz(embeddings: Embeddings, path: Path) -> None:
    """Arrays `id`, `embedding`, per residue also `length`, and one array for each thing to know about them."""
    arrays = {"id": np.array(embeddings.ids), "embedding": embeddings.vectors}
    if embeddings.lengths is not None:
        arrays["length"] = np.array(embeddings.lengths)
    with path.open("wb") as file:
        np.savez(
            file, allow_pickle=False, **arrays, **{key: np.array(value) for key, value in embeddings.about.items()}
        )


@embeddings_writer(".parquet")
def write_embeddings_parquet(embeddings: Embeddings, path: Path) -> None:
    """Columns `id` and `embedding`, the latter an array of numbers, or per residue a list of arrays."""
    vectors = pl.Series("embedding", embeddings.vectors)
    if embeddings.lengths is not None:
        rows = np.repeat(np.arange(len(embeddings.ids)), embeddings.lengths)
        residues = pl.DataFrame({"row": rows, "embedding": vectors})
        vectors = residues.group_by("row", maintain_order=True).agg("embedding")["embedding"]
    pl.DataFrame({"id": embeddings.ids, "embedding": vectors}).write_parquet(path, metadata=dict(embeddings.about))


@embeddings_writer(".h5", ".hdf5")
def write_h5(embeddings: Embeddings, path: Path) -> None:
    """One dataset a sequence under its id, in which `/` is written `%2F`; the file's attributes say what they are."""
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "writing .h5 needs h5py: pip install 'esmtune[h5]', or write .npz, .parquet or .safetensors."
        ) from None
    twice = [name for name, count in Counter(embeddings.ids).items() if count > 1 or not name]
    if twice:
        raise ValueError(
            f"an .h5 file is keyed by id, but {twice[0]!r} is empty or stands for several sequences. "
            "Write .npz, .parquet or .safetensors, or give every sequence an id of its own."
        )
    with h5py.File(path, "w") as file:
        file.attrs.update(embeddings.about)
        for name, vectors in zip(embeddings.ids, embeddings.each(), strict=True):
            key = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
            file.create_dataset("%2E" if key == "." else key, data=vectors).attrs["id"] = name.replace("\0", "")


@embeddings_writer(".safetensors")
def write_safetensors(embeddings: Embeddings, path: Path) -> None:
    """Tensors `embedding` and, per residue, `length`; the ids are a JSON list in the metadata."""
    from safetensors.numpy import save_file

    arrays = {"embedding": np.ascontiguousarray(embeddings.vectors)}
    if embeddings.lengths is not None:
        arrays["length"] = np.array(embeddings.lengths)
    save_file(arrays, path, metadata={"id": json.dumps(embeddings.ids), **embeddings.about})
