"""How the weights move: which records make a step, how high the learning rate stands, what decays, what is averaged."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from esmtune.batching import shuffled
from esmtune.config import TrainConfig
from esmtune.predictor import Predictor


class Schedule:
    """The steps of a run over `count` records, and how high the learning rate stands at each."""

    def __init__(self, config: TrainConfig, count: int):
        self.config, self.count = config, count
        assert config.global_batch_size, "complete the configuration first"
        assert config.epochs, "complete the configuration first"
        self.batch_size = config.global_batch_size
        self.per_epoch = -(-count // self.batch_size)
        self.total = (config.max_steps or config.epochs * self.per_epoch) if count else 0
        self.passes = -(-self.total // self.per_epoch) if count else 0

    def __iter__(self) -> Iterator[tuple[int, int, list[int], bool]]:
        """Each step's number, its epoch, its global batch, and whether an evaluation is due after it."""
        step = epoch = 0
        while step < self.total:
            epoch += 1
            batches = list(shuffled(self.count, self.batch_size, seed=self.config.seed, epoch=epoch))
            for number, batch in enumerate(batches, start=1):
                step += 1
                yield step, epoch, batch, number == len(batches) or step == self.total
                if step == self.total:
                    break

    def factor(self, step: int) -> float:
        """Rise in a line during the warm-up, then fall as the schedule says."""
        rise = round(self.config.warmup * self.total)
        if step <= rise:
            return step / (rise + 1)
        done = (step - rise - 1) / max(1, self.total - rise)
        shapes = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return shapes[self.config.schedule]


def dropout_seed(seed: int, epoch: int) -> int:
    """Where the seeds of an epoch's records begin, far from those of other epochs and runs; fits 63 bits."""
    return ((seed << 20) + epoch) * 0x9E3779B97F4A7C15 % (1 << 62)


def parameter_groups(predictor: Predictor, config: TrainConfig) -> list[dict[str, Any]]:
    """Head and encoder at their own rates, weights of the encoder as its tuning says; weight decay on matrices alone.

    Norms and biases do not decay, nor do IA3's factors, whose neutral value is one.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, weight in predictor.named_parameters():
        if not weight.requires_grad:
            continue
        short = name.removeprefix("encoder.")
        assert config.head_learning_rate is not None
        assert config.encoder_learning_rate is not None
        peak = config.head_learning_rate
        if short != name:
            peak = config.encoder_learning_rate * predictor.rates[short]
        decay = config.weight_decay if weight.ndim > 1 and "ia3_" not in name else 0.0
        groups.setdefault((peak, decay), []).append(weight)
    return [
        {"params": weights, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), weights in groups.items()
    ]


def moved_average(average: dict[str, Tensor], weights: Mapping[str, Tensor], horizon: float, step: int) -> None:
    """Take a step of an exponential moving average over about `horizon` steps, in place; at first over fewer.

    Polyak and Juditsky 1992, https://doi.org/10.1137/0330046.
    """
    share = max(1 / max(1.0, horizon), 9 / (step + 9))
    for name, mean in average.items():
        mean.lerp_(weights[name].detach().to(mean), share)
