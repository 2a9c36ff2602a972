"""The gradient of a global batch's loss, however the batch is split into micro-batches and over processes."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from esmtune.events import Notice
from esmtune.features import sum_over_processes
from esmtune.inputs import Inputs
from esmtune.memory import give_back_now
from esmtune.predictor import Predictor
from esmtune.shortage import TooLittleMemoryError, attempted, is_out_of_memory, with_code
from esmtune.tasks import Total


class Network(nn.Module):
    """A predictor as Fabric can wrap it: a batch comes in an opaque parcel, for Fabric takes containers apart."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, parcel: SimpleNamespace) -> Tensor:
        """Outputs for the parcel's batch."""
        return self.predictor(parcel.batch)


def backward(
    fabric: Fabric, model: Any, inputs: Inputs, batch: list[int], targets: Tensor, weights: Tensor, seed: int
) -> Total:
    """Put the gradient of a global batch's loss into the weights; returns this process's part of the loss."""
    task = inputs.predictor.task
    seeds = torch.tensor(batch, dtype=torch.long) + seed
    count = task.count(inputs.targets(targets, batch, seeds))
    micro_batches = inputs.mine(batch)
    given = None
    if task.compares and (len(micro_batches) > 1 or fabric.world_size > 1):  # else all points are there at once
        given = _gradient_of_outputs(fabric, model, inputs, batch, targets, weights, seed)
    total = nothing(fabric)
    for number, micro in enumerate(micro_batches, start=1):
        seeds = torch.tensor(micro, dtype=torch.long) + seed
        with fabric.no_backward_sync(model, enabled=number < len(micro_batches)):
            outputs = model(SimpleNamespace(batch=inputs(micro, seeds)))
            if given is None:
                wanted = inputs.targets(targets, micro, seeds)
                part = task.loss(outputs, wanted, weights[inputs.rows(micro).to(weights.device)])
                loss = part.sum / max(1, count)
                total += Total(part.sum.detach(), part.count)
            else:
                loss = (outputs * given[0][_places(inputs, batch, micro).to(outputs.device)]).sum()
            fabric.backward(loss * fabric.world_size)  # DDP takes the mean over processes
    if given is not None and fabric.is_global_zero:
        total = given[1]
    return total


def affordable(
    fabric: Fabric, model: Any, inputs: Inputs, batch: list[int], targets: Tensor, weights: Tensor, seed: int
) -> Total:
    """What `backward` does; if there is no memory for it, again from the beginning in smaller micro-batches.

    These are kept for the steps that follow. Processes that wait for each other cannot start over: for them it ends.

    Raises:
        TooLittleMemoryError: if a single sequence does not fit.
    """
    if fabric.world_size > 1:
        return backward(fabric, model, inputs, batch, targets, weights, seed)

    states = [(generator, generator.get_state()) for generator in _generators(fabric.device)]

    def whole() -> Total:
        try:
            return attempted(backward, fabric, model, inputs, batch, targets, weights, seed)
        except BaseException:  # as it was before
            model.zero_grad()
            for generator, state in states:
                generator.set_state(state)
            raise

    while True:
        try:
            return with_code(whole)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            most = max(map(len, inputs.mine(batch)))
            if most < 2:
                raise TooLittleMemoryError(
                    "a step of a single sequence does not fit into memory. Move less of the encoder (--tuning lora or "
                    "last), or cut long sequences (--max-length)."
                ) from error
            inputs.budget = inputs.budget.halved(most)
            inputs.watch(Notice(f"Out of memory: on with at most {inputs.budget.sequences} sequences a pass."))
        give_back_now()


def _generators(device: torch.device) -> list[torch.Generator]:
    """Where PEFT and torch's own modules draw from."""
    on_device = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    return [torch.default_generator, *on_device]


def step_of(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer move the weights, and forget their gradients.

    Raises:
        TooLittleMemoryError: if what it keeps of each weight that moves does not fit.
    """
    try:
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemoryError(
            "what the optimizer keeps of each weight that moves does not fit into memory. Move fewer of them (--tuning "
            "lora or last)."
        ) from error
    optimizer.zero_grad()


def _gradient_of_outputs(
    fabric: Fabric, model: Any, inputs: Inputs, batch: list[int], targets: Tensor, weights: Tensor, seed: int
) -> tuple[Tensor, Total]:
    """The gradient of a loss that compares points, with regard to the outputs of the whole global batch.

    All outputs are computed once without a graph, so that the batch may be split for the backward pass
    (Gao et al. 2021, https://doi.org/10.18653/v1/2021.repl4nlp-1.31).
    """
    rows = inputs.rows(batch).to(fabric.device)
    found = torch.zeros(len(rows), inputs.predictor.task.num_outputs, device=fabric.device)
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):  # what PEFT draws now, it draws again with a graph
        for micro in inputs.mine(batch):
            seeds = torch.tensor(micro, dtype=torch.long) + seed
            places = _places(inputs, batch, micro).to(fabric.device)
            found[places] = model.module(SimpleNamespace(batch=inputs(micro, seeds))).to(found)
    found = sum_over_processes(fabric, found).detach().requires_grad_()
    total = inputs.predictor.task.loss(found, targets[rows], weights[rows])
    (gradient,) = torch.autograd.grad(total.sum / max(1, total.count), found)
    return gradient, Total(total.sum.detach(), total.count)


def _places(inputs: Inputs, batch: Sequence[int], micro: Sequence[int]) -> Tensor:
    """Where the points of a micro-batch stand among those of its global batch."""
    counts = torch.tensor([inputs.points[i] for i in batch])
    starts = dict(zip(batch, (counts.cumsum(0) - counts).tolist(), strict=True))
    ranges = [torch.arange(starts[i], starts[i] + inputs.points[i]) for i in micro]
    return torch.cat([torch.arange(0), *ranges])


def nothing(fabric: Fabric) -> Total:
    """A loss of no points."""
    return Total(torch.zeros((), device=fabric.device), 0)
