"""From a representation to outputs. A pool decides what is seen, a readout the numbers. Add yours at the end.

A head first standardizes what its pool gives, by the mean and spread that the training sequences
have in it: variants of one protein differ by so little that nothing learns from the raw values.
Of several layers of the encoder, it then makes one by a learned mix. Somewhat more than 300 lines,
so that all heads stand on the page to which yours is added.

A head of your own is registered by importing the module that it is in; its keyword-only parameters
are options everywhere, `--head gated --head.hidden 32` included:

    import torch
    from esmtune.heads import Dropout, Head, Pooled, head

    @head("gated")
    class Gated(Head):
        def __init__(self, dim: int, num_outputs: int, layers: int = 1, *, hidden: int = 64, dropout: float = 0.1):
            super().__init__(dim, "mean", layers)
            self.gate, self.value = torch.nn.Linear(dim, hidden), torch.nn.Linear(dim, hidden)
            self.dropout = Dropout(dropout)
            self.out = torch.nn.Linear(hidden, num_outputs)

        def readout(self, x: Pooled) -> torch.Tensor:
            mixed = self.gate(x.features).sigmoid() * self.value(x.features)
            return self.out(self.dropout(mixed, x.seeds))
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from esmtune.esm2 import ESM2, LMHead, Representation
from esmtune.pooling import POOLS, Pool, Pooled, segment_max, segment_mean, segment_softmax, segment_sum
from esmtune.readouts import Beside, Convolution, Dropout, LayerMix, Noise, Standardize, at_least_one
from esmtune.records import Level
from esmtune.registry import Registry
from esmtune.ridge import solve


class Head(nn.Module, ABC):
    """What a network computes after the encoder: pool, standardize, mix layers, read out.

    Args:
        dim: channels of one layer of the encoder.
        pool: what of the encoder it sees: `mean` or `cls`, a point a sequence, or `residue`, a point a residue.
        layers: how many layers of the encoder it sees, side by side.
        level: whether it has an output a sequence or a residue; that of the pool unless the readout pools.
    """

    standardizes: ClassVar[bool] = True
    is_solved: ClassVar[bool] = False  # in one go, by its method `solve`, and not step by step

    def __init__(self, dim: int, pool: Pool, layers: int = 1, *, level: Level | None = None):
        super().__init__()
        self.pool_name: Pool = pool
        self.sees_residues = pool == "residue"
        self.level: Level = level or ("residue" if self.sees_residues else "sequence")
        self.standardize = Standardize(layers * dim)
        self.feature_noise = Noise()
        self.mix = LayerMix(layers) if layers > 1 else nn.Identity()
        self.beside: Beside | None = None  # what is solved once the rest has learned, if anything is

    def pool(self, x: Representation) -> Pooled:
        """What is computed from the encoder alone; a frozen encoder's is computed once and kept."""
        lengths = x.lengths if self.sees_residues else (1,) * len(x.lengths)
        return self.pooled(POOLS[self.pool_name](x), lengths, x.seeds)

    def pooled(
        self, features: Float[Tensor, "points channels"], lengths: tuple[int, ...], seeds: Int[Tensor, "batch"]
    ) -> Pooled:
        """What was kept of the pool's features, with the seed of each sequence."""
        return Pooled.of(features, lengths, seeds)

    def fit(self, seen: Pooled) -> None:
        """Take the statistics that standardize, of what the pool gives of training sequences, before anything moves."""
        self.standardize.fit(seen.features)

    def tie(self, encoder: ESM2) -> None:
        """Meet the encoder that the head stands on; most heads need nothing of it."""

    @abstractmethod
    def readout(self, x: Pooled) -> Float[Tensor, "rows outputs"]:
        """Standardized features to outputs, a row for each sequence or residue, whatever the level is."""

    def forward(self, x: Representation | Pooled) -> Float[Tensor, "rows outputs"]:
        """Outputs, from what the encoder says or from what the pool made of it."""
        return self.readout(self.prepared(self.pool(x) if isinstance(x, Representation) else x))

    def prepared(self, x: Pooled) -> Pooled:
        """What the readout is given: standardized, with noise in training, and of several layers one."""
        return replace(x, features=self.mix(self.feature_noise(self.standardize(x.features), x.seeds)))


head: Registry[type[Head]] = Registry("head")


@head("linear")
class Linear(Head):
    """One affine map: the probe to beat."""

    def __init__(self, dim: int, num_outputs: int, layers: int = 1, *, pool: Pool = "mean"):
        super().__init__(dim, pool, layers)
        self.out = nn.Linear(dim, num_outputs)

    def readout(self, x: Pooled) -> Float[Tensor, "points outputs"]:
        """One affine map."""
        return self.out(x.features)


@head("mlp")
class MLP(Head):
    """Hidden layers with ReLU and dropout; with `ridge`, a penalized linear map of all that it sees beside them.

    Their outputs are averaged, with a share that held-out points choose: stacked regressions (Breiman 1996,
    https://doi.org/10.1007/BF00117832).
    """

    def __init__(
        self, dim: int, num_outputs: int, layers: int = 1,
        *, pool: Pool = "mean", hidden: int = 256, depth: int = 2, dropout: float = 0.25, ridge: bool = False,
    ):  # fmt: skip
        super().__init__(dim, pool, layers)
        self.hidden = nn.Linear(dim, at_least_one(hidden, "hidden"))
        self.deeper = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(at_least_one(depth, "depth") - 1))
        self.dropouts = nn.ModuleList(Dropout(dropout, salt) for salt in range(depth))
        self.out = nn.Linear(hidden, num_outputs)
        self.beside = Beside(layers * dim, num_outputs) if ridge else None

    def forward(self, x: Representation | Pooled) -> Float[Tensor, "points outputs"]:
        """Outputs, and what the linear map says beside them, if there is one."""
        if self.beside is None:
            return super().forward(x)
        seen = self.pool(x) if isinstance(x, Representation) else x
        return self.beside(super().forward(seen), self.standardize(seen.features))

    def readout(self, x: Pooled) -> Float[Tensor, "points outputs"]:
        """As many affine maps as hidden layers, and one more, ReLU and dropout between them."""
        y = x.features
        for layer, dropout in zip((self.hidden, *self.deeper), self.dropouts, strict=True):
            y = dropout(F.relu(layer(y)), x.seeds)
        return self.out(y)


@head("conv")
class Conv(Head):
    """Convolutions over the residues of each sequence, with ReLU and dropout; then each residue's, or their mean.

    The convolutional network of ProtTrans for secondary structure (Elnaggar et al. 2021,
    https://doi.org/10.1109/TPAMI.2021.3095381), whose last convolution is an affine map here. Where a
    sequence ends, the standardized features beyond are zeros, which is their mean. `channels` and
    `kernel` (residues in a window, an odd number) are those of each of `depth` convolutions.

    >>> conv = head.build({"name": "conv", "pool": "residue"}, 320, 3)
    >>> conv.level, conv(Pooled.of(torch.randn(5, 320), (2, 3), seeds=torch.arange(2))).shape
    ('residue', torch.Size([5, 3]))
    """

    def __init__(
        self, dim: int, num_outputs: int, layers: int = 1,
        *, pool: Literal["mean", "residue"] = "mean", channels: int = 32, kernel: int = 7, depth: int = 1,
        dropout: float = 0.25,
    ):  # fmt: skip
        super().__init__(dim, "residue", layers, level="residue" if pool == "residue" else "sequence")
        widths = [dim] + [channels] * at_least_one(depth, "depth")
        self.convolutions = nn.ModuleList(Convolution(n, channels, kernel=kernel) for n in widths[:-1])
        self.dropouts = nn.ModuleList(Dropout(dropout, salt) for salt in range(depth))
        self.out = nn.Linear(channels, num_outputs)

    def readout(self, x: Pooled) -> Float[Tensor, "rows outputs"]:
        """Convolve, average over each sequence unless each residue has an output, and map."""
        y = x.features
        for convolution, dropout in zip(self.convolutions, self.dropouts, strict=True):
            y = dropout(F.relu(convolution(y, x.lengths)), x.seeds)
        return self.out(y if self.level == "residue" else segment_mean(y, x.lengths))


@head("attention")
class Attention(Head):
    """A weighted mean over the residues of each sequence, by learned scores; then one hidden layer.

    Each of `heads` gives a residue one score, and the softmax over a sequence's scores weighs its
    residues (Lin et al. 2017, https://doi.org/10.48550/arXiv.1703.03130, with scores that are a linear
    map). Scores start at zero: it begins as `mlp` on the mean, and departs from that as far as it pays.
    The means are standardized once more, for variants differ in them far less than residues do.

    >>> attention = head.build({"name": "attention"}, 320, 3)
    >>> attention.level, attention(Pooled.of(torch.randn(5, 320), (2, 3), seeds=torch.arange(2))).shape
    ('sequence', torch.Size([2, 3]))
    """

    def __init__(
        self, dim: int, num_outputs: int, layers: int = 1,
        *, heads: int = 1, hidden: int = 256, dropout: float = 0.25,
    ):  # fmt: skip
        super().__init__(dim, "residue", layers, level="sequence")
        self.score = nn.Linear(dim, at_least_one(heads, "heads"), bias=False)  # which softmax would not see
        nn.init.zeros_(self.score.weight)
        self.standardize_means = Standardize(heads * dim)
        self.hidden = nn.Linear(heads * dim, at_least_one(hidden, "hidden"))
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden, num_outputs)

    def readout(self, x: Pooled) -> Float[Tensor, "batch outputs"]:
        """Weigh the residues, take a mean of them by each head, side by side, and map."""
        means = self.standardize_means(self._means(x))
        return self.out(self.dropout(F.relu(self.hidden(means)), x.sequence_seeds))

    @torch.no_grad()
    def fit(self, seen: Pooled) -> None:
        """Take the statistics of residues, and those of the means that the scores make of them now."""
        super().fit(seen)
        means = [self._means(self.prepared(part)) for part in seen.parts()]
        self.standardize_means.fit(torch.cat(means))

    def _means(self, x: Pooled) -> Float[Tensor, "batch channels"]:
        weights = segment_softmax(self.score(x.features), x.lengths)
        return torch.cat([segment_sum(x.features * w[:, None], x.lengths) for w in weights.unbind(1)], dim=1)


@head("light-attention")
class LightAttention(Head):
    """Two convolutions, of which one weighs the other: weighted sum and maximum over residues; then one hidden layer.

    Stärk et al. 2021, Light attention predicts protein location from the language of life.
    Bioinformatics Advances 1, vbab035. https://doi.org/10.1093/bioadv/vbab035. Theirs normalizes the
    hidden layer over the batch; this one over its channels (Ba et al. 2016,
    https://doi.org/10.48550/arXiv.1607.06450), so that predictions do not depend on company.

    >>> light = head.build({"name": "light-attention"}, 320, 10)
    >>> light.level, light(Pooled.of(torch.randn(5, 320), (2, 3), seeds=torch.arange(2))).shape
    ('sequence', torch.Size([2, 10]))
    """

    def __init__(
        self, dim: int, num_outputs: int, layers: int = 1,
        *, kernel: int = 9, hidden: int = 32, dropout: float = 0.25,
    ):  # fmt: skip
        super().__init__(dim, "residue", layers, level="sequence")
        self.value = Convolution(dim, dim, kernel=kernel)
        self.coefficient = Convolution(dim, dim, kernel=kernel, bias=False)  # softmax would not see a bias
        self.value_dropout, self.dropout = Dropout(dropout), Dropout(dropout, salt=1)
        self.hidden = nn.Linear(2 * dim, at_least_one(hidden, "hidden"))
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, num_outputs)

    def readout(self, x: Pooled) -> Float[Tensor, "batch outputs"]:
        """Each channel of the values by the softmax of its own coefficients, and each channel's largest value."""
        values = self.value_dropout(self.value(x.features, x.lengths), x.seeds)
        weights = segment_softmax(self.coefficient(x.features, x.lengths), x.lengths)
        pooled = torch.cat((segment_sum(values * weights, x.lengths), segment_max(values, x.lengths)), dim=1)
        return self.out(self.dropout(F.relu(self.norm(self.hidden(pooled))), x.sequence_seeds))


@head("ridge")
class Ridge(Head):
    """One affine map with a penalty on its size, solved in one go on a frozen encoder.

    Hoerl and Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634. Each layer of the encoder has
    channels of its own in the map, in place of a mix.
    """

    is_solved = True

    def __init__(self, dim: int, num_outputs: int, layers: int = 1, *, pool: Pool = "mean"):
        super().__init__(layers * dim, pool)
        self.out = nn.Linear(layers * dim, num_outputs)

    def solve(self, seen: Pooled, loss: Callable[[Tensor, Tensor], Any], seed: int) -> float:
        """Find the map, of features that were standardized before, and return the penalty that held-out points chose.

        `loss` is given outputs and the points they are of, and gives their `Total`; `seed` draws the held-out folds.
        """
        with torch.no_grad():
            features = self.standardize(seen.features)
            weight, bias, penalty = solve(
                features, seen.lengths, self.out.out_features, lambda *x: _sum_and_count(loss(*x)), seed=seed
            )
            self.out.weight.copy_(weight)
            self.out.bias.copy_(bias)
        return penalty

    def readout(self, x: Pooled) -> Float[Tensor, "points outputs"]:
        """One affine map."""
        return self.out(x.features)


def _sum_and_count(total: Any) -> tuple[Tensor, int]:
    return total.sum, total.count


@head("language-model")
class LanguageModel(Head):
    """ESM-2's own last part: for each residue a logit for each of the 33 symbols. It goes on from the encoder's."""

    standardizes = False

    def __init__(self, dim: int, num_outputs: int, layers: int = 1):
        super().__init__(dim, "residue", layers)
        self.language_model = LMHead(dim)
        self._encoder: tuple[ESM2, ...] = ()  # in a tuple, so that its weights are not counted as the head's

    def tie(self, encoder: ESM2) -> None:
        """Take over the encoder's LM head, and look at its embeddings, which are the last map."""
        if encoder.lm_head is not None:
            self.language_model, encoder.lm_head = encoder.lm_head, None
        self._encoder = (encoder,)

    def readout(self, x: Pooled) -> Float[Tensor, "residues symbols"]:
        """The logits of each residue."""
        assert self._encoder, "tie the head to its encoder first"
        return self.language_model(x.features, self._encoder[0].embed_tokens.weight)
