"""What labels are, told from how they look: one a sequence or one a residue, numbers or names of classes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esmtune.labels import (
    UNKNOWN_NUMBERS,
    Reads,
    as_number,
    as_text,
    has_decimal_comma,
    has_unit,
    is_plain_number,
    unknown_in,
    verbatim,
)
from esmtune.records import Censored, Form, Level, Row, Target
from esmtune.targets import Column, is_per_residue

FEW_VALUES = 20
SHOWN_GRADES = 6
MOST_UNITS = 2  # behind numbers; with more of them they are part of names
GREAT_MAJORITY = 0.9  # of the rows, so that a few bad ones are listed and do not turn everything around
LONG_NAME = 20  # letters; what is longer is no name of a class


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is to be predicted, its columns taken apart, and a sentence on how each was told."""

    targets: tuple[Target, ...]
    columns: list[Column]
    notices: list[str]


def infer_targets(
    rows: Sequence[Row],
    names: Sequence[str],
    reads: Mapping[str, Reads],
    *,
    kinds: Sequence[str | None],
    level: Level | None,
    has_mask: bool,
) -> Told:
    """Tell form and kind of each column of labels, where its entry of `kinds` and `level` do not say it.

    `reads` says what the labels of each kind are.

    Raises:
        ValueError: where it is not clear, or the columns do not go together, with what to say.
    """
    several = len(names) > 1
    if several and set(kinds) == {"multilabel"} and _are_flags(rows, len(names)):
        return _one_of_many(rows, names, level)
    forms: list[Form] = [
        _form(rows, place, name if several else None, kinds[place], level) for place, name in enumerate(names)
    ]
    of_residues = [name for name, form in zip(names, forms, strict=True) if form not in ("one", "columns")]
    if of_residues and len(of_residues) < len(names):
        other = next(name for name in names if name not in of_residues)
        raise ValueError(
            f"{of_residues[0]!r} has a label for each residue, {other!r} has one for the sequence: train a predictor "
            "for each, or say --level."
        )
    targets, columns, notices = [], [], []
    for place, (name, form, kind) in enumerate(zip(names, forms, kinds, strict=True)):
        column = Column.of(rows, place, form, has_mask=has_mask)
        found, why = (kind, "as asked") if kind else _kind(column, form, name if several else None)
        targets.append(Target(name=name, kind=found, form=form))
        columns.append(column)
        notices.append(f"Task: {found} of {name!r}, {_reason(why, form, reads[found], asked=bool(kind))}.")
    return Told(targets=tuple(targets), columns=columns, notices=notices)


def _one_of_many(rows: Sequence[Row], names: Sequence[str], level: Level | None) -> Told:
    """Several columns of 0 and 1 as one target."""
    if level == "residue":
        each = " ".join(f"{name}:binary" for name in names)
        raise ValueError(
            "several columns of 0 and 1 have one label a sequence each: leave out level. Of residues each column is a "
            f"target of its own, without --task: --target {each}."
        )
    for name in names:
        if "," in name or ";" in name or name.startswith("?"):
            raise ValueError(f"the column {name!r} gives a class its name, which cannot have , or ; in it. Rename it.")
    target = Target(name=",".join(names), kind="multilabel", form="columns")
    columns = [Column.of(rows, place, "one") for place in range(len(names))]
    notice = f"Task: multilabel of {target.name!r}, as asked, a column for each class."
    return Told(targets=(target,), columns=columns, notices=[notice])


def _form(rows: Sequence[Row], place: int, name: str | None, kind: str | None, level: Level | None) -> Form:
    try:
        return form_of(
            [row.cells[place] for row in rows],
            [row.length for row in rows],
            level=level,
            multilabel=kind == "multilabel",
        )
    except ValueError as error:
        raise _of_column(name, error) from None


def _kind(column: Column, form: Form, name: str | None) -> tuple[str, str]:
    if form == "letters":
        classes = column.values.keys() - unknown_in(column.values, "name", form=form)
        return "binary" if len(classes) == 2 else "multiclass", ""
    try:
        return infer_kind(column.values, level="residue" if is_per_residue(form) else "sequence")
    except ValueError as error:
        raise _of_column(name, error) from None


def _of_column(name: str | None, error: ValueError) -> ValueError:
    """What is said of one of several columns, with `name`, whose kind is then said beside it."""
    return ValueError(f"{name!r}: {str(error).replace('--task ', f'--target {name}:')}" if name else str(error))


def _are_flags(rows: Sequence[Row], count: int) -> bool:
    """Whether all of so many columns hold 0 and 1, so that each is one class; lists of classes are targets each."""
    return all(not _is_list(cell) and ";" not in as_text(cell) for row in rows for cell in row.cells[:count])


def _reason(why: str, form: Form, reads: Reads, *, asked: bool) -> str:
    entry = "number" if reads == "number" else "name"
    ways = {
        "letters": "one letter a residue",
        "separated": f"one {entry} a residue, separated by ;",
        "list": f"a list of one {entry} a residue",
    }
    if form not in ways:
        return why
    return f"{why}, {ways[form]}" if asked else ways[form]


def form_of(
    cells: Sequence[Any], lengths: Sequence[int], *, level: Level | None = None, multilabel: bool = False
) -> Form:
    """Tell how the labels of a column are written, of sequences with these numbers of residues.

    >>> form_of(["CCHH", "CHE"], [4, 3]), form_of(["0.5;0.1", "1;nan;0"], [2, 3]), form_of([0.5, 1.5], [3, 3])
    ('letters', 'separated', 'one')

    Raises:
        ValueError: where it is not clear, with what to say.
    """
    if level == "sequence":
        return "one"
    rows = [(cell, length) for cell, length in zip(cells, lengths, strict=True) if not _is_blank(cell)]
    lists = sum(_is_list(cell) for cell, _ in rows)
    if multilabel and not any(_is_list(x) or ";" in as_text(x) for cell, _ in rows if _is_list(cell) for x in cell):
        if level == "residue":
            raise ValueError(
                "several classes a residue are written as a list of lists, a column of Parquet or JSON lines."
            )
        return "one"
    if level == "residue":
        return "list" if lists else _residue_form(rows)
    rows = [(cell, length) for cell, length in rows if length > 1]  # of one residue nothing can be told
    if _most(_is_list(cell) and len(cell) == length for cell, length in rows):
        return "list"
    if 2 * lists > len(rows):
        raise ValueError(
            "the labels are lists, but few have as many entries as their sequence has residues. If each names several "
            "classes, say --task multilabel; --level residue names the rows with another number of entries."
        )
    texts = [(verbatim(cell).strip(), length) for cell, length in rows if not _is_list(cell)]
    if _most(";" in text and text.count(";") + 1 == length for text, length in texts):
        return "separated"
    as_letters = _most(len(text) == length and ";" not in text and len(text.split()) == 1 for text, length in texts)
    if as_letters and not _most(is_plain_number(text) for text, _ in texts):
        _refuse_names(texts)
        return "letters"
    return "one"


def _residue_form(rows: Sequence[tuple[Any, int]]) -> Form:
    """How text is written that has labels of residues, whether it fits or not."""
    signs = [";" in as_text(cell) for cell, length in rows if length > 1]
    signs = signs or [len(as_text(cell)) > 1 for cell, _ in rows]
    return "separated" if any(signs) and 2 * sum(signs) >= len(signs) else "letters"


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple)


def _is_blank(cell: Any) -> bool:
    return not _is_list(cell) and as_text(cell).lower() in ("", *UNKNOWN_NUMBERS)


def _most(answers: Iterable[bool]) -> bool:
    found = list(answers)
    return bool(found) and sum(found) >= GREAT_MAJORITY * len(found)


def _refuse_names(texts: Sequence[tuple[str, int]]) -> None:
    """Ask where names of classes have by chance as many letters as sequences of one length have residues."""
    names, lengths = {text for text, _ in texts}, {length for _, length in texts}
    if len(lengths) == 1 and max(lengths) <= LONG_NAME and 2 * len(names) < len(texts) and len(names) <= FEW_VALUES:
        raise ValueError(
            f"the labels ({_shown(names)}) have as many letters as the sequences have residues: names of classes, or "
            "one letter a residue? Say which: --level sequence or --level residue."
        )


def infer_kind(values: Counter[str], *, level: Level = "sequence") -> tuple[str, str]:
    """Tell the task from the labels, or ask: its name and why.

    `values` are the labels as text, and how many points have each.

    >>> infer_kind(Counter(["0.5", "1.25", "7"]))
    ('regression', 'the labels are numbers')

    Raises:
        ValueError: where it is not clear, with the tasks to choose from.
    """
    numbers, bounds, others = _sorted_out(values)
    unknown = unknown_in(values, "name" if others else "number")
    names = sorted(text for text in values if text not in unknown)
    shown = _shown(names)
    if others.total() > numbers.total() and all(map(has_decimal_comma, others)):
        raise ValueError(f"the labels are numbers with a decimal comma ({shown}). Write them with a point: 0.5.")
    units = {has_unit(text) for text in others}
    if len(names) > 2 and others.total() > numbers.total() and len(units) <= MOST_UNITS and None not in units:
        raise ValueError(
            f"the labels are numbers with something behind them ({shown}). Write the number alone, and the unit into "
            "the column's name."
        )
    if level == "sequence" and 2 * sum(n for text, n in others.items() if ";" in text) > values.total():
        raise ValueError(
            f"the labels are lists ({shown}). If each names several classes, say --task multilabel; if there is one "
            "entry a residue, --level residue names the rows with another number of entries."
        )
    if len(names) != 2 and bounds and bounds.total() == numbers.total() and bounds.total() >= others.total():
        raise ValueError(
            f"the labels are bounds alone ({shown}). If they are of numbers, say --task regression; if they are names "
            "of classes, --task binary or --task multiclass."
        )
    if numbers.total() > bounds.total() > 0 and numbers.total() >= others.total():
        return "regression", "the labels are numbers"
    if len(names) == 2 and level == "sequence" and any(";" in name for name in names):
        raise ValueError(
            f"the labels take two values ({shown}), of which one has a ;. If they are the names of two classes, say "
            "--task binary; if they name several classes, --task multilabel."
        )
    if len(names) == 2:
        return "binary", f"the labels take two values, {' and '.join(names)}"
    if numbers and numbers.total() >= others.total():
        if _are_few(numbers, names):
            raise ValueError(
                f"the labels are {len(names)} {'values' if others else 'whole numbers'} ({shown}): amounts, names "
                "of classes, or grades? Say which: --task regression, --task multiclass, or --task ordinal."
            )
        return "regression", "the labels are numbers"
    if len(names) > 2 and level == "sequence":
        few = ",".join(names) if len(names) <= SHOWN_GRADES else "lowest,...,highest"
        more = f"; if they are grades, --task ordinal --task.order {few}, put in order."
        if ";" in "".join(others):
            more = ". If they name several classes a row, say --task multilabel."
        raise ValueError(
            f"the labels are text of {len(names):,} values ({shown}). If they are classes, say --task multiclass{more}"
        )
    return "multiclass", "the labels are text"


def _sorted_out(values: Counter[str]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Numbers, those of them that are bounds (>10), and what is neither a number nor unknown."""
    read = {text: as_number(text) for text in values}
    plain = {text for text, x in read.items() if isinstance(x, float)}
    bounds = {text for text, x in read.items() if isinstance(x, Censored)}
    words = {text for text in values if text.lower() in UNKNOWN_NUMBERS}
    parts = (plain | bounds, bounds, values.keys() - plain - bounds - words)
    numbers, censored, others = (Counter({text: values[text] for text in part}) for part in parts)
    return numbers, censored, others


def _are_few(numbers: Counter[str], names: Sequence[str]) -> bool:
    """Whether numbers are whole and so few that they may be names or grades."""
    whole = all(math.isfinite(x) and x == int(x) for x in map(float, numbers))
    return whole and 2 < len(names) <= FEW_VALUES and 2 * len(names) < numbers.total()


def _shown(values: Iterable[str]) -> str:
    names = sorted(values)
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
