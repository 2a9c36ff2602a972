"""What can be predicted without fine-tuning: from shares, composition, variants, neighbors, frozen embeddings.

Each baseline learns from the training rows alone, and gives outputs in the form of the task, so that the
task's own scores judge it as they judge the predictor. One that does not apply is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.alphabet import AMINO_ACIDS, INDEX
from esmtune.classes import LEAST_SHARE, Binary, Named
from esmtune.descriptors import WildType, composition, placed, windows
from esmtune.events import Notice, Watcher
from esmtune.kinds import Task
from esmtune.linear import linear_map, sparse_map
from esmtune.multilabel import Multilabel
from esmtune.neighbors import nearest
from esmtune.ordinal import Ordinal
from esmtune.records import Label, Level, Record, of_target
from esmtune.regression import Regression
from esmtune.samples import Points

ROWS = 20_000  # training sequences that a map is found of
RESIDUES = 50_000  # the same, of residues
KNOWN = 100_000  # training sequences among which neighbors are looked for
MOST_CLASSES = 50  # of several at once, that one-hot columns are mapped to
ZERO_SHOT = "zero-shot"
BEFORE = "before adaptation"
WITHOUT_UNIT = frozenset(("spearman", "auroc", "auprc"))  # metrics of numbers that mean nothing but an order

Embed = Callable[[Sequence[str]], Float[np.ndarray, "points channels"]]
Expect = Callable[[str], "Float[np.ndarray, 'residues symbols'] | None"]


@dataclass(frozen=True, kw_only=True)
class Means:
    """What baselines may use: the encoder as it was before training, and its language model."""

    embed: Embed | None = None  # a row a point, of the layers that a head would see
    expect: Expect | None = None  # logarithms of probabilities at each residue of a sequence; None without a LM head
    seed: int = 0


Baseline = Callable[[Task, Points, Points, Means, Watcher], "Tensor | None"]


def outputs_of_baselines(
    task: Task, train: Sequence[Record], asked: Sequence[Record], level: Level, means: Means, watch: Watcher
) -> dict[str, Float[Tensor, "points outputs"]]:
    """What each baseline that applies gives for the points of `asked`, after learning from `train`, by its name."""
    count = sum(len(record.labels) for record in asked)
    found = {_ignorant(task): task.baseline(count)}
    if task.name == "mlm" or not count:
        return found
    for name, baseline in _baselines(level):
        try:
            outputs = _together(task, baseline, train, asked, level, means, watch)
        except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:  # what was trained must not be lost
            watch(Notice(f"Baseline {name}: not to be had ({type(error).__name__}: {error})."))
            continue
        if outputs is None:
            continue
        if not outputs.isfinite().all():
            watch(Notice(f"Baseline {name}: not to be had (its outputs are not finite)."))
            continue
        found[name] = outputs.double()
    return found


def _together(
    task: Task, baseline: Baseline, train: Sequence[Record], asked: Sequence[Record], level: Level, means: Means,
    watch: Watcher,
) -> Tensor | None:  # fmt: skip
    """The outputs for all targets, side by side; None if one of them has none."""
    columns = []
    for place, (_, part, _) in enumerate(task.parts()):
        pair = [Points(rows, _labels(rows, place, task), level) for rows in (train, asked)]
        column = baseline(part, pair[0], pair[1], means, watch)
        if column is None:
            return None
        columns.append(column.double())
    return torch.cat(columns, dim=1)


def named(name: str) -> str:
    """How a baseline is spoken of in a sentence.

    >>> named("mean"), named("one-hot ridge")
    ('the mean', 'one-hot ridge')
    """
    articles = {
        "mean": "the mean",
        "majority": "the majority",
        "mean or majority": "the mean or majority",
        ZERO_SHOT: "the zero-shot score",
    }
    articles |= {"nearest neighbor": "the nearest neighbor", BEFORE: "the language model before adaptation"}
    return articles.get(name, name)


def defined(name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """The scores of a baseline, None where it has no unit to be judged in."""
    if name != ZERO_SHOT:
        return scores
    return {metric: x if metric.split(".")[-1] in WITHOUT_UNIT else None for metric, x in scores.items()}


def _ignorant(task: Task) -> str:
    numbers = {part.reads == "number" for _, part, _ in task.parts()}
    return "mean or majority" if len(numbers) > 1 else "mean" if True in numbers else "majority"


def _labels(records: Sequence[Record], place: int, task: Task) -> list[Label]:
    return of_target([label for record in records for label in record.labels], place, task.parts())


def _baselines(level: Level) -> Iterator[tuple[str, Baseline]]:
    if level == "residue":
        yield "residue identity", _residue_identity
        yield "composition", partial(_mapped, what=_windows, limit=RESIDUES)
        yield "ridge on embeddings", partial(_mapped, what=_embedded, limit=RESIDUES)
        return
    yield "composition", partial(_mapped, what=_composed, limit=ROWS)
    yield "one-hot ridge", _one_hot
    yield ZERO_SHOT, _zero_shot
    yield "nearest neighbor", _neighbors
    yield "ridge on embeddings", partial(_mapped, what=_embedded, limit=ROWS)


def _composed(sequences: Sequence[str], means: Means) -> np.ndarray:
    return composition(sequences)


def _windows(sequences: Sequence[str], means: Means) -> np.ndarray:
    return np.concatenate([windows(sequence) for sequence in sequences])


def _embedded(sequences: Sequence[str], means: Means) -> np.ndarray | None:
    return means.embed(sequences) if means.embed else None


def _mapped(
    task: Task, train: Points, asked: Points, means: Means, watch: Watcher,
    *, what: Callable[[Sequence[str], Means], np.ndarray | None], limit: int,
) -> Tensor | None:  # fmt: skip
    """A linear map of numbers that sequences or residues have."""
    known, _, groups = train.learnable()
    if task.only_orders or len(groups) < 2:
        return None
    few = train.labeled().sampled(limit, means.seed)
    first = what(few.sequences[:1], means)
    if first is None:
        return None
    few = few.affordable(first.shape[1], task.num_outputs, means.seed)
    if few is None:
        return None
    if len(few.labels) < len(known):
        _tell(watch, what.__name__.strip("_"), len(few.labels), len(train.labels))
    known, weights, groups = few.learnable()
    if len({few.labels[i] for i in known}) < 2:
        return None
    seen = what(few.sequences, means)
    assert seen is not None
    found = linear_map(seen[known], [few.labels[i] for i in known], weights, groups, task, seed=means.seed)
    outputs = []
    for some in _parts(asked.sequences):  # not all at once: the numbers of many residues take much memory
        numbers = what(some, means)
        assert numbers is not None
        outputs.append(found(numbers))
    return torch.cat(outputs)


def _parts(sequences: Sequence[str], residues: int = 200_000) -> Iterator[Sequence[str]]:
    start, size = 0, 0
    for place, sequence in enumerate(sequences):
        size += len(sequence)
        if size >= residues:
            yield sequences[start : place + 1]
            start, size = place + 1, 0
    if start < len(sequences):
        yield sequences[start:]


def _tell(watch: Watcher, what: str, taken: int, there: int) -> None:
    names = {"composed": "composition", "windows": "composition", "embedded": "ridge on embeddings"}
    watch(Notice(f"Baseline {names.get(what, what)}: learned from a sample of {taken:,} of {there:,} training points."))


def _residue_identity(task: Task, train: Points, asked: Points, means: Means, watch: Watcher) -> Tensor | None:
    """The mean, or the shares of the classes, of each amino acid."""
    known, weights, _ = train.learnable()
    which, wanted = (np.concatenate([placed(s) for s in rows.sequences]) for rows in (train, asked))
    labels = [train.labels[i] for i in known]
    groups = [np.flatnonzero(which[known] == number) for number in range(len(AMINO_ACIDS) + 1)]
    rows = _averages(task, labels, groups, weights)
    return None if rows is None else rows[torch.from_numpy(wanted.astype(np.int64))]


def _neighbors(task: Task, train: Points, asked: Points, means: Means, watch: Watcher) -> Tensor | None:
    """The mean label, or the shares of the classes, of the training sequences that are most alike."""
    known, weights, _ = train.learnable()
    if len(known) > KNOWN:
        _tell(watch, "nearest neighbor", KNOWN, len(known))
        chosen = np.sort(np.random.default_rng(means.seed).permutation(len(known))[:KNOWN])
        known, weights = known[chosen], weights[chosen]
    if not len(known):
        return None
    distinct = list(dict.fromkeys(asked.sequences))
    places, _ = nearest(distinct, [train.records[i].sequence for i in known])
    rows = _averages(task, [train.labels[i] for i in known], places, weights)
    if rows is None:
        return None
    number = {sequence: place for place, sequence in enumerate(distinct)}
    return rows[torch.tensor([number[sequence] for sequence in asked.sequences], dtype=torch.long)]


def _averages(
    task: Task, labels: Sequence[Label], groups: Sequence[Int[np.ndarray, "_"]], weights: np.ndarray
) -> Tensor | None:
    """Outputs that say of each group of points what its labels are on average; what is not known of one, as of all.

    Shares of classes are mixed with those of all training points as if they were one more label, so that none is 0.
    """
    if not isinstance(task, Regression | Named | Multilabel):
        return None
    targets = task.targets(labels).double().numpy()
    if isinstance(task, Named):
        values = np.eye(len(task.classes))[targets[:, 0].astype(int)]
    else:
        values = targets[:, :1] if isinstance(task, Regression) else targets
    prior = np.zeros(1) if isinstance(task, Regression) else np.array(task.shares)
    rows = np.empty((len(groups), values.shape[1]))
    for row, group in zip(rows, groups, strict=True):
        weight = weights[group, None] * np.isfinite(values[group])
        total, sums = weight.sum(0), (weight * np.nan_to_num(values[group])).sum(0)
        more = 1.0 if not isinstance(task, Regression) else (total == 0)
        row[:] = (sums + more * prior) / (total + more)
    return _as_outputs(task, rows)


def _as_outputs(task: Task, values: Float[np.ndarray, "points values"]) -> Tensor | None:
    """Standardized numbers or probabilities as outputs of a task."""
    found = torch.from_numpy(values)
    if isinstance(task, Named):
        return task.outputs_of(found.clamp(min=LEAST_SHARE).log())
    return found.logit(eps=LEAST_SHARE) if isinstance(task, Multilabel) else found


def _variants(train: Points, asked: Points) -> WildType | None:
    found = WildType.of(train.sequences)
    return found if found and all(map(found.fits, asked.sequences)) else None


def _one_hot(task: Task, train: Points, asked: Points, means: Means, watch: Watcher) -> Tensor | None:
    """A linear map of what stands where, for variants of one protein."""
    variants = _variants(train, asked)
    known, weights, _ = train.learnable()
    classes = len(getattr(task, "classes", ()))
    is_many = isinstance(task, Multilabel) and classes > MOST_CLASSES
    if variants is None or is_many or not isinstance(task, Regression | Named | Multilabel) or len(known) < 5:
        return None
    seen = [train.records[i].sequence for i in known]
    columns = variants.columns(seen)
    x, new = variants.one_hot(seen, columns), variants.one_hot(asked.sequences, columns)
    targets = task.targets([train.labels[i] for i in known]).double().numpy()
    if isinstance(task, Multilabel):
        return _as_outputs(task, np.hstack([_held(x, new, y, weights, means.seed) for y in targets.T]))
    if len(np.unique(targets[:, 0])) < 2:
        return None
    options = {} if isinstance(task, Regression) else {"classes": classes}
    return _as_outputs(task, sparse_map(x, targets[:, 0], weights, seed=means.seed, **options)(new))


def _held(x: Any, new: Any, targets: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """The probability that one of several classes holds."""
    is_known = np.isfinite(targets)
    y = targets[is_known]
    if len(np.unique(y)) < 2 or len(y) < 5:
        return np.full((new.shape[0], 1), y.mean() if len(y) else 0.0)
    return sparse_map(x[np.flatnonzero(is_known)], y, weights[is_known], seed=seed, classes=2)(new)[:, 1:]


def _zero_shot(task: Task, train: Points, asked: Points, means: Means, watch: Watcher) -> Tensor | None:
    """What the language model expects of each variant, more than of the wild type; higher is more of the label."""
    variants = _variants(train, asked)
    if variants is None or means.expect is None or not isinstance(task, Regression | Binary | Ordinal):
        return None
    expected = means.expect(variants.sequence)
    if expected is None:
        return None
    scores = variants.marginals(asked.sequences, expected, INDEX)
    return torch.from_numpy(scores)[:, None].expand(-1, task.num_outputs)
