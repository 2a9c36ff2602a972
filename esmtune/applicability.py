"""How far a sequence is from what a predictor was trained on: in the space that its head sees, in length, in residues.

A predictor keeps vectors of training sequences, a bounded number drawn by the seed, standardized as its head does, and
the distance of each of them from its nearest others. The distance of a new sequence is then a share: of how many
training sequences it is farther off. The nearest neighbors' mean distance is that of Sun et al. 2022,
https://doi.org/10.48550/arXiv.2204.06507.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from esmtune.pooling import Pooled, segment_mean

MOST_BYTES = 4 << 20  # of all vectors that are kept together, in float16
NEIGHBORS = 5
ROWS_AT_ONCE = 256  # in float64
REFERENCES = "references.safetensors"


@dataclass(frozen=True, kw_only=True)
class References:
    """What the training sequences look like: some of their vectors, how far apart these are, lengths and residues."""

    vectors: Float[Tensor, "references dim"]  # float16, standardized
    distances: Float[Tensor, "references"]  # of each from its nearest others, ascending
    shortest: int
    longest: int
    residues: str  # that any of them has

    @classmethod
    def of(cls, vectors: Float[Tensor, "references dim"], sequences: Sequence[str]) -> "References":
        """Keep vectors of some training sequences, and what is known of all `sequences`.

        >>> found = References.of(torch.tensor([[0.0], [1.0], [3.0]]), ["MK", "MKV", "MA"])
        >>> found.distances.tolist(), found.longest, found.residues
        ([1.5, 2.0, 2.5], 3, 'AKMV')
        """
        kept = vectors.to(torch.float16)
        lengths = [len(sequence) for sequence in sequences]
        return cls(
            vectors=kept, distances=_nearest(kept, kept, own=True).sort().values, shortest=min(lengths),
            longest=max(lengths), residues="".join(sorted(set().union(*sequences))),
        )  # fmt: skip

    def distance(self, vectors: Float[Tensor, "sequences dim"]) -> Float[Tensor, "sequences"]:
        """How many of the training sequences are nearer to others than each of these is to them, as a share."""
        found = _nearest(vectors.to(torch.float16), self.vectors, own=False)
        below = torch.searchsorted(self.distances, found.contiguous(), right=True)
        return below.double() / len(self.distances)

    def notes(self, sequence: str) -> str:
        """What else no training sequence has, in words; empty if there is nothing.

        >>> References.of(torch.zeros(2, 1), ["MK", "MKV"]).notes("MKVUL")
        'longer than any training sequence (3); residues that no training sequence has (LU)'
        """
        said = []
        if len(sequence) > self.longest:
            said.append(f"longer than any training sequence ({self.longest:,})")
        if len(sequence) < self.shortest:
            said.append(f"shorter than any training sequence ({self.shortest:,})")
        new = "".join(sorted(set(sequence) - set(self.residues)))
        return "; ".join([*said, *([f"residues that no training sequence has ({new})"] if new else [])])

    def tensors(self) -> dict[str, Tensor]:
        """As a journal or a file keeps them; residues are their codes."""
        residues = torch.tensor([ord(letter) for letter in self.residues], dtype=torch.int64)
        lengths = torch.tensor([self.shortest, self.longest], dtype=torch.int64)
        return {"vectors": self.vectors, "distances": self.distances, "lengths": lengths, "residues": residues}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "References | None":
        """What `tensors` gave; None of nothing."""
        if not tensors:
            return None
        shortest, longest = tensors["lengths"].tolist()
        return cls(
            vectors=tensors["vectors"], distances=tensors["distances"], shortest=shortest, longest=longest,
            residues="".join(map(chr, tensors["residues"].tolist())),
        )  # fmt: skip


def sampled(sequences: Sequence[str], dim: int, seed: int, *, most: int) -> list[int]:
    """The places of the training sequences whose vectors are kept: each sequence once; none of fewer than two.

    >>> sampled(["MK", "MK", "GG"], 8, 0, most=100)
    [0, 2]
    """
    first = list({sequence: place for place, sequence in reversed(list(enumerate(sequences)))}.values())[::-1]
    count = min(most, MOST_BYTES // (2 * dim))
    if min(count, len(first)) < 2:
        return []
    if len(first) > count:
        chosen = np.random.default_rng(seed).choice(len(first), count, replace=False)
        first = [first[place] for place in sorted(chosen.tolist())]
    return first


def vectors_of(pooled: Pooled) -> Float[Tensor, "sequences dim"]:
    """One vector a sequence of what a head standardized: of residues their mean."""
    return segment_mean(pooled.features.float(), pooled.lengths)


def save_references(references: References, folder: Path) -> None:
    """Write them beside the weights."""
    save_file({name: t.contiguous() for name, t in references.tensors().items()}, folder / REFERENCES)


def load_references(folder: Path) -> References | None:
    """Read them, if they are there."""
    if not (folder / REFERENCES).is_file():
        return None
    with safe_open(folder / REFERENCES, "pt") as file:
        return References.from_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _nearest(
    x: Float[Tensor, "sequences dim"], references: Float[Tensor, "references dim"], *, own: bool
) -> Float[Tensor, "sequences"]:
    """The mean distance from the nearest references; with `own`, from all but itself.

    By products in float64, which hold sums of products of float16 all but exactly: a tenth of the time of differences.
    """
    count = min(NEIGHBORS, len(references) - own)
    others = references.double()
    squares = others.square().sum(1)
    found = [
        part.square().sum(1, keepdim=True) + squares - 2 * part @ others.T for part in x.double().split(ROWS_AT_ONCE)
    ]
    distances = torch.cat([torch.empty(0, len(references)), *found]).clamp(min=0).sqrt().float()
    if own:
        distances.fill_diagonal_(math.inf)
    return distances.topk(count, largest=False).values.mean(1)
