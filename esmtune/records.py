"""A labeled sequence, and many of them; a table as its file has it; a row that cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

Label = float | str | None  # a number, the name of a class, unknown
Split = Literal["train", "valid", "test"]

SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sequence and what was measured on it. A label of None is unknown, never zero."""

    id: str
    sequence: str
    label: Label
    split: Split | None
    where: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A user's table: every column as it stands in the file, and the place of each row in it."""

    frame: pl.DataFrame
    source: str
    places: Sequence[int]  # line or row number of each row, as a person counts
    unit: Literal["line", "row"]
    sha256: str

    def where(self, row: int) -> str:
        """Say where a row stands.

        >>> Table(frame=pl.DataFrame(), source="tm.csv", places=[2, 3], unit="line", sha256="").where(1)
        'tm.csv, line 3'
        """
        return f"{self.source}, {self.unit} {self.places[row]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be used."""

    where: str
    id: str
    reason: str

    def __str__(self) -> str:
        name = "" if self.where.endswith(f" {self.id}") else f" ({self.id})"  # a row without an id goes by its number
        return f"{self.where}{name}: {self.reason}"


class BadRowsError(ValueError):
    """Rows that cannot be used: all of them, of which the message shows the first 20."""

    def __init__(self, problems: Sequence[Problem], advice: str):
        self.problems = tuple(problems)
        rows = "1 row" if len(problems) == 1 else f"{len(problems):,} rows"
        lines = [f"{rows} cannot be used:", *(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"  … and {len(problems) - SHOWN_PROBLEMS:,} more")
        super().__init__("\n".join([*lines, advice]))


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The records of one run or evaluation, what they are to predict, and what was noticed while reading them."""

    records: tuple[Record, ...]
    target: str
    kind: str  # the name of the task that the labels call for
    sha256: str  # of the files that were read, in order
    notices: tuple[str, ...]
    problems: tuple[Problem, ...]  # of rows that were left out because the user said so

    def of(self, split: Split | None) -> list[Record]:
        """The records with a label that belong to a split, or all of them."""
        return [r for r in self.records if r.label is not None and split in (None, r.split)]
