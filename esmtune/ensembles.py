"""Several predictors of the same thing that predict together, and disagree where they know little."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from esmtune.applicability import References
from esmtune.config import TOKENS_PER_BATCH, Precision
from esmtune.events import Watcher, silent
from esmtune.folders import (
    FORMAT_VERSION,
    calibrations,
    checked_references,
    predictor_folder,
    read_predictor_json,
    saved_references,
    saved_scalings,
)
from esmtune.predicting import Predicting, Use
from esmtune.predictor import Predictor, answers_of
from esmtune.records import Level
from esmtune.scaling import scaled
from esmtune.writers import whole_folder


class Ensemble(Predicting):
    """Predictors of one architecture and target, trained from different seeds or on different folds.

    Their outputs are averaged: numbers in the label's unit, classes by probability (Lakshminarayanan et al. 2017,
    https://doi.org/10.48550/arXiv.1612.01474). Where they share a frozen encoder, it computes once.

    Raises:
        ValueError: for no member, or members of different targets.
    """

    def __init__(self, members: Sequence[Predictor]):
        if not members:
            raise ValueError("an ensemble needs a member.")
        first = members[0]
        for member in members:
            if member.spec.targets != first.spec.targets or member.task.num_outputs != first.task.num_outputs:
                raise ValueError("the members of an ensemble predict different targets.")
        self.members = tuple(members)
        self.spec, self.task, self.masks = first.spec, first.task.plain(), first.masks
        self.references = first.references

    @property
    def precision(self) -> Precision:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the matrix products of all members are computed in."""
        return self.members[0].precision

    @precision.setter
    def precision(self, precision: Precision) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        for member in self.members:
            member.precision = precision

    @property
    def first(self) -> Predictor:
        """The first of its members."""
        return self.members[0]

    @property
    def level(self) -> Level:
        """Whether it says something of sequences or of residues."""
        return self.members[0].level

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.members[0].device

    def to(self, device: Any, /) -> "Ensemble":
        """Move all members to a device."""
        for member in self.members:
            member.to(device)
        return self

    def measured(
        self,
        sequences: Sequence[str],
        *,
        hide: bool = False,
        references: References | None = None,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        watch: Watcher = silent,
    ) -> tuple[Float[Tensor, "members points outputs"], Float[Tensor, "sequences"]]:
        """What each member gives for clean sequences, in the unit of the label, and how far the first finds them."""
        options = {"hide": hide, "tokens_per_batch": tokens_per_batch, "watch": watch}
        if len({id(member.encoder) for member in self.members}) == 1:
            own, distances = answers_of(self.members, sequences, references=references, **options)
            found = list(own)
        else:
            first, distances = self.members[0].measured(sequences, references=references, **options)
            found = [*first, *(x for member in self.members[1:] for x in member.answers(sequences, **options))]
        owners = [member for member in self.members for _ in range(member.draws)]
        pairs = zip(found, owners, strict=True)
        together = torch.stack([self.task.translated(answers, member.task) for answers, member in pairs])
        return scaled(self.task, [target.name for target in self.spec.targets], together, self.scalings), distances

    def save(self, folder: str | os.PathLike[str], *, self_contained: bool = False) -> None:
        """Write `predictor.json` and a folder for each member, whole or not at all."""
        with whole_folder(Path(folder)) as temporary:
            names = [f"members/{number}" for number in range(len(self.members))]
            for name, member in zip(names, self.members, strict=True):
                member.save(temporary / name, self_contained=self_contained, references=False)
            content = {
                "format_version": FORMAT_VERSION,
                "members": names,
                "calibration": [found.spec() for found in self.calibration],
                "scaling": [found.spec() for found in self.scalings],
                "weights": saved_references(self.references, temporary),
            }
            (temporary / "predictor.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_predictor(
    path: str | os.PathLike[str], *, encoder: str | None = None, verify: bool = False, use: Use | None = None
) -> "Predictor | Ensemble":
    """Read a predictor or an ensemble from a run or a predictor folder, for a `use` if it has but one.

    No code from it is run.

    Raises:
        ValueError: if it is neither, from a later version, damaged, or its encoder cannot be had.
    """
    folder = predictor_folder(path)
    content: Mapping[str, Any] = read_predictor_json(folder / "predictor.json") if folder is not None else {}
    if folder is None or "members" not in content:
        return Predictor.load(path, encoder=encoder, verify=verify, use=use)
    folders = [folder / "members" / str(number) for number in range(len(content["members"]))]
    members = [Predictor.load(member, encoder=encoder, verify=verify, use=use) for member in folders]
    ensemble = Ensemble(members)
    try:
        ensemble.calibration, ensemble.scalings = calibrations(content), saved_scalings(content)
        digests = dict(content.get("weights", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'predictor.json'} is damaged ({type(error).__name__}: {error}).") from None
    ensemble.references = checked_references(folder, digests)
    first = members[0]
    for member in members[1:]:
        is_same = first.dtypes == member.dtypes and not (first.moved or member.moved)
        if is_same and not (first.is_adapted or member.is_adapted):
            member.encoder = first.encoder
    return ensemble
