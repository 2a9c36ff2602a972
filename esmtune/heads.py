"""From a representation to outputs. A pool decides the level, a readout the numbers. Add yours at the end.

A head first standardizes what its pool gives, by the mean and spread that the training sequences
have in it: variants of one protein differ by so little that nothing learns from the raw values.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from esmtune.esm2 import Representation
from esmtune.registry import Registry

Pool = Literal["mean", "cls"]


@dataclass(frozen=True)
class Pooled:
    """One vector per point, which is what a readout sees, and the seed of each point's dropout."""

    features: Float[Tensor, "points dim"]
    seeds: Int[Tensor, "points"]


def mean_pool(x: Representation) -> Float[Tensor, "batch dim"]:
    """Average over the residues of each sequence, in float32 at least."""
    residues = _float32_at_least(x.residues)
    return torch.stack([r.mean(0) for r in residues.split(x.lengths)]) if x.lengths else residues


def cls_pool(x: Representation) -> Float[Tensor, "batch dim"]:
    """Take the vector at <cls>."""
    return _float32_at_least(x.cls)


POOLS = {"mean": mean_pool, "cls": cls_pool}


class Head(nn.Module, ABC):
    """What a network computes after the encoder: pool, standardize, read out."""

    def __init__(self, dim: int, pool: Pool):
        super().__init__()
        self._pool = POOLS[pool]
        self.standardize = Standardize(dim)

    def pool(self, x: Representation) -> Pooled:
        """What is computed from the encoder alone; a frozen encoder's is computed once and kept."""
        return Pooled(self._pool(x), x.seeds)

    @abstractmethod
    def readout(self, x: Pooled) -> Float[Tensor, "points outputs"]:
        """Standardized features to outputs."""

    def forward(self, x: Representation | Pooled) -> Float[Tensor, "points outputs"]:
        """Outputs, from what the encoder says or from what the pool made of it."""
        pooled = self.pool(x) if isinstance(x, Representation) else x
        return self.readout(Pooled(self.standardize(pooled.features), pooled.seeds))


class Standardize(nn.Module):
    """Subtract a mean and divide by a spread that were taken once, from training data."""

    center: Tensor
    spread: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    def fit(self, features: Float[Tensor, "points dim"]) -> None:
        """Take mean and spread, in float64; a channel that never varies is left as it is."""
        x = features.double()
        spread = x.std(0, unbiased=False)
        self.center.copy_(x.mean(0))
        self.spread.copy_(spread.where(spread > 1e-8, 1.0))

    def forward(self, x: Float[Tensor, "points dim"]) -> Float[Tensor, "points dim"]:
        """Features of mean 0 and spread 1 over the training data."""
        return (x - self.center) / self.spread


class Dropout(nn.Module):
    """Dropout that depends on each point's own seed and not on its company.

    So a batch split into smaller ones, or over devices, drops the same channels.
    Uniform numbers come from a counter-based hash (the finalizer of SplitMix64,
    Steele et al. 2014, https://doi.org/10.1145/2660193.2660195), the same on every device.
    """

    def __init__(self, share: float, salt: int = 0):
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout is a share from 0 to below 1, got {share}.")
        self.share = share
        self.salt = salt  # tells one dropout of a head from another

    def forward(self, x: Float[Tensor, "points dim"], seeds: Int[Tensor, "points"]) -> Float[Tensor, "points dim"]:
        """Drop channels in training, scale the others up; do nothing in evaluation."""
        if not self.training or self.share == 0:
            return x
        channel = torch.arange(x.shape[1], device=x.device) + (self.salt << 32)
        keep = uniform(seeds[:, None], channel[None]) >= self.share
        return x * keep / (1 - self.share)


def uniform(seed: Int[Tensor, "points 1"], counter: Int[Tensor, "1 dim"]) -> Float[Tensor, "points dim"]:
    """Numbers in [0, 1) that look random and depend on nothing but the two arguments."""
    x = mix(seed) + counter * -0x61C8864680B583EB
    return (mix(x) >> 40).bitwise_and(0xFFFFFF) / 0x1000000


def mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble the bits of 64-bit integers."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Shift right as an unsigned number; torch's own shift keeps the sign."""
    return (x >> bits).bitwise_and((1 << (64 - bits)) - 1)


def _float32_at_least(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


head: Registry[type[Head]] = Registry("head")


@head("linear")
class Linear(Head):
    """One affine map: the probe to beat."""

    def __init__(self, dim: int, num_outputs: int, *, pool: Pool = "mean"):
        super().__init__(dim, pool)
        self.out = nn.Linear(dim, num_outputs)

    def readout(self, x: Pooled) -> Float[Tensor, "points outputs"]:
        """One affine map."""
        return self.out(x.features)


@head("mlp")
class MLP(Head):
    """One hidden layer with ReLU and dropout."""

    def __init__(self, dim: int, num_outputs: int, *, pool: Pool = "mean", hidden: int = 256, dropout: float = 0.25):
        super().__init__(dim, pool)
        if hidden < 1:
            raise ValueError(f"head 'mlp' has hidden={hidden}, expected 1 or more.")
        self.hidden = nn.Linear(dim, hidden)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden, num_outputs)

    def readout(self, x: Pooled) -> Float[Tensor, "points outputs"]:
        """Two affine maps, ReLU and dropout between them."""
        return self.out(self.dropout(F.relu(self.hidden(x.features)), x.seeds))
