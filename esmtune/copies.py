"""The same sequence in several rows: with one label or with several, in one split or across them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from esmtune.findings import Facts, Finding, each
from esmtune.records import Label, Record, of_target


def copies(facts: Facts) -> Iterator[Finding]:
    """Find leaks (a sequence in two splits), conflicts (a sequence with two labels), and plain duplicates."""
    groups = groups_of_copies(facts.records)
    if not groups:
        return
    allowed = tolerances(facts)
    across, within, again, torn = [], [], [], []
    for group in groups:
        parts: dict[str | None, list[int]] = defaultdict(list)
        for place in group:
            parts[facts.records[place].split].append(place)
        if len(parts) > 1:
            across.append(group)
            torn += [group] if differ(facts, group, allowed) else []
        for part in parts.values():
            if len(part) > 1 and differ(facts, part, allowed):
                within.append(part)
            else:
                again += part[1:]
    yield from _leaks(facts, across, torn, allowed)
    if within:
        yield Finding(
            name="conflict", severity="warning", count=len(within), ids=facts.ids(x for group in within for x in group),
            text=f"{each(len(within), 'sequence stands', 'sequences stand')} in several rows of one split with labels "
            f"that contradict each other{_beyond(allowed)}: mistaken samples, other conditions, or noise. Keep the "
            "right row of each, or leave all of them out.",
        )  # fmt: skip
    if again:
        yield Finding(
            name="duplicate", severity="note", count=len(again), ids=facts.ids(again),
            text=f"{each(len(again), 'row repeats', 'rows repeat')} a sequence of the same split with the same label, "
            "or nearly so: these sequences count several times. Replicates may stay; copies are better taken out.",
        )  # fmt: skip


def groups_of_copies(records: Sequence[Record]) -> list[list[int]]:
    """The places of records that have the same sequence, in order.

    >>> rows = [Record(id="", sequence=s, labels=(1.0,), split=None, where="") for s in ("MK", "GG", "MK")]
    >>> groups_of_copies(rows)
    [[0, 2]]
    """
    keys = np.fromiter((hash(r.sequence) for r in records), np.int64, len(records))
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    repeated = np.zeros(len(records), bool)
    repeated[:-1] |= same
    repeated[1:] |= same
    groups: dict[str, list[int]] = defaultdict(list)  # by the text itself: a hash may be that of two sequences
    for place in np.sort(order[repeated]):
        groups[records[place].sequence].append(int(place))
    return [group for group in groups.values() if len(group) > 1]


def tolerances(facts: Facts) -> list[float | None]:
    """The standard deviation that numbers of one sequence may have, for each target; None for classes.

    It is that of all labels divided by the root of 2. Replicates have half the variance of all labels then: were all
    rows like these, half of what is to be predicted would be noise. Two rows reach it where they differ by as much as
    the standard deviation of all labels.
    """
    found: list[float | None] = []
    for place, target in enumerate(facts.targets):
        if facts.reads[target.kind] != "number":
            found.append(None)
            continue
        values, _ = facts.numbers(place)
        found.append(float(values.std()) / 2**0.5 if len(values) else 0.0)
    return found


def differ(facts: Facts, group: Sequence[int], allowed: Sequence[float | None]) -> bool:
    """Whether rows of one sequence have labels that contradict each other, at any point and for any target."""
    rows = [facts.records[place] for place in group]
    return any(
        _contradict(point, most)
        for place, most in enumerate(allowed)
        for point in zip(*(of_target(row.labels, place, facts.targets) for row in rows), strict=True)
    )


def _contradict(point: Sequence[Label], most: float | None) -> bool:
    if most is None:
        return len({label for label in point if label is not None}) > 1
    numbers = [label for label in point if isinstance(label, float)]  # a bound contradicts no number by itself
    return len(numbers) > 1 and float(np.std(numbers, ddof=1)) > most


def _beyond(allowed: Sequence[float | None]) -> str:
    numbers = [f"{most * 2**0.5:.3g}" for most in allowed if most is not None]
    return f" (of two rows, by more than {' or '.join(numbers)}, the spread of all labels)" if numbers else ""


def _leaks(
    facts: Facts, across: Sequence[Sequence[int]], torn: Sequence[Sequence[int]], allowed: Sequence[float | None]
) -> Iterator[Finding]:
    if not across:
        return
    learned = [group for group in across if any(facts.records[place].split == "train" for place in group)]
    rows = facts.held_out(place for group in learned for place in group)
    trained = f" ({rows} are trained on too)" if rows else ""
    yield Finding(
        name="leak", severity="warning", count=len(across), ids=facts.ids(x for group in across for x in group),
        text=f"{each(len(across), 'sequence stands', 'sequences stand')} in more than one split{trained}. There "
        "the scores measure memory, not prediction. Leave each sequence in one split only.",
    )  # fmt: skip
    if torn:
        yield Finding(
            name="leak-conflict", severity="warning", count=len(torn),
            ids=facts.ids(x for group in torn for x in group),
            text=f"Of the sequences in more than one split {each(len(torn), 'has', 'have')} another label in each"
            f"{_beyond(allowed)}: one of them is wrong, or the labels are incomplete. Look them up.",
        )  # fmt: skip
