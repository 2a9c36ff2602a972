"""A predictor beside the baselines: the scores of each, how sure they are, and what was gained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.baselines import Embed, Expect, Means, defined, named, outputs_of_baselines
from esmtune.bootstrap import Bootstrap, bootstrap
from esmtune.cache import Cache
from esmtune.config import LAYERS, Pooling, Precision
from esmtune.embedding import embed_sequences
from esmtune.esm2 import ESM2, Tokens
from esmtune.events import Notice, Watcher, counted_as
from esmtune.metrics import sign_of
from esmtune.predictor import find_encoder
from esmtune.records import Censored, Label, Level, Record
from esmtune.shortage import with_code
from esmtune.tasks import Task

Lookup = Callable[[str], "Float[np.ndarray, 'points channels'] | None"]  # what was computed of a sequence before

WIDEST = 4480  # numbers a sequence, beyond which fewer layers are taken
PREDICTOR = "predictor"
SPOKEN = {"spearman": "Spearman", "pearson": "Pearson", "r2": "R2", "f1": "F1"}
SPOKEN |= {name: name.upper() for name in ("rmse", "mae", "mcc", "auroc", "auprc", "qwk")}


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is compared on the records of one split."""

    split: str
    records: Sequence[Record]
    labels: Sequence[Label]  # of their points, end to end
    task: Task
    outputs: Float[Tensor, "points outputs"]  # of the predictor
    ignorant: Task  # what the outputs of baselines mean
    baselines: Mapping[str, Float[Tensor, "points _"]]

    def scores(self) -> dict[str, dict[str, Any]]:
        """The scores of each baseline."""
        return {
            name: defined(name, self.ignorant.scores(outputs, self.labels)) for name, outputs in self.baselines.items()
        }

    def resampled(self, seed: int) -> Bootstrap | None:
        """All of them on the same resamples of sequences; None of too few."""
        compared = {name: (self.ignorant, outputs) for name, outputs in self.baselines.items()}
        groups = [record.sequence for record in self.records for _ in record.labels]
        return bootstrap({PREDICTOR: (self.task, self.outputs), **compared}, self.labels, groups, seed=seed)


def comparison(sides: Sequence[Side], metric: str, *, seed: int = 0) -> dict[str, Any]:
    """The entries of `metrics.json` that set a predictor beside the baselines, of one or more splits.

    The best baseline is the one that is best by `metric` on the validation records, where there are any.
    """
    found: dict[str, Any] = {"baselines": {}, "intervals": {}, "baseline_intervals": {}, "bootstrap": {}}
    drawn: dict[str, Bootstrap | None] = {}
    for side in sides:
        scores = found["baselines"][side.split] = side.scores()
        sampled = drawn[side.split] = side.resampled(seed)
        if sampled is None:
            continue
        found["intervals"][side.split] = _intervals(sampled, PREDICTOR, sampled.metrics[PREDICTOR])
        found["baseline_intervals"][side.split] = {
            name: _intervals(sampled, name, {m: x for m, x in own.items() if x is not None})
            for name, own in scores.items()
        }
        undefined = {name: sampled.undefined(name, own) for name, own in scores.items()}
        undefined[PREDICTOR] = sampled.undefined(PREDICTOR, side.task.scores(side.outputs, side.labels))
        undefined = {name: lost for name, lost in undefined.items() if lost}
        found["bootstrap"][side.split] = {"resamples": sampled.resamples, "seed": seed, "undefined": undefined}
    last = next((side for split in ("test", "valid", "") for side in sides if side.split == split), None)
    best = _best(found["baselines"], last.split, metric) if last else None
    if last and best:
        gained = gain(last, best, metric, drawn[last.split], chosen_here="valid" not in found["baselines"])
        found |= {"gain": {last.split: gained}} if gained else {}
    return {name: entry for name, entry in found.items() if entry or name == "baselines"}


def _intervals(sampled: Bootstrap, name: str, metrics: Mapping[str, Any]) -> dict[str, list[float] | None]:
    each = {metric: sampled.interval(name, metric) for metric in metrics}
    return {metric: None if interval is None else list(interval) for metric, interval in each.items()}


def _best(scores: Mapping[str, Mapping[str, Mapping[str, Any]]], split: str, metric: str) -> str | None:
    sign = sign_of(metric)
    for where in dict.fromkeys(("valid" if "valid" in scores else split, split)):
        known = {
            name: sign * own[metric]
            for name, own in scores[where].items()
            if own.get(metric) is not None and scores[split][name].get(metric) is not None
        }
        if known:
            return max(known, key=lambda name: known[name])
    return None


def gain(side: Side, best: str, metric: str, sampled: Bootstrap | None, *, chosen_here: bool) -> dict[str, Any] | None:
    """How much better than the best baseline a predictor is, and a sentence that says so; None where that is undefined.

    The difference is positive where the predictor is better, also of what is better when lower. `chosen_here` says that
    there are no validation records by which the baseline was chosen, and so it was by these.
    """
    value = side.task.scores(side.outputs, side.labels).get(metric)
    base = side.ignorant.scores(side.baselines[best], side.labels).get(metric)
    if value is None or base is None:
        return None
    sign = sign_of(metric)
    bounds = sampled.difference(PREDICTOR, best, metric) if sampled else None
    low, high = (None, None) if bounds is None else sorted(sign * x for x in bounds)
    difference = sign * (value - base)
    found = {"metric": metric, "baseline": best, "difference": difference, "low": low, "high": high}
    text = _sentence(side, found, value, sampled and sampled.interval(PREDICTOR, metric), chosen_here)
    known = {name: own.get(metric) for name, own in side.scores().items()}
    above = {name: x for name, x in known.items() if x is not None and sign * x > sign * base}
    if above:  # it was not the best where the best was chosen
        top = max(above, key=lambda name: sign * above[name])
        text += f" On these rows {named(top)} does better than that baseline: {_number(above[top], metric)}."
    return found | {"text": text}


def _sentence(
    side: Side, found: Mapping[str, Any], value: float, interval: Sequence[float] | None, chosen_here: bool
) -> str:
    metric, low, high, lower = found["metric"], found["low"], found["high"], sign_of(found["metric"]) < 0
    better = found["difference"] >= 0
    ends = (low, high) if better or low is None else (-high, -low)
    apart = (
        f"{_number(abs(found['difference']), metric)}{_range(ends, metric)} {'below' if better == lower else 'above'}"
    )
    if low is None:
        verdict = "too few to tell that from chance"
    elif low > 0:
        verdict = "more than chance"
    else:
        verdict = "worse, and by more than chance" if high < 0 else "no more than chance would give"
    kind = "validation" if side.split == "valid" else f"{side.split}"
    said = (
        f"On {_scored(side, kind)} {SPOKEN.get(metric, metric)} is {_number(value, metric)}{_range(interval, metric)}, "
    )
    best = "the best baseline, chosen on the same rows," if chosen_here else "the best baseline,"
    said += f"{apart} {best} {named(found['baseline'])}: {verdict}."
    return said + (" The same rows chose the weights, which flatters." if side.split == "valid" else "")


def _scored(side: Side, kind: str) -> str:
    """What scores are of, in words: sequences with a label that is no bound, and of residues how many."""
    owners = [record.sequence for record in side.records for _ in record.labels]
    known = [s for s, x in zip(owners, side.labels, strict=True) if x is not None and not isinstance(x, Censored)]
    proteins = counted_as(len(set(known)), f"{kind} protein".strip())
    return proteins if len(owners) == len(side.records) else f"{counted_as(len(known), 'residue')} of {proteins}"


def _range(interval: Sequence[float | None] | None, metric: str) -> str:
    if interval is None or interval[0] is None or interval[1] is None:
        return ""
    return f" [{_number(interval[0], metric)}, {_number(interval[1], metric)}]"


def _number(value: float, metric: str) -> str:
    """A share as .123, a number in a unit of its own with three digits."""
    if metric.split(".")[-1] in ("rmse", "mae", "perplexity"):
        return f"{value:.3g}"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def baselines_of(
    task: Task, train: Sequence[Record], asked: Sequence[Record], level: Level, means: Means, watch: Watcher
) -> dict[str, Tensor]:
    """Outputs of all baselines; none where there is nothing to be said."""
    return outputs_of_baselines(task, train, asked, level, means, watch) if asked else {}


def out_of_fold(
    task: Task, folds: Sequence[tuple[Sequence[Record], Sequence[int]]], records: Sequence[Record], level: Level,
    means: Means, watch: Watcher,
) -> dict[str, Tensor]:  # fmt: skip
    """Outputs of all baselines for records, each by one that learned without it: folds are what is learned and asked.

    What is asked are places in `records`. Of a fold's own labels are the statistics of its task too.
    """
    found = []
    for train, asked in folds:
        own = task.refitted([label for record in train for label in record.labels])
        outputs = baselines_of(own, train, [records[i] for i in asked], level, means, watch)
        found.append({name: task.translated(x, own) for name, x in outputs.items()})
    ends = np.cumsum([0, *(len(record.labels) for record in records)])
    rows = [np.concatenate([np.arange(ends[i], ends[i + 1]) for i in asked]) for _, asked in folds]
    joined = {}
    for name in (n for n in found[0] if all(n in outputs for outputs in found)):
        outputs = torch.zeros(int(ends[-1]), task.num_outputs, dtype=torch.float64)
        for place, own in zip(rows, found, strict=True):
            outputs[torch.from_numpy(place)] = own[name].double()
        joined[name] = outputs
    return joined


def usual_layers(encoder: ESM2, level: Level) -> tuple[int, ...]:
    """The layers that heads see unless told otherwise, or so many of them as are not too wide.

    >>> from esmtune.esm2 import ESM2Config
    >>> usual_layers(ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2)), "sequence")
    (0, 1, 2)
    """
    most = max(1, WIDEST // encoder.config.embed_dim)
    return encoder.layers_for_residues()[-most:] if level == "residue" else encoder.layers_across(min(LAYERS, most))


def not_kept(sequence: str) -> None:
    """Nothing was computed before."""


def embedder(
    encoder: ESM2, name: str, level: Level, layers: Sequence[int], *, precision: Precision, tokens_per_batch: int,
    cache: Cache | None, kept: Lookup, watch: Watcher,
) -> Embed:  # fmt: skip
    """Vectors of sequences, or of their residues, by a frozen encoder; those that are `kept` are not computed."""
    pool: Pooling = "residue" if level == "residue" else "mean"

    def embed(sequences: Sequence[str]) -> Float[np.ndarray, "points channels"]:
        found = [vectors for sequence in sequences if (vectors := kept(sequence)) is not None]
        if len(found) == len(sequences):
            return np.concatenate(found)
        vectors = embed_sequences(
            encoder, sequences, layers=layers, pool=pool, precision=precision, dtype=np.dtype("float32"),
            tokens_per_batch=tokens_per_batch, cache=cache, name=name, watch=watch,
        )  # fmt: skip
        return vectors.reshape(len(vectors), -1)

    return embed


def expecter(name: str, device: str, watch: Watcher) -> Expect:
    """What the language model of an encoder, which is loaded when it is first asked, expects at each residue."""

    @cache
    def network() -> ESM2 | None:
        try:
            encoder, _, _ = find_encoder(name, lm_head=True)
        except ValueError as error:  # it may have moved since the run that is gone on with
            watch(Notice(f"No zero-shot score: {error}"))
            return None
        if encoder.lm_head is None:
            watch(Notice("No zero-shot score: the weights have no language-model head."))
            return None
        return encoder.to(torch.device(device))

    @torch.inference_mode()
    def expect(sequence: str) -> Float[np.ndarray, "residues symbols"] | None:
        encoder = network()
        if encoder is None:
            return None
        logits = with_code(encoder.logits, Tokens.of([sequence]).to(torch.device(device)))
        return logits.float().log_softmax(-1).cpu().numpy()

    return expect
