"""What is found in labels that are classes: too few of one, too many of another, none of a third in a split."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from esmtune.findings import ENOUGH, UNLIKELY, Facts, Finding, chance, each, shown
from esmtune.records import HELD_OUT
from esmtune.targets import classes_in, names_of

ONE_SIDED = 0.95
RARE = 10  # rows of a class
SHIFTED = 0.15  # of 1, the share of the rows that would have to change their class
EXPLAINED, STRONGLY = 0.1, 0.25  # of the variance of the ranks of lengths


def classes(facts: Facts) -> Iterator[Finding]:
    """Find what is odd in every target that has classes."""
    for place, target in enumerate(facts.targets):
        if target.kind == "mlm" or facts.reads[target.kind] == "number":
            continue
        counts = counts_of(facts, place)
        of = facts.of(place)
        if facts.reads[target.kind] == "name":
            yield from _imbalance(counts, facts, of)
            yield from _shift(counts, of)
            if not facts.is_per_residue():
                yield from _by_length(facts, place, of)
        yield from _rare(counts, set(names_of(target)) if target.form == "columns" else set(), facts, of)


def counts_of(facts: Facts, place: int) -> dict[str, Counter[str]]:
    """How many labels there are of each class, by split."""
    of_record = [record.split or "train" for record in facts.records]
    counts: dict[str, Counter[str]] = {split: Counter() for split in facts.splits}
    for number, label in facts.labels(place):
        counts[of_record[number]].update(classes_in(label))
    return counts


def _imbalance(counts: dict[str, Counter[str]], facts: Facts, of: str) -> Iterator[Finding]:
    total = sum(counts.values(), Counter[str]())
    ((name, count),) = total.most_common(1) or [("", 0)]
    if total.total() >= ENOUGH and len(total) > 1 and count >= ONE_SIDED * total.total():
        what = "residues" if facts.is_per_residue() else "rows"
        yield Finding(
            name="imbalance", severity="warning", count=count,
            text=f"{count / total.total():.1%} of the labeled {what}{of} are {name!r}: always to say so is right that "
            "often, so accuracy says nothing. Look at mcc and auprc, and see whether more of the others can be had.",
        )  # fmt: skip


def _rare(counts: dict[str, Counter[str]], named: set[str], facts: Facts, of: str) -> Iterator[Finding]:
    total = sum(counts.values(), Counter[str]())
    what = "residues" if facts.is_per_residue() else "rows"
    rare = sorted((name for name in named | set(total) if total[name] < RARE), key=lambda name: (total[name], name))
    if rare:
        few = shown([f"{name} ({total[name]})" for name in rare], 10)
        yield Finding(
            name="rare-class", severity="warning", count=len(rare),
            text=f"{each(len(rare), 'class has', 'classes have')} fewer than {RARE} {what}{of}: {few}. They can "
            "hardly be learned, nor tested. Find more of them, join them with others, or leave them out.",
        )  # fmt: skip
    for split in HELD_OUT:
        absent = [name for name in sorted(total) if split in counts and name not in rare and not counts[split][name]]
        if absent:
            yield Finding(
                name="missing-class", severity="warning", count=len(absent),
                text=f"No {split} row has the {'class' if len(absent) == 1 else 'classes'} {shown(absent, 10)}{of}: "
                "nothing there tells how well they are predicted, and areas under curves cannot be computed.",
            )  # fmt: skip


def _shift(counts: dict[str, Counter[str]], of: str) -> Iterator[Finding]:
    from scipy.stats import chi2_contingency

    train = counts.get("train", Counter())
    for split in HELD_OUT:
        own = counts.get(split, Counter())
        if min(own.total(), train.total()) < ENOUGH:
            continue
        names = sorted(train | own)
        table = np.array([[part[name] for name in names] for part in (train, own)])
        shares = table / table.sum(1, keepdims=True)
        moved = float(np.abs(shares[0] - shares[1]).sum()) / 2
        if len(names) > 1 and moved >= SHIFTED and float(chi2_contingency(table)[1]) < UNLIKELY:  # pyright: ignore[reportArgumentType]
            worst = names[int(np.abs(shares[0] - shares[1]).argmax())]
            yield Finding(
                name="shift", severity="warning", count=own.total(),
                text=f"The classes of the {split} labels{of} are mixed unlike those of training: "
                f"{worst!r} is {own[worst] / own.total():.0%} of them and {train[worst] / train.total():.0%} in "
                "training. Scores on one mix do not hold for another. Fine if the split is meant to ask that.",
            )  # fmt: skip


def _by_length(facts: Facts, place: int, of: str) -> Iterator[Finding]:
    """Kruskal and Wallis' H over the lengths; divided by n - 1 it is the share of variance that classes explain."""
    known = [(number, str(label)) for number, label in facts.labels(place)]
    lengths = facts.lengths[[number for number, _ in known]]
    names, which, sizes = np.unique([name for _, name in known], return_inverse=True, return_counts=True)
    if len(known) < ENOUGH or len(names) < 2 or len(np.unique(lengths)) == 1:
        return
    from scipy.stats import kruskal

    h, p = map(float, kruskal(*(lengths[which == number] for number in range(len(names)))))
    share = h / (len(known) - 1)
    if share >= EXPLAINED and p < UNLIKELY:
        large = np.flatnonzero(sizes >= min(RARE, sizes.max()))
        medians = [float(np.median(lengths[which == number])) for number in large]
        least, most = large[int(np.argmin(medians))], large[int(np.argmax(medians))]
        yield Finding(
            name="length", severity="warning" if share >= STRONGLY else "note", count=len(known),
            text=f"The classes{of} differ in the length of their sequences (median {min(medians):,.0f} residues of "
            f"{str(names[least])!r}, {max(medians):,.0f} of {str(names[most])!r}; that is {share:.0%} of the variance "
            f"of ranks, n {len(known):,}, {chance(p)}): a predictor can score by length alone. Compare it with "
            "one that knows only the length.",
        )  # fmt: skip
