"""What a pass through the network and a training will hold in memory, told from shapes before anything runs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from esmtune.adapters import adapter_weights, is_adapted
from esmtune.attention import rotary_angles
from esmtune.config import Precision
from esmtune.devices import products
from esmtune.esm2 import ESM2
from esmtune.memory import whole_memory
from esmtune.predictor import Predictor
from esmtune.shortage import with_code
from esmtune.spans import Spans

# Channels of float32 a token that a pass holds beside what it keeps for the gradient, at its peak; measured as the
# resident set on Linux with glibc, widths 320 and 640: 16 to 23 without a gradient, 34 to 46 with it.
PASSING, LEARNING = 24, 40
# What is taken for each byte that is kept, for glibc does not give back what is freed between: measured 1.1 to 1.4,
# with adapters 2.0; where all is given back at once, 1.0.
SPREAD, SPREAD_BY_ADAPTERS, SPREAD_IF_GIVEN_BACK = 1.3, 2.1, 1.05
PROBED_TOKENS = 256
SHARE_OF_MEMORY = 0.4  # of what the machine has, which features may take
MEASURED_BYTES = 128 << 20  # of features that are looked at at once, beside those that are kept
COPIES = 4  # of each weight that moves: AdamW's two, the best, and a gradient or what stands aside while it evaluates


@dataclass(frozen=True, kw_only=True)
class Most:
    """Tokens that ever pass at once, whatever the budget allows: there are no more, or no more in a step."""

    longest: int = 0  # of the longest sequence, which is a pass of its own where it is beyond the budget
    learning: int | float = math.inf  # of the longest sequences that one step can have
    evaluating: int | float = math.inf  # of the longest that are let through at once without a gradient


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes held at the peak of a training or a prediction, beside the process itself, by what holds them.

    >>> found = Footprint(weights=100, copies=50, kept=3.0, learning=2.0, evaluating=1.0, fixed=10, features=0)
    >>> found.peak(20), found.peak(20, Most(learning=10)), found.peak(20, Most(learning=2))
    (260, 210, 180)
    """

    weights: int | float  # of the predictor, each once
    copies: int | float  # of weights that move: gradients, the optimizer's, the best, the average, what they were
    kept: int | float  # a token: by all layers, for the gradient
    learning: int | float  # a token: by the layer at work, and what the head sees, where a gradient is wanted
    evaluating: int | float  # the same without one
    fixed: int | float  # kept for the gradient whatever the number of tokens
    features: int | float  # of a frozen encoder: those in memory, and those that are looked at
    has_reference: bool = False  # whether one more sequence passes with each batch, to see what all drift by

    def peak(self, tokens: int, most: Most = Most()) -> int:
        """The sum, for passes of at most so many tokens, or of the longest sequence."""
        beside = most.longest if self.has_reference else 0
        learning = max(min(tokens, most.learning), most.longest) + beside
        evaluating = max(min(tokens, most.evaluating), most.longest) + beside
        passing = max((self.kept + self.learning) * learning, self.evaluating * evaluating)
        return round(self.weights + self.copies + self.fixed + self.features + passing)


def footprint_of_passing(encoder: ESM2, layers: int) -> Footprint:
    """What embedding or predicting holds, for a head that sees so many layers side by side."""
    dim = encoder.config.embed_dim
    weights = sum(weight.numel() * weight.element_size() for weight in encoder.parameters())
    passing = 4.0 * dim * (PASSING + 3 * layers)
    return Footprint(weights=weights, copies=0, kept=0.0, learning=passing, evaluating=passing, fixed=0, features=0)


def footprint_of_training(
    predictor: Predictor, *, precision: Precision, averages: bool, recomputes: bool, gives_back: bool,
    features: int = 0, members: int = 1,
) -> Footprint:  # fmt: skip
    """What training a composed predictor holds; what its layers keep for the gradient is counted in one of them.

    `features` is the bytes of what a frozen encoder made; `gives_back`, whether freed memory leaves at once. Of
    several members, the weights of each that moved are kept.
    """
    encoder, dim = predictor.encoder, predictor.encoder.config.embed_dim
    passing = footprint_of_passing(encoder, len(predictor.spec.layers))
    first = _first_that_learns(encoder)
    learning = len(encoder.layers) - first
    kept, fixed = _kept_by(encoder, precision) if learning else (0.0, 0.0)
    if recomputes and learning:  # each layer keeps its input, and one at a time all that it computes
        kept += 4.0 * dim * learning
    else:
        kept, fixed = kept * learning, fixed * learning
    spread = SPREAD_BY_ADAPTERS if is_adapted(encoder) else SPREAD
    if gives_back or encoder.frequency.device.type != "cpu":
        spread = SPREAD_IF_GIVEN_BACK
    moving = _size([w for w in predictor.parameters() if w.requires_grad])
    new = adapter_weights(encoder)  # all else that moves is there a second time, as it was
    twice = _size([w for n, w in encoder.named_parameters() if w.requires_grad and n not in new])
    return Footprint(
        weights=passing.weights + _size(list(predictor.head.parameters())),
        copies=moving * (COPIES + averages + members - 1) + twice,
        kept=spread * kept,
        learning=passing.learning + (4.0 * dim * (LEARNING - PASSING) if learning else 0.0),
        evaluating=passing.evaluating,
        fixed=fixed,
        features=features,
        has_reference=bool(learning) and not predictor.head.sees_residues,
    )


def points_of(predictor: Predictor, sequence: str) -> int:
    """How many vectors a head sees of a sequence; it may look at all residues, whatever the level of what it says."""
    return len(sequence) if predictor.head.sees_residues else 1


def size_of(predictor: Predictor, sequence: str) -> int:
    """Bytes of the features of one sequence."""
    return 4 * predictor.features_dim * points_of(predictor, sequence)


def fits_in_memory(size: int, processes: int = 1) -> bool:
    """Whether features of so many bytes are kept in memory, by each of the processes of a machine.

    What this one may ever have decides, not what is free now.
    """
    return size * processes <= whole_memory() * SHARE_OF_MEMORY


def _size(weights: list[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _first_that_learns(encoder: ESM2) -> int:
    """The number, from 0, of the first layer that keeps anything for a gradient; as many as there are if none does."""
    if encoder.embed_tokens.weight.requires_grad:
        return 0
    learns = [any(w.requires_grad for w in layer.parameters()) for layer in encoder.layers]
    return learns.index(True) if any(learns) else len(learns)


def _kept_by(encoder: ESM2, precision: Precision) -> tuple[float, float]:
    """Bytes that the last layer keeps for its gradient: a token, and whatever the number of tokens.

    No random number is drawn.
    """
    sizes = []
    with torch.random.fork_rng(devices=[]):
        for sequences in (1, 2):
            sizes.append(with_code(_kept, encoder, (PROBED_TOKENS,) * sequences, precision))
    each = max(0.0, (sizes[1] - sizes[0]) / PROBED_TOKENS)
    return each, max(0.0, sizes[0] - each * PROBED_TOKENS)


def _kept(encoder: ESM2, lengths: tuple[int, ...], precision: Precision) -> int:
    """Bytes of what autograd saves in the last layer, weights and what all layers share not counted."""
    layer, device = encoder.layers[-1], encoder.frequency.device
    x = torch.zeros(sum(lengths), encoder.config.embed_dim, device=device, requires_grad=True)
    cos, sin = rotary_angles(lengths, encoder.frequency, x.dtype)
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), cos, sin)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), hooks, products(precision, device):
        y = layer(x, cos, sin, Spans(lengths, device))  # while it is there, nothing takes the place of what is saved
    del y
    return sum(kept.values())
