"""Hiding residues from the language model, as ESM-2 was trained: some masked, some replaced, some left as they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from esmtune.alphabet import AMINO_ACIDS, INDEX, MASK
from esmtune.esm2 import Tokens
from esmtune.pooling import mix, uniform
from esmtune.records import Label

FIRST = INDEX[AMINO_ACIDS[0]]


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The share of residues that must be guessed, and how many of them are masked or replaced by another."""

    selected: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1


def masked(tokens: Tokens, masking: Masking) -> tuple[Tokens, Bool[Tensor, "residues"]]:
    """Hide residues, by the seed of each sequence alone; also return which residues must be guessed.

    Devlin et al. 2019, https://doi.org/10.18653/v1/N19-1423; Lin et al. 2023, https://doi.org/10.1126/science.ade2574.

    >>> tokens = Tokens.of(["MKTVRQERLK" * 10], torch.tensor([1]))
    >>> hidden, selected = masked(tokens, Masking(selected=1.0, masked=1.0, replaced=0.0))
    >>> set(hidden.ids[1:-1].tolist()) == {MASK}, int(selected.sum())
    (True, 100)
    """
    lengths = torch.tensor(tokens.lengths, dtype=torch.long)
    end = lengths.cumsum(0)
    inside = torch.ones(len(tokens.ids), dtype=torch.bool)
    inside[torch.cat((end - lengths, end - 1))] = False
    position = torch.cat([torch.arange(0), *(torch.arange(n) for n in tokens.lengths)])
    seeds = mix(tokens.seeds.cpu().repeat_interleave(lengths))[:, None]
    choice, fate, other = (uniform(seeds + salt, position[:, None])[:, 0] for salt in (1, 2, 3))
    selected = inside & (choice < masking.selected)
    ids = tokens.ids.cpu().clone()
    strangers = FIRST + (other * len(AMINO_ACIDS)).long()
    ids = torch.where(selected & (fate < masking.masked), MASK, ids)
    is_replaced = selected & (fate >= masking.masked) & (fate < masking.masked + masking.replaced)
    ids = torch.where(is_replaced, strangers, ids)
    return replace(tokens, ids=ids.to(tokens.ids.device)), selected[inside].to(tokens.ids.device)


def guessed(labels: Sequence[Label], sequences: Sequence[str], masking: Masking | None) -> list[Label]:
    """The residues of sequences, of which only those are known that must be guessed; the seed of each is its place."""
    if masking is None:
        return list(labels)
    selected = masked(Tokens.of(sequences, torch.arange(len(sequences))), masking)[1].tolist()
    return [label if must else None for label, must in zip(labels, selected, strict=True)]
