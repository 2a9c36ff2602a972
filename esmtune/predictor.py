"""Everything between a sequence and its prediction, and how it lies on disk.

Past 300 lines, because loading one may load another, as its encoder: class and loading cannot part.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmtune.adapter_files import WEIGHTS as ADAPTER_WEIGHTS
from esmtune.adapter_files import load_adapter
from esmtune.adapters import adapter_weights, is_adapted, merge
from esmtune.applicability import References, vectors_of
from esmtune.batching import Budget, by_length
from esmtune.config import TOKENS_PER_BATCH, Computed, Precision
from esmtune.devices import choose_precision, evaluating, products
from esmtune.encoders import Source, encoder_digest, hold, load_encoder, unfilled
from esmtune.esm2 import ESM2, LMHead, Representation, Tokens
from esmtune.events import Progress, Watcher, silent
from esmtune.folders import (
    ADAPTER,
    GOLDEN,
    GOLDEN_TOLERANCE,
    calibrations,
    check_digest,
    check_needs,
    checked_references,
    fitting,
    parsed,
    predictor_folder,
    read_predictor_json,
    saved_scalings,
    saved_weights,
    write_predictor,
)
from esmtune.heads import Head, LanguageModel, head
from esmtune.masking import Masking, masked
from esmtune.pooling import Pooled
from esmtune.predicting import Predicting, Spec, Use, concatenated
from esmtune.records import Level
from esmtune.sampling import drawn
from esmtune.scaling import scaled
from esmtune.shortage import halving, with_code
from esmtune.tasks import MLM, Task, task

# How much features vary, of their size, at least, that bfloat16 is not seen beside it: .01 to .03 in variants of one
# protein, .2 and more in diverse proteins (docs/LOG.md).
DELICATE = 0.1


class Predictor(nn.Module, Predicting):
    """An encoder, a head and a task. It knows what it was trained on and how to read its own outputs.

    `moved` names the weights of the encoder that are not those of `spec.encoder`, and so are saved.
    """

    def __init__(self, spec: Spec, encoder: ESM2, moved: frozenset[str]):
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.task: Task = task.load(spec.task)
        dim = spec.shape.embed_dim
        self.features_dim = len(spec.layers) * dim
        widths = (dim, len(spec.layers)) if spec.mix else (self.features_dim, 1)
        self.head: Head = head.build(spec.head, widths[0], self.task.num_outputs, widths[1])
        self.head.tie(encoder)
        self._check_head()
        self.masks = Masking(selected=self.task.masked) if isinstance(self.task, MLM) else None
        everything = frozenset(encoder.state_dict())
        self.moved = everything if spec.encoder.is_random else moved & everything
        self.is_standardized = False  # whether the head knows the features already, from an earlier training
        self.reference: tuple[Tokens, Tensor] | None = None  # while the encoder moves: a sequence, its first features
        self.precision: Precision = "auto"  # of the encoder's matrix products
        self.rates: dict[str, float] = {}  # of the weights of the encoder that move, over the encoder's learning rate

    def _check_head(self) -> None:
        """Refuse a head whose outputs have another shape than the task takes: one's own may."""
        dim = self.features_dim
        residues = Representation(torch.zeros(2, dim), torch.zeros(5, dim), (2, 3), torch.zeros(2, dtype=torch.long))
        with torch.no_grad(), evaluating(self.head):
            got = tuple(self.head(residues).shape)
        wanted = (2 if self.head.level == "sequence" else 5, self.task.num_outputs)
        if got != wanted:
            raise ValueError(
                f"head {self.spec.head['name']!r} gives {got} for two sequences of 2 and 3 residues, but the task "
                f"{self.task.name!r} takes {wanted}: a row a {self.head.level}, a column an output."
            )

    def forward(self, x: Tokens | Pooled) -> Float[Tensor, "points outputs"]:
        """Outputs, from tokens or from what the head's pool made of them before.

        In training what all sequences drift by alike is taken off first, gradient included: it says nothing
        about any of them, and of variants that differ by little it is all that a step would change.
        """
        if not isinstance(x, Tokens):
            return self.head(x)
        if not self.training or self.reference is None:
            return self.head(self.pooled(x))
        tokens, start = self.reference
        pooled = self.pooled(x + tokens)  # one pass: for a single sequence it would take many times its share
        drift = pooled.features[-1] - start
        own = pooled.first(len(x.lengths))
        return self.head(replace(own, features=own.features - drift))

    def drift(self) -> Float[Tensor, "channels"]:
        """How far the features of the reference, of which the pool makes one point, moved since training began."""
        assert self.reference is not None, "there is none outside of training"
        tokens, start = self.reference
        return with_code(self.pooled, tokens).features[0] - start

    def pooled(self, tokens: Tokens) -> Pooled:
        """What the head's pool makes of tokens; the head alone takes it from there."""
        return self.pool(self.seen(tokens))

    def seen(self, tokens: Tokens) -> list[Representation]:
        """The layers that the head sees."""
        with products(self.takes(tokens.ids.device.type), tokens.ids.device):
            return self.encoder.representations(tokens, self.spec.layers)

    def takes(self, device: str) -> Computed:
        """What matrix products are computed in on a kind of device: as in training, unless told otherwise.

        On a device without units for what it was trained in it is float32 all the same.
        """
        return choose_precision(self.precision, device, trained=self.spec.precision)

    @cached_property
    def is_delicate(self) -> bool:
        """Whether it was trained on sequences so much alike that rounding is seen beside what tells them apart.

        It is of a predictor that is trained, and found once.
        """
        if not self.head.standardizes:
            return False
        center, spread = self.head.standardize.center, self.head.standardize.spread
        if self.head.sees_residues and self.level == "sequence" and self.references:  # then of means over residues
            spread = spread * self.references.vectors.to(spread).std(0)
        return bool(spread.square().mean() < DELICATE**2 * center.square().mean())

    def pool(self, layers: Sequence[Representation]) -> Pooled:
        """What the head's pool makes of layers, side by side: `n` of them have `n` times the encoder's channels.

        Each is pooled by itself, so that residues are laid side by side only for a head that sees them.
        """
        if (type(self.head).pool, type(self.head).pooled) != (Head.pool, Head.pooled):  # one's own may do as it likes
            return self.head.pool(_side_by_side(layers))
        parts = [self.head.pool(layer) for layer in layers]
        if len(parts) == 1:
            return parts[0]
        return replace(parts[0], features=torch.cat([part.features for part in parts], dim=1))

    @property
    def level(self) -> Level:
        """Whether it says something of sequences or of residues."""
        return self.head.level

    @property
    def draws(self) -> int:
        """How many draws of the head's dropout answer: one, without dropout, unless more were asked for."""
        return max(1, self.spec.dropout_samples)

    def said(self, x: Tokens | Pooled, sequences: Sequence[str]) -> list[Float[Tensor, "points outputs"]]:
        """Outputs in evaluation mode, of each draw of the dropout if there are any."""
        if not self.spec.dropout_samples:
            return [self(x)]
        return drawn(self.head, self.pooled(x) if isinstance(x, Tokens) else x, sequences, self.draws)

    @property
    def is_adapted(self) -> bool:
        """Whether the encoder carries adapters, such as LoRA's."""
        return is_adapted(self.encoder)

    @property
    def first(self) -> "Predictor":
        """Itself, as an ensemble has the first of its members."""
        return self

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """What the encoder's weights are held in."""
        return frozenset(weight.dtype for weight in self.encoder.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.embed_tokens.weight.device

    def measured(
        self,
        sequences: Sequence[str],
        *,
        hide: bool = False,
        references: References | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        watch: Watcher = silent,
    ) -> tuple[Float[Tensor, "members points outputs"], Float[Tensor, "sequences"]]:
        """What the head gives for clean sequences, and how far they are; each draw of dropout is one member."""
        found, distances = answers_of(
            [self], sequences, hide=hide, references=references, tokens_per_batch=tokens_per_batch, watch=watch
        )
        return scaled(self.task, [target.name for target in self.spec.targets], found, self.scalings), distances

    def vectors(self, pooled: Pooled) -> Float[Tensor, "sequences dim"]:
        """What the head sees of each sequence, standardized; of residues the mean."""
        return vectors_of(replace(pooled, features=self.head.standardize(pooled.features)))

    def save(self, folder: str | os.PathLike[str], *, self_contained: bool = False, references: bool = True) -> None:
        """Write `predictor.json`, `weights.safetensors` and `references.safetensors`, whole or not at all.

        What the encoder shares with `spec.encoder` is not written, unless `self_contained`. Adapters name that as their
        base, unless more of it moved: then there is no base of that kind that PEFT could load.
        """
        base = None if self.moved else self.spec.encoder.name
        outputs = self._golden(GOLDEN).split(self.points(GOLDEN))
        write_predictor(
            Path(folder), self.spec, self.task, self.encoder, self._weights(self_contained), outputs, self.calibration,
            self.scalings, self.references if references else None, base,
        )  # fmt: skip

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, encoder: str | None = None, verify: bool = False, use: Use | None = None
    ) -> "Predictor":
        """Read a predictor from a run or a predictor folder. No code from it is run.

        `encoder` says where the encoder's weights are now, if they have moved; `verify` recomputes three outputs, in
        float32, that were saved with the predictor. With a `use` for which bfloat16 is enough, the encoder's matrices
        are held in it, unless adapters stand around them: it takes half of the memory, and can do nothing else.

        Raises:
            ValueError: if it is no predictor, from a later version, damaged, or its encoder cannot be had.
        """
        folder = predictor_folder(path)
        if folder is None:
            raise ValueError(f"{os.fspath(path)} is no run and no predictor: there is no predictor.json in it.")
        content = read_predictor_json(folder / "predictor.json")
        if "members" in content:
            raise ValueError(
                f"{folder} is an ensemble of {len(content['members'])}: take one, {folder / 'members' / '0'}."
            )
        check_needs(content, folder)
        try:
            spec, digests, golden = parsed(content)
            calibration, scalings = calibrations(content), saved_scalings(content)
            moved, weights = saved_weights(folder, digests["sha256"])
            held = use.held(spec.precision) if use and "adapter_sha256" not in digests else "float32"
            with torch.random.fork_rng(devices=[]):  # a head is drawn before it is loaded
                predictor = cls(spec, _encoder_for(spec, moved, encoder, folder, held), moved)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(f"{folder / 'predictor.json'} is damaged ({type(error).__name__}: {error}).") from None
        wanted = {n: w for n, w in predictor.state_dict().items() if n in weights or not n.startswith("encoder.")}
        loaded = fitting(weights, wanted, folder)
        predictor.load_state_dict(loaded, strict=False, assign=True)  # to copy them would take twice the memory
        if "adapter_sha256" in digests:
            check_digest(folder / ADAPTER / ADAPTER_WEIGHTS, digests["adapter_sha256"])
            load_adapter(predictor.encoder, folder / ADAPTER)
        predictor.calibration, predictor.scalings = calibration, scalings
        predictor.references = checked_references(folder, digests)
        predictor.eval()
        if verify:
            predictor._verify(golden, folder)
        return predictor

    def with_task(self, new: Task) -> "Predictor":
        """The same predictor, whose outputs mean what another task says."""
        self.task = new
        self.spec = replace(self.spec, task=new.spec())
        return self

    def merged(self) -> "Predictor":
        """The same predictor with its adapters worked into the weights of the encoder, as a copy.

        Raises:
            ValueError: if it has no adapters.
        """
        if not is_adapted(self.encoder):
            raise ValueError(
                f"this predictor has no adapters to merge: it was tuned by {self.spec.tuning['name']!r}, or is merged "
                "already."
            )
        new = copy.deepcopy(self)
        new.moved |= adapted_names(new.encoder)
        merge(new.encoder)
        new.rates = {}
        return new

    def _weights(self, self_contained: bool) -> dict[str, Tensor]:
        """What is saved: the head, and what moved of the encoder or all of it; adapters have a file of their own."""
        apart = adapter_weights(self.encoder)
        weights = {}
        for name, weight in self.state_dict().items():
            short = name.removeprefix("encoder.")
            if short == name:
                weights[name] = weight.detach().cpu().contiguous()
            elif short not in apart:
                plain = short.replace(".base_layer.", ".")
                if self_contained or plain in self.moved or short in self.moved:
                    weights[f"encoder.{plain}"] = weight.detach().cpu().contiguous()
        return weights

    def _golden(self, sequences: Sequence[str]) -> Tensor:
        """Outputs in float32, whatever else is computed in."""
        before, self.precision = self.precision, "float32"
        try:
            return self.answers(sequences)[0]
        finally:
            self.precision = before

    def _verify(self, golden: Sequence[Mapping[str, Any]], folder: Path) -> None:
        try:
            saved = torch.cat([torch.tensor(row["outputs"]).reshape(-1, self.task.num_outputs) for row in golden])
            got = self._golden([row["sequence"] for row in golden])
            if saved.shape != got.shape:
                raise ValueError(f"{len(saved)} golden outputs for {len(got)}")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder / 'predictor.json'} is damaged ({type(error).__name__}: {error}).") from None
        difference = (got - saved).abs().max().item()
        if not difference <= GOLDEN_TOLERANCE * max(1.0, saved.abs().max().item()):
            raise ValueError(
                f"{folder}: on this machine the outputs of the golden rows differ by {difference:.2g} from those that "
                "were saved. Do not trust its predictions here."
            )


def _side_by_side(layers: Sequence[Representation]) -> Representation:
    cls, residues = (torch.cat([getattr(x, name) for x in layers], dim=1) for name in ("cls", "residues"))
    return replace(layers[0], cls=cls, residues=residues)


@torch.inference_mode()
def answers_of(
    members: Sequence[Predictor], sequences: Sequence[str], *, hide: bool, references: References | None,
    tokens_per_batch: int, watch: Watcher,
) -> tuple[Float[Tensor, "members points outputs"], Float[Tensor, "sequences"]]:  # fmt: skip
    """What the heads of predictors that share an encoder give for clean sequences, each of which passes it once.

    With `references`, also how far each is from them, in what the first head sees.
    """
    first = members[0]
    rows: list[list[Tensor]] = [[torch.empty(0)] * len(sequences) for member in members for _ in range(member.draws)]
    distances = torch.zeros(len(sequences) if references else 0, dtype=torch.float64)
    lengths = [len(sequence) for sequence in sequences]
    done = 0

    def compute(batch: Sequence[int]) -> list[Tensor]:
        tokens = Tokens.of([sequences[i] for i in batch], torch.tensor(batch)).to(first.device)
        seen = first.seen(masked(tokens, first.masks)[0] if hide and first.masks else tokens)
        own, said = [sequences[i] for i in batch], []
        for member in members:
            near = references if member is first else None
            x = member.pool(seen)
            said += member.said(x, own)
            if near:
                distances[torch.tensor(batch)] = near.distance(first.vectors(x).cpu())
        return [outputs.float().cpu() for outputs in said]

    with ExitStack() as stack:
        for member in members:
            stack.enter_context(evaluating(member))
        for batch in by_length(range(len(sequences)), lengths, Budget(tokens=tokens_per_batch)):
            for part, found in halving(batch, compute):
                counts = first.points([sequences[i] for i in part])
                for answers, column in zip(found, rows, strict=True):
                    for index, answer in zip(part, answers.split(counts), strict=True):
                        column[index] = answer
            done += len(batch)
            watch(Progress("predicting", done, len(sequences), "sequences"))
    return torch.stack([concatenated(column, first.task.num_outputs) for column in rows]), distances


def find_encoder(
    name: str, *, lm_head: bool = False, held: Computed = "float32"
) -> tuple[ESM2, Source, frozenset[str]]:
    """An encoder, by any name of `load_encoder` or that of a run or predictor of ours; without LM head unless wanted.

    Also returns its source, and the names of the weights that are not the source's own. What comes by a run is in
    float32 however it is to be `held`, for its digest is to be told.
    """
    folder = predictor_folder(name)
    if folder is not None:
        predictor = Predictor.load(folder)
        if is_adapted(predictor.encoder):
            predictor = predictor.merged()
        if lm_head and isinstance(predictor.head, LanguageModel):
            predictor.encoder.lm_head = cast(LMHead, predictor.head.language_model)
        return predictor.encoder, predictor.spec.encoder, predictor.moved
    encoder, source = load_encoder(name, held=held)
    if not lm_head:
        encoder.lm_head = None
    return encoder, source, frozenset()


def adapted_names(encoder: ESM2) -> frozenset[str]:
    """The weights that adapters stand around, and that merging changes, by their plain names."""
    mark = ".base_layer."
    return frozenset(name.replace(mark, ".") for name in encoder.state_dict() if mark in name)


def _encoder_for(spec: Spec, moved: frozenset[str], asked: str | None, folder: Path, held: Computed) -> ESM2:
    with torch.device("meta"):  # only the names are wanted: drawing weights to throw away takes longer than loading
        empty = ESM2(spec.shape)
    if moved >= frozenset(empty.state_dict()):
        return unfilled(hold(empty, held))
    name = asked or spec.encoder.name
    if predictor_folder(name) == folder:
        raise ValueError(f"{folder} names itself as its encoder. Say where the encoder is: --encoder PATH.")
    try:
        encoder, source, moved_there = find_encoder(name, held=held)
    except ValueError as error:
        raise ValueError(
            f"{folder} was trained on the encoder {spec.encoder.name}, which it needs. {error} "
            "If it is elsewhere now, say where: --encoder PATH."
        ) from None
    found = encoder_digest(encoder) if moved_there else source.sha256
    if encoder.config != spec.shape or found != spec.encoder.sha256:
        raise ValueError(
            f"{folder} was trained on the encoder {spec.encoder.name} (SHA-256 {spec.encoder.sha256[:12]}...), "
            f"but {name} holds other weights. Say where the right ones are: --encoder PATH."
        )
    return hold(encoder, held)
