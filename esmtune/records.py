"""A labeled sequence, and many of them; a table as its file has it; a row that cannot be used."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import polars as pl

from esmtune.config import Level, Split

SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT = SPLITS[1:]
UNFITTED: tuple[Split, ...] = ("valid", "calibration")  # what a fold holds out: to stop by, to calibrate with
Form = Literal["one", "columns", "letters", "separated", "list"]  # how labels are written

SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Censored:
    """A measurement beyond what the instrument could tell: the true value is above (>) or below (<) the one given.

    >>> str(Censored(10.0, ">"))
    '>10'
    """

    value: float
    side: Literal[">", "<"]

    def __str__(self) -> str:
        return f"{self.side}{self.value:.12g}"


@dataclass(frozen=True, slots=True)
class Marks:
    """Those of several classes that hold, and those of which it is unknown whether they do.

    >>> str(Marks(frozenset({"membrane", "nucleus"}), frozenset({"cytosol"})))
    'membrane;nucleus;?cytosol'
    """

    yes: frozenset[str]
    unknown: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return ";".join([*sorted(self.yes), *(f"?{name}" for name in sorted(self.unknown))]) or ";"


# What was measured at one point, a sequence or a residue: a number, the name of a class, a bound, several classes,
# one of each for several targets; None is unknown, never zero.
Label = float | str | Censored | Marks | tuple[Any, ...] | None


def of_target(labels: Sequence[Label], place: int, targets: Sized) -> list[Label]:
    """The labels of one of the targets; those of a single target are their own.

    >>> of_target([(61.5, "yes"), None], 1, ("tm", "binds"))
    ['yes', None]
    """
    if len(targets) == 1:
        return list(labels)
    return [None if label is None else label[place] for label in labels]  # pyright: ignore[reportIndexIssue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sequence and what was measured on it: one label for it all, or one for each residue."""

    id: str
    sequence: str
    labels: tuple[Label, ...]
    split: Split | None
    where: str
    weight: float = 1.0

    @property
    def is_labeled(self) -> bool:
        """Whether anything is known about any point."""
        return any(label is not None for label in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A column that is to be predicted: its name, the name of the task it calls for, how its labels are written."""

    name: str
    kind: str
    form: Form


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a row of a table gave: a record that lacks its labels yet, and the cells that hold them."""

    record: Record
    length: int  # residues of the whole sequence, of which the record may have the first ones only
    cells: tuple[Any, ...]  # as they stand, one for each column with labels
    mask: Any


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
    targets: tuple[Target, ...]
    sha256: str  # of the files that were read, in order
    notices: tuple[str, ...]
    problems: tuple[Problem, ...]  # of rows that were left out because the user said so
    held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # training sequence to the folds that hold it out

    @property
    def kind(self) -> str:
        """The name of the task that the labels call for."""
        return self.targets[0].kind if len(self.targets) == 1 else "multitask"

    @property
    def level(self) -> Level:
        """Whether labels belong to sequences or to residues."""
        return "sequence" if self.targets[0].form in ("one", "columns") else "residue"

    def of(self, split: Split | None) -> list[Record]:
        """The records with a label that belong to a split, or all of them."""
        return [r for r in self.records if r.is_labeled and split in (None, r.split)]


def order_of(order: str, name: str, targets: Sequence[Target]) -> str:
    """The order of the grades of one target: it is one for all that have grades, or one each, separated by `;`.

    >>> both = [Target(name=name, kind="ordinal", form="one") for name in ("x", "y")]
    >>> order_of("low,high;no,yes", "y", both), order_of("low,high", "y", both)
    ('no,yes', 'low,high')

    Raises:
        ValueError: for another number of orders than there are targets with grades.
    """
    graded = [target.name for target in targets if target.kind == "ordinal"]
    if len(graded) == 1 or ";" not in order:
        return order
    orders = order.split(";")
    if len(orders) != len(graded):
        raise ValueError(
            f"order is {order!r}, which are {len(orders)} orders, but targets with grades are {len(graded)}: give one "
            "for all, or one each in the order of the targets, separated by ;."
        )
    return orders[graded.index(name)]
