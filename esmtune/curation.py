"""From a user's files to a dataset: read, find columns, mend, split, and refuse what cannot be learned from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from esmtune.config import SPLIT_METHODS, TrainConfig
from esmtune.datasets import Columns, find_columns, read_rows
from esmtune.inference import Told, infer_targets
from esmtune.labels import READS, Reads
from esmtune.partition import (
    asked_split,
    folds_for,
    missing_splits,
    seen_elsewhere,
    with_calibration,
    with_file,
    with_splits,
)
from esmtune.records import BadRowsError, Dataset, Form, Problem, Record, Row, Split, Table, Target
from esmtune.replicates import weighted, with_replicates
from esmtune.sources import checksum, columns_of, in_order, in_part, read_tables
from esmtune.targets import Column, Known, check_labels, is_per_residue, names_of, read_labels, strange, with_labels

CALIBRATION = (
    "Calibration: {:,} of {:,} validation rows choose no weights, so that intervals can be told from them "
    "(--calibration-fraction 0 leaves them in)."
)
SEEN = (
    "LEAK: {:,} of {:,} calibration rows have a sequence that is trained on or that chooses the weights: they do not "
    "calibrate{}."
)
NOTHING_LEFT = ", so that there are no intervals and no sets"
LANGUAGE = (Target(name="sequence", kind="mlm", form="letters"),)


NO_FOLDS = (
    "Validation rows are few, and all {} seeds have the same: which weights are kept is a matter of luck. With one "
    "seed each training row would be held out in turn, by folds (leave out --seeds)."
)


@dataclass(frozen=True, kw_only=True)
class Curated:
    """A dataset, the columns it was read from, and how many folds its training records are to be split into."""

    dataset: Dataset
    columns: Columns
    folds: int  # 1: there are none
    whole: tuple[Record, ...]  # with a label, before replicates are averaged: what is examined
    blank: Mapping[Split | None, int]  # rows of each split without a label; None where no split was given
    reads: Mapping[str, Reads]
    rows: int  # of the tables, also those left out
    refusal: str | None = None  # why nothing can be learned, if that was not to be raised
    split: Mapping[str, Any] = field(default_factory=dict)  # how it was split, for metrics.json
    split_asked: str | None = None  # the column, method or file that splits the same data so again
    identity: float | None = None  # the threshold of a split by identity
    says_valid: bool = False  # whether the data, or a file with a split, say which rows are for validation
    says_test: bool = False  # and which are for the test


def curate_training(data: Any, config: TrainConfig, *, lenient: bool = False) -> Curated:
    """Make the dataset of a training run: from one table, or from one each for training, validation and test.

    Where `lenient`, labels that nothing can be learned from are told of, and not raised.

    Raises:
        BadRowsError: for rows that cannot be used, unless they are to be skipped.
        ValueError: for everything else that is wrong with the data, with what to do.
    """
    kind, reads = _asked_kind(config)
    tables, parts = read_tables(data, config)
    columns = columns_of(tables, parts, config, kind)
    for name in filter(None, columns[0].kinds):
        if name in ("mlm", "multitask"):
            raise ValueError(f"{name} is not of one column. Kinds of columns are: {', '.join(READS)}.")
        if kind not in (None, name):
            raise ValueError(f"target says that labels are {name}, but task is {kind}: leave one of them out.")
        reads = _with(reads, name)
    read_parts = [read_rows(t, found, max_length=config.max_length) for t, found in zip(tables, columns, strict=True)]
    rows = [in_part(row, part) for part, found in zip(parts, read_parts, strict=True) for row in found.rows]
    problems = [problem for found in read_parts for problem in found.problems]
    told = _told(rows, columns, config, kind, reads, tables)
    targets = told.targets
    labeled = read_labels(rows, targets, told.columns, reads)
    problems += labeled.problems
    notices = [*told.notices, *(text for found in read_parts for text in found.notices), *labeled.notices]
    if config.scaling != "none" and all(reads[t.kind] != "name" or t.kind in ("ordinal", "mlm") for t in targets):
        raise ValueError(
            f"scaling {config.scaling!r} mends the probabilities of classes, and {targets[0].name!r} is "
            f"{targets[0].kind}: leave it out."
        )
    known, more = with_labels(labeled.records, targets)
    asked = asked_split(config.split, tables[0])[1]
    missing = missing_splits(tables, columns[0], config, known)
    stratify = len(targets) == 1 and targets[0].form == "one" and reads[targets[0].kind] == "name"
    if asked and asked not in SPLIT_METHODS:
        if len(tables) > 1:
            raise ValueError(f"{asked} says which rows are for validation and test, and there is a file for them too.")
        partition, folds = with_file(known, asked)
        missing = set() if any(r.split == "valid" for r in partition.records) else {"valid"}
    else:
        if missing and asked != "random":  # a search for relatives takes minutes
            refuse(in_order(problems, tables), config.skip_bad_rows)
        level = "residue" if is_per_residue(targets[0].form) else "sequence"
        folds = folds_for(config, kind, missing, known, level)
        if folds == 1 < config.seeds and folds_for(replace(config, seeds=1), kind, missing, known, level) > 1:
            notices = [*notices, NO_FOLDS.format(config.seeds)]
        partition = with_splits(
            known, config, stratify=stratify, missing=missing, folds=folds, kind=kind, method=asked, tables=tables
        )
    known, split = partition.records, partition.notices
    unused = find_columns(tables[0], target=()).split if asked and len(tables) == 1 else None
    if unused:
        split = [*split, f"The column {unused!r} is not used, since --split is {asked}."]
    whole = tuple(known)
    blank: Counter[Split | None] = Counter(r.split for r in labeled.records if not r.is_labeled)
    if folds == 1:
        known, kept, of = with_calibration(known, targets, reads, config, seed=config.seed)
        split += [CALIBRATION.format(kept, of)] if kept else []
    seen = seen_elsewhere(known)
    if seen:
        there = [r.sequence in seen for r in known if r.split == "calibration"]
        split.append(SEEN.format(sum(there), len(there), NOTHING_LEFT if all(there) else ""))
    refusal = None
    known, replicates = with_replicates(known, targets, reads, config.replicates)
    strangers, warnings = [], []
    try:
        known, strangers, warnings = check_labels(
            known, targets, reads, order=str((config.task or {}).get("order", ""))
        )
        known = weighted(known, columns[0].weight)
    except ValueError as error:
        refuse(in_order(problems, tables), config.skip_bad_rows)
        if not lenient:
            raise
        refusal = str(error)
    problems = in_order(problems + strangers, tables)
    refuse(problems, config.skip_bad_rows)
    notices += [*more, *split, *replicates, *warnings, *skipped(problems)]
    dataset = Dataset(
        records=tuple(known), targets=targets, sha256=checksum(tables), notices=tuple(notices),
        problems=tuple(problems), held=partition.held,
    )  # fmt: skip
    has_mask = dataset.level == "residue" and dataset.kind != "mlm"
    chosen = asked if asked and asked not in SPLIT_METHODS else partition.method if not columns[0].split else None
    return Curated(
        dataset=dataset, columns=columns[0] if has_mask else replace(columns[0], mask=None), folds=folds, whole=whole,
        blank=blank, reads=reads, rows=sum(table.frame.height for table in tables), refusal=refusal,
        split=partition.facts, split_asked=columns[0].split or chosen, identity=partition.facts.get("identity"),
        says_valid="valid" not in missing, says_test="test" not in missing,
    )  # fmt: skip


def curate_labeled(
    table: Table, columns: Columns, *, targets: Sequence[Target], classes: Known, subset: Split | None,
    max_length: int | None, skip_bad_rows: bool, file: str | None = None,
) -> Dataset:  # fmt: skip
    """Make a dataset to evaluate a predictor on: the rows with a label, or those of one split, which a column tells,
    or the `file` of a split.

    `targets` and `classes` are those of the predictor; a target without classes has numbers. The labels stand in
    `columns.target`, in the order of the targets, whatever the columns are called.

    Raises:
        BadRowsError: for rows that cannot be used, unless they are to be skipped; a class that the predictor
            does not know is one reason.
        ValueError: for everything else that is wrong with the data.
    """
    if subset and not columns.split and not file:
        raise ValueError(
            f"{table.source} has no split column to take the {subset} rows by. Say which it is: --split COLUMN, or "
            "--split RUN/split.csv for the split of a run."
        )
    targets, forms = tuple(targets), _forms(targets, columns)
    by_column = subset is not None and file is None
    found = read_rows(table, columns if by_column else replace(columns, split=None), max_length=max_length)
    rows = found.rows
    if file:
        split = {r.where: r.split for r in with_file(found.records, file)[0].records}
        rows = [replace(row, record=replace(row.record, split=split[row.record.where])) for row in rows]
    rows = [row for row in rows if subset in (None, row.record.split)]
    taken = [Column.of(rows, place, form, has_mask=columns.mask is not None) for place, form in enumerate(forms)]
    labeled = read_labels(rows, targets, taken, {t.kind: _reads_of(t.kind) for t in targets}, classes=classes)
    strangers = [
        Problem(
            r.where, r.id, f"the predictor does not know the class {name!r}{place}; it knows {', '.join(known[:10])}"
        )
        for r, name, place, known in strange(labeled.records, targets, classes)
    ]
    problems = in_order([*found.problems, *labeled.problems, *strangers], [table])
    refuse(problems, skip_bad_rows)
    bad = {problem.where for problem in strangers}
    known, more = with_labels([r for r in labeled.records if r.where not in bad], targets)
    if not known:
        names = " or ".join(map(repr, columns.target or ("sequence",)))
        raise ValueError(f"no {subset + ' ' if subset else ''}row of {table.source} has a label in {names}.")
    notices = (*found.notices, *labeled.notices, *skipped(problems), *more)
    return Dataset(
        records=tuple(known), targets=targets, sha256=table.sha256, notices=notices, problems=tuple(problems)
    )


def _forms(targets: Sequence[Target], columns: Columns) -> list[Form]:
    """How the labels stand in each column that a predictor's targets are to be read from."""
    if targets[0].kind == "mlm":
        return []
    wanted: list[tuple[str, Form]] = [(name, t.form) for t in targets for name in names_of(t)]
    given = columns.target or ()
    if len(wanted) != len(given):
        raise ValueError(
            f"the predictor has {len(wanted)} columns of labels ({', '.join(name for name, _ in wanted)}), but "
            f"{', '.join(given)} is to hold them. Name a column for each, in this order: --target COLUMN COLUMN."
        )
    return [form for _, form in wanted]


def _asked_kind(config: TrainConfig) -> tuple[str | None, Mapping[str, Reads]]:
    """The kind of task that was asked for, and what the labels of each kind are."""
    name = (config.task or {}).get("name")
    if name is None:
        return None, READS
    if name == "multitask":
        raise ValueError("several targets make a multitask by themselves: name the columns, --target A B, and no task.")
    if name == "mlm":
        for option in ("target", "mask", "level"):
            if getattr(config, option) is not None:
                raise ValueError(f"task mlm reads sequences alone: leave out {option}.")
    reads: dict[str, Reads] = {**READS, str(name): _reads_of(str(name))}
    return str(name), reads


def _with(reads: Mapping[str, Reads], kind: str) -> Mapping[str, Reads]:
    return {**reads, kind: _reads_of(kind)}


def _reads_of(kind: str) -> Reads:
    if kind in READS:
        return READS[kind]
    from esmtune.tasks import task  # torch, which a mistake in the data should not have to wait for

    return task[kind].reads


def _told(
    rows: Sequence[Row], columns: Sequence[Columns], config: TrainConfig, kind: str | None, reads: Mapping[str, Reads],
    tables: Sequence[Table],
) -> Told:  # fmt: skip
    """What is to be predicted, and whether a mask goes with it."""
    if kind == "mlm":
        return Told(targets=LANGUAGE, columns=[], notices=["Task: mlm of the sequences, as asked."])
    masks = [found.mask is not None for found in columns]
    kinds = [own or kind for own in columns[0].kinds]
    told = infer_targets(rows, columns[0].target or (), reads, kinds=kinds, level=config.level, has_mask=any(masks))
    if not is_per_residue(told.targets[0].form):
        if config.mask:
            raise ValueError(
                f"mask {config.mask!r} is of residues, but {told.targets[0].name!r} has one label a sequence: leave "
                "out mask, or say --level residue."
            )
    elif columns[0].mask and not config.mask:
        text = f"Mask: the column {columns[0].mask!r} says which residues count; rename it if it does not."
        told = replace(told, notices=[*told.notices, text])
    if is_per_residue(told.targets[0].form) and len(set(masks)) > 1:
        raise ValueError(
            f"{tables[masks.index(True)].source} has a mask and {tables[masks.index(False)].source} has none. Give "
            "both one, or neither."
        )
    return told


def refuse(problems: Sequence[Problem], skip: bool) -> None:
    """Stop at rows that cannot be used, unless they are to be skipped.

    Raises:
        BadRowsError: with every such row.
    """
    if problems and not skip:
        raise BadRowsError(problems, "Mend them, or leave them out with --skip-bad-rows. Nothing was written.")


def skipped(problems: Sequence[Problem]) -> list[str]:
    """A sentence for each row that was left out."""
    return [f"Left out {problem}." for problem in problems]
