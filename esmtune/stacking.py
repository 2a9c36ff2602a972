"""What a linear map says beside a head that has learned, and how much of a say it has, which held-out points tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from esmtune.baselines import ROWS
from esmtune.config import TrainConfig
from esmtune.events import Notice
from esmtune.inputs import Inputs
from esmtune.kinds import Task
from esmtune.linear import LinearMap, linear_map
from esmtune.readouts import Beside
from esmtune.records import Label, Record, of_target
from esmtune.regression import Regression
from esmtune.samples import Points
from esmtune.standing import wearing

SHARES = tuple(step / 20 for step in range(20))  # not all of it: what goes on from here has something to learn with
USUAL = 0.25, 0.25  # mean and spread of the share before held-out points are asked: decision 25
FEWEST, MOST = 2, 2000  # points that choose a share; of more a sample does
TINY = 1e-30
STACKED = "Beside the head a ridge on the same features has {} of the say (--head.ridge=false leaves it out)."
NONE = "No ridge beside the head: {}."

Weights = dict[str, Tensor]


def with_ridge(
    inputs: Inputs, states: list[Weights], records: Sequence[Record], train: list[int], valid: list[int],
    weights: Tensor, config: TrainConfig,
) -> list[Weights]:  # fmt: skip
    """Give a head that has learned, in each of its states, a linear map of the training records beside it.

    Of each target the map is that of `linear.linear_map`, and its share the most probable one of `SHARES` after what
    validation records say; it has none where fewer than `FEWEST` are labeled, or where the task has outputs that no
    such map has. What is said is said of the first state. States are given back as they are where there is no map.
    """
    predictor = inputs.predictor
    beside = predictor.head.beside
    if beside is None or predictor.spec.tuning["name"] != "frozen" or predictor.level != "sequence":
        return states
    if beside.share.any():  # it goes on from another run, and keeps what that had
        return states
    targets = _targets(inputs, records, valid, weights, config.seed)
    if not targets and (config.head or {}).get("ridge"):
        inputs.watch(Notice(NONE.format(f"the loss has none, or fewer than {FEWEST} validation rows are labeled")))
    solved = [_map_of(inputs, records, train, target, config.seed) for target in targets]
    maps = [(target, found) for target, found in zip(targets, solved, strict=True) if found is not None]
    if not maps:
        return states
    weight, bias, alone = _told(inputs, beside, maps, valid)
    stacked = []
    for state in states:
        with wearing(predictor, state):  # the map has no share in it
            outputs = inputs.outputs(valid, "validating").double()
        share = torch.zeros(len(bias))
        for target, _ in maps:
            share[target.of] = target.best_share(outputs, alone)
        there = (share > 0).to(weight)
        mine = {"weight": weight * there[:, None], "bias": bias * there, "share": share}
        stacked.append(state | {f"head.beside.{name}": tensor for name, tensor in mine.items()})
    told = stacked[0]["head.beside.share"]
    if told.any():
        said = {target.name: told[target.of][0].item() for target, _ in maps if told[target.of].any()}
        inputs.watch(Notice(STACKED.format(_shares(said))))
    return stacked


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is learned, which outputs are its own, and the validation points that choose its share."""

    name: str
    task: Task
    of: slice
    labels: Sequence[Label]  # of all records
    points: list[int]  # among those of validation
    known: Sequence[Label]
    weights: Tensor

    def best_share(self, outputs: Tensor, alone: Tensor) -> float:
        """The most probable share of a map's outputs beside a head's, of validation points."""
        at = (self.points, self.of)
        return _best_share(self.task, outputs[at], alone[at], self.known, self.weights)


def _targets(inputs: Inputs, records: Sequence[Record], valid: list[int], weights: Tensor, seed: int) -> list[Judged]:
    """The targets that can have a map, and have points enough to choose its share."""
    parts = inputs.predictor.task.parts()
    every, rows, weight = [label for record in records for label in record.labels], inputs.rows(valid), weights.cpu()
    found = []
    for place, (name, task, of) in enumerate(parts):
        labels = of_target(every, place, parts)
        known = [p for p, row in enumerate(rows.tolist()) if labels[row] is not None and weight[row] > 0]
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:MOST]
        points = [known[drawn] for drawn in order.sort().values.tolist()]
        if _has_map(task) and len(points) >= FEWEST:
            own = [labels[row] for row in rows[points].tolist()]
            found.append(Judged(name=name, task=task, of=of, labels=labels, points=points, known=own,
                                weights=weight[rows[points]]))  # fmt: skip
    return found


def _has_map(task: Task) -> bool:
    return not task.only_orders and not (isinstance(task, Regression) and task.num_outputs > 1)


def _map_of(
    inputs: Inputs, every: Sequence[Record], places: Sequence[int], target: Judged, seed: int
) -> LinearMap | None:
    """The map of training records, or of a sample where all are too many; None where one is not to be had."""
    records = [every[place] for place in places]
    place_of = {id(record): place for record, place in zip(records, places, strict=True)}
    task, dim = target.task, inputs.predictor.features_dim
    own = [target.labels[row] for row in inputs.rows(places).tolist()]
    few = Points(records, own, "sequence").labeled().sampled(ROWS, seed).affordable(dim, task.num_outputs, seed)
    if few is None:
        return None
    known, weights, groups = few.learnable()
    learned = [few.labels[i] for i in known]
    if len(groups) < 2 or len(set(learned)) < 2:
        return None
    seen = inputs.pooled([place_of[id(few.records[i])] for i in known], "measuring").features.numpy(force=True)
    try:
        found = linear_map(seen, learned, weights, groups, task.pointwise(), seed=seed)
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:  # what was trained must not be lost
        inputs.watch(Notice(NONE.format(f"it is not to be had ({type(error).__name__}: {error})")))
        return None
    if not (found.weight.isfinite().all() and found.bias.isfinite().all()):
        inputs.watch(Notice(NONE.format("it is not finite")))
        return None
    return found


def _told(
    inputs: Inputs, beside: Beside, maps: Sequence[tuple[Judged, LinearMap]], valid: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and bias of all maps together, as the head has them, and what they say of validation records."""
    standardize = inputs.predictor.head.standardize
    weight, bias = torch.zeros(beside.weight.shape), torch.zeros(beside.bias.shape)
    for target, found in maps:
        steep, off = found.after(standardize.center.cpu(), standardize.spread.cpu())
        weight[target.of], bias[target.of] = steep.float(), off.float()
    seen = standardize(inputs.pooled(valid, "measuring").features).cpu()
    return weight, bias, F.linear(seen, weight, bias).double()


def _best_share(task: Task, outputs: Tensor, alone: Tensor, labels: Sequence[Label], weights: Tensor) -> float:
    """The most probable share, after what held-out points say and what was `USUAL`.

    Points are as likely as their loss says: of classes it is minus the logarithm of a probability. Of numbers the loss,
    order included, is taken for a variance that is as large as it is on average.
    """
    targets = task.targets(labels)

    def improbability(share: float) -> float:
        loss = task.loss(outputs.lerp(alone, share), targets, weights)
        nats = loss.count / 2 * math.log(max(loss.mean.item(), TINY)) if isinstance(task, Regression) else loss.sum
        return float(nats) + (share - USUAL[0]) ** 2 / (2 * USUAL[1] ** 2)

    return min(SHARES, key=improbability)


def _shares(said: dict[str, float]) -> str:
    """Shares in words, by target where there are several.

    >>> _shares({"": 0.25}), _shares({"tm": 0.25, "binds": 0.5})
    ('25 %', '25 % (tm) and 50 % (binds)')
    """
    return " and ".join(f"{round(100 * share)} %" + (f" ({name})" if name else "") for name, share in said.items())
