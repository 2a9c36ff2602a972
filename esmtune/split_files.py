"""A split on disk: which sequence is in which part, without the sequences themselves."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from esmtune.records import SPLITS, Record, Split

SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """The part of each sequence, by its SHA-256, and of those in training the folds that hold it out.

    The rows of a sequence that is in several parts, as in data with a leak, are told apart by their ids.
    """

    source: str
    parts: Mapping[str, Split]
    parts_by_id: Mapping[tuple[str, str], Split]
    folds_of: Mapping[str, tuple[int, ...]]

    @property
    def folds(self) -> int:
        """How many folds there are; 1 if none."""
        return 1 + max((fold for found in self.folds_of.values() for fold in found), default=0)

    def split_of(self, record: Record) -> Split:
        """The part of a record."""
        part = self._part(record)
        assert part is not None, "checked says which are there"
        return part

    def held(self, record: Record) -> tuple[int, ...]:
        """The folds that hold a record out."""
        return self.folds_of[digest(record.sequence)]

    def checked(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records, if all are in the file.

        Raises:
            ValueError: listing those that are not.
        """
        strangers = [r for r in records if self._part(r) is None]
        if strangers:
            listed = "\n".join(f"  {r.where} ({r.id})" for r in strangers[:SHOWN])
            more = f"\n  … and {len(strangers) - SHOWN:,} more" if len(strangers) > SHOWN else ""
            raise ValueError(
                f"{self.source} does not say where {len(strangers):,} of {len(records):,} rows "
                f"belong:\n{listed}{more}\n"
                "Sequences are looked up as they are trained on. Split these data anew, or leave the rows out."
            )
        return records

    def _part(self, record: Record) -> Split | None:
        own = digest(record.sequence)
        return self.parts.get(own) or self.parts_by_id.get((own, record.id))


def digest(sequence: str) -> str:
    """The SHA-256 of a sequence.

    >>> digest("MKTV")[:12]
    '3f497cc17625'
    """
    return hashlib.sha256(sequence.encode()).hexdigest()


def split_table(records: Iterable[Record], held: Mapping[str, tuple[int, ...]]) -> pl.DataFrame:
    """The rows of a split.csv: id, sequence_sha256, split, and with folds the numbers of those that hold it out."""
    records = list(records)
    frame = pl.DataFrame(
        {
            "id": [r.id for r in records],
            "sequence_sha256": [digest(r.sequence) for r in records],
            "split": [r.split for r in records],
        },
        schema={"id": pl.String, "sequence_sha256": pl.String, "split": pl.String},
    )
    if not held:
        return frame
    folds = [";".join(map(str, held[r.sequence])) if r.split == "train" else None for r in records]
    return frame.with_columns(pl.Series("fold", folds, dtype=pl.String))


def read_split(path: Path) -> SplitFile:
    """Read a split.csv.

    Raises:
        ValueError: if it is none, or puts one row into two parts.
    """
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    missing = [name for name in ("sequence_sha256", "split") if name not in frame.columns]
    if missing:
        raise ValueError(
            f"{path} is no split of a run: it has no column {missing[0]!r}. RUN/split.csv has sequence_sha256 and "
            "split. A column of your own table goes by its name, --split COLUMN."
        )
    ids = frame["id"] if "id" in frame.columns else [""] * frame.height
    parts: dict[str, Split] = {}
    by_id: dict[tuple[str, str], Split] = {}
    several: set[str] = set()
    for own, name, split in zip(ids, frame["sequence_sha256"], frame["split"], strict=True):
        if split not in SPLITS:
            raise ValueError(f"{path}: the split is {split!r}; it can be train, valid, calibration or test.")
        if parts.setdefault(name, split) != split:
            several.add(name)
        if by_id.setdefault((name, own or ""), split) != split:
            raise ValueError(
                f"{path} has one sequence with the id {own or ''!r} in {by_id[name, own or '']} and in {split}, which "
                "are one row for it: give them ids of their own, here and in the table, or one split."
            )
    folds: dict[str, tuple[int, ...]] = {}
    if "fold" in frame.columns:
        rows = frame.filter(split="train").select("sequence_sha256", "fold").iter_rows()
        try:
            folds = {name: tuple(int(fold) for fold in cell.split(";")) for name, cell in rows}
        except (ValueError, AttributeError):
            raise ValueError(f"{path}: a training row has no fold. It has 0, 1, ... or several with ;.") from None
    return SplitFile(
        source=str(path), folds_of=folds, parts={name: split for name, split in parts.items() if name not in several},
        parts_by_id={key: split for key, split in by_id.items() if key[0] in several},
    )  # fmt: skip
