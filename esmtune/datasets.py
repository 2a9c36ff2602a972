"""From a table to records: columns found, sequences mended, labels read, and every bad row named."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from esmtune.alphabet import TRAINED_LENGTH, clean
from esmtune.records import Label, Problem, Record, Split, Table
from esmtune.registry import nearest

USUAL_NAMES = {
    "sequence": ("sequence", "sequences", "seq", "aa_sequence", "protein_sequence", "mutated_sequence", "aa_seq"),
    "target": ("target", "label", "labels", "score", "fitness", "value", "y", "dms_score"),
    "id": ("id", "entry", "accession", "identifier", "seq_id", "protein_id"),
    "split": ("split", "set", "subset"),
}
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MISSING_NUMBERS = frozenset(("na", "n/a", "nan", "null", "none"))
INFERRED = ("regression", "binary", "multiclass")
FEW_VALUES = 20


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that matter."""

    sequence: str
    target: str | None
    id: str | None
    split: str | None
    validation: str | None = None  # FLIP marks validation rows within the training set


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a table's rows gave: records, their labels as text still, and why others gave none."""

    records: list[Record]
    problems: list[Problem]
    notices: list[str]


def find_columns(
    table: Table,
    *,
    sequence: str | None = None,
    target: str | None = None,
    id: str | None = None,
    split: str | None = None,
    labeled: bool = True,
) -> Columns:
    """Take the columns that the user named, and find the others by their usual names.

    Raises:
        ValueError: for a column that does not exist or cannot be told, with the columns that exist.
    """
    found = Columns(
        sequence=_find("sequence", sequence, table) or _absent("sequence", table),
        target=(_find("target", target, table) or _absent("target", table)) if labeled else None,
        id=_find("id", id, table),
        split=_find("split", split, table) if labeled else None,
    )
    flags = [name for name in table.frame.columns if _plain(name) == "validation"]
    return replace(found, validation=flags[0]) if flags and found.split else found


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


def _absent(role: str, table: Table) -> str:
    raise ValueError(
        f"{table.source} has no column with a usual name for the {role} ({', '.join(USUAL_NAMES[role])}). "
        f"Say which it is: --{role} COLUMN. It has: {', '.join(table.frame.columns)}."
    )


def read_rows(table: Table, columns: Columns, *, max_length: int | None, unique_ids: bool = True) -> Rows:
    """Make a record of each row, its label as text, or say why not."""
    records: list[Record] = []
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    seen: dict[str, str] = {}
    for row, raw, name, label, split in _cells(table, columns):
        where = table.where(row)
        given = _whole(name)
        name = given or str(table.places[row])
        try:
            sequence = _sequence(raw, counts, max_length)
            if unique_ids and given and seen.setdefault(given, where) != where:
                raise ValueError(f"the id {given!r} stands in {seen[given]} already")
            records.append(
                Record(id=name, sequence=sequence, label=_text(label) or None, split=_split(*split), where=where)
            )
        except ValueError as error:
            problems.append(Problem(where, name, str(error)))
    return Rows(records=records, problems=problems, notices=list(_sequence_notices(counts, max_length)))


def _cells(table: Table, columns: Columns) -> Iterator[tuple[int, Any, Any, Any, tuple[Any, Any]]]:
    frame, blank = table.frame, [None] * table.frame.height
    sequences, names, labels, splits, flags = (
        blank if column is None else frame[column].to_list()
        for column in (columns.sequence, columns.id, columns.target, columns.split, columns.validation)
    )
    has_split = columns.split is not None
    for row, (raw, name, label, split, flag) in enumerate(zip(sequences, names, labels, splits, flags, strict=True)):
        yield row, raw, name, label, (split if not has_split or split is not None else "", flag)


def _sequence(raw: Any, counts: Counter[str], max_length: int | None) -> str:
    if raw is not None and not isinstance(raw, str):
        raise ValueError(f"the sequence is {raw!r}, expected text")
    sequence = clean(raw or "")
    text = raw or ""
    counts["lower"] += text != text.upper()
    counts["blank"] += text != text.strip()
    counts["stop"] += text.strip().endswith("*")
    counts["long"] += len(sequence) > TRAINED_LENGTH
    if max_length is not None and len(sequence) > max_length:
        counts["cut"] += 1
        return sequence[:max_length]
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


def _split(value: Any, flag: Any) -> Split | None:
    if value is None:
        return None
    name = str(value).strip().lower()
    if name not in SPLITS:
        got = f"the split is {value!r}" if name else "the split is empty"
        raise ValueError(f"{got}; it can be train, valid or test")
    if SPLITS[name] == "train" and _text(flag).lower() in ("true", "1"):
        return "valid"
    return SPLITS[name]


def infer_kind(records: Sequence[Record]) -> tuple[str, str]:
    """Tell the task from the labels, or ask: its name and why.

    >>> def record(label): return Record(id="", sequence="M", label=label, split=None, where="")
    >>> infer_kind([record("0.5"), record("1.25"), record("7")])
    ('regression', 'the labels are numbers')

    Raises:
        ValueError: where it is not clear, with the tasks to choose from.
    """
    texts = [str(r.label) for r in records if r.label is not None]
    numbers = [x for x in map(_as_float, texts) if x is not None]
    others = [text for text in texts if _as_float(text) is None and text.lower() not in MISSING_NUMBERS]
    values = sorted(set(texts) if others else {text for text in texts if _as_float(text) is not None})
    shown = ", ".join(values[:6]) + (", …" if len(values) > 6 else "")
    if len(others) > len(numbers) and all(_DECIMAL_COMMA.fullmatch(text) for text in others):
        raise ValueError(f"the labels are numbers with a decimal comma ({shown}). Write them with a point: 0.5.")
    if len(values) == 2:
        return "binary", f"the labels take two values, {' and '.join(values)}"
    if len(numbers) >= len(others) and numbers:
        whole = all(math.isfinite(x) and x == int(x) for x in numbers)
        if whole and 2 < len(values) <= FEW_VALUES and 2 * len(values) < len(numbers):
            raise ValueError(
                f"the labels are {len(values)} {'values' if others else 'whole numbers'} ({shown}): amounts or names "
                "of classes? Say which: --task regression or --task multiclass."
            )
        return "regression", "the labels are numbers"
    if len(values) > 2:
        raise ValueError(
            f"the labels are text of {len(values):,} values ({shown}). If they are classes, say --task multiclass."
        )
    return "multiclass", "the labels are text"


def read_labels(records: Iterable[Record], kind: str) -> tuple[list[Record], list[Problem]]:
    """Read labels that are text still as the numbers or class names that a task wants; unknown ones stay None."""
    known = list(records)
    texts = {str(r.label) for r in known if r.label is not None}
    all_numbers = all(_as_float(text) is not None for text in texts if text.lower() not in MISSING_NUMBERS)
    parse = LABELS_ARE_NUMBERS.get(kind, _class_name)
    read, problems = [], []
    for record in known:
        text = str(record.label)
        try:
            missing = record.label is None or ((all_numbers or parse is _number) and text.lower() in MISSING_NUMBERS)
            read.append(replace(record, label=None if missing else parse(text)))
        except ValueError as error:
            problems.append(Problem(record.where, record.id, str(error)))
    return read, problems


def _number(text: str) -> Label:
    value = _as_float(text)
    if value is None:
        hint = "; write a decimal point, not a comma" if _DECIMAL_COMMA.fullmatch(text) else ""
        raise ValueError(f"the label {text!r} is no number{hint}")
    if not math.isfinite(value):
        raise ValueError(f"the label {text!r} is not finite")
    return value


def _class_name(text: str) -> Label:
    return text


LABELS_ARE_NUMBERS: dict[str, Callable[[str], Label]] = {"regression": _number}


def _text(label: Any) -> str:
    """A label as text, so that 1, and the 1.0 that pandas writes where labels are missing, are one class."""
    text = _whole(label).strip()
    return text.split(".")[0] if _WHOLE.fullmatch(text) else text


def _whole(value: Any) -> str:
    """A cell as text, as it stands; a number that is whole without the .0 that a frame with gaps gives it."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0+")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")


def _as_float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if value != value or "_" in text else value


def check_labels(records: Sequence[Record], kind: str, target: str) -> tuple[list[Record], list[Problem]]:
    """Refuse labels that nothing can be learned from; leave out and name rows whose class the training rows lack.

    Raises:
        ValueError: if there is no labeled training row, only one value, or not the number of classes the task wants.
    """
    train = [r.label for r in records if r.split == "train" and r.label is not None]
    if not train:
        raise ValueError(f"no training row is left that has a label in {target!r}.")
    values = set(train)
    if len(values) == 1:
        what = "value" if kind in LABELS_ARE_NUMBERS else "class"
        raise ValueError(
            f"all {len(train):,} training labels in {target!r} are {train[0]!r}: "
            f"with one {what} nothing can be learned."
        )
    if kind in LABELS_ARE_NUMBERS:
        return list(records), []
    if kind == "binary" and len(values) > 2:
        raise ValueError(f"--task binary needs two classes, {target!r} has {len(values):,}. Say --task multiclass.")
    strangers = [
        Problem(r.where, r.id, f"the class {r.label!r} of this {r.split} row is in no training row")
        for r in records
        if r.label is not None and r.label not in values
    ]
    return [r for r in records if r.label is None or r.label in values], strangers
