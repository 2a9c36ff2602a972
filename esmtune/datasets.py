"""From a table to rows: columns found, sequences mended, and every bad row named."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from esmtune.alphabet import TRAINED_LENGTH, clean
from esmtune.labels import as_number, as_text, verbatim
from esmtune.records import Problem, Record, Row, Split, Table
from esmtune.registry import nearest

USUAL_NAMES = {
    "sequence": ("sequence", "sequences", "seq", "aa_sequence", "protein_sequence", "mutated_sequence", "aa_seq"),
    "target": ("target", "label", "labels", "score", "fitness", "value", "y", "dms_score"),
    "id": ("id", "entry", "accession", "identifier", "seq_id", "protein_id"),
    "split": ("split", "set", "subset"),
    "mask": ("mask",),
}
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("calibration", "calib"), "calibration"),
    **dict.fromkeys(("test", "testing"), "test"),
}


SHOWN_IDS = 5


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that matter."""

    sequence: str
    target: tuple[str, ...] | None
    kinds: tuple[str | None, ...] = ()  # of the targets, where the user said so: COLUMN:KIND
    id: str | None = None
    split: str | None = None
    validation: str | None = None  # FLIP marks validation rows within the training set
    mask: str | None = None
    weight: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a table's rows gave, and why others gave nothing."""

    rows: list[Row]
    problems: list[Problem]
    notices: list[str]

    @property
    def records(self) -> list[Record]:
        """The records, without labels."""
        return [row.record for row in self.rows]


def find_columns(
    table: Table,
    *,
    sequence: str | None = None,
    target: Sequence[str] | None = None,
    id: str | None = None,
    split: str | None = None,
    mask: str | None = None,
    weight: str | None = None,
    labeled: bool = True,
    splits: bool = True,
) -> Columns:
    """Take the columns that the user named, and find the others by their usual names.

    Without `splits` no column says what is trained on: the rows are to be split anew. An empty `target` is none, as
    language modeling has it; weights are used only if they are named, since a column called weight may as well hold
    molecular weights.

    Raises:
        ValueError: for a column that does not exist or cannot be told, with the columns that exist.
    """
    named = [sequence, id, split, mask, weight]  # which are nothing else
    asked = _find_targets(target, table, named) if labeled else None
    found = Columns(
        sequence=_find("sequence", sequence, table)
        or _absent("sequence", table, [*named, *(n for n, _ in asked or ())]),
        target=None if asked is None else tuple(name for name, _ in asked) or None,
        kinds=tuple(kind for _, kind in asked or ()),
        id=_find("id", id, table),
        split=_find("split", split, table) if labeled and splits else None,
        mask=_find("mask", mask, table) if labeled else None,
        weight=_find("weight", weight, table) if labeled and weight is not None else None,
    )
    if mask is None and found.mask in (found.target or ()):
        found = replace(found, mask=None)
    flags = [name for name in table.frame.columns if _plain(name) == "validation"]
    return replace(found, validation=flags[0]) if flags and found.split else found


def _find_targets(
    asked: Sequence[str] | None, table: Table, others: Sequence[str | None]
) -> list[tuple[str, str | None]]:
    """Each column of labels, and the kind that was asked for it by COLUMN:KIND; `others` are columns that hold none."""
    if asked is None:
        return [(_find("target", None, table) or _absent("target", table, others), None)]
    found: list[tuple[str, str | None]] = []
    for text in asked:
        name, colon, kind = text.rpartition(":")
        is_kind = colon and text not in table.frame.columns and name in table.frame.columns
        found.append((name, kind) if is_kind else (_find("target", text, table) or "", None))
    names = [name for name, _ in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"target names {twice[0]!r} twice.")
    return found


def _find(role: str, asked: str | None, table: Table) -> str | None:
    names = table.frame.columns
    if asked is not None:
        if asked in names:
            return asked
        raise ValueError(f"{table.source} has no column {asked!r}.{nearest(asked, names)} It has: {', '.join(names)}.")
    usual = [name for name in names if _plain(name) in USUAL_NAMES[role]]
    if role == "id":  # a table may well have several, and any will do
        usual = sorted(usual, key=lambda name: USUAL_NAMES[role].index(_plain(name)))[:1]
    if len(usual) > 1:
        raise ValueError(
            f"{table.source}: {' or '.join(map(repr, usual))} could be the {role}. Say which: --{role} COLUMN."
        )
    return usual[0] if usual else None


def _plain(name: str) -> str:
    return name.strip().lower()


def _absent(role: str, table: Table, others: Sequence[str | None]) -> str:
    usual = {name for names in USUAL_NAMES.values() for name in names}
    free = [name for name in table.frame.columns if name not in others and _plain(name) not in usual]
    which = free[0] if len(free) == 1 else "COLUMN"
    raise ValueError(
        f"{table.source} has no column with a usual name for the {role} ({', '.join(USUAL_NAMES[role])}). "
        f"Say which it is: --{role} {which}. It has: {', '.join(table.frame.columns)}."
    )


def read_rows(table: Table, columns: Columns, *, max_length: int | None, unique_ids: bool = False) -> Rows:
    """Make a record of each row, its labels still in their cells, or say why not.

    With `unique_ids` a row whose id stands in another one is refused; it is told of else.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    seen: dict[str, str] = {}
    again: Counter[str] = Counter()
    for row, cells in enumerate(_cells(table, columns)):
        where = table.where(row)
        given = verbatim(cells["id"])
        name = given or str(table.places[row])
        try:
            sequence = _sequence(cells["sequence"], counts, max_length)
            first = seen.setdefault(given, where) if given else where
            if first != where:
                again[given] += 1
                if unique_ids:
                    raise ValueError(f"the id {given!r} stands in {first} already")
            split = _split(cells["split"], cells["validation"]) if columns.split else None
            weight = _weight(cells["weight"]) if columns.weight else 1.0
            record = Record(id=name, sequence=sequence[:max_length], labels=(), split=split, where=where, weight=weight)
            labels = tuple(cells[f"target {place}"] for place in range(len(columns.target or ())))
            rows.append(Row(record=record, length=len(sequence), cells=labels, mask=cells["mask"]))
        except ValueError as error:
            problems.append(Problem(where, name, str(error)))
    notices = list(_sequence_notices(counts, max_length))
    if again and not unique_ids:
        names = ", ".join(list(again)[:SHOWN_IDS]) + ", …" * (len(again) > SHOWN_IDS)
        stand = "id stands" if len(again) == 1 else "ids stand"
        notices.append(f"{len(again):,} {stand} in several rows ({names}): every row is used, and keeps its place.")
    return Rows(rows=rows, problems=problems, notices=notices)


def _cells(table: Table, columns: Columns) -> Iterator[dict[str, Any]]:
    """What stands in the columns that matter, by their roles; None where there is no such column."""
    names = {role: getattr(columns, role) for role in ("sequence", "id", "split", "validation", "mask", "weight")}
    names |= {f"target {place}": name for place, name in enumerate(columns.target or ())}
    blank = [None] * table.frame.height
    values = [blank if name is None else table.frame[name].to_list() for name in names.values()]
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


def _sequence(raw: Any, counts: Counter[str], max_length: int | None) -> str:
    if raw is not None and not isinstance(raw, str):
        raise ValueError(f"the sequence is {raw!r}, expected text")
    sequence = clean(raw or "")
    text = raw or ""
    counts["lower"] += text != text.upper()
    counts["blank"] += text != text.strip()
    counts["stop"] += text.strip().endswith("*")
    counts["long"] += len(sequence) > TRAINED_LENGTH
    counts["cut"] += max_length is not None and len(sequence) > max_length
    return sequence


def _sequence_notices(counts: Counter[str], max_length: int | None) -> Iterator[str]:
    mended = {
        "lower": "in lower case",
        "blank": "with surrounding blanks",
        "stop": "with a trailing *",
    }
    parts = [f"{counts[key]:,} {text}" for key, text in mended.items() if counts[key]]
    if parts:
        yield f"Sequences mended: {', '.join(parts)}."
    if counts["cut"]:
        yield f"Sequences cut to the first {max_length:,} residues: {counts['cut']:,}."
    if counts["long"] > counts["cut"]:
        yield (
            f"Sequences longer than the {TRAINED_LENGTH:,} residues that ESM-2 was trained on: {counts['long']:,}, "
            "used whole (--max-length cuts)."
        )


def _split(value: Any, flag: Any) -> Split:
    name = "" if value is None else str(value).strip().lower()
    if name not in SPLITS:
        got = f"the split is {value!r}" if name else "the split is empty"
        raise ValueError(f"{got}; it can be train, valid, calibration or test")
    if SPLITS[name] == "train" and as_text(flag) in ("true", "1"):
        return "valid"
    return SPLITS[name]


def _weight(value: Any) -> float:
    weight = as_number(as_text(value))
    if not isinstance(weight, float) or not 0 <= weight < math.inf:
        raise ValueError(f"the weight is {value!r}, expected a number, 0 or more")
    return weight
