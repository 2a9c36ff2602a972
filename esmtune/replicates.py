"""Several rows of one sequence: how far apart their labels are, and one record for all of them on request."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from esmtune.events import counted_as
from esmtune.labels import Reads
from esmtune.records import Censored, Label, Record, Target, of_target
from esmtune.targets import is_per_residue, together


def with_replicates(
    records: Sequence[Record], targets: Sequence[Target], reads: Mapping[str, Reads], how: Literal["keep", "mean"]
) -> tuple[list[Record], list[str]]:
    """Say how many rows there are of the same sequence and how they differ; average them with `mean`.

    The mean is weighted by the weights of the rows, which add up: a squared loss has the same gradient as before.
    Rows of different splits stay apart, and so do rows with a bound (`>10`), which no mean can be taken of, and rows
    that lack other targets, unless each target gets the same weight: a record has one for all of them, and for all of
    its residues, those that some of the rows lack included.

    Raises:
        ValueError: if classes are to be averaged.
    """
    if how == "mean":
        classes = [target for target in targets if reads[target.kind] != "number"]
        if classes:
            raise ValueError(
                f"--replicates mean averages numbers, but {classes[0].name!r} is {classes[0].kind}. "
                "Say --replicates keep."
            )
    groups = [group for group in _grouped(records, lambda r: r.sequence) if len(group) > 1]
    if not groups:
        return list(records), []
    said = f"Replicates: {sum(map(len, groups)):,} rows of {counted_as(len(groups), 'sequence')}"
    differing = "".join(_differing(groups, place, targets, reads) for place in range(len(targets)))
    if how == "keep":
        numbers = any(reads[target.kind] == "number" for target in targets)
        return list(records), [f"{said}{differing}; kept as they are{' (--replicates mean averages)' * numbers}."]
    averaged = [
        record
        for rows in _grouped(records, lambda r: (r.split, r.where if _has_bound(r, targets) else None, r.sequence))
        for group in _of_one_weight(rows, targets)
        for record in ([_mean(group, targets)] if len(group) > 1 else group)
    ]
    bounds = sum(_has_bound(record, targets) for record in averaged)
    apart = f" ({counted_as(bounds, 'row')} with a bound cannot be averaged)" if bounds else ""
    return averaged, [f"{said}{differing}; averaged: {len(records):,} rows became {len(averaged):,}{apart}."]


def weighted(records: list[Record], column: str | None) -> list[Record]:
    """Weights with a mean of 1 over the training records, so that a loss keeps its size.

    Raises:
        ValueError: if no training row has any.
    """
    weights = [r.weight for r in records if r.split == "train"]
    total = math.fsum(weights)
    if not total:
        raise ValueError(f"all {len(weights):,} training rows have the weight 0 in {column!r}.")
    if total == len(weights):
        return records
    return [replace(r, weight=r.weight * len(weights) / total) for r in records]


def _grouped(records: Sequence[Record], key: Callable[[Record], Hashable]) -> list[list[Record]]:
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return list(groups.values())


def _has_bound(record: Record, targets: Sequence[Target]) -> bool:
    return any(
        isinstance(x, Censored) for place in range(len(targets)) for x in of_target(record.labels, place, targets)
    )


def _of_one_weight(rows: Sequence[Record], targets: Sequence[Target]) -> list[list[Record]]:
    """All rows together if each target has the same weight in them, else those that lack the same targets."""
    there = [_known(record, targets) for record in rows]
    weights = [math.fsum(r.weight for r, known in zip(rows, there, strict=True) if place in known)
               for place in frozenset().union(*there)]  # fmt: skip
    is_one = not weights or math.isclose(min(weights), max(weights))
    return [list(rows)] if is_one else _grouped(rows, lambda record: _known(record, targets))


def _known(record: Record, targets: Sequence[Target]) -> frozenset[int]:
    """The places of the targets that it says something of."""
    places = range(len(targets))
    return frozenset(p for p in places if any(x is not None for x in of_target(record.labels, p, targets)))


def _differing(
    groups: Sequence[Sequence[Record]], place: int, targets: Sequence[Target], reads: Mapping[str, Reads]
) -> str:
    """How much the labels of one sequence differ, pooled over sequences."""
    target = targets[place]
    of = f" in {target.name!r}" if len(targets) > 1 else ""
    points = [
        point for group in groups for point in zip(*(of_target(r.labels, place, targets) for r in group), strict=True)
    ]
    if reads[target.kind] != "number":
        count = sum(len({x for x in point if x is not None}) > 1 for point in points)
        what = counted_as(count, "residue" if is_per_residue(target.form) else "sequence")
        return f", {what} with labels that differ{of}" if count else ""
    squares, freedom = 0.0, 0
    for point in points:
        numbers = [x for x in point if isinstance(x, float)]
        if len(numbers) > 1:
            mean = math.fsum(numbers) / len(numbers)
            squares += math.fsum((x - mean) ** 2 for x in numbers)
            freedom += len(numbers) - 1
    return f", standard deviation {math.sqrt(squares / freedom):.3g}{of} (pooled)" if freedom else ""


def _mean(group: Sequence[Record], targets: Sequence[Target]) -> Record:
    """One record of several, where the first of them stood."""
    each = [
        [_mean_label(point, group) for point in zip(*(of_target(r.labels, place, targets) for r in group), strict=True)]
        for place in range(len(targets))
    ]
    there = [_known(record, targets) for record in group]
    some = min(frozenset().union(*there), default=None)  # any target: all have the same weight
    weight = math.fsum(r.weight for r, known in zip(group, there, strict=True) if some is None or some in known)
    return replace(group[0], labels=together(each), weight=weight)


def _mean_label(point: Sequence[Label], group: Sequence[Record]) -> Label:
    known = [(x, r.weight) for x, r in zip(point, group, strict=True) if isinstance(x, float)]
    if not known:
        return None
    if not any(weight for _, weight in known):
        known = [(x, 1.0) for x, _ in known]
    return math.fsum(x * weight for x, weight in known) / math.fsum(weight for _, weight in known)
