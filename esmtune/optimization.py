"""How the weights move: which records make a step, how high the learning rate stands, what decays."""

import math
from collections.abc import Iterator
from typing import Any

from esmtune.batching import shuffled
from esmtune.config import TrainConfig
from esmtune.predictor import Predictor


class Schedule:
    """The steps of a run, and how high the learning rate stands at each."""

    def __init__(self, config: TrainConfig, count: int):
        self.config, self.count = config, count
        per_epoch = -(-count // config.global_batch_size)
        self.total = config.max_steps or config.epochs * per_epoch

    def __iter__(self) -> Iterator[tuple[int, int, list[int], bool]]:
        """Each step's number, its epoch, its global batch, and whether an evaluation is due after it."""
        step = epoch = 0
        while step < self.total:
            epoch += 1
            batches = list(shuffled(self.count, self.config.global_batch_size, seed=self.config.seed, epoch=epoch))
            for number, batch in enumerate(batches, start=1):
                step += 1
                yield step, epoch, batch, number == len(batches) or step == self.total
                if step == self.total:
                    break

    def factor(self, step: int) -> float:
        """Rise in a line during the warm-up, then fall along a cosine to nothing."""
        rise = round(self.config.warmup * self.total)
        if step <= rise:
            return step / (rise + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rise - 1) / max(1, self.total - rise)))


def dropout_seed(seed: int, epoch: int) -> int:
    """Where the seeds of an epoch's records begin, far from those of other epochs and runs; fits 63 bits."""
    return ((seed << 20) + epoch) * 0x9E3779B97F4A7C15 % (1 << 62)


def parameter_groups(predictor: Predictor, config: TrainConfig) -> list[dict[str, Any]]:
    """Encoder and head at their own rates; weight decay on matrices, not on norms and biases."""
    groups = []
    for part, peak in ((predictor.head, config.head_learning_rate), (predictor.encoder, config.encoder_learning_rate)):
        moving = [w for w in part.parameters() if w.requires_grad]
        for decay in (config.weight_decay, 0.0):
            weights = (
                [w for w in moving if (w.ndim > 1) == (decay > 0)] if config.weight_decay else moving * (decay == 0)
            )
            if weights:
                groups.append({"params": weights, "lr": peak, "peak": peak, "weight_decay": decay})
    return groups
