"""How labels stand in the cells of a table: taken apart into points, read, and written again."""

import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

from esmtune.events import counted_as
from esmtune.records import Censored, Form, Label, Marks, Target

Reads = Literal["number", "name", "names"]  # what a task's labels are: float or Censored, str, Marks
READS: dict[str, Reads] = {
    "regression": "number",
    "binary": "name",
    "multiclass": "name",
    "ordinal": "name",
    "multilabel": "names",
    "mlm": "name",
}
# Among names only the spellings that pandas takes as missing: Na is sodium, and none may well be a grade.
UNKNOWN_NAMES = frozenset(("NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A"))
UNKNOWN_NUMBERS = frozenset((*(name.lower() for name in UNKNOWN_NAMES), "-nan"))
UNKNOWN_LETTER = "?"  # - and . and X may well be classes of residues
TRUTH = {"1": True, "0": False, "true": True, "false": False}
_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0+")
_DECIMAL_COMMA = re.compile(r"(>=?|<=?|≥|≤)?\s*[+-]?[0-9]+,[0-9]+")
_WITH_UNIT = re.compile(r"(?:>=?|<=?|≥|≤)?\s*[+-]?[0-9]+(?:\.[0-9]+)?\s*([^\s0-9.,;:/+-][^0-9;]*)")
_BOUND = re.compile(r"(>=?|<=?|≥|≤)\s*(.+)")


def verbatim(value: Any) -> str:
    """A cell as text, as it stands; a number that is whole without the .0 that a frame with gaps gives it."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def as_text(value: Any) -> str:
    """A label as text, the same however a file or frame writes it; empty if it has none.

    >>> [as_text(x) for x in (1, 1.0, "1.0", True, "TRUE", " a ", float("nan"), ["a", "b"], [])]
    ['1', '1', '1', 'true', 'true', 'a', '', 'a;b', ';']
    """
    if isinstance(value, list | tuple):
        return ";".join(text for text in map(as_text, value) if text) if value else ";"
    text = verbatim(value).strip()
    if _WHOLE.fullmatch(text):
        return text.split(".")[0]
    return text.lower() if text.lower() in TRUTH else text


def as_number(text: str) -> float | Censored | None:
    """The number that a text is, or the bound, if it is one.

    >>> as_number("2.5"), as_number(">= 10"), as_number("high")
    (2.5, Censored(value=10.0, side='>'), None)
    """
    bound = _BOUND.fullmatch(text)
    try:
        value = float(bound[2] if bound else text)
    except ValueError:
        return None
    if value != value or "_" in text:
        return None
    return Censored(value, ">" if bound[1][0] in ">≥" else "<") if bound else value


def is_plain_number(text: str) -> bool:
    """Whether people write a number like this, and not 0011 or a row of more digits than a number can have."""
    digits = text.isdecimal() and len(text) > 1 and (text.startswith("0") or len(text) > 17)
    return as_number(text) is not None and not digits


def has_decimal_comma(text: str) -> bool:
    """Whether it is a number as some countries write it."""
    return _DECIMAL_COMMA.fullmatch(text) is not None


def entries(cell: Any, form: Form, length: int, what: str = "label") -> list[str] | None:
    """Take a cell apart into one text a point, empty where unknown; None if nothing stands in it.

    `length` is the number of residues.

    >>> entries("HHE", "letters", 3), entries("0.5;nan;2.0", "separated", 3), entries("", "letters", 3)
    (['H', 'H', 'E'], ['0.5', 'nan', '2'], None)

    Raises:
        ValueError: if there is not one for each residue.
    """
    if form in ("one", "columns"):
        return [text] if (text := as_text(cell)) else None
    if cell is None or cell != cell:
        return None
    parts = list(map(as_text, cell)) if isinstance(cell, list | tuple) else _parts(verbatim(cell).strip(), form, length)
    if parts is not None and len(parts) != length:
        raise ValueError(f"{counted_as(len(parts), what)} for {counted_as(length, 'residue')}")
    return parts


def _parts(text: str, form: Form, length: int) -> list[str] | None:
    is_whole = form == "letters" and len(text) == length  # NA may be the labels of two residues
    if not text or (text.lower() in UNKNOWN_NUMBERS and not is_whole):
        return None
    if ";" in text or form != "letters" or length == 1:
        return list(map(as_text, text.split(";")))
    blank = re.search(r"\s", text)
    if blank and is_whole:
        raise ValueError(
            f"residue {blank.start() + 1} has a blank for a label; write a letter, or {UNKNOWN_LETTER} where it "
            "is unknown"
        )
    return list(text)


def counted(cell: Any, length: int) -> list[bool]:
    """Read a mask: for each residue whether its label counts.

    >>> counted("011", 3), counted([True, False], 2)
    ([False, True, True], [True, False])

    Raises:
        ValueError: if there is not a 0 or 1 for each residue.
    """
    parts = entries(cell, "letters", length, "mask value")
    if parts is None:
        raise ValueError(f"the mask is empty, expected 0 or 1 for each of {counted_as(length, 'residue')}")
    for position, part in enumerate(parts, start=1):
        if part not in TRUTH:
            raise ValueError(f"the mask of residue {position} is {part!r}, expected 0 or 1")
    return [TRUTH[part] for part in parts]


def unknown_in(values: Collection[str], reads: Reads, known: Collection[str] = (), *, form: Form = "one") -> set[str]:
    """Which of the texts of a column mean that nothing is known: NA and its like, unless it is a class' name.

    >>> sorted(unknown_in(["H", "?", "nan"], "name", form="letters")), unknown_in(["H", "?"], "name", form="separated")
    (['?', 'nan'], set())
    """
    letters = {UNKNOWN_LETTER} if form == "letters" else set()
    words = {text for text in values if text.lower() in UNKNOWN_NUMBERS or text in letters}
    if reads == "number" or all(as_number(text) is not None for text in values if text not in words):
        return words - set(known)
    return {text for text in words if text in UNKNOWN_NAMES | letters} - set(known)


def read_label(text: str, reads: Reads, known: Collection[str] = ()) -> Label:
    """Read one label, of whose names a predictor may know some already.

    >>> read_label("2.5", "number"), read_label(">10", "number"), str(read_label("b;a", "names"))
    (2.5, Censored(value=10.0, side='>'), 'a;b')

    Raises:
        ValueError: if it is not what the task reads.
    """
    if reads == "number":
        return _number(text)
    if reads == "names":
        return _marks(text)
    if text in TRUTH and text not in known:  # release 0.1 wrote booleans as Python does
        return next((name for name in known if name.lower() == text), text)
    return text


def _number(text: str) -> Label:
    value = as_number(text)
    if value is None:
        hint = "; write a decimal point, not a comma" if has_decimal_comma(text) else ""
        hint = "; --level residue reads one entry a residue" if ";" in text else hint
        hint = "; write the number alone, or a bound such as >10" if text[:1] in "~≈=" or "±" in text else hint
        hint = "; write the number alone, without its unit" if has_unit(text) else hint
        raise ValueError(f"the label {text!r} is no number{hint}")
    if not math.isfinite(value.value if isinstance(value, Censored) else value):
        raise ValueError(f"the label {text!r} is not finite")
    return value


def _marks(text: str) -> Label:
    names = [name for name in map(as_text, text.split(";")) if name]
    for name in names:
        if name in UNKNOWN_NAMES:
            raise ValueError(
                f"the label {text!r} has {name!r} among its classes; leave it out, or the cell empty if all is unknown"
            )
    unknown = frozenset(name[1:] for name in names if name.startswith("?"))
    return Marks(frozenset(name for name in names if not name.startswith("?")), unknown)


def natural(name: str) -> tuple[int, float, tuple[str | int, ...], str]:
    """What to sort by: numbers by their size, before words by the alphabet and the numbers within them.

    >>> sorted(["g10", "10", "g2", "9.5"], key=natural)
    ['9.5', '10', 'g2', 'g10']
    """
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return (0, number, (), name)
    return (1, 0.0, tuple(int(x) if i % 2 else x for i, x in enumerate(re.split(r"([0-9]+)", name))), name)


def grades_of(names: Collection[str], order: str = "") -> list[str]:
    """The grades from the lowest to the highest: as `order` names them, separated by commas, or numbers by their size.

    >>> grades_of(["10", "2"]), grades_of(["high", "low"], "low,medium,high")
    (['2', '10'], ['low', 'medium', 'high'])

    Raises:
        ValueError: for words without an order, or an order that names one twice or leaves one out.
    """
    words = sorted(name for name in names if as_number(name) is None)
    if words and not order:
        raise ValueError(
            f"the grades are words ({', '.join(words[:6])}), whose order nobody can tell. Say it, from lowest to "
            f"highest: --task.order {','.join(words[:6])}, put right."
        )
    grades = [name.strip() for name in order.split(",")] if order else sorted(names, key=natural)
    missing = sorted(set(names) - set(grades), key=natural)
    if missing or len(set(grades)) < len(grades):
        what = f"leaves out {', '.join(missing)}" if missing else "names a grade twice"
        raise ValueError(f"order is {order!r}, which {what}: name every grade once, from the lowest to the highest.")
    return grades


def has_unit(text: str) -> str | None:
    """What stands behind a number, if that is all there is; None of anything else.

    >>> has_unit("47.0 C"), has_unit("47%"), has_unit("47.0"), has_unit("P53")
    ('C', '%', None, None)
    """
    found = _WITH_UNIT.fullmatch(text)
    return found[1] if found else None


def is_marked(text: str) -> bool | None:
    """Read a cell of a column that says of one class whether it holds; None if it is unknown.

    Raises:
        ValueError: if it is neither 0 nor 1.
    """
    if not text or text.lower() in UNKNOWN_NUMBERS:
        return None
    if text not in TRUTH:
        raise ValueError(f"the label {text!r} is neither 0 nor 1, as several columns of a multilabel task must be")
    return TRUTH[text]


def set_written(names: Sequence[str], classes: Collection[str], between: str) -> str:
    """Write a set of classes as a text, or as a JSON list where a class has a sign in its name that would be misread.

    >>> set_written(["a", "b"], ["a", "b"], ";"), set_written(["a;b", "c"], ["a;b", "c"], ";")
    ('a;b', '["a;b", "c"]')
    """
    if any(between in name or name.startswith("[") for name in classes):
        return json.dumps(list(names), ensure_ascii=False)
    return between.join(names)


def set_read(text: str, between: str) -> list[str]:
    """The classes of a set that `set_written` wrote.

    >>> set_read("a;b", ";"), set_read('["a;b", "c"]', ";"), set_read("", ";")
    (['a', 'b'], ['a;b', 'c'], [])
    """
    if text.startswith("["):
        return json.loads(text)
    return text.split(between) if text else []


def written(target: Target, values: Sequence[Label]) -> Any:
    """Write the labels of one record as a cell in the form of a target, which reads as it was written.

    Where a label is unknown, letters have `?` and `;`-separated lists `nan`. Numbers have 6 digits.

    >>> written(Target(name="ss3", kind="multiclass", form="letters"), ["H", "H", "E"])
    'HHE'
    >>> written(Target(name="ss3", kind="multiclass", form="letters"), ["H", None, "E"])
    'H?E'
    >>> written(Target(name="scores", kind="regression", form="separated"), [0.5, None, 1 / 3])
    '0.5;nan;0.333333'
    """
    if target.form in ("one", "columns"):
        (value,) = values
        return str(value) if isinstance(value, Censored | Marks) else value
    if target.form == "list":
        as_texts = any(isinstance(x, Censored) for x in values)  # a list has entries of one type
        return [x if x is None or (isinstance(x, float) and not as_texts) else str(x) for x in values]
    known = [x for x in values if x is not None]
    if target.form == "letters" and all(isinstance(x, str) and len(x) == 1 and x != UNKNOWN_LETTER for x in known):
        return "".join(UNKNOWN_LETTER if x is None else str(x) for x in values)
    return ";".join("nan" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in values)
