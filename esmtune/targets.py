"""The labels of all rows, read for what is to be predicted, and refused where nothing can be learned from them."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from esmtune.labels import Reads, counted, entries, grades_of, is_marked, read_label, unknown_in
from esmtune.records import Censored, Form, Label, Marks, Problem, Record, Row, Target, of_target, order_of

Known = Mapping[str, Sequence[str]]  # the classes of each target, none for numbers


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """Records with their labels, which rows have none that can be read, and what was noticed."""

    records: list[Record]
    problems: list[Problem]
    notices: list[str]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of labels, taken apart into a text for each point."""

    texts: list[list[str] | None]  # of each row, "" where a point does not count; None where the row has no label
    wrong: dict[int, str]  # rows that cannot be taken apart, and why
    values: Counter[str]  # how many points have each text

    @classmethod
    def of(cls, rows: Sequence[Row], place: int, form: Form, *, has_mask: bool = False) -> "Column":
        """Take the cells of a column apart, leave out what the mask says, and cut with the sequence."""
        texts: list[list[str] | None] = []
        wrong: dict[int, str] = {}
        values: Counter[str] = Counter()
        for number, row in enumerate(rows):
            points = None
            try:
                points = entries(row.cells[place], form, row.length)
                if points is not None and is_per_residue(form):
                    if has_mask:
                        kept = counted(row.mask, row.length)
                        points = [text if counts else "" for text, counts in zip(points, kept, strict=True)]
                    points = points[: len(row.record.sequence)]
            except ValueError as error:
                wrong[number] = str(error)
                points = None
            texts.append(points)
            values.update(points or ())
        del values[""]
        return cls(texts=texts, wrong=wrong, values=values)


def is_per_residue(form: Form) -> bool:
    """Whether a form has a label for each residue."""
    return form not in ("one", "columns")


def names_of(target: Target) -> tuple[str, ...]:
    """The columns that a target stands in."""
    return tuple(target.name.split(",")) if target.form == "columns" else (target.name,)


def read_labels(
    rows: Sequence[Row],
    targets: Sequence[Target],
    columns: Sequence[Column],
    reads: Mapping[str, Reads],
    *,
    classes: Known | None = None,
) -> Labeled:
    """Give every record its labels, of which unknown ones stay None.

    Args:
        rows: What the table gave.
        targets: What is to be predicted.
        columns: The columns of all targets, one after the other; language modeling has none.
        reads: What the labels of each kind of target are.
        classes: Those that a predictor knows.
    """
    labels: list[list[tuple[Label, ...] | None]] = []
    wrong: dict[int, str] = {}
    notices: list[str] = []
    start = 0
    for target in targets:
        if target.kind == "mlm":
            labels.append([tuple(row.record.sequence) for row in rows])
            continue
        own = columns[start : start + len(names_of(target))]
        start += len(own)
        of = f" in {target.name!r}" if len(targets) > 1 else ""
        found, bad, said = _read(target, own, reads[target.kind], (classes or {}).get(target.name, ()), of)
        notices += said
        labels.append(found)
        wrong = {number: f"{of[1:]}, {why}" if of else why for number, why in bad.items()} | wrong
    records = []
    for row, *found in zip(rows, *labels, strict=True):
        nothing = (None,) * (len(row.record.sequence) if is_per_residue(targets[0].form) else 1)
        records.append(replace(row.record, labels=together([own or nothing for own in found])))
    problems = [Problem(rows[n].record.where, rows[n].record.id, why) for n, why in sorted(wrong.items())]
    good = [record for number, record in enumerate(records) if number not in wrong]
    return Labeled(records=good, problems=problems, notices=notices)


def together(each: Sequence[Sequence[Label]]) -> tuple[Label, ...]:
    """The labels of one record for each of its targets, as labels of its points."""
    if len(each) == 1:
        return tuple(each[0])
    return tuple(None if all(x is None for x in point) else point for point in zip(*each, strict=True))


def _read(
    target: Target, columns: Sequence[Column], reads: Reads, known: Sequence[str], of: str
) -> tuple[list[tuple[Label, ...] | None], dict[int, str], list[str]]:
    """The labels of a target for each row, why some have none, and what was noticed."""
    if target.form == "columns":
        return *_read_marks(names_of(target), columns), []
    (column,) = columns
    notices = []
    unknown = unknown_in(column.values, reads, known, form=target.form)
    words = sorted(unknown - {"nan"} if is_per_residue(target.form) else unknown)
    if words:
        count = sum(column.values[word] for word in words)
        notices.append(f"Labels{of} taken as unknown: {count:,} ({', '.join(words)}).")
    labels, wrong = _read_texts(target, column, reads, known, unknown)
    bounds = sum(isinstance(x, Censored) for row in labels for x in row or ())
    if bounds:
        notices.append(f"Labels{of} that are bounds, such as >10: {bounds:,}.")
    return labels, wrong, notices


def _read_texts(
    target: Target, column: Column, reads: Reads, known: Sequence[str], unknown: Collection[str]
) -> tuple[list[tuple[Label, ...] | None], dict[int, str]]:
    meaning: dict[str, Label] = dict.fromkeys([*unknown, ""])
    senseless: dict[str, str] = {}
    for text in column.values.keys() - unknown:
        try:
            meaning[text] = read_label(text, reads, known)
        except ValueError as error:
            senseless[text] = str(error)
    labels: list[tuple[Label, ...] | None] = []
    wrong = dict(column.wrong)
    for number, texts in enumerate(column.texts):
        bad = next((i for i, text in enumerate(texts or ()) if text in senseless), None) if senseless else None
        if texts is not None and bad is not None:
            residue = f" of residue {bad + 1}" if is_per_residue(target.form) else ""
            wrong[number] = senseless[texts[bad]].replace("the label", f"the label{residue}", 1)
            texts = None
        labels.append(None if texts is None else tuple([meaning[text] for text in texts]))
    return labels, wrong


def _read_marks(
    names: Sequence[str], columns: Sequence[Column]
) -> tuple[list[tuple[Label, ...] | None], dict[int, str]]:
    """Read several columns of 0 and 1 as one label."""
    labels: list[tuple[Label, ...] | None] = []
    wrong: dict[int, str] = {}
    for number, texts in enumerate(zip(*(column.texts for column in columns), strict=True)):
        holds: dict[str, bool | None] = {}
        for name, text in zip(names, texts, strict=True):
            try:
                holds[name] = is_marked(text[0]) if text else None
            except ValueError as error:
                wrong.setdefault(number, f"in {name!r}, {error}")
        yes, unknown = (frozenset(name for name, x in holds.items() if x is wanted) for wanted in (True, None))
        labels.append((None if len(unknown) == len(names) else Marks(yes, unknown),))
    return labels, wrong


def with_labels(records: Sequence[Record], targets: Sequence[Target]) -> tuple[list[Record], list[str]]:
    """The records of which something is known, and how many rows and residues there are of which nothing is."""
    known, notices = [r for r in records if r.is_labeled], []
    where = " and ".join(repr(target.name) for target in targets)
    if len(known) < len(records):
        none = " A ; alone says that a row has none of the classes." if targets[0].kind == "multilabel" else ""
        notices.append(f"Rows without a label in {where}, left out: {len(records) - len(known):,}.{none}")
    if is_per_residue(targets[0].form):
        points = sum(len(r.labels) for r in known)
        blank = sum(r.labels.count(None) for r in known)
        if blank:
            notices.append(f"Residues without a label in {where}, which do not count: {blank:,} of {points:,}.")
    return known, notices


def classes_in(label: Label) -> frozenset[str]:
    """The classes that a label of one target names."""
    return label.yes if isinstance(label, Marks) else frozenset((label,)) if isinstance(label, str) else frozenset()


def check_labels(
    records: Sequence[Record], targets: Sequence[Target], reads: Mapping[str, Reads], *, order: str = ""
) -> tuple[list[Record], list[Problem], list[str]]:
    """Refuse labels that nothing can be learned from; leave out and name rows whose class the training rows lack.

    `order` is that of grades, if it was given. Returns the other records, the problems, and what was noticed.

    Raises:
        ValueError: if there is no labeled training row, only one value, or not the number of classes the task wants.
    """
    train = [r for r in records if r.split == "train"]
    classes: dict[str, Sequence[str]] = {}
    notices: list[str] = []
    for place, target in enumerate(targets):
        if target.kind == "mlm":
            continue
        known: Counter[Label] = Counter(x for r in train for x in of_target(r.labels, place, targets) if x is not None)
        _refuse_one_value(known, target, reads[target.kind])
        if reads[target.kind] == "number":
            continue
        classes[target.name] = sorted({name for label in known for name in classes_in(label)})
        if target.kind == "ordinal":
            grades_of(classes[target.name], order_of(order, target.name, targets))
        if target.kind == "binary" and len(known) > 2:
            raise ValueError(
                f"--task binary needs two classes, {target.name!r} has {len(known):,}. Say --task multiclass."
            )
        if reads[target.kind] == "names":
            notices += _one_sided(known, target)
    if not train:
        raise ValueError(f"no training row is left that has a label in {targets[0].name!r}.")
    strangers = [
        Problem(r.where, r.id, f"the class {name!r}{place} of this {r.split} row is in no training row")
        for r, name, place, _ in strange(records, targets, classes)
    ]
    bad = {problem.where for problem in strangers}
    return [r for r in records if r.where not in bad], strangers, notices


def _refuse_one_value(known: Counter[Label], target: Target, reads: Reads) -> None:
    if not known:
        raise ValueError(f"no training row is left that has a label in {target.name!r}.")
    if len(known) == 1:
        (value,) = known
        shown = str(value) if isinstance(value, Censored | Marks) else repr(value)
        raise ValueError(
            f"all {known.total():,} training labels in {target.name!r} are {shown}: "
            f"with one {'value' if reads == 'number' else 'class'} nothing can be learned."
        )


def _one_sided(known: Counter[Label], target: Target) -> Iterator[str]:
    """Say which classes no training row has, or every one."""
    marks = {label: count for label, count in known.items() if isinstance(label, Marks)}
    names = names_of(target) if target.form == "columns" else sorted({name for label in marks for name in label.yes})
    found: dict[str, list[str]] = {"no training row has": [], "every training row has": []}
    for name in names:
        sides = {name in label.yes for label in marks if name not in label.unknown}
        if len(sides) < 2:
            found["every training row has" if sides == {True} else "no training row has"].append(name)
    for what, which in found.items():
        if which:
            yield f"In {target.name!r} {what} {', '.join(which)}: of that nothing can be learned."


def strange(
    records: Sequence[Record], targets: Sequence[Target], classes: Known
) -> Iterator[tuple[Record, str, str, Sequence[str]]]:
    """Records with a class that is not known, the first such class of each, where it stands, and the known ones.

    A target without `classes` has numbers, of which none is strange.
    """
    for record in records:
        for place, target in enumerate(targets):
            known = classes.get(target.name)
            own = of_target(record.labels, place, targets)
            if not known or set().union(*map(classes_in, set(own))) <= set(known):
                continue
            residue, name = next(
                (i, n) for i, x in enumerate(own, start=1) for n in sorted(classes_in(x)) if n not in known
            )
            column = f" in {target.name!r}" if len(targets) > 1 else ""
            yield record, name, f"{column} of residue {residue}" if is_per_residue(target.form) else column, known
            break
