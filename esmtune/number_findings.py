"""What is found in labels that are numbers: codes in their place, slips of units, classes or ranks in disguise."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from esmtune.findings import ENOUGH, UNLIKELY, Facts, Finding, chance, each, shown
from esmtune.records import HELD_OUT

SENTINELS = (-1.0, *(sign * float("9" * digits) for sign in (-1, 1) for digits in range(2, 8)))
FAR = 8.0  # robust standard deviations
FEW = 0.01  # the share of the labels that outliers can be; more of them are a tail
APART = 0.5  # of the range of all other labels, from them to a code that stands out
SHIFTED = 0.2  # of 1, the largest difference of two cumulative distributions
ORDERLY = 0.95
CORRELATED, STRONGLY = 0.3, 0.5
AT_LIMIT = 0.05
GRADES = 20


def numbers(facts: Facts) -> Iterator[Finding]:
    """Find what is odd in every target that has numbers."""
    for place, target in enumerate(facts.targets):
        if facts.reads[target.kind] != "number":
            continue
        values, owners = facts.numbers(place)
        if len(values) < 2:
            continue
        of = facts.of(place)
        yield from _few_values(values, of)
        strange = yield from _codes(values, owners, facts, of)
        strange = yield from _outliers(values, owners, strange, facts, of)
        yield from _extent(values[~strange], of)
        yield from _constant(values, owners, facts, of)
        means, rows = (values, owners) if not facts.is_per_residue() else _means(values, owners)
        yield from _shift(means, rows, facts, of)
        if not facts.is_per_residue():
            yield from _order(values, owners, of)
            yield from _by_length(values, owners, facts, of)


def _means(
    values: Float[np.ndarray, "points"], owners: Int[np.ndarray, "points"]
) -> tuple[Float[np.ndarray, "rows"], Int[np.ndarray, "rows"]]:
    """The mean of each record's labels: residues of one protein are no independent draws."""
    rows, which, count = np.unique(owners, return_inverse=True, return_counts=True)
    return np.bincount(which, values) / count, rows


def _few_values(values: Float[np.ndarray, "points"], of: str) -> Iterator[Finding]:
    found = np.unique(values)
    few = shown([f"{x:g}" for x in found[:7]], 6)
    if len(found) == 2:
        yield Finding(
            name="two-values", severity="warning", count=len(values),
            text=f"The labels{of} are treated as amounts but take two values ({few}). If they are classes, "
            "say --task binary.",
        )  # fmt: skip
    elif 2 < len(found) <= GRADES and 2 * len(found) < len(values) and (found == np.round(found)).all():
        yield Finding(
            name="whole-numbers", severity="note", count=len(values),
            text=f"The labels{of} are treated as amounts but take {len(found)} whole values ({few}). If they are "
            "names of classes, say --task multiclass; if they are grades, --task ordinal.",
        )  # fmt: skip


def _codes(
    values: Float[np.ndarray, "points"], owners: Int[np.ndarray, "points"], facts: Facts, of: str
) -> "Iterator[Finding]":
    """Numbers such as -999 that mean that nothing is known; returns where they are."""
    strange = np.zeros(len(values), bool)
    for code in SENTINELS:
        is_code = values == code
        others = values[~is_code & ~strange]
        if is_code.any() and len(np.unique(others)) > 1 and _stands_out(code, int(is_code.sum()), others):
            strange |= is_code
            count = int(is_code.sum())
            yield Finding(
                name="sentinel", severity="warning", count=count, ids=facts.ids(owners[is_code].tolist()),
                text=f"{each(count, 'label is', 'labels are')} {code:g}{of}, far from all others ({others.min():g} to "
                f"{others.max():g}): probably a code for a missing value. Leave those cells empty.",
            )  # fmt: skip
    return strange


def _stands_out(code: float, count: int, others: Float[np.ndarray, "others"]) -> bool:
    if code == -1:  # stands out as the one negative number among many that repeats itself
        return count >= 3 and bool(others.min() >= 0 and (others != np.round(others)).any())
    gap = max(others.min() - code, code - others.max())
    return bool(gap >= APART * (others.max() - others.min()))


def _outliers(
    values: Float[np.ndarray, "points"], owners: Int[np.ndarray, "points"], strange: Bool[np.ndarray, "points"],
    facts: Facts, of: str,
) -> "Iterator[Finding]":  # fmt: skip
    """The few labels that lie far beyond all others; returns where these and what was strange already are."""
    kept = values[~strange]
    if len(kept) < ENOUGH:
        return strange
    # Amounts over orders of magnitude have long tails that are no mistakes: positive labels go by their logarithms.
    scaled = np.log10(np.where(strange, kept[0], values)) if (kept > 0).all() else values
    far = _far(scaled) & ~strange
    inner, rest = scaled[~far & ~strange], values[~far & ~strange]
    # What stands out has a gap before it; the far end of a tail has none.
    far &= (scaled > 2 * inner.max() - inner.min()) | (scaled < 2 * inner.min() - inner.max())
    count = int(far.sum())
    if not 0 < count <= max(1, FEW * len(kept)):
        return strange
    few = ", ".join(f"{x:g}" for x in np.unique(values[far])[:6])
    yield Finding(
        name="outliers", severity="warning", count=count, ids=facts.ids(owners[far].tolist()),
        text=f"{each(count, 'label lies', 'labels lie')} far beyond all others{of} ({few}, the others from "
        f"{rest.min():g} to {rest.max():g}): slips of the unit or the decimal point? One such label can ruin a "
        "regression. Correct them, or leave the cells empty.",
    )  # fmt: skip
    return strange | far


def _far(values: Float[np.ndarray, "points"]) -> Bool[np.ndarray, "points"]:
    """Which are many robust standard deviations from the median (Iglewicz and Hoaglin's modified z-score)."""
    distance = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(distance) or np.subtract(*np.percentile(values, [75, 25])) / 1.349 or values.std()
    return distance > FAR * spread if spread else np.zeros(len(values), bool)


def _extent(values: Float[np.ndarray, "points"], of: str) -> Iterator[Finding]:
    if len(values) < ENOUGH:
        return
    low, high = np.percentile(values, [1, 99])
    if values.min() > 0 and high / low >= 1000:
        yield Finding(
            name="orders-of-magnitude", severity="note", count=len(values),
            text=f"The labels{of} span {np.log10(high / low):.1f} orders of magnitude ({low:.3g} to {high:.3g}), so a "
            "few large ones outweigh all others. Their logarithms are usually learned better.",
        )  # fmt: skip
    distinct = len(np.unique(values))
    for end, sign in ((values.max(), ">"), (values.min(), "<")):
        count = int((values == end).sum()) if end else 0  # 0 is an amount like others, however often it is measured
        if count >= max(10, AT_LIMIT * len(values)) and 4 * (distinct - 1) > len(values) - count:
            yield Finding(
                name="limit", severity="note", count=count,
                text=f"{count:,} labels{of} are exactly {end:g}, the {'highest' if sign == '>' else 'lowest'}: the "
                f"limit of the assay? Then write them as {sign}{end:g}, and they are learned as bounds.",
            )  # fmt: skip


def _constant(
    values: Float[np.ndarray, "points"], owners: Int[np.ndarray, "points"], facts: Facts, of: str
) -> Iterator[Finding]:
    for split in HELD_OUT:
        own = values[np.isin(owners, facts.splits.get(split, []))]
        if len(own) > 1 and len(np.unique(own)) == 1:
            yield Finding(
                name="constant", severity="warning", count=len(own),
                text=f"All {len(own):,} {split} labels{of} are {own[0]:g}: no correlation can be computed on them. "
                "Draw the split otherwise.",
            )  # fmt: skip


def _shift(
    values: Float[np.ndarray, "rows"], owners: Int[np.ndarray, "rows"], facts: Facts, of: str
) -> Iterator[Finding]:
    from scipy.stats import ks_2samp

    parts = {split: values[np.isin(owners, places)] for split, places in facts.splits.items()}
    train = parts.pop("train", np.empty(0))
    for split, own in parts.items():
        if min(len(own), len(train)) < ENOUGH:
            continue
        distance, p = map(float, ks_2samp(train, own, method="asymp"))  # pyright: ignore[reportArgumentType]
        if distance >= SHIFTED and p < UNLIKELY:
            yield Finding(
                name="shift", severity="warning", count=len(own),
                text=f"The {split} labels{of} are distributed unlike those of training (median {np.median(own):.3g} "
                f"and {np.median(train):.3g}; Kolmogorov-Smirnov D {distance:.2f}, {chance(p)}): "
                "errors will be larger than on labels like those of training. Fine if the split is meant to ask that.",
            )  # fmt: skip


def _order(values: Float[np.ndarray, "rows"], owners: Int[np.ndarray, "rows"], of: str) -> Iterator[Finding]:
    if len(values) < ENOUGH or len(np.unique(values)) == 1:
        return
    from scipy.stats import spearmanr

    rho = float(spearmanr(owners, values)[0])  # pyright: ignore[reportArgumentType]
    steps = np.diff(np.sort(values))
    if steps.min() > 0 and steps.max() - steps.min() < 1e-6 * steps.mean():
        what = "the number of the row" if abs(rho) >= ORDERLY else "a rank"
        yield Finding(
            name="rank", severity="warning", count=len(values),
            text=f"The labels{of} are all different and equally far apart ({values.min():g} to {values.max():g}): that "
            f"is {what}, not a measurement. Name the column that was measured: --target COLUMN.",
        )  # fmt: skip
    elif abs(rho) >= ORDERLY:
        yield Finding(
            name="row-order", severity="note", count=len(values),
            text=f"The labels{of} follow the order of the rows (Spearman {rho:.2f}). If the table was not sorted by "
            "them, the column may be a running number or a date.",
        )  # fmt: skip


def _by_length(
    values: Float[np.ndarray, "rows"], owners: Int[np.ndarray, "rows"], facts: Facts, of: str
) -> Iterator[Finding]:
    lengths = facts.lengths[owners]
    if len(values) < ENOUGH or min(len(np.unique(lengths)), len(np.unique(values))) == 1:
        return
    from scipy.stats import spearmanr

    rho, p = map(float, spearmanr(lengths, values))  # pyright: ignore[reportArgumentType]
    if abs(rho) >= CORRELATED and p < UNLIKELY:
        yield Finding(
            name="length", severity="warning" if abs(rho) >= STRONGLY else "note", count=len(values),
            text=f"The labels{of} go with the length of the sequence (Spearman {rho:.2f}, n {len(values):,}, "
            f"{chance(p)}): a predictor can score by length alone. Compare it with one that knows only the length.",
        )  # fmt: skip
