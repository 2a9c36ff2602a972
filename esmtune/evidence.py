"""How good a run is, from its predictions: labels beside what was predicted, where errors are large, worst cases."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from esmtune.bins import Bin, by_label, by_value
from esmtune.charts import Line, agreement_chart, bar_chart, letters_chart, line_chart
from esmtune.events import counted_as
from esmtune.judgments import kind_of_rows
from esmtune.labels import set_read
from esmtune.nearness import IDENTITY_BINS
from esmtune.outcomes import Outcome
from esmtune.pages import Part, Rows, Section, Text, plain
from esmtune.phrases import number, share
from esmtune.points import Points

WORST = 20

LONG = 16  # letters of a name, that bars which stand have no room for


def agreement_section(outcome: Outcome) -> Section:
    """Predicted against measured, for numbers; classes have a section of their own."""
    parts: list[Part] = []
    for points in each_points(outcome):
        if points.reads != "number":
            continue
        name = points.target.name
        told = f"{points_in_words(outcome, points)}; on the dashed line a prediction is right."
        if points.bounds:
            told += f" Labels that are bounds, such as >10, are not drawn: {points.bounds:,}."
        parts.append(
            agreement_chart(
                f"{name}: predicted against measured", points.labels, points.predictions, hovers(outcome, points),
                description=told, unit=f" {name}",
            )
        )  # fmt: skip
    return Section("agreement", "Predicted against measured", parts)


def errors_section(outcome: Outcome) -> Section:
    """How wrong predictions are by label, length, and how far sequences are from those of training."""
    parts: list[Part] = []
    for points in each_points(outcome):
        what = noun_of_error(points)
        title = f"{points.target.name}: {what}"
        by = [("label", *by_label(points))]
        for column, named, edges in (
            ("length", "length, in residues", None),
            ("identity", "identity to the nearest training sequence", np.array(IDENTITY_BINS)),
            ("distance", "distance from the training data", None),
        ):
            values = outcome.numbers(column)
            if values is not None:
                of = by_value(points, values[points.record], edges, is_share=column == "identity")
                by.append((named, *of))
        is_share = points.reads == "name" and points.target.kind != "ordinal"
        for named, bins, note in by:
            if len(bins) < 2:
                continue
            parts.append(_chart_of(bins, f"{title} by {named}", named, what, note, is_share=is_share))
    if parts and outcome.numbers("length") is None:
        parts.append(Text("Errors by length are not shown: an older run did not write down lengths."))
    return Section("errors", "Where errors are large", parts)


def _chart_of(bins: Sequence[Bin], title: str, x: str, y: str, note: str, *, is_share: bool) -> Part:
    shown = share if is_share else number
    rows = [
        [b.name, f"{b.count:,}", shown(b.mean),
         "-" if b.low is None or b.high is None else f"{shown(b.low)} to {shown(b.high)}"]
        for b in bins
    ]  # fmt: skip
    return bar_chart(
        title, [b.name for b in bins], [b.mean for b in bins], low=[b.low for b in bins], high=[b.high for b in bins],
        hover=[f"{plain(b.name)}: {shown(b.mean)}, {b.count:,} points" for b in bins], x=x, y=y,
        description="Whiskers are 95 % intervals of the mean, as if the points of a bin were independent.", note=note,
        is_flat=max(len(b.name) for b in bins) > LONG or len(bins) > LONG,
        table=Rows(title, (x, "points", y, "95 % interval"), rows, frozenset((1, 2, 3))),
    )  # fmt: skip


def examples_section(outcome: Outcome) -> Section:
    """Of tasks per residue, labels and predictions along the proteins that are predicted best, as most, and worst."""
    parts: list[Part] = []
    for points in each_points(outcome):
        if not points.residue.any():
            continue
        records, mean = by_record(points)
        order = np.argsort(mean, kind="stable")
        chosen = dict(zip((order[0], order[len(order) // 2], order[-1]), ("best", "median", "worst"), strict=True))
        for place, what in chosen.items():
            own = points.where(points.record == records[place])
            name = str(outcome.predictions["id"][int(records[place])])
            title = f"{points.target.name} along {plain(name)}, the {what} of {len(records):,}"
            told = (
                f"{counted_as(len(own), 'residue')} with a label; {noun_of_error(points)} {number(float(mean[place]))}."
            )
            parts.append(_track(own, title, told))
    return Section("examples", "Along example proteins", parts)


def _track(own: Points, title: str, told: str) -> Part:
    if own.reads == "number":
        where = own.residue.tolist()
        lines = [
            Line(name=name, x=where, y=[float(f"{x:.5g}") for x in values])
            for name, values in (("measured", own.labels), ("predicted", own.predictions))
        ]
        return line_chart(title, lines, x="residue", y=own.target.name, description=told)
    rows = {"measured": list(own.labels), "predicted": list(own.predictions)}
    return letters_chart(title, rows, own.classes, own.residue.tolist(), description=told)


def worst_section(outcome: Outcome) -> Section:
    """The records that are predicted worst, with their ids."""
    parts: list[Part] = []
    for points in each_points(outcome):
        is_residue = bool(points.residue.any())
        records, mean = by_record(points)
        order = np.argsort(-mean, kind="stable")[:WORST]
        order = order[mean[order] > 0]
        if points.reads == "name" and not is_residue and points.probabilities is not None:
            order = _surest(points, mean)
        first = {int(record): place for place, record in reversed(list(enumerate(points.record.tolist())))}
        has_confidence = points.probabilities is not None and points.reads == "name"
        is_right_or_wrong = points.reads == "name" and points.target.kind != "ordinal" and not is_residue
        columns = ["id", *([] if is_right_or_wrong else [noun_of_error(points)])]
        extra = [n for n in ("length", "identity", "distance", "spread", "fold") if n in outcome.predictions.columns]
        if not is_residue:
            columns[1:1] = ["measured", "predicted", *(["90 % interval"] if points.lower is not None else []),
                            *(["probability"] if has_confidence else []),
                            *(["90 % set"] if points.sets is not None else [])]  # fmt: skip
        rows = []
        for place in order.tolist():
            record = int(records[place])
            row = [str(outcome.predictions["id"][record])]
            row += [] if is_residue else told_of(points, first[record])
            row += [] if is_right_or_wrong else [number(float(mean[place]))]
            rows.append([*row, *(_cell(outcome, name, record) for name in extra)])
        if rows:
            what = f"{points.target.name}: the {len(rows)} of {len(records):,} records that are predicted worst"
            numbers = frozenset(
                n for n, c in enumerate([*columns, *extra]) if n and c not in ("measured", "predicted", "90 % set")
            )
            parts.append(Rows(what, [*columns, *extra], rows, numbers))
        else:
            parts.append(Text(f"{points.target.name}: no record is predicted wrong."))
    return Section("worst", "Worst cases", parts)


def _surest(points: Points, mean: Float[np.ndarray, "records"]) -> np.ndarray:
    """Of wrong classes those that were given the highest probability."""
    assert points.probabilities is not None
    confidence = points.probabilities.max(1)
    wrong = np.flatnonzero(mean > 0)
    return wrong[np.argsort(-(mean[wrong] + confidence[wrong]), kind="stable")][:WORST]


def told_of(points: Points, place: int) -> list[str]:
    """Of one record what was measured and predicted, and what else is known of it."""
    if points.reads == "number":
        told = [number(points.labels[place], 4), number(points.predictions[place], 4)]
        if points.lower is not None and points.upper is not None:
            told.append(f"{number(points.lower[place])} to {number(points.upper[place])}")
        return told
    if points.reads == "names":
        return [
            ", ".join(c for c, holds in zip(points.classes, own[place] == 1, strict=True) if holds) or "none"
            for own in (points.labels, points.predictions)
        ]
    told = [str(points.labels[place]), str(points.predictions[place])]
    told += [number(float(points.probabilities[place].max()))] if points.probabilities is not None else []
    return told + ([", ".join(set_read(points.sets[place], ";"))] if points.sets is not None else [])


def _cell(outcome: Outcome, name: str, record: int) -> str:
    value = outcome.predictions[name][record]
    if value is None:
        return "-"
    return value if name in ("length", "fold") else number(float(value))


def by_record(points: Points) -> tuple[np.ndarray, Float[np.ndarray, "records"]]:
    """The records, and the mean error of each."""
    records, place = np.unique(points.record, return_inverse=True)
    return records, np.bincount(place, points.errors) / np.bincount(place)


def points_in_words(outcome: Outcome, points: Points) -> str:
    """How many points there are, and of what."""
    rows = kind_of_rows(outcome)
    return f"{counted_as(len(points), 'residue')} of the {rows}" if points.residue.any() else f"{len(points):,} {rows}"


def noun_of_error(points: Points) -> str:
    """What the errors of a target are."""
    if points.reads == "number":
        return "absolute error"
    if points.reads == "names":
        return "share of wrong classes"
    return "grades apart" if points.target.kind == "ordinal" else "share of errors"


def each_points(outcome: Outcome) -> Iterator[Points]:
    """The points of every target that has any."""
    for target in outcome.targets:
        points = outcome.points(target)
        if points is not None:
            yield points


def hovers(outcome: Outcome, points: Points) -> list[str]:
    """A line or two on each point: its id, numbers, and what else is known."""
    if len(points) > 20_000:
        return []
    ids = outcome.predictions["id"].to_list()
    identity = outcome.numbers("identity")
    found = []
    for place, record in enumerate(points.record.tolist()):
        residue = int(points.residue[place])
        told = [plain(ids[record]) + (f", residue {residue}" if residue else "")]
        told.append(f"measured {number(points.labels[place], 4)}, predicted {number(points.predictions[place], 4)}")
        if points.lower is not None and points.upper is not None:
            told.append(f"90 % interval {number(points.lower[place])} to {number(points.upper[place])}")
        if identity is not None and np.isfinite(identity[record]):
            told.append(f"identity to training {share(float(identity[record]))}")
        found.append("<br>".join(told))
    return found
