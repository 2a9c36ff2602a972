"""What everything that predicts has in common, one predictor or an ensemble of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.alphabet import clean
from esmtune.applicability import References
from esmtune.calibration import Calibration
from esmtune.config import TOKENS_PER_BATCH, Computed, Precision
from esmtune.devices import choose_precision
from esmtune.encoders import Source
from esmtune.esm2 import ESM2Config
from esmtune.events import Watcher, silent
from esmtune.masking import Masking
from esmtune.records import Level, Target
from esmtune.scaling import Scaling
from esmtune.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a predictor is, in words; its weights are beside it."""

    encoder: Source
    shape: ESM2Config
    tuning: Mapping[str, Any]
    layers: tuple[int, ...]  # that the head sees
    mix: bool  # whether it mixes them into one, or has them side by side
    head: Mapping[str, Any]
    task: Mapping[str, Any]
    targets: tuple[Target, ...]
    max_length: int | None
    trained_on: Mapping[str, Any]
    dropout_samples: int = 0  # draws of the head's dropout that predict together
    precision: Computed | None = None  # of the matrix products that it was trained with, if that is known


@dataclass(frozen=True)
class Use:
    """All that a loaded predictor is for: predictions on a kind of device, its products computed in a precision."""

    device: str
    precision: Precision

    def held(self, trained: Computed | None) -> Computed:
        """What the matrices of an encoder may be held in, for a predictor that was trained in a precision."""
        return choose_precision(self.precision, self.device, trained=trained)


class Predicting(ABC):
    """Sequences in, what the labels would be out."""

    spec: Spec
    task: Task
    precision: Precision  # of the encoder's matrix products
    calibration: tuple[Calibration, ...] = ()  # of each target that has any
    scalings: tuple[Scaling, ...] = ()  # of each target whose probabilities are mended
    references: References | None = None  # what it was trained on looks like
    masks: Masking | None  # what a language model does not see of what it learns from; None for every other task

    @property
    @abstractmethod
    def level(self) -> Level:
        """Whether it says something of sequences or of residues."""

    @abstractmethod
    def to(self, device: Any, /) -> Any:
        """Move all weights to a device, and return itself."""

    @abstractmethod
    def measured(
        self,
        sequences: Sequence[str],
        *,
        hide: bool = False,
        references: References | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        watch: Watcher = silent,
    ) -> tuple[Float[Tensor, "members points outputs"], Float[Tensor, "sequences"]]:
        """What each member's head gives for clean sequences, and how far these are from references, on the CPU.

        With `hide`, a language model does not see the residues that it must guess. Both come of one pass; without
        references nothing is measured.
        """

    def answers(
        self,
        sequences: Sequence[str],
        *,
        hide: bool = False,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        watch: Watcher = silent,
    ) -> Float[Tensor, "members points outputs"]:
        """What each member's head gives for clean sequences, in their order."""
        return self.measured(sequences, hide=hide, tokens_per_batch=tokens_per_batch, watch=watch)[0]

    def outputs(
        self, sequences: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH, watch: Watcher = silent
    ) -> Float[Tensor, "points outputs"]:
        """What all members together give for clean sequences, in their order, on the CPU."""
        return self.task.average(self.answers(sequences, tokens_per_batch=tokens_per_batch, watch=watch))

    def predict(self, sequences: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH) -> list[Any]:
        """One prediction per sequence, in their order: a number in the label's unit, the name of a class, ...

        Per residue, a tuple of predictions for each sequence; of several targets, a tuple for each point.

        Raises:
            ValueError: for a sequence that is none, with its place in the list.
        """
        mended = self.cleaned(sequences)
        return self._each(self.task.predict(self.outputs(mended, tokens_per_batch=tokens_per_batch)), mended)

    def probabilities(
        self, sequences: Sequence[str], *, tokens_per_batch: int = TOKENS_PER_BATCH
    ) -> dict[str, list[Any]]:
        """The probability of each class, by its name, for each sequence or as a tuple for its residues.

        Empty for numbers. Of several targets a class goes by the target's name, a point and its own.

        Raises:
            ValueError: for a sequence that is none, with its place in the list.
        """
        mended = self.cleaned(sequences)
        outputs = self.outputs(mended, tokens_per_batch=tokens_per_batch)
        return {
            f"{name}.{label}" if name else label: self._each(column, mended)
            for name, task, place in self.task.parts()
            for label, column in task.probabilities(outputs[:, place]).items()
        }

    def points(self, sequences: Sequence[str]) -> list[int]:
        """How many points each clean sequence has: one, or as many as residues."""
        return [1 if self.level == "sequence" else len(sequence) for sequence in sequences]

    def cleaned(self, sequences: Sequence[str]) -> list[str]:
        """Mend what is harmless, and cut to the length that the predictor was trained with."""
        if isinstance(sequences, str):
            raise ValueError("predict takes a list of sequences, got one string: write [sequence].")
        mended, sequences = [], list(sequences)
        for number, sequence in enumerate(sequences, start=1):
            try:
                if not isinstance(sequence, str):
                    raise ValueError(f"got {sequence!r}, expected text")
                mended.append(clean(sequence)[: self.spec.max_length])
            except ValueError as error:
                raise ValueError(f"sequence {number} of {len(sequences)}: {error}.") from None
        return mended

    def _each(self, values: list[Any], sequences: Sequence[str]) -> list[Any]:
        if self.level == "sequence":
            return values
        given = iter(values)
        return [tuple(next(given) for _ in sequence) for sequence in sequences]


def concatenated(rows: Sequence[Tensor], width: int) -> Float[Tensor, "points outputs"]:
    """Rows of several sequences as one, also of none."""
    return torch.cat([torch.empty(0, width), *rows])
