"""What is measured, solved and set up before the first step, and the center that follows the encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from esmtune.assignments import learned_labels
from esmtune.batching import shuffled
from esmtune.classes import Named
from esmtune.config import TrainConfig, learns_by_heart
from esmtune.devices import evaluating
from esmtune.esm2 import Tokens
from esmtune.events import Notice
from esmtune.gradients import Network
from esmtune.inputs import Inputs
from esmtune.linear import Probe, fitting_noise, on_best_scale
from esmtune.multilabel import Multilabel
from esmtune.optimization import parameter_groups
from esmtune.pooling import Pooled
from esmtune.predictor import Predictor
from esmtune.records import Dataset, Label
from esmtune.standing import Fitted

STATISTICS_SAMPLE = 1024  # sequences that tell mean and spread of the features, where the encoder moves
NOISE = "Features get noise of {:.2g} standard deviations while the head learns (--feature-noise says otherwise)."


def set_up(
    fabric: Fabric, config: TrainConfig, predictor: Predictor, inputs: Inputs, data: Dataset, train: list[int],
    labels: Sequence[Label], weights: Tensor, begin: Fitted | None,
) -> tuple[nn.Module, Any]:  # fmt: skip
    """Standardize what the head sees by what the training records look like before anything moves; solve, set up.

    This also decides on which scale labels are learned, and with how much noise, where that is open.
    """
    head: Any = predictor.head  # `solve` is of those alone that are solved
    is_new = begin is None and not predictor.is_standardized
    drifts = not inputs.is_frozen and not head.sees_residues
    order = _shuffled(train, config.seed)
    picked, seen = order[:STATISTICS_SAMPLE], None
    sample = train if inputs.is_kept or head.is_solved else picked
    if head.standardizes and (is_new or drifts):
        seen = inputs.pooled(sample, "measuring")
        if is_new:
            head.fit(seen)
        if drifts:
            predictor.reference = _reference(inputs, sample, seen)
    is_told = begin is None and head.standardizes and predictor.level == "sequence"
    asked = (order if inputs.is_kept else picked) if is_told else []
    _decide(predictor, inputs, config, data, train, asked, seen if asked is sample else None, is_new)
    if head.is_solved:
        if not inputs.is_kept:
            raise ValueError("head 'ridge' is solved in one go, on a frozen encoder: take --tuning frozen.")
        rows = inputs.rows(train).to(fabric.device)
        task = predictor.with_task(predictor.task.pointwise()).task
        targets = task.targets(labels).to(fabric.device)
        seen = inputs(train)
        head.solve(seen, lambda outputs, of: task.loss(outputs, targets[rows[of]], weights[rows[of]]), config.seed)
    optimizer = torch.optim.AdamW(parameter_groups(predictor, config), fused=fabric.device.type in ("cpu", "cuda"))
    return fabric.setup(Network(predictor), optimizer)


def _reference(inputs: Inputs, sample: list[int], seen: Pooled) -> tuple[Tokens, Tensor]:
    """The training sequence that is nearest to their mean, and what the pool makes of it before anything moves."""
    predictor, device = inputs.predictor, inputs.fabric.device
    features = predictor.head.standardize(seen.features)
    nearest = sample[int((features - features.mean(0)).square().sum(1).argmin())]
    tokens = Tokens.of([inputs.sequences[nearest]]).to(device)
    with torch.no_grad(), evaluating(predictor):
        return tokens, predictor.pooled(tokens).features[0]


def _decide(
    predictor: Predictor, inputs: Inputs, config: TrainConfig, data: Dataset, train: list[int], sample: list[int],
    seen: Pooled | None, is_new: bool,
) -> None:  # fmt: skip
    """Give the task the scale, and the head the noise, that a sample of the training records speaks for.

    Of what was asked for nothing is decided. `seen` is what the pool made of the sample, if it has been computed;
    `is_new` whether the head is standardized by these records, of whose spread the noise is a part.
    """
    head, task = predictor.head, predictor.task
    head.feature_noise.size = config.feature_noise or 0.0 if head.standardizes else 0.0
    tuned = str(predictor.spec.tuning["name"])
    is_noisy = learns_by_heart(tuned, data.kind, data.level) and not (head.is_solved or head.sees_residues)
    is_open = is_noisy and is_new and bool(sample) and config.feature_noise is None
    if not is_open and not any(getattr(part, "scale", "") == "auto" for _, part, _ in task.parts()):
        return
    place_of = {record: place for place, record in enumerate(train)}
    points = [place_of[record] for record in sample]
    row_of = {point: row for row, point in enumerate(points)}

    def features(wanted: Sequence[int]) -> np.ndarray:
        if seen is None:
            return predictor.vectors(inputs.pooled([train[i] for i in wanted], "measuring")).numpy(force=True)
        return predictor.vectors(seen).numpy(force=True)[[row_of[point] for point in wanted]]

    def probe(wanted: Sequence[int]) -> Probe | None:
        return Probe.of(features(wanted))

    labels = learned_labels(data)
    if is_open and isinstance(task, Named | Multilabel):
        size = fitting_noise(task, probe, points, labels)
        if size is not None:
            head.feature_noise.size = size
            inputs.watch(Notice(NOISE.format(size)))
    decided, why = on_best_scale(task, probe, points, labels)
    predictor.with_task(decided)
    if why:
        inputs.watch(Notice(why))


@contextmanager
def centered(predictor: Predictor) -> Iterator[None]:
    """Let the center that the head subtracts follow what all sequences drifted by, for a while."""
    if predictor.reference is None:
        yield
        return
    center = predictor.head.standardize.center
    before = center.clone()
    with torch.no_grad(), evaluating(predictor):
        center += predictor.drift()
    try:
        yield
    finally:
        center.copy_(before)


def _shuffled(indices: list[int], seed: int) -> list[int]:
    order = next(shuffled(len(indices), len(indices), seed=seed, epoch=0))
    return [indices[i] for i in order]
