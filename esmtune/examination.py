"""All findings about the data of a run, in the order in which a person should read them."""

from collections.abc import Callable, Iterator

import numpy as np

from esmtune.class_findings import classes
from esmtune.copies import copies
from esmtune.curation import Curated
from esmtune.events import counted_as
from esmtune.findings import UNLIKELY, Facts, Finding, Severity
from esmtune.kinship import kin
from esmtune.number_findings import numbers
from esmtune.records import SPLITS
from esmtune.sequence_findings import sequences

LOOKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (copies, kin, numbers, classes, sequences)
ORDER: tuple[Severity, ...] = ("error", "warning", "note")
UNEVEN = 0.1  # difference between the shares of rows without a label in two splits


def examine(curated: Curated) -> list[Finding]:
    """Look at curated data from all sides: errors first, then warnings, then notes.

    >>> from esmtune.config import TrainConfig
    >>> from esmtune.curation import curate_training
    >>> rows = [("MKTV" * 5, 0.1), ("MKTV" * 5, 0.9), ("GGSG" * 5, 0.5)]
    >>> curated = curate_training(rows, TrainConfig(valid_fraction=0.0, test_fraction=0.0))
    >>> [finding.name for finding in examine(curated)]
    ['conflict']
    """
    facts = facts_of(curated)
    found = [finding for look in LOOKS if facts.records for finding in look(facts)]
    found += _missing_unevenly(curated, facts)
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


def facts_of(curated: Curated) -> Facts:
    """What the findings about curated data are made from."""
    return Facts(records=curated.whole, targets=curated.dataset.targets, reads=curated.reads)


def refuse_errors(findings: list[Finding]) -> None:
    """Stop at findings that make a training senseless.

    Raises:
        ValueError: with what they say.
    """
    errors = [finding.text for finding in findings if finding.severity == "error"]
    if errors:
        raise ValueError("\n".join(errors))


def said(findings: list[Finding]) -> list[str]:
    """What a training says of them: the warnings whole, the notes by their number.

    >>> said([Finding(name="short", severity="note", count=3, text="3 sequences are shorter.")])
    ['Data: 1 note (short): esmtune check tells what is meant.']
    """
    warnings = [f"Data ({finding.name}): {finding.text}" for finding in findings if finding.severity == "warning"]
    notes = [finding.name for finding in findings if finding.severity == "note"]
    if not notes:
        return warnings
    names, more = ", ".join(dict.fromkeys(notes)), "more " * bool(warnings)
    return [*warnings, f"Data: {counted_as(len(notes), f'{more}note')} ({names}): esmtune check tells what is meant."]


def _missing_unevenly(curated: Curated, facts: Facts) -> Iterator[Finding]:
    """Whether one split lacks more labels than another: then what is missing is missing for a reason."""
    splits = [split for split in SPLITS if split in facts.splits]
    table = np.array([[curated.blank.get(split, 0), len(facts.splits[split])] for split in splits])  # pyright: ignore[reportArgumentType, reportCallIssue]
    if len(table) < 2 or not table[:, 0].any():
        return
    from scipy.stats import chi2_contingency

    shares = table[:, 0] / table.sum(1)
    if np.ptp(shares) >= UNEVEN and float(chi2_contingency(table)[1]) < UNLIKELY:  # pyright: ignore[reportArgumentType]
        shown = ", ".join(f"{share:.0%} of {split}" for split, share in zip(splits, shares, strict=True))
        yield Finding(
            name="missing-labels", severity="warning", count=int(table[:, 0].sum()),
            text=f"Labels are missing more often in one split than in another ({shown}): they were not lost by chance. "
            "Ask why, for the rows that have a label may not stand for the others.",
        )  # fmt: skip
