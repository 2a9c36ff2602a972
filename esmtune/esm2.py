"""ESM-2, whole, in one file; what is not here is how its attention is computed.

Lin et al., Evolutionary-scale prediction of atomic-level protein structure with a
language model. Science 379, 1123-1130 (2023). https://doi.org/10.1126/science.ade2574

A pre-norm bidirectional Transformer with rotary positions. Two things are unusual and
both change the numbers: masked tokens enter as zeros, and the surviving embeddings are
rescaled by the share of tokens that was left unmasked in training (0.88).

There is no padding. The sequences of a batch lie end to end, and `lengths` says where
one stops and the next begins; only attention needs to know.

Axes, here and everywhere else in the package:
    batch   sequences                     residues  all residues of the batch, end to end
    tokens  residues, and <cls> and <eos> dim       channels of the residual stream
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esmtune.alphabet import MASK, PAD, SYMBOLS, encode
from esmtune.attention import attend, rotary_angles, rotary_frequencies, rotate
from esmtune.spans import Spans, sent

UNMASKED_IN_TRAINING = 1 - 0.15 * 0.8  # 15 % selected, 80 % of those replaced by <mask>


@dataclass(frozen=True, kw_only=True)
class ESM2Config:
    """The three numbers that tell one ESM-2 from another."""

    num_layers: int
    embed_dim: int
    num_heads: int

    def __post_init__(self):
        if min(self.num_layers, self.embed_dim, self.num_heads) < 1 or self.embed_dim % (2 * self.num_heads):
            raise ValueError(f"an ESM-2 needs an even number of channels for each head, got {self}.")


OFFICIAL = {
    "esm2_t6_8M_UR50D": ESM2Config(num_layers=6, embed_dim=320, num_heads=20),
    "esm2_t12_35M_UR50D": ESM2Config(num_layers=12, embed_dim=480, num_heads=20),
    "esm2_t30_150M_UR50D": ESM2Config(num_layers=30, embed_dim=640, num_heads=20),
    "esm2_t33_650M_UR50D": ESM2Config(num_layers=33, embed_dim=1280, num_heads=20),
    "esm2_t36_3B_UR50D": ESM2Config(num_layers=36, embed_dim=2560, num_heads=40),
    "esm2_t48_15B_UR50D": ESM2Config(num_layers=48, embed_dim=5120, num_heads=40),
}
RANDOM = "random:"  # before one of these names: that size, its weights drawn at random


@dataclass(frozen=True)
class Tokens:
    """A batch of tokenized sequences, end to end; `lengths` counts <cls> and <eos>.

    `seeds` holds one number a sequence for everything random that happens to it (dropout), so
    that its company changes nothing in training either. `has_pad` says that <pad> is among the ids.
    """

    ids: Int[Tensor, "tokens"]
    lengths: tuple[int, ...]
    seeds: Int[Tensor, "batch"]
    has_pad: bool = False

    @classmethod
    def of(cls, sequences: Sequence[str], seeds: Int[Tensor, "batch"] | None = None) -> "Tokens":
        """Tokenize sequences, on the CPU.

        >>> Tokens.of(["MK", "V"]).ids.tolist()
        [0, 20, 15, 2, 0, 7, 2]
        """
        coded = [encode(sequence) for sequence in sequences]
        joined = b"".join(coded)
        ids = torch.tensor(list(joined), dtype=torch.long)
        if seeds is None:
            seeds = torch.zeros(len(coded), dtype=torch.long)
        return cls(ids, tuple(map(len, coded)), seeds, has_pad=PAD in joined)

    def __add__(self, other: "Tokens") -> "Tokens":
        """The sequences of both, end to end.

        >>> (Tokens.of(["MK"]) + Tokens.of(["V", "GG"])).lengths
        (4, 3, 4)
        """
        ids, seeds = torch.cat((self.ids, other.ids)), torch.cat((self.seeds, other.seeds))
        return Tokens(ids, self.lengths + other.lengths, seeds, self.has_pad or other.has_pad)

    def to(self, device: torch.device) -> "Tokens":
        """The same tokens on a device."""
        return replace(self, ids=self.ids.to(device), seeds=self.seeds.to(device))


@dataclass(frozen=True)
class Representation:
    """What the encoder says about a batch: one vector per residue, and per sequence at <cls>."""

    cls: Float[Tensor, "batch dim"]
    residues: Float[Tensor, "residues dim"]
    lengths: tuple[int, ...]  # residues per sequence
    seeds: Int[Tensor, "batch"]


class ESM2(nn.Module):
    """Map tokens to one vector per residue.

    >>> encoder = ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2))
    >>> encoder(Tokens.of(["MKTV", "GG"])).residues.shape
    torch.Size([6, 16])
    """

    frequency: Tensor

    def __init__(self, config: ESM2Config, *, lm_head: bool = False):
        super().__init__()
        self.config = config
        self.recomputes = False  # in training, whether layers keep their input alone, which takes less memory
        drawn, head_dim = torch.empty(len(SYMBOLS), config.embed_dim), config.embed_dim // config.num_heads
        frequency = torch.empty(head_dim // 2)
        if not drawn.is_meta:  # without memory there is nothing to compute; torch would import its compiler, in seconds
            drawn, frequency = nn.init.normal_(drawn), rotary_frequencies(head_dim)
        self.embed_tokens = nn.Embedding.from_pretrained(drawn, freeze=False)
        self.layers = nn.ModuleList(Layer(config.embed_dim, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.lm_head = LMHead(config.embed_dim) if lm_head else None
        # Part of the weights: the official ones hold it rounded to float16, and were trained with that.
        self.register_buffer("frequency", frequency)

    def forward(self, tokens: Tokens) -> Representation:
        """The last layer's output, after the final norm."""
        return self.representations(tokens, [-1])[0]

    def representations(self, tokens: Tokens, layers: Sequence[int]) -> list[Representation]:
        """The output of any layers: 0 is the embeddings, the last is taken after the final norm, negatives count back.

        >>> encoder = ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2))
        >>> len(encoder.representations(Tokens.of(["MKTV"]), [0, 1, -1]))
        3

        Raises:
            ValueError: for a layer that the encoder does not have, and for none at all.
        """
        wanted = [self.layer_index(layer) for layer in layers]
        if not wanted:
            raise ValueError("no layer is asked for: layers counts from 0, the embeddings, and -1 is the last.")
        spans = Spans(tokens.lengths, tokens.ids.device, (tokens.ids != PAD) if tokens.has_pad else None)
        x = drop_masked(self.embed_tokens(tokens.ids), tokens)
        cos, sin = rotary_angles(tokens.lengths, self.frequency, x.dtype)
        outputs = {0: x}
        for number, layer in enumerate(self.layers[: max(wanted)], start=1):
            x = self._through(layer, x, cos, sin, spans)
            if number in wanted:
                outputs[number] = x
        last = len(self.layers)
        if last in wanted:
            outputs[last] = self.norm(x)
        return [self._without_specials(outputs[number], tokens) for number in wanted]

    def _through(self, layer: nn.Module, x: Tensor, *others: object) -> Tensor:
        """A layer's output; if it `recomputes`, what was computed on the way is computed again for the gradient.

        Chen et al., Training deep nets with sublinear memory cost (2016). https://doi.org/10.48550/arXiv.1604.06174
        """
        learns = x.requires_grad or any(weight.requires_grad for weight in layer.parameters())
        if self.recomputes and learns and torch.is_grad_enabled():
            return checkpoint(layer, x, *others, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(x, *others)

    def layer_index(self, layer: int) -> int:
        """The number of a layer, counted from the embeddings."""
        last = len(self.layers)
        if not -last - 1 <= layer <= last:
            raise ValueError(
                f"there is no layer {layer}: this encoder has 0 (the embeddings) to {last}, or -{last + 1} to -1."
            )
        return layer % (last + 1)

    def layers_across(self, count: int) -> tuple[int, ...]:
        """So many layers, or all if there are fewer, evenly from the embeddings to the last; of one the last.

        >>> ESM2(ESM2Config(num_layers=4, embed_dim=16, num_heads=2)).layers_across(3)
        (0, 2, 4)
        """
        last = len(self.layers)
        count = min(count, last + 1)
        return tuple(last - round(last * place / max(1, count - 1)) for place in reversed(range(count)))

    def layers_for_residues(self) -> tuple[int, ...]:
        """The layer at two thirds of the depth and the last, which together tell more of a residue than either.

        >>> ESM2(ESM2Config(num_layers=6, embed_dim=16, num_heads=2)).layers_for_residues()
        (4, 6)
        """
        last = len(self.layers)
        return tuple(dict.fromkeys((last - round(last / 3), last)))

    def logits(self, tokens: Tokens) -> Float[Tensor, "residues symbols"]:
        """What the language model expects at each residue, over the 33 symbols.

        Raises:
            ValueError: if the weights came without an LM head.
        """
        if self.lm_head is None:
            raise ValueError("these weights have no LM head, so there are no logits. Take a checkpoint that has one.")
        return self.lm_head(self(tokens).residues, self.embed_tokens.weight)

    def _without_specials(self, x: Float[Tensor, "tokens dim"], tokens: Tokens) -> Representation:
        lengths = torch.tensor(tokens.lengths, dtype=torch.long)
        end = lengths.cumsum(0)
        is_residue = torch.ones(len(x), dtype=torch.bool).index_fill(0, torch.cat((end - lengths, end - 1)), False)
        first, residues = sent(end - lengths, x.device), sent(is_residue.nonzero()[:, 0], x.device)
        return Representation(x[first], x[residues], tuple(n - 2 for n in tokens.lengths), tokens.seeds)


class Layer(nn.Module):
    """Attention, then a feed-forward network, each on a normalized copy of the stream."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(
        self,
        x: Float[Tensor, "tokens dim"],
        cos: Float[Tensor, "tokens 1 half"],
        sin: Float[Tensor, "tokens 1 half"],
        spans: Spans,
    ) -> Float[Tensor, "tokens dim"]:
        """Add to the stream what attention and the feed-forward network make of it."""
        y = self.attention_norm(x)
        projected = (exact_bias(self.query, y), exact_bias(self.key, y), self.value(y))
        q, k, v = (rearrange(z, "tokens (heads k) -> tokens heads k", heads=self.num_heads) for z in projected)
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, spans)
        x = x + self.out(rearrange(y, "tokens heads k -> tokens (heads k)"))
        return x + self.contract(F.gelu(self.expand(self.feed_forward_norm(x))))


def exact_bias(linear: nn.Module, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens outputs"]:
    """A linear map whose bias is added in float32 where its product is computed in bfloat16.

    Biases of keys reach 9 in ESM-2, which leaves the rest of a key few of bfloat16's 8 bits (docs/LOG.md).
    """
    if torch.is_autocast_enabled(x.device.type) and type(linear) is nn.Linear:
        return F.linear(x, linear.weight) + linear.bias  # a sum of both types is in float32
    return linear(x)


class LMHead(nn.Module):
    """From a residue's vector to a logit for each symbol; the last map is the embedding, transposed."""

    def __init__(self, dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(len(SYMBOLS)))

    def forward(
        self, x: Float[Tensor, "residues dim"], embedding: Float[Tensor, "symbols dim"]
    ) -> Float[Tensor, "residues symbols"]:
        """The logits of each residue."""
        return F.linear(self.norm(F.gelu(self.dense(x))), embedding, self.bias)


def drop_masked(x: Float[Tensor, "tokens dim"], tokens: Tokens) -> Float[Tensor, "tokens dim"]:
    """Zero what is masked; rescale the rest of each sequence to the magnitude seen in training."""
    lengths = sent(torch.tensor(tokens.lengths, dtype=torch.long), x.device)
    sequence = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths, output_size=len(x))
    count = torch.zeros(len(lengths), dtype=torch.long, device=x.device)
    is_mask, is_pad = tokens.ids == MASK, tokens.ids == PAD
    masked = count.index_add(0, sequence, is_mask.long())
    present = lengths - count.index_add(0, sequence, is_pad.long())
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # which MPS does not have
    scale = UNMASKED_IN_TRAINING / (1 - masked.to(exact) / present)
    return x.masked_fill((is_mask | is_pad)[:, None], 0.0) * scale.to(x.dtype)[sequence][:, None]
