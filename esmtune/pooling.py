"""From residues to points: what a head is given of each sequence, and what it may ask of one sequence at a time.

Points are sequences or residues. Those of one sequence lie side by side, sequences end to end, and
`lengths` says where one stops and the next begins. Sums and maxima are taken for all sequences at
once, in float32 at least, and in the order of the points: no sequence sees another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from esmtune.esm2 import Representation

Pool = Literal["mean", "cls", "residue"]


@dataclass(frozen=True)
class Pooled:
    """One vector per point, how many points each sequence has, and the seed of each point's dropout.

    >>> pooled = Pooled.of(torch.randn(5, 8), (2, 3), seeds=torch.tensor([7, 8]))
    >>> pooled.seeds.shape, pooled.sequence_seeds.tolist()
    (torch.Size([5]), [7, 8])
    """

    features: Float[Tensor, "points dim"]
    lengths: tuple[int, ...]
    seeds: Int[Tensor, "points"]

    @classmethod
    def of(
        cls, features: Float[Tensor, "points dim"], lengths: tuple[int, ...], seeds: Int[Tensor, "batch"]
    ) -> "Pooled":
        """Make the points' seeds of the sequences': a first point has its sequence's, and no two the same."""
        counts = torch.tensor(lengths, dtype=torch.long, device=seeds.device)
        start = (counts.cumsum(0) - counts).repeat_interleave(counts)
        position = torch.arange(len(start), device=seeds.device) - start
        return cls(features, lengths, seeds.repeat_interleave(counts) + mix(position))

    def first(self, sequences: int) -> "Pooled":
        """The points of the first so many sequences."""
        points = sum(self.lengths[:sequences])
        return Pooled(self.features[:points], self.lengths[:sequences], self.seeds[:points])

    @property
    def sequence_seeds(self) -> Int[Tensor, "batch"]:
        """The seed of each sequence, which is that of its first point."""
        counts = torch.tensor(self.lengths, dtype=torch.long, device=self.seeds.device)
        return self.seeds[counts.cumsum(0) - counts]

    def parts(self, sequences: int = 256) -> Iterator["Pooled"]:
        """The same in parts of so many sequences, for what takes much memory."""
        features, seeds = self.features.split(self.lengths), self.seeds.split(self.lengths)
        for start in range(0, len(self.lengths), sequences):
            part = slice(start, start + sequences)
            yield Pooled(torch.cat(features[part]), self.lengths[part], torch.cat(seeds[part]))

    def to(self, device: torch.device) -> "Pooled":
        """The same on a device."""
        return replace(self, features=self.features.to(device), seeds=self.seeds.to(device))


def mean_pool(x: Representation) -> Float[Tensor, "batch dim"]:
    """Average over the residues of each sequence."""
    return segment_mean(x.residues, x.lengths)


def cls_pool(x: Representation) -> Float[Tensor, "batch dim"]:
    """Take the vector at <cls>."""
    return float32_at_least(x.cls)


def residue_pool(x: Representation) -> Float[Tensor, "residues dim"]:
    """Keep every residue."""
    return float32_at_least(x.residues)


POOLS: dict[str, Callable[[Representation], Tensor]] = {"mean": mean_pool, "cls": cls_pool, "residue": residue_pool}


def segment_sum(x: Float[Tensor, "points dim"], lengths: tuple[int, ...]) -> Float[Tensor, "batch dim"]:
    """Sum over the points of each sequence, one after the other.

    >>> segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), (1, 2)).tolist()
    [[1.0], [5.0]]
    """
    x = float32_at_least(x)
    return x.new_zeros(len(lengths), x.shape[1]).index_add(0, sequence_of_points(lengths, x.device), x)


def segment_mean(x: Float[Tensor, "points dim"], lengths: tuple[int, ...]) -> Float[Tensor, "batch dim"]:
    """Average over the points of each sequence.

    >>> segment_mean(torch.tensor([[1.0], [2.0], [4.0]]), (1, 2)).tolist()
    [[1.0], [3.0]]
    """
    total = segment_sum(x, lengths)
    return total / torch.tensor(lengths, device=total.device)[:, None]


def segment_max(x: Float[Tensor, "points dim"], lengths: tuple[int, ...]) -> Float[Tensor, "batch dim"]:
    """Take the largest value of each channel in each sequence; points that tie share the gradient.

    Summing what equals the largest, not taking the maximum, for torch's gradient of it is 30 times slower.

    >>> segment_max(torch.tensor([[1.0], [4.0], [3.0]]), (1, 2)).tolist()
    [[1.0], [4.0]]
    """
    x = float32_at_least(x)
    largest = _largest(x, lengths)
    is_largest = x.detach() == largest.index_select(0, sequence_of_points(lengths, x.device))
    total = segment_sum(x.masked_fill(~is_largest, 0.0), lengths)
    return total / segment_sum(is_largest.to(x), lengths)


def segment_softmax(x: Float[Tensor, "points dim"], lengths: tuple[int, ...]) -> Float[Tensor, "points dim"]:
    """Make weights of scores, which are positive and add up to one over the points of each sequence, by channel.

    >>> segment_softmax(torch.zeros(3, 1), (1, 2)).tolist()
    [[1.0], [0.5], [0.5]]
    """
    x = float32_at_least(x)
    sequence = sequence_of_points(lengths, x.device)
    weight = (x - _largest(x, lengths).index_select(0, sequence)).exp()
    return weight / segment_sum(weight, lengths).index_select(0, sequence)


def _largest(x: Float[Tensor, "points dim"], lengths: tuple[int, ...]) -> Float[Tensor, "batch dim"]:
    sequence = sequence_of_points(lengths, x.device)[:, None].expand_as(x)
    return x.new_zeros(len(lengths), x.shape[1]).scatter_reduce(0, sequence, x.detach(), "amax", include_self=False)


def sequence_of_points(lengths: tuple[int, ...], device: torch.device) -> Int[Tensor, "points"]:
    """Which sequence each point belongs to.

    >>> sequence_of_points((1, 2), torch.device("cpu")).tolist()
    [0, 1, 1]
    """
    counts = torch.tensor(lengths, dtype=torch.long, device=device)
    return torch.arange(len(lengths), device=device).repeat_interleave(counts, output_size=sum(lengths))


def uniform(seed: Int[Tensor, "points 1"], counter: Int[Tensor, "#points dim"]) -> Float[Tensor, "points dim"]:
    """Numbers in [0, 1) that look random and depend on nothing but the two arguments.

    They come from a counter-based hash, the finalizer of SplitMix64 (Steele et al. 2014,
    https://doi.org/10.1145/2660193.2660195), and are the same on every device.
    """
    x = mix(seed) + counter * -0x61C8864680B583EB
    return _shifted(mix(x), 40) / 0x1000000


def mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble the bits of 64-bit integers; no two give the same, and zero stays zero."""
    x = _shifted(x, 30).bitwise_xor_(x).mul_(-0x40A7B892E31B1A47)
    x = _shifted(x, 27).bitwise_xor_(x).mul_(-0x6B2FB644ECCEEE15)
    return _shifted(x, 31).bitwise_xor_(x)


def _shifted(x: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Shift right as an unsigned number; torch's own shift keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def float32_at_least(x: Tensor) -> Tensor:
    """What is averaged is averaged in float32, whatever the encoder computes in."""
    return x if x.dtype == torch.float64 else x.float()
