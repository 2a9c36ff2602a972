"""What a pass through the network and a training will hold in memory, told from shapes before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from esmtune.adapters import adapter_weights
from esmtune.attention import rotary_angles
from esmtune.batching import SPECIALS
from esmtune.config import TOKENS_PER_BATCH, Precision, TrainConfig
from esmtune.devices import choose_device, products
from esmtune.esm2 import ESM2
from esmtune.events import Notice, Watcher
from esmtune.journal import Journal
from esmtune.memory import GIB, free_memory
from esmtune.predictor import Predictor
from esmtune.records import Dataset

# Channels of float32 a token that a pass holds beside what it keeps for the gradient, at its peak; measured as the
# resident set on Linux with glibc, 8M to 150M (docs/LOG.md): 16 to 23 without a gradient, 34 to 46 with it.
PASSING, LEARNING = 24, 40
# Of what is kept, more is held: small blocks that are freed between large ones are not given back.
SPREAD = 1.1
SHARE = 0.9  # of free memory that a run may count on
LEAST_TOKENS = 256
PROBED_TOKENS = 256
MOMENTS = 4  # copies of each weight that moves: AdamW's two, the best ones, and a gradient or what wears the average


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes held at the peak of a training or a prediction, beside the process itself, by what holds them.

    >>> Footprint(weights=100, copies=50, kept=3.0, passing=2.0, fixed=10, features=0).peak(20)
    260
    """

    weights: int  # of the predictor, each once
    copies: int  # of weights that move: gradients, the optimizer's, the best, the average, the origin's
    kept: float  # a token: by all layers, for the gradient
    passing: float  # a token: by the layer at work, and what the head sees
    fixed: int  # kept for the gradient whatever the number of tokens
    features: int  # of a frozen encoder, of all sequences
    has_reference: bool = False  # whether one more sequence passes with each batch, to see what all drift by

    def peak(self, tokens: int, longest: int = 0) -> int:
        """The sum, for passes of at most so many tokens, or of the longest sequence."""
        most = max(tokens, longest) + (longest if self.has_reference else 0)
        return self.weights + self.copies + self.fixed + self.features + round((self.kept + self.passing) * most)


def footprint_of_passing(encoder: ESM2, layers: int) -> Footprint:
    """What embedding or predicting holds, for a head that sees so many layers side by side."""
    dim = encoder.config.embed_dim
    weights = sum(weight.numel() * weight.element_size() for weight in encoder.parameters())
    passing = 4.0 * dim * (PASSING + 3 * layers)
    return Footprint(weights=weights, copies=0, kept=0.0, passing=passing, fixed=0, features=0)


def footprint_of_training(
    predictor: Predictor, *, precision: Precision, averages: bool, recomputes: bool, features: int = 0
) -> Footprint:
    """What training a composed predictor holds; what its layers keep for the gradient is counted in one of them.

    `features` is the bytes of what is kept of a frozen encoder.
    """
    encoder, dim = predictor.encoder, predictor.encoder.config.embed_dim
    passing = footprint_of_passing(encoder, len(predictor.spec.layers))
    moving = sum(w.numel() * w.element_size() for w in predictor.parameters() if w.requires_grad)
    new = adapter_weights(encoder)  # all else that moves is there a second time, as it was
    own = sum(w.numel() * w.element_size() for n, w in encoder.named_parameters() if w.requires_grad and n not in new)
    head = sum(w.numel() * w.element_size() for w in predictor.head.parameters())
    first = _first_that_learns(encoder)
    learning = encoder.config.num_layers - first
    if first == encoder.config.num_layers:
        kept, fixed = 0.0, 0
    else:
        kept, fixed = _kept_by(encoder, precision, follows=_moves_below(encoder, first))
    if recomputes and learning:  # each layer keeps its input, and one at a time all that it computes
        kept += 4.0 * dim * learning
    else:
        kept, fixed = kept * learning, fixed * learning
    return Footprint(
        weights=passing.weights + head,
        copies=moving * (MOMENTS + averages) + own,
        kept=SPREAD * kept,
        passing=passing.passing + (4.0 * dim * (LEARNING - PASSING) if learning else 0.0),
        fixed=fixed,
        features=features,
        has_reference=bool(learning) and not predictor.head.sees_residues,
    )


def _first_that_learns(encoder: ESM2) -> int:
    """The number, from 0, of the first layer that keeps anything for a gradient; as many as there are if none does."""
    if encoder.embed_tokens.weight.requires_grad:
        return 0
    learns = [any(w.requires_grad for w in layer.parameters()) for layer in encoder.layers]
    return learns.index(True) if any(learns) else len(learns)


def _moves_below(encoder: ESM2, first: int) -> bool:
    return len(encoder.layers) - first > 1 or encoder.embed_tokens.weight.requires_grad


def _kept_by(encoder: ESM2, precision: Precision, *, follows: bool) -> tuple[float, int]:
    """Bytes that the last layer keeps for its gradient: a token, and whatever the number of tokens.

    `follows` says whether a gradient goes on to what is below it. No random number is drawn.
    """
    sizes = []
    with torch.random.fork_rng(devices=[]):
        for sequences in (1, 2):
            lengths = (PROBED_TOKENS,) * sequences
            x = torch.zeros(sum(lengths), encoder.config.embed_dim, device=encoder.frequency.device)
            sizes.append(_kept(encoder, x.requires_grad_(follows), lengths, precision))
    per_token = max(0.0, (sizes[1] - sizes[0]) / PROBED_TOKENS)
    return per_token, max(0, round(sizes[0] - per_token * PROBED_TOKENS))


def _kept(encoder: ESM2, x: Tensor, lengths: tuple[int, ...], precision: Precision) -> int:
    """Bytes of what autograd saves in the last layer, weights not counted."""
    layer = encoder.layers[-1]
    cos, sin = rotary_angles(lengths, encoder.frequency, x.dtype)
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), cos, sin)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), hooks, products(precision, x.device):
        y = layer(x, cos, sin, lengths, None)  # while it is there, no other tensor takes the place of a saved one
    del y
    return sum(kept.values())


def tokens_that_fit(footprint: Footprint, free: float, longest: int, most: int = TOKENS_PER_BATCH) -> int:
    """Tokens per pass: `most`, or halved until the peak fits into so many free bytes.

    A sequence longer than that is a pass of its own, so the longest is always reckoned with.

    >>> few = Footprint(weights=0, copies=0, kept=0.0, passing=1.0, fixed=0, features=0)
    >>> tokens_that_fit(few, 5000, 100), tokens_that_fit(few, 1100, 100)
    (4096, 1024)
    """
    tokens = most
    while tokens > LEAST_TOKENS and footprint.peak(tokens, longest) > free:
        tokens //= 2
    return tokens


def room_for(loaded: int, device: str) -> float:
    """Bytes that a run may come to, where so many of them are in memory already."""
    return SHARE * (free_memory(device) + (loaded if device == "cpu" else 0))


def tokens_for_passing(
    encoder: ESM2, layers: int, lengths: Sequence[int], device: str, given: int | None, watch: Watcher
) -> int:
    """Tokens per pass for predicting and embedding: as given, else what free memory has room for."""
    if given is not None:
        return given
    footprint = footprint_of_passing(encoder, layers)
    room = room_for(footprint.weights, device)
    tokens = tokens_that_fit(footprint, room, max(lengths, default=0) + SPECIALS)
    if tokens < TOKENS_PER_BATCH:
        watch(Notice(f"Memory: with {room / GIB:,.1f} GiB free, passes of at most {tokens:,} tokens."))
    return tokens


@dataclass(frozen=True, kw_only=True)
class Provision:
    """What is chosen for a training so that it fits, and what it then comes to."""

    tokens: int
    recomputes: bool
    peak: int  # bytes, beside the process itself
    room: float  # bytes

    @property
    def fits(self) -> bool:
        """Whether the peak is within what there is."""
        return self.peak <= self.room

    @property
    def text(self) -> str | None:
        """What the user should know: nothing where memory is plenty."""
        if not self.fits:
            return (
                f"Memory: this training takes about {self.peak / GIB:,.1f} GiB, but only {self.room / GIB:,.1f} GiB "
                "are free: it may not fit. `esmtune plan` with the same options shows what does."
            )
        choices = [f"passes of at most {self.tokens:,} tokens"] if self.tokens < TOKENS_PER_BATCH else []
        choices += ["layers that are computed twice (--checkpoint-activations)"] if self.recomputes else []
        return f"Memory: with {self.room / GIB:,.1f} GiB free, {' and '.join(choices)}." if choices else None


def provision(
    footprint: Footprint, recomputing: Footprint, room: float, longest: int, tokens: int | None, recomputes: bool | None
) -> Provision:
    """Choose what was left open: smaller passes first, since they cost little, then layers that compute twice."""
    for chosen, found in ((False, footprint), (True, recomputing)):
        if recomputes not in (None, chosen):
            continue
        most = tokens or tokens_that_fit(found, room, longest)
        made = Provision(tokens=most, recomputes=chosen, peak=found.peak(most, longest), room=room)
        if made.fits or recomputes is not None or chosen or recomputing.kept == footprint.kept:
            return made
    raise AssertionError("one of the two is always taken")


def provision_of(predictor: Predictor, config: TrainConfig, sequences: Sequence[str], room: float) -> Provision:
    """Choose for a composed predictor and the sequences that it will learn from."""
    features = 0
    if not predictor.rates:  # then what the head sees is computed once, and kept
        points = len(set(sequences)) if not predictor.head.sees_residues else sum(map(len, set(sequences)))
        features = 4 * predictor.features_dim * points
    measure = partial(
        footprint_of_training, predictor, precision=config.precision, averages=bool(config.ema), features=features
    )
    longest = max(map(len, sequences), default=0) + SPECIALS
    return provision(
        measure(recomputes=False), measure(recomputes=True), room, longest, config.tokens_per_batch,
        config.checkpoint_activations,
    )  # fmt: skip


def provided(predictor: Predictor, config: TrainConfig, data: Dataset, journal: Journal, watch: Watcher) -> TrainConfig:
    """The configuration with passes and recomputing decided by free memory; a run that goes on keeps what it had."""
    device = choose_device(config.accelerator)
    room = room_for(footprint_of_passing(predictor.encoder, 0).weights, device)
    if device == "cpu":  # which all processes share; a GPU is each one's own
        room /= config.devices
    found = provision_of(predictor, config, [r.sequence for r in data.of(None)], room)
    if found.text:
        watch(Notice(found.text))
    chosen = journal.kept("provision", {"tokens": found.tokens, "recomputes": found.recomputes})
    return replace(config, tokens_per_batch=chosen["tokens"], checkpoint_activations=chosen["recomputes"])
