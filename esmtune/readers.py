"""One function per file format, from the bytes of a file to a table. Add yours at the end.

A reader changes nothing in the table: text stays as it was written, so that a prediction can be
put beside it. It knows where each row stands, because a message without a line helps nobody.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from esmtune.records import BadRowsError, Problem, Table
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
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise ValueError(f"{path} is empty.")
    frame, places, unit = reader[suffix](data, str(path))
    if frame.height == 0:
        raise ValueError(f"{path} has no rows, only the names of its columns: {', '.join(frame.columns)}.")
    return Table(frame=frame, source=str(path), places=places, unit="row" if unit == "row" else "line", sha256=checksum)


def _frame_of(data: Any) -> tuple[pl.DataFrame, str]:
    if isinstance(data, pl.DataFrame):
        return _plain(data), "the frame"
    if type(data).__module__.split(".")[0] == "pandas" and hasattr(data, "columns"):
        names = [str(name) for name in data.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"the frame has two columns of one name among {', '.join(names)}.")
        series = (data.iloc[:, place] for place in range(len(names)))
        cells = [s.astype(object).where(s.notna(), None).tolist() for s in series]
        values = [[x.tolist() if hasattr(x, "tolist") else x for x in column] for column in cells]  # numpy's arrays
        return _built(dict(zip(names, values, strict=True)), "the frame"), "the frame"
    if isinstance(data, Iterable) and not isinstance(data, bytes | dict):
        rows = list(data)
        if all(isinstance(row, str) for row in rows):
            return pl.DataFrame({"sequence": rows}, schema={"sequence": pl.String}), "the list"
        if all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
            return _built({"sequence": [s for s, _ in rows], "label": [x for _, x in rows]}, "the list"), "the list"
    raise ValueError(
        f"data is a {type(data).__name__}, expected a path, a polars or pandas frame, or a list of sequences or of "
        "(sequence, label) tuples."
    )


def _built(data: dict[str, list[Any]] | list[dict[str, Any]], source: str) -> pl.DataFrame:
    """A frame of columns or of rows, whose values Python knows and polars may not."""
    try:
        if isinstance(data, dict):
            return _plain(pl.DataFrame(data, strict=False))
        return _plain(pl.from_dicts(data, infer_schema_length=None, strict=False))
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise ValueError(f"{source}: a column holds values that do not go together ({error}).") from None


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Python objects that polars has no type for, as text, so that every table can be written again."""
    objects = [name for name, dtype in frame.schema.items() if dtype == pl.Object]
    texts = [pl.Series(n, [None if x is None else str(x) for x in frame[n].to_list()], pl.String) for n in objects]
    return frame.with_columns(texts)


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
    start = 1
    with _cells_of_any_size(len(data)):
        try:
            header = next((line for line in lines if line), [])
            start = lines.line_num + 1
            for row in lines:
                if row:
                    rows.append(row)
                    places.append(start)
                start = lines.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{source}, line {start}: {error}. Is a quotation mark missing?") from None
    _check_header(header, source, delimiter)
    wrong = [
        Problem(
            f"{source}, line {place}",
            str(place),
            f"the number of fields is {len(row)}, but {len(header)} in the header",
        )
        for row, place in zip(rows, places, strict=True)
        if len(row) != len(header)
    ]
    if wrong:
        advice = f"The header is {', '.join(header)}. A cell with the separator in it needs quotation marks around it."
        raise BadRowsError(wrong, advice)
    columns = zip(*rows, strict=True) if rows else [[] for _ in header]
    frame = pl.DataFrame(dict(zip(header, columns, strict=True)), schema=dict.fromkeys(header, pl.String))
    return frame, places, "line"


@contextmanager
def _cells_of_any_size(size: int) -> Iterator[None]:
    """Let Python's reader take cells beyond its 131,072 characters for a while; its limit belongs to everyone."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(size, limit))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _check_header(header: list[str], source: str, delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{source}: two columns are called {twice[0]!r}. Columns: {', '.join(header)}.")
    others = [d for d in ",;\t" if d != delimiter and d in "".join(header)]
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
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:  # polars panics over some damage
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
    return _built(rows, source), places, "line"


@reader(".fasta", ".fa", ".faa", ".fas")
def read_fasta(data: bytes, source: str) -> Rows:
    """FASTA; `KEY=value` in a header is a column, as biotrainer and FLIP write `TARGET`, `SET` and `VALIDATION`."""
    import dnaio  # only FASTA needs it

    lines = [line.strip() for line in re.split("\r\n?|\n", _decode(data, source))]
    places = [place for place, line in enumerate(lines, start=1) if line.startswith(">")]
    for place, line in enumerate(lines, start=1):
        if not line.isascii() and not line.startswith(">"):
            symbol = next(symbol for symbol in line if not symbol.isascii())
            raise ValueError(f"{source}, line {place}: {symbol!r} is no amino acid.")
    # dnaio takes no letters beyond ASCII, which names of organisms have, so it gets no headers.
    bare = "\n".join(">" if line.startswith(">") else line for line in lines)
    try:
        with dnaio.open(io.BytesIO(bare.encode()), fileformat="fasta") as file:
            sequences = [entry.sequence for entry in file]
    except dnaio.FileFormatError as error:
        raise ValueError(f"{source} cannot be read as FASTA: {error}") from None
    rows = [
        _header(lines[place - 1][1:], f"{source}, line {place}") | {"sequence": sequence}
        for place, sequence in zip(places, sequences, strict=True)
    ]
    return _built(rows, source), places, "line"


def _header(text: str, where: str) -> dict[str, str]:
    """A FASTA header as columns: the id, what describes it, and each `KEY=value`."""
    name, rest = [*text.split(maxsplit=1), "", ""][:2]
    values = dict(_ATTRIBUTE.findall(rest))
    taken = values.keys() & {"id", "sequence"}
    if taken:
        raise ValueError(
            f"{where}: the header has a key {min(taken)!r}, but FASTA has its own. Name the key otherwise."
        )
    description = _ATTRIBUTE.split(rest, maxsplit=1)[0].strip()
    return {"id": name, "sequence": "", **({"description": description} if description else {}), **values}


_ATTRIBUTE = re.compile(r"(?<!\S)(\w+)=(.*?)(?=\s+\w+=|\s*$)")
