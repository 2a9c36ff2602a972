"""Check: what a table holds and what is odd about it, before anything is trained."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from esmtune.class_findings import counts_of
from esmtune.config import TrainConfig
from esmtune.curation import Curated, curate_training
from esmtune.examination import ORDER, examine, facts_of
from esmtune.findings import KEPT_IDS, Facts, Finding, each
from esmtune.fitting import configured
from esmtune.records import Censored, Level, Problem
from esmtune.writers import check_out, write_json

LISTED = 3  # reasons why rows cannot be used


@dataclass(frozen=True, kw_only=True)
class Quartiles:
    """Five numbers that a distribution can be told from, and how many values there are."""

    count: int
    minimum: float
    quarter: float
    median: float
    three_quarters: float
    maximum: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Quartiles | None":
        """Those of some values; None of none.

        >>> Quartiles.of(np.array([1.0, 2.0, 5.0])).median
        2.0
        """
        if not len(values):
            return None
        return cls(**dict(zip(_PLACES, map(float, np.percentile(values, (0, 25, 50, 75, 100))), strict=True)),
                   count=len(values))  # fmt: skip


_PLACES = ("minimum", "quarter", "median", "three_quarters", "maximum")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of one target: numbers by their quartiles, classes by their counts."""

    target: str
    kind: str
    known: int  # labels, of residues where labels are of residues
    missing: int
    bounds: int  # of the known ones, such as >10
    numbers: Quartiles | None
    classes: dict[str, int] | None


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a table holds, and what was found in it."""

    source: str
    rows: int
    labeled: int  # rows with a label, of which all else is told
    level: Level
    splits: dict[str, int]
    lengths: Quartiles | None
    residues: int
    labels: tuple[Labels, ...]
    notices: tuple[str, ...]  # how the table was read
    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """Whether something was found that stops a training."""
        return any(finding.severity == "error" for finding in self.findings)


def check(data: Any, *, out: str | Path | None = None, overwrite: bool = False, **options: Any) -> Check:
    """Look at a table of labeled sequences as `train` reads it, and say what is odd about it.

    `data` and the options are those of `train`; those that say how to train change nothing. `out` is a .json file for
    what is returned. What each finding means: docs/data-checks.md.

    >>> rows = [("MKTVRQERLK", 0.5), ("MKTVRQERLK", 7.0), ("GGSGAVLAGG", 1.5)]
    >>> found = check(rows, valid_fraction=0, test_fraction=0)
    >>> found.rows, [finding.name for finding in found.findings]
    (3, ['conflict'])

    Raises:
        ValueError: for what cannot be read as a table of labeled sequences, or an option that does not exist.
    """
    config = configured(options)
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="scores")
    curated = curate_training(data, replace(config, skip_bad_rows=True), lenient=True)
    findings = [*_refused(curated, config), *examine(curated)]
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    facts = facts_of(curated)
    found = Check(
        source=str(data) if isinstance(data, str | Path) else "the table",
        rows=curated.rows,
        labeled=len(curated.whole),
        level=curated.dataset.level,
        splits={split: len(places) for split, places in facts.splits.items()} if facts.records else {},
        lengths=Quartiles.of(facts.lengths),
        residues=int(facts.lengths.sum()),
        labels=tuple(_labels(facts, curated)),
        notices=tuple(text for text in curated.dataset.notices if not text.startswith("Left out ")),
        findings=tuple(findings),
    )
    if out is not None:
        write_json(asdict(found), Path(out))
    return found


def _labels(facts: Facts, curated: Curated) -> Iterator[Labels]:
    points = sum(len(record.labels) for record in facts.records)
    for place, target in enumerate(facts.targets):
        if target.kind == "mlm":
            continue
        known = facts.labels(place)
        is_number = facts.reads[target.kind] == "number"
        total = sum(counts_of(facts, place).values(), Counter()) if not is_number else Counter()
        yield Labels(
            target=target.name,
            kind=target.kind,
            known=len(known),
            missing=points - len(known) + (0 if facts.is_per_residue() else sum(curated.blank.values())),
            bounds=sum(isinstance(label, Censored) for _, label in known),
            numbers=Quartiles.of(facts.numbers(place)[0]) if is_number else None,
            classes=None if is_number else dict(total.most_common()),
        )


def _refused(curated: Curated, config: TrainConfig) -> Iterator[Finding]:
    """What `train` would stop at before it looks any further."""
    problems = curated.dataset.problems
    if problems:
        yield Finding(
            name="bad-rows", severity="warning" if config.skip_bad_rows else "error", count=len(problems),
            ids=tuple(problem.id for problem in problems[:KEPT_IDS]),
            text=f"{each(len(problems), 'row', 'rows')} cannot be used: {_listed(problems)}. "
            + ("Left out, as asked." if config.skip_bad_rows else "Mend them, or leave them out with --skip-bad-rows."),
        )  # fmt: skip
    if curated.refusal:
        text = f"{curated.refusal[0].upper()}{curated.refusal[1:]}"
        yield Finding(name="nothing-to-learn", severity="error", count=len(curated.whole), text=text)


def _listed(problems: Sequence[Problem]) -> str:
    more = len(problems) - LISTED
    return "; ".join(map(str, problems[:LISTED])) + (f"; and {more:,} more" if more > 0 else "")
