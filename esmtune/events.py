"""What a long computation says while it runs. Whoever calls decides whether anybody hears it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """A sentence that the user should read."""

    text: str


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a stage, such as sequences; `note` is a short word on how it goes.

    `scores` are there where validation records were just evaluated: each metric, and the loss, of the weights that
    are kept so far.
    """

    stage: str
    done: int
    total: int
    unit: str
    note: str = ""
    scores: Mapping[str, float | None] | None = None


class Terminated(Exception):  # noqa: N818 - nothing went wrong
    """A computation was asked to stop (SIGTERM), and has saved what it needs to go on."""


Watcher = Callable[[Notice | Progress], None]


def silent(event: Notice | Progress) -> None:
    """Hear nothing: what the library does unless told otherwise."""


def counted_as(number: int, noun: str) -> str:
    """So many of something, in words.

    >>> counted_as(1, "residue"), counted_as(1000, "class"), counted_as(2, "family")
    ('1 residue', '1,000 classes', '2 families')
    """
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
