"""What is measured, solved and set up before the first step, and the center that follows the encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
from esmtune.linear import Probe, Probing, fitting_noise, on_best_scale
from esmtune.multilabel import Multilabel
from esmtune.optimization import parameter_groups
from esmtune.pooling import Pooled
from esmtune.predictor import Predictor
from esmtune.records import Dataset, Label
from esmtune.shortage import with_code
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
    picked, seen = inputs.measurable(order[:STATISTICS_SAMPLE]), None
    sample = train if head.is_solved else sorted(inputs.measurable(order)) if inputs.is_kept else picked
    if head.standardizes and (is_new or drifts):
        seen = inputs.pooled(sample, "measuring")
        if is_new:
            head.fit(seen)
        if drifts:
            predictor.reference = _reference(inputs, sample, seen)
    is_told = begin is None and head.standardizes and predictor.level == "sequence"
    asked = (order if inputs.is_kept else picked) if is_told else []
    probe = _prober(predictor, inputs, train, asked, seen if asked is sample else None)
    place_of = {record: place for place, record in enumerate(train)}
    points = [place_of[record] for record in asked]
    # Noise is measured by the spread of these records, which a head that another run standardized does not know.
    _decide_on_noise(predictor, inputs, config, data, points if is_new else [], probe)
    _decide_on_scale(predictor, inputs, data, points, probe)
    if head.is_solved:
        if not inputs.is_kept:
            name = predictor.spec.head["name"]
            raise ValueError(f"head {name!r} is solved in one go, on a frozen encoder: take --tuning frozen.")
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
        return tokens, with_code(predictor.pooled, tokens).features[0]


def _prober(predictor: Predictor, inputs: Inputs, train: list[int], sample: list[int], seen: Pooled | None) -> Probing:
    """What a linear map makes of training records; `seen` is what the pool made of the sample, if it was computed."""
    row_of = {record: row for row, record in enumerate(sample)}

    def probe(wanted: Sequence[int]) -> Probe | None:
        records = [train[point] for point in wanted]
        if seen is None:
            return Probe.of(inputs.vectors(records, "measuring").numpy(force=True))
        return Probe.of(predictor.vectors(seen).numpy(force=True)[[row_of[record] for record in records]])

    return probe


def _decide_on_noise(
    predictor: Predictor, inputs: Inputs, config: TrainConfig, data: Dataset, points: list[int], probe: Probing
) -> None:
    """Give the head the noise that was asked for, or that a sample of the training records speaks for."""
    head, task = predictor.head, predictor.task
    asked = config.feature_noise if head.standardizes else 0.0
    head.feature_noise.size = asked or 0.0
    is_kept_from_it = learns_by_heart(str(predictor.spec.tuning["name"]), data.kind, data.level)
    if asked is not None or not is_kept_from_it or not points or head.is_solved or head.sees_residues:
        return
    assert isinstance(task, Named | Multilabel)
    size = fitting_noise(task, probe, points, learned_labels(data))
    if size is not None:
        head.feature_noise.size = size
        inputs.watch(Notice(NOISE.format(size)))


def _decide_on_scale(predictor: Predictor, inputs: Inputs, data: Dataset, points: list[int], probe: Probing) -> None:
    """Give the predictor the task on the scale that a sample of the training records speaks for, if that is open."""
    if not any(getattr(part, "scale", "") == "auto" for _, part, _ in predictor.task.parts()):
        return
    decided, why = on_best_scale(predictor.task, probe, points, learned_labels(data))
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
