"""What is found in sequences and ids: DNA, unknown residues, tags, names that a spreadsheet made into dates."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from esmtune.events import counted_as
from esmtune.findings import ENOUGH, Facts, Finding, each

NUCLEOTIDES = b"ACGTUN"
UNCERTAIN = b"XBZ"
DNA_LENGTH = 20  # residues, from which letters of DNA alone are no chance
DNA_SHARE = 0.5  # of the sequences; beyond it the column is one of DNA
UNCERTAIN_SHARE = 0.1
SHORT = 10
HIS_TAG = "HHHHHH"
NEAR_END = 30  # residues from either end, where tags are
END = 6
TAGGED, ENDED = 0.1, 0.9
PORTION = 20_000

_MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
_DATE = re.compile(
    rf"\d{{1,2}}[-/. ]({_MONTH})[a-z]*([-/. ]\d{{2,4}})?|({_MONTH})[-/. ]\d{{1,4}}|\d{{4}}-\d{{2}}-\d{{2}}( .*)?"
    r"|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d(\.\d+)?e\+\d+",
    re.IGNORECASE,
)
_LIKE_A_DATE = re.compile(rf"({_MONTH}|march|marc)-?\d{{1,2}}", re.IGNORECASE)


def sequences(facts: Facts) -> Iterator[Finding]:
    """Find what is odd in sequences and ids."""
    texts = [r.sequence for r in facts.records]
    yield from _dna(texts, facts)
    yield from _uncertain(texts, facts)
    yield from _short(facts)
    yield from _tags(texts, facts)
    yield from _dates(facts)


def share_of(texts: Sequence[str], letters: bytes) -> Int[np.ndarray, "texts"]:
    """How many residues of each sequence are among some letters.

    >>> share_of(["MKX", "ACGT"], b"ACGT").tolist()
    [0, 4]
    """
    table = np.zeros(256, np.int64)
    table[list(letters)] = 1
    found = []
    for start in range(0, len(texts), PORTION):
        portion = texts[start : start + PORTION]
        starts = np.cumsum([0, *map(len, portion[:-1])])
        found.append(np.add.reduceat(table[np.frombuffer("".join(portion).encode(), np.uint8)], starts))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def nucleotides_in(texts: Sequence[str]) -> list[str]:
    """What is to be said before sequences are predicted of which some look like DNA; nothing else.

    >>> nucleotides_in(["MKTVRQERLKSIVRILERSK", "ATGAAAACCGTGCGCCAGGAA"])
    ['1 of 2 sequences has the letters of DNA or RNA alone (ACGTUN), and is read as protein.']
    """
    count = len(_nucleotides(texts, np.fromiter(map(len, texts), np.int64, len(texts))))
    has, is_ = ("has", "is") if count == 1 else ("have", "are")
    said = f"{has} the letters of DNA or RNA alone (ACGTUN), and {is_} read as protein."
    return [f"{count:,} of {counted_as(len(texts), 'sequence')} {said}"] if count else []


def _nucleotides(texts: Sequence[str], lengths: Int[np.ndarray, "sequences"]) -> Int[np.ndarray, "places"]:
    return np.flatnonzero((share_of(texts, NUCLEOTIDES) == lengths) & (lengths >= DNA_LENGTH))


def _dna(texts: Sequence[str], facts: Facts) -> Iterator[Finding]:
    alike = _nucleotides(texts, facts.lengths)
    if not len(alike):
        return
    is_all = len(alike) >= DNA_SHARE * (facts.lengths >= DNA_LENGTH).sum()
    yield Finding(
        name="nucleotides", severity="error" if is_all else "warning", count=len(alike), ids=facts.ids(alike.tolist()),
        text=f"{each(len(alike), 'sequence has', 'sequences have')} the letters of DNA or RNA alone (ACGTUN), which "
        "ESM-2 would read as alanine, cysteine, glycine and threonine. Translate them to protein, or name the column "
        "with the proteins: --sequence COLUMN.",
    )  # fmt: skip


def _uncertain(texts: Sequence[str], facts: Facts) -> Iterator[Finding]:
    found = np.flatnonzero(share_of(texts, UNCERTAIN) > UNCERTAIN_SHARE * facts.lengths)
    if len(found):
        yield Finding(
            name="ambiguous", severity="warning", count=len(found), ids=facts.ids(found.tolist()),
            text=f"{each(len(found), 'sequence is', 'sequences are')} more than {UNCERTAIN_SHARE:.0%} unknown residues "
            "(X, B or Z): placeholders, masked regions or poor reads. Find the whole sequence, or leave them out.",
        )  # fmt: skip


def _short(facts: Facts) -> Iterator[Finding]:
    short = np.flatnonzero(facts.lengths < SHORT)
    if len(short):
        yield Finding(
            name="short", severity="note", count=len(short), ids=facts.ids(short.tolist()),
            text=f"{each(len(short), 'sequence is', 'sequences are')} shorter than {SHORT} residues, of which ESM-2 "
            "has seen few. Are they fragments of something longer?",
        )  # fmt: skip


def _tags(texts: Sequence[str], facts: Facts) -> Iterator[Finding]:
    ends = [(text[:NEAR_END], text[-NEAR_END:]) for text in texts]
    tagged = [place for place, (head, tail) in enumerate(ends) if HIS_TAG in head or HIS_TAG in tail]
    if len(tagged) >= max(ENOUGH / 2, TAGGED * len(texts)):
        is_all = len(tagged) == len(texts)
        yield Finding(
            name="tag", severity="note", count=len(tagged), ids=() if is_all else facts.ids(tagged),
            text=f"All {len(texts):,} sequences carry a His tag ({HIS_TAG}). It does no harm; without it training is a "
            "little faster, if new sequences will not have it either."
            if is_all
            else f"{len(tagged):,} of {len(texts):,} sequences carry a His tag ({HIS_TAG}), the others none. Where a "
            "tag says which experiment a row comes from, a predictor learns that. Cut it off, or put it on all.",
        )  # fmt: skip
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < ENOUGH or len(set(map(len, distinct))) == 1:
        return  # variants of one protein share their ends by nature
    middles = {text[END:-END] for text in distinct}
    for where, found in (
        ("begin", Counter(t[1 : END + 1] for t in distinct)),
        ("end", Counter(t[-END:] for t in distinct)),
    ):
        ((same, count),) = found.most_common(1)
        if count >= ENDED * len(distinct) and len(middles) > 1 and HIS_TAG not in same:
            yield Finding(
                name="tag", severity="note", count=count,
                text=f"{count:,} of {len(distinct):,} different sequences {where} with the same residues ({same}"
                f"{', after the first' * (where == 'begin')}): a tag, linker or signal of the construct? If it does "
                "not belong to the protein, cut it off.",
            )  # fmt: skip


def _dates(facts: Facts) -> Iterator[Finding]:
    checks: tuple[tuple[re.Pattern[str], dict[str, Any], str], ...] = (
        (
            _DATE,
            {"name": "date-ids", "severity": "warning"},
            "looks like a date or a number that a spreadsheet made of a name (SEPT2 becomes 2-Sep, 2310009E13 becomes "
            "2.31E+19). Take the ids from the original source, and import them as text.",
        ),
        (
            _LIKE_A_DATE,
            {"name": "date-names", "severity": "note"},
            "is a name that spreadsheets turn into a date. It is whole here: do not open and save it there.",
        ),
    )
    for pattern, options, what in checks:
        found = [place for place, record in enumerate(facts.records) if pattern.fullmatch(record.id)]
        if found:
            shown = facts.ids(found)
            text = f"{each(len(found), 'id', 'ids')} ({', '.join(shown[:3])}): each {what}"
            yield Finding(count=len(found), ids=shown, text=text, **options)
