"""What was measured and predicted, point by point."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from esmtune.labels import UNKNOWN_LETTER, Reads, as_text
from esmtune.records import Target


@dataclass(frozen=True, kw_only=True)
class Points:
    """What was measured and predicted of one target, point by point, on records that were held out.

    Unknown labels are left out, and labels that are bounds (`>10`), of which there are `bounds`.
    """

    target: Target
    reads: Reads
    record: Int[np.ndarray, "points"]  # row of the predictions
    residue: Int[np.ndarray, "points"]  # from 1; 0 for a whole sequence
    labels: np.ndarray  # [points] float64, or names; [points classes] of several classes at once, NaN where unknown
    predictions: np.ndarray  # the same
    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, "points classes"] | None
    lower: Float[np.ndarray, "points"] | None
    upper: Float[np.ndarray, "points"] | None
    sets: tuple[str, ...] | None  # classes joined by ;
    bounds: int = 0

    def __len__(self) -> int:
        return len(self.record)

    @cached_property
    def errors(self) -> Float[np.ndarray, "points"]:
        """How wrong each is: the absolute error, 0 or 1 for a class, grades apart, or the share of wrong cells."""
        if self.reads == "number":
            return np.abs(self.predictions - self.labels)
        if self.reads == "names":
            known = np.isfinite(self.labels)
            return (known & (self.labels != self.predictions)).sum(1) / known.sum(1)
        if self.target.kind == "ordinal":
            return np.abs(self.indices(self.predictions) - self.indices(self.labels)).astype(np.float64)
        return (self.labels != self.predictions).astype(np.float64)

    def indices(self, names: np.ndarray) -> Int[np.ndarray, "points"]:
        """Names of classes as their numbers, in the order of the task."""
        place = {name: number for number, name in enumerate(self.classes)}
        return np.array([place[name] for name in names], dtype=np.int64)

    def where(self, chosen: Bool[np.ndarray, "points"]) -> "Points":
        """Only some of them."""
        own = {name: getattr(self, name) for name in ("record", "residue", "labels", "predictions")}
        own |= {name: getattr(self, name) for name in ("probabilities", "lower", "upper")}
        sets = None if self.sets is None else tuple(np.array(self.sets, dtype=object)[chosen])
        return replace(self, **{name: x if x is None else x[chosen] for name, x in own.items()}, sets=sets)


def cells_of(cell: str | None, form: str, classes: Collection[str] = ()) -> list[str]:
    """The entries of a cell, one a point, empty where unknown; of `classes` is what an older release took for one.

    >>> cells_of("H?E", "letters"), cells_of("0.5;nan", "separated"), cells_of("[1.0,null]", "list")
    (['H', '', 'E'], ['0.5', ''], ['1', ''])
    """
    if cell is None:
        return [""] if form == "one" else []
    if form == "one":
        return [cell]
    if form == "list" and cell.startswith("["):
        parts = ["" if x is None else as_text(x) for x in json.loads(cell)]
    elif form == "letters" and ";" not in cell:
        parts = list(cell)
    else:
        parts = cell.split(";")
    unknown = {"nan", UNKNOWN_LETTER} - set(classes) if form == "letters" else {"nan"}
    return ["" if part in unknown else part for part in parts]
