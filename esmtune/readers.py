"""One function per file format, from the bytes of a file to a table. Add yours at the end.

A reader changes nothing in the table: text stays as it was written, so that a prediction can be
put beside it. It knows where each row stands, because a message without a line helps nobody.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from esmtune.records import Table
from esmtune.registry import Registry

Rows = tuple[pl.DataFrame, Sequence[int], str]  # the table, the place of each row, and what a place is
reader: Registry[Callable[[bytes, str], Rows]] = Registry("dataset format")

FORMATS = "Tables are CSV, TSV, Parquet, JSON lines or FASTA, each also compressed as .gz"


def read(data: Any) -> Table:
    """Read a table from a path, a polars or pandas frame, or a list of sequences or (sequence, label) tuples.

    >>> read([("MKTV", 1.5), ("GG", 0.5)]).frame.columns
    ['sequence', 'label']

    Raises:
        ValueError: if it is no table, with its name and what was expected.
    """
    if isinstance(data, str | os.PathLike):
        return _read_file(Path(data))
    frame, source = _frame_of(data)
    if frame.height == 0:
        raise ValueError(f"{source} has no rows.")
    checksum = hashlib.sha256(frame.hash_rows().to_numpy().tobytes()).hexdigest()
    return Table(frame=frame, source=source, places=range(1, frame.height + 1), unit="row", sha256=checksum)


def _read_file(path: Path) -> Table:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file. {FORMATS}.")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in reader:
        raise ValueError(f"{path}: {suffix or 'no suffix'} is no known format. {FORMATS} ({', '.join(reader)}).")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    checksum = hashlib.sha256(data).hexdigest()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} cannot be decompressed ({error}). Is the file complete?") from None
    if not data.strip():
        raise ValueError(f"{path} is empty.")
    frame, places, unit = reader[suffix](data, str(path))
    if frame.height == 0:
        raise ValueError(f"{path} has no rows, only the names of its columns: {', '.join(frame.columns)}.")
    return Table(frame=frame, source=str(path), places=places, unit="row" if unit == "row" else "line", sha256=checksum)


def _frame_of(data: Any) -> tuple[pl.DataFrame, str]:
    if isinstance(data, pl.DataFrame):
        return data, "the frame"
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "columns"):
        columns = {
            str(name): data[name].astype(object).where(data[name].notna(), None).tolist() for name in data.columns
        }
        if len(columns) < len(data.columns):
            raise ValueError(f"the frame has two columns of one name among {', '.join(map(str, data.columns))}.")
        return pl.DataFrame(columns, strict=False), "the frame"
    if isinstance(data, Iterable) and not isinstance(data, bytes | dict):
        rows = list(data)
        if all(isinstance(row, str) for row in rows):
            return pl.DataFrame({"sequence": rows}, schema={"sequence": pl.String}), "the list"
        if all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
            return pl.DataFrame(
                {"sequence": [s for s, _ in rows], "label": [x for _, x in rows]}, strict=False
            ), "the list"
    raise ValueError(
        f"data is a {type(data).__name__}, expected a path, a polars or pandas frame, or a list of sequences or of "
        "(sequence, label) tuples."
    )


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{source}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8 text.") from None


def _delimited(data: bytes, source: str, delimiter: str) -> Rows:
    # Python's reader, not polars', because it knows the line of each row and sees rows of the wrong width.
    lines = csv.reader(io.StringIO(_decode(data, source), newline=""), delimiter=delimiter, strict=True)
    rows, places = [], []
    try:
        header = next(line for line in lines if line)
        start = lines.line_num + 1
        for row in lines:
            if row:
                rows.append(row)
                places.append(start)
            start = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{source}, line {lines.line_num}: {error}. Is a quotation mark missing?") from None
    _check_header(header, source, delimiter)
    wide = [(len(row), place) for row, place in zip(rows, places, strict=True) if len(row) != len(header)]
    if wide:
        found, place = wide[0]
        raise ValueError(
            f"{source}, line {place}: {found} fields, but the header has {len(header)} ({', '.join(header)}). "
            f"{len(wide):,} of {len(rows):,} rows have another number of fields than the header."
        )
    columns = zip(*rows, strict=True) if rows else [[] for _ in header]
    frame = pl.DataFrame(dict(zip(header, columns, strict=True)), schema=dict.fromkeys(header, pl.String))
    return frame, places, "line"


def _check_header(header: list[str], source: str, delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{source}: two columns are called {twice[0]!r}. Columns: {', '.join(header)}.")
    others = [d for d in ",;\t" if d != delimiter and d in header[0]]
    if len(header) == 1 and others:
        name = {",": "commas", ";": "semicolons", "\t": "tabs"}[others[0]]
        raise ValueError(f"{source}: columns seem to be separated by {name}. Write commas in .csv, tabs in .tsv.")


@reader(".csv")
def read_csv(data: bytes, source: str) -> Rows:
    """Comma-separated text with a header."""
    return _delimited(data, source, ",")


@reader(".tsv", ".tab")
def read_tsv(data: bytes, source: str) -> Rows:
    """Tab-separated text with a header."""
    return _delimited(data, source, "\t")


@reader(".parquet", ".pq")
def read_parquet(data: bytes, source: str) -> Rows:
    """Apache Parquet."""
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{source} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
    return frame, range(1, frame.height + 1), "row"


@reader(".jsonl", ".ndjson")
def read_json_lines(data: bytes, source: str) -> Rows:
    """One JSON object a line."""
    rows, places = [], []
    for place, line in enumerate(_decode(data, source).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}, line {place}: no JSON ({error}).") from None
        if not isinstance(row, dict):
            raise ValueError(
                f'{source}, line {place}: expected an object such as {{"sequence": "MKTV"}}, got {line[:40]}'
            )
        rows.append(row)
        places.append(place)
    return pl.from_dicts(rows, infer_schema_length=None, strict=False), places, "line"


@reader(".fasta", ".fa", ".faa", ".fas")
def read_fasta(data: bytes, source: str) -> Rows:
    """FASTA; `KEY=value` in a header is a column, as biotrainer and FLIP write `TARGET`, `SET` and `VALIDATION`."""
    import dnaio  # only FASTA needs it

    text = _decode(data, source)
    places = [place for place, line in enumerate(text.split("\n"), start=1) if line.startswith(">")]
    try:
        with dnaio.open(io.BytesIO(text.encode()), fileformat="fasta") as file:
            entries = [(entry.name, entry.sequence) for entry in file]
    except (dnaio.FileFormatError, UnicodeError) as error:
        raise ValueError(f"{source} cannot be read as FASTA: {error}") from None
    if len(entries) != len(places):
        raise ValueError(f"{source} cannot be read as FASTA: {len(places)} headers, but {len(entries)} entries.")
    rows = []
    for header, sequence in entries:
        name, _, rest = header.partition(" ")
        rows.append({"id": name, "sequence": sequence, **dict(_ATTRIBUTE.findall(rest))})
    return pl.from_dicts(rows, infer_schema_length=None), places, "line"


_ATTRIBUTE = re.compile(r"(\w+)=(.*?)(?=\s+\w+=|\s*$)")
