"""What readouts are made of. Each part gives a point what it gives it alone, whatever else is in the batch.

That is why there is no batch normalization here, and why torch's own dropout, whose draws depend
on the order of the batch, is replaced by one that hashes each point's seed.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from esmtune.pooling import sequence_of_points, uniform

CHUNK = 1 << 22  # numbers that are held in float64 at a time


class Standardize(nn.Module):
    """Subtract a mean and divide by a spread that were taken once, from training data.

    >>> standardize = Standardize(2)
    >>> standardize.fit(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    >>> standardize(torch.tensor([[3.0, 7.0]])).tolist()
    [[1.0, 0.0]]
    """

    center: Tensor
    spread: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "points dim"]) -> None:
        """Take mean and spread, in float64, of a part of the points at a time; a channel that never varies stays."""
        assert len(features), "there is no mean of nothing"
        parts = features.split(max(1, CHUNK // features.shape[1]))
        center, square = torch.zeros(2, features.shape[1], dtype=torch.float64, device=features.device)
        for part in parts:
            center += part.double().sum(0) / len(features)
        for part in parts:
            square += (part.double() - center).square().sum(0) / len(features)
        self.center.copy_(center)
        self.spread.copy_(square.sqrt().where(square > 1e-16, 1.0))

    def forward(self, x: Float[Tensor, "points dim"]) -> Float[Tensor, "points dim"]:
        """Features of mean 0 and spread 1 over the training data."""
        return (x - self.center) / self.spread


class LayerMix(nn.Module):
    """A learned mean of several layers of the encoder, and one gain; starts as their plain mean.

    Peters et al. 2018, Deep contextualized word representations, https://doi.org/10.18653/v1/N18-1202.

    >>> LayerMix(3)(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])).tolist()
    [[3.0, 4.0]]
    """

    def __init__(self, layers: int):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(layers))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "points channels"]) -> Float[Tensor, "points dim"]:
        """Of `layers * dim` channels, one layer after the other, make `dim`."""
        x = rearrange(x, "points (layers dim) -> points layers dim", layers=len(self.scores))
        return self.gain * (x * self.scores.softmax(0)[:, None]).sum(1)


class Dropout(nn.Module):
    """Dropout that depends on each point's own seed and not on its company.

    So a batch split into smaller ones, or over devices, drops the same channels. `salt` tells one
    dropout of a head from another.

    >>> Dropout(0.5)(torch.ones(2, 6), seeds=torch.tensor([1, 2])).unique().tolist()
    [0.0, 2.0]
    """

    def __init__(self, share: float, salt: int = 0):
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout is a share from 0 to below 1, got {share}.")
        self.share = share
        self.salt = salt

    def forward(self, x: Float[Tensor, "points dim"], seeds: Int[Tensor, "points"]) -> Float[Tensor, "points dim"]:
        """Drop channels in training, scale the others up; do nothing in evaluation."""
        if not self.training or self.share == 0:
            return x
        channel = torch.arange(x.shape[1], device=x.device) + (self.salt << 32)
        keep = uniform(seeds[:, None], channel[None]) >= self.share
        return x * keep / (1 - self.share)


class Noise(nn.Module):
    """Noise of each point's own, added in training; as large in each channel, in standard deviations of the features.

    >>> noise = Noise()
    >>> noise.size = 0.5
    >>> round(noise(torch.zeros(2000, 3), seeds=torch.arange(2000)).std().item(), 1)
    0.5
    """

    SALT = 1 << 30  # apart from all dropouts

    def __init__(self):
        super().__init__()
        self.size = 0.0  # told before the first step, and no part of a predictor, which has no noise

    def forward(self, x: Float[Tensor, "points dim"], seeds: Int[Tensor, "points"]) -> Float[Tensor, "points dim"]:
        """Add numbers that are even over an interval; a head, which sums over channels, cannot tell."""
        if not self.training or self.size == 0:
            return x
        channel = torch.arange(x.shape[1], device=x.device) + (self.SALT << 32)
        return x + (uniform(seeds[:, None], channel[None]) - 0.5) * (12**0.5 * self.size)


class Beside(nn.Module):
    """A linear map beside a readout: outputs are the mean of both, by the map's share, which is none until it is told.

    It is solved, so it has no part in the steps.

    >>> beside = Beside(2, 1)
    >>> beside.tell(torch.ones(1, 2), torch.zeros(1), torch.tensor([0.25]))
    >>> beside(torch.tensor([[8.0]]), torch.tensor([[2.0, 2.0]])).tolist()
    [[7.0]]
    """

    weight: Tensor
    bias: Tensor
    share: Tensor

    def __init__(self, dim: int, num_outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_outputs, dim))
        self.register_buffer("bias", torch.zeros(num_outputs))
        self.register_buffer("share", torch.zeros(num_outputs))

    def tell(
        self, weight: Float[Tensor, "outputs dim"], bias: Float[Tensor, "outputs"], share: Float[Tensor, "outputs"]
    ) -> None:
        """Take a map, and for each output its share."""
        for mine, told in ((self.weight, weight), (self.bias, bias), (self.share, share)):
            mine.copy_(told)

    def forward(
        self, outputs: Float[Tensor, "points outputs"], features: Float[Tensor, "points dim"]
    ) -> Float[Tensor, "points outputs"]:
        """Outputs of the readout, and of the map as much as is its share."""
        return outputs.lerp(F.linear(features, self.weight, self.bias), self.share) if self.share.any() else outputs


class Convolution(nn.Module):
    """A convolution over the residues of each sequence, to whom the world ends with zeros.

    All sequences pass through one call: enough rows of zeros lie between any two that no window holds
    residues of both.

    >>> Convolution(8, 4, kernel=3)(torch.randn(5, 8), lengths=(2, 3)).shape
    torch.Size([5, 4])
    """

    def __init__(self, dim: int, channels: int, *, kernel: int, bias: bool = True):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"a convolution's kernel is an odd number of residues, got {kernel}.")
        self.reach = kernel // 2
        self.window = nn.Conv1d(dim, at_least_one(channels, "channels"), kernel, padding=self.reach, bias=bias)

    def forward(self, x: Float[Tensor, "residues dim"], lengths: tuple[int, ...]) -> Float[Tensor, "residues channels"]:
        """What each residue's window holds, in as many rows as came."""
        place = torch.arange(len(x), device=x.device) + sequence_of_points(lengths, x.device) * self.reach
        rows = x.new_zeros(len(x) + len(lengths) * self.reach + 1, x.shape[1])  # one at least, for an empty batch
        rows = rows.index_copy(0, place, x)
        return self.window(rows.T[None])[0].T.index_select(0, place)


def at_least_one(value: int, option: str) -> int:
    """The value of an option that counts something.

    Raises:
        ValueError: if there is none of it.
    """
    if value < 1:
        raise ValueError(f"{option} is {value}, expected 1 or more.")
    return value
