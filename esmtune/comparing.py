"""Compare: several runs on the test records that they share, pair by pair."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from esmtune.charts import bar_chart
from esmtune.contests import Pair, contests, corrected
from esmtune.events import counted_as
from esmtune.metrics import Scores
from esmtune.outcomes import Outcome, read_outcome
from esmtune.pages import Page, Part, Rows, Section, Text, require, write_page
from esmtune.phrases import interval, metric_name, number
from esmtune.points import Points
from esmtune.writers import check_out, write_json

SPLITS = {"valid": "validation"}
HOW = (
    "Intervals are of 95 %, by the bootstrap over sequences, the same resamples for both runs. Tests are of pairs: "
    "McNemar's exact test of right and wrong for classes of sequences, else Wilcoxon's signed ranks of the mean error "
    "of each sequence; p is corrected for the number of pairs after Holm. A difference is in favor of the first run "
    "where it is positive, also of what is better when lower."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs, scored on the records that all of them were tested on."""

    runs: tuple[str, ...]
    split: str
    records: int  # that they share
    scores: Mapping[str, Mapping[str, Scores]]  # by target and run
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]  # what is to be known of them


def compare(*runs: str | Path, out: str | Path | None = None, overwrite: bool = False, seed: int = 0) -> Comparison:
    """Compare runs on the records that all were tested on, from the files of their folders alone.

    Records are the same if they have the same id, sequence and label; where a run has no split.csv, the same id and
    label. Scores are of these records alone. Differences have bootstrap intervals over sequences, and tests of pairs:
    Wilcoxon's signed ranks of the errors (https://doi.org/10.2307/3001968), or for classes of sequences McNemar's exact
    test (https://doi.org/10.1007/BF02295996), corrected for several pairs after Holm
    (https://www.jstor.org/stable/4615733). `out` is a .json or .html file.

    Raises:
        ValueError: if there are fewer than two runs, or they predict other targets or share no test records.
    """
    if len(runs) < 2:
        raise ValueError(f"compare takes two runs or more, got {len(runs)}: esmtune compare RUN RUN.")
    is_page = out is not None and Path(out).suffix.lower() == ".html"
    if out is not None:
        check_out(Path(out), overwrite=overwrite, kind="comparison")
    if is_page:
        require()
    outcomes = [read_outcome(run) for run in runs]
    names = _names(outcomes)
    _check(outcomes, names)
    rows, notes = shared_rows(outcomes, names)
    found = [_of_target(outcomes, names, rows, place, seed) for place in range(len(outcomes[0].targets))]
    pairs = corrected([pair for _, pairs in found for pair in pairs])
    result = Comparison(
        runs=names, split=str(outcomes[0].judged), records=len(rows[0]), notes=tuple(notes), pairs=pairs,
        scores={t.name: scores for t, (scores, _) in zip(outcomes[0].targets, found, strict=True)},
    )  # fmt: skip
    if out is not None and is_page:
        write_page(page_of_comparison(result), Path(out))
    elif out is not None:
        write_json(asdict(result), Path(out))
    return result


def _names(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """What the runs go by: the names of their folders, with those above where these are the same."""
    paths = [outcome.path.resolve() for outcome in outcomes]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{twice.name} is given twice: name each run once.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return tuple("/".join(path.parts[-depth:]) for path in paths)


def _check(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    """Refuse runs that cannot be compared."""
    first = outcomes[0]
    for outcome, name in zip(outcomes, names, strict=True):
        if outcome.judged is None:
            raise ValueError(f"{name} held nothing out: there is nothing to compare it by.")
        if not outcome.targets:
            raise ValueError(f"{name} has no predictor/predictor.json, which says what its predictions are.")
        if any(target.kind == "mlm" for target in outcome.targets):
            raise ValueError(f"{name} learned language modeling, which leaves no predictions to compare.")
        theirs, ours = ([(t.name, t.kind) for t in o.targets] for o in (outcome, first))
        if theirs != ours:
            raise ValueError(
                f"{name} predicts {_listed(theirs)}, but {names[0]} {_listed(ours)}: compare runs of the same targets."
            )
        if outcome.judged != first.judged:
            raise ValueError(
                f"{name} is judged by its {outcome.judged} records, but {names[0]} by its {first.judged} records: "
                "train both with the same test rows, such as --test FILE."
            )


def _listed(targets: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in targets)


def shared_rows(outcomes: Sequence[Outcome], names: Sequence[str]) -> tuple[list[list[int]], list[str]]:
    """The rows of each run that are the same record in all, in the order of the first, and what is to be known of them.

    Raises:
        ValueError: if there are none.
    """
    notes = []
    by_sequence = all(outcome.digests is not None for outcome in outcomes)
    if not by_sequence:
        lack = [name for name, outcome in zip(names, outcomes, strict=True) if outcome.digests is None]
        notes.append(
            f"Records are matched by id and label alone, and each counts as a sequence of its own, since "
            f"{', '.join(lack)} did not write split.csv."
        )
    keyed = [_keyed(outcome, by_sequence) for outcome in outcomes]
    kept = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    split = outcomes[0].judged
    counts = [len(rows) for rows in keyed]
    if not kept:
        told = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        raise ValueError(
            f"these runs share no {split} record with the same id, {'sequence and ' if by_sequence else ''}label "
            f"({told}): train them with the same test rows, such as --test FILE or a split column."
        )
    if any(count != len(kept) for count in counts):
        told = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        notes.append(f"Their {split} records differ ({told}): all is of the {len(kept):,} that they share.")
    seen = _trained_on(outcomes, names, by_sequence)
    return [[rows[key] for key in kept] for rows in keyed], notes + seen


def _keyed(outcome: Outcome, by_sequence: bool) -> dict[tuple[Any, ...], int]:
    """The rows that were held out, by what makes a record the same; copies are told apart by their number."""
    found: dict[tuple[Any, ...], int] = {}
    labels = [outcome.predictions[f"label{outcome.ending(t)}"].to_list() for t in outcome.targets]
    ids = outcome.predictions["id"].to_list()
    for row in np.flatnonzero(outcome.held_out).tolist():
        digest = outcome.digests[row] if by_sequence and outcome.digests else ""
        key = (ids[row], digest, *(column[row] for column in labels))
        copy = next(n for n in itertools.count() if (*key, n) not in found)
        found[(*key, copy)] = row
    return found


def _trained_on(outcomes: Sequence[Outcome], names: Sequence[str], by_sequence: bool) -> list[str]:
    """Whether a run was trained on what another was tested on: that one was asked what it had been told."""
    notes = []

    def known(outcome: Outcome, rows: np.ndarray) -> set[str]:
        ids = outcome.digests if by_sequence and outcome.digests else outcome.predictions["id"].to_list()
        return {ids[row] for row in np.flatnonzero(rows).tolist()}

    for one, other in itertools.permutations(range(len(outcomes)), 2):
        if outcomes[one].judged != "test":
            continue
        training = (outcomes[other].predictions["split"] == "train").to_numpy()
        both = known(outcomes[one], outcomes[one].held_out) & known(outcomes[other], training)
        if both:
            what = "sequence" if by_sequence else "id"
            told = f"{counted_as(len(both), what)} that {names[one]} was tested on {names[other]} was trained on"
            notes.append(f"{told}; they are not among the shared records.")
    return notes


def _of_target(
    outcomes: Sequence[Outcome], names: Sequence[str], rows: Sequence[Sequence[int]], place: int, seed: int
) -> tuple[dict[str, Scores], list[Pair]]:
    """Scores and pairs of one target."""
    target = outcomes[0].targets[place]
    found: list[Points] = []
    for outcome, name, own in zip(outcomes, names, rows, strict=True):
        points = outcome.points(outcome.targets[place])
        if points is None:
            raise ValueError(f"{name} has no labels and predictions of {target.name!r} that can be compared.")
        found.append(_ordered(points, own))
    groups = _sequences(outcomes[0], rows[0])
    found = [replace(points, record=groups[points.record]) for points in found]
    found = _same_classes(found, names)
    if len({len(points) for points in found}) > 1 or any(len(points) == 0 for points in found):
        raise ValueError(f"the labels of {target.name!r} are not of the same residues in all runs.")
    return contests(names, found, seed)


def _sequences(outcome: Outcome, rows: Sequence[int]) -> np.ndarray:
    """Of each row the number of its sequence, which copies share; without split.csv each row counts as one."""
    if outcome.digests is None:
        return np.arange(len(rows))
    return np.unique([outcome.digests[row] for row in rows], return_inverse=True)[1]


def _ordered(points: Points, rows: Sequence[int]) -> Points:
    """The points of some rows, in that order, numbered by it."""
    place = {row: number for number, row in enumerate(rows)}
    number_of = np.array([place.get(int(row), -1) for row in points.record], dtype=np.int64)
    kept = points.where(number_of >= 0)
    kept = replace(kept, record=number_of[number_of >= 0])
    order = np.lexsort((kept.residue, kept.record))
    own = {name: getattr(kept, name)[order] for name in ("record", "residue", "labels", "predictions")}
    probabilities = None if kept.probabilities is None else kept.probabilities[order]
    return replace(kept, **own, probabilities=probabilities, lower=None, upper=None, sets=None)


def _same_classes(found: Sequence[Points], names: Sequence[str]) -> list[Points]:
    """All by the classes of the first, which must be the same in another order."""
    classes = found[0].classes
    same = []
    for points, name in zip(found, names, strict=True):
        if set(points.classes) != set(classes):
            only = ", ".join(sorted(set(points.classes) ^ set(classes)))
            raise ValueError(f"{name} and {names[0]} know other classes: {only}.")
        order = [points.classes.index(c) for c in classes]
        probabilities = None if points.probabilities is None else points.probabilities[:, order]
        columns = (
            {k: getattr(points, k)[:, order] for k in ("labels", "predictions")} if points.reads == "names" else {}
        )
        same.append(replace(points, classes=classes, probabilities=probabilities, **columns))
    return same


def page_of_comparison(found: Comparison) -> Page:
    """Scores of all runs on what they share, and every pair."""
    first: list[Part] = [Text(pair.text) for pair in found.pairs]
    first += [Text(note, warning=True) for note in found.notes]
    return Page(
        title=f"{counted_as(len(found.runs), 'run')} compared",
        subtitle=f"On the {found.records:,} {SPLITS.get(found.split, found.split)} records that all of them have.",
        sections=(
            Section("verdict", "What came of it", first),
            Section("scores", "Scores", _scores(found)),
            Section("pairs", "Pairs", (*pairs_tables(found), Text(HOW))),
        ),
        foot="Made by esmtune from the files of the runs; this page loads nothing.",
    )


def _scores(found: Comparison) -> list[Part]:
    parts: list[Part] = []
    for target, scores in found.scores.items():
        metrics = list(next(iter(scores.values())))
        metric = next((p.metric for p in found.pairs if p.target == target), metrics[0])
        known = {run: own[metric] for run, own in scores.items() if own.get(metric) is not None}
        if known:
            parts.append(
                bar_chart(
                    f"{target}: {metric_name(metric)}", list(known), list(known.values()), y=metric_name(metric),
                    hover=[f"{metric_name(metric)} {number(value)}" for value in known.values()], is_flat=True,
                    description=f"{metric_name(metric)} of each run on the shared records. Whether two differ is "
                    "said of the pair: their errors are on the same records.",
                )
            )  # fmt: skip
        parts.append(scores_rows(found, target))
    return parts


def scores_rows(found: Comparison, target: str) -> Rows:
    """The metrics of each run on the shared records."""
    scores = found.scores[target]
    metrics = list(next(iter(scores.values())))
    rows = [[run, *(number(own.get(metric), 4) for metric in metrics)] for run, own in scores.items()]
    return Rows(f"{target}: {found.records:,} shared records", ("run", *map(metric_name, metrics)), rows,
                frozenset(range(1, len(metrics) + 1)))  # fmt: skip


def pairs_tables(found: Comparison) -> list[Rows]:
    """The pairs of each target."""
    tables = []
    for target in found.scores:
        rows = [
            [p.first, p.second, number(p.difference, 4), interval((p.low, p.high)) or "-", p.test, _p(p.p),
             _p(p.p_holm)]
            for p in found.pairs if p.target == target
        ]  # fmt: skip
        metric = metric_name(next(p.metric for p in found.pairs if p.target == target))
        columns = ("first", "second", f"difference in {metric}", "95 % interval", "test", "p", "p after Holm")
        tables.append(Rows(f"{target}: pairs", columns, rows, frozenset((2, 3, 5, 6))))
    return tables


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
