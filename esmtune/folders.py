"""What lies in the folder of a predictor, read and checked before anything is made of it."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from esmtune.adapter_files import WEIGHTS as ADAPTER_WEIGHTS
from esmtune.adapter_files import save_adapter
from esmtune.adapters import is_adapted
from esmtune.applicability import REFERENCES, References, load_references, save_references
from esmtune.calibration import Calibration
from esmtune.checkpoints import Stored, file_digest
from esmtune.distributions import distribution
from esmtune.encoders import Source
from esmtune.esm2 import ESM2, ESM2Config
from esmtune.heads import head
from esmtune.hub import read_json
from esmtune.losses import class_loss, loss, ranking
from esmtune.predicting import Spec
from esmtune.records import Target
from esmtune.scaling import Scaling
from esmtune.tasks import Task
from esmtune.tuning import tuning
from esmtune.writers import whole_folder

FORMAT_VERSION = 2

WEIGHTS = "weights.safetensors"

ADAPTER = "adapter"

# What every saved predictor is asked, so that it can be checked on another machine: public
# sequences (ubiquitin, protein G's B1 domain, melittin), because a user's own may be secret.
GOLDEN = (
    "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
    "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE",
    "GIGAVLKVLTTGLPALISWIKRKRQQ",
)

GOLDEN_TOLERANCE = 1e-3  # of the largest output; float32 differs by about 1e-5 between processors


def predictor_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder with `predictor.json`, given it or the run around it."""
    folders = [Path(path), Path(path) / "predictor"]
    return next((folder for folder in folders if (folder / "predictor.json").is_file()), None)


def write_predictor(
    folder: Path, spec: Spec, fitted: Task, encoder: ESM2, weights: dict[str, Tensor], golden: Sequence[Tensor],
    calibration: Sequence[Calibration], scalings: Sequence[Scaling], references: References | None, base: str | None,
) -> None:  # fmt: skip
    """Write a predictor, whole or not at all: its weights, those of adapters apart, what it is, and golden outputs.

    `base` is the encoder that adapters belong to, if it has a name.

    Raises:
        ValueError: for a folder with other things in it.
    """
    known = {"predictor.json", WEIGHTS, ADAPTER, REFERENCES}
    strangers = {p.name for p in folder.iterdir()} - known if folder.is_dir() else set()
    if strangers or folder.is_file():
        what = f"holds {min(strangers)!r}" if strangers else "is a file"
        raise ValueError(f"{folder} {what}, and would be lost. Save the predictor to another folder.")
    with whole_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        digests = {"sha256": file_digest(temporary / WEIGHTS)}
        if is_adapted(encoder):
            save_adapter(encoder, temporary / ADAPTER, base=base)
            digests["adapter_sha256"] = file_digest(temporary / ADAPTER / ADAPTER_WEIGHTS)
        digests |= saved_references(references, temporary)
        source = asdict(spec.encoder) | asdict(spec.shape)
        content = {
            "format_version": FORMAT_VERSION,
            **asdict(spec),
            "encoder": {k: v for k, v in source.items() if k != "left_out"},
            "weights": digests,
            "needs": needed_modules(spec, fitted),
            "calibration": [found.spec() for found in calibration],
            "scaling": [found.spec() for found in scalings],
            "golden": [{"sequence": s, "outputs": _listed(o)} for s, o in zip(GOLDEN, golden, strict=True)],
        }
        del content["shape"]
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (temporary / "predictor.json").write_text(text + "\n", encoding="utf-8")


def saved_references(references: References | None, folder: Path) -> dict[str, str]:
    """Write what the training sequences look like, if it is known; returns the checksum of the file."""
    if references is None:
        return {}
    save_references(references, folder)
    return {"references_sha256": file_digest(folder / REFERENCES)}


def checked_references(folder: Path, digests: Mapping[str, str]) -> References | None:
    """What `saved_references` wrote; None, if it wrote nothing.

    Raises:
        ValueError: if it is not the file that was saved.
    """
    if "references_sha256" not in digests:
        return None
    check_digest(folder / REFERENCES, digests["references_sha256"])
    return load_references(folder)


def saved_weights(folder: Path, sha256: str) -> tuple[frozenset[str], Stored]:
    """The weights of a folder, read as they are asked for, and which of them are the encoder's."""
    check_digest(folder / WEIGHTS, sha256)
    weights = Stored([folder / WEIGHTS])
    return frozenset(n.removeprefix("encoder.") for n in weights if n.startswith("encoder.")), weights


def fitting(weights: Stored, wanted: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights of a folder in the types that are wanted, read one by one.

    Raises:
        ValueError: if one is missing, not wanted, or of another shape.
    """

    def made(name: str, weight: Tensor | None = None) -> Tensor:
        if weight is None or name not in wanted or weight.shape != wanted[name].shape:
            raise ValueError(f"{folder / WEIGHTS}: weight {name!r} is missing, unknown or of the wrong shape.")
        return weight.to(wanted[name].dtype)

    names = sorted(wanted.keys() | weights.keys())
    return {name: weights.made(name, partial(made, name)) if name in weights else made(name) for name in names}


def check_digest(file: Path, sha256: str) -> None:
    """Refuse a file that is not the one that was saved.

    Raises:
        ValueError: if its checksum differs.
    """
    if file_digest(file) != sha256:
        raise ValueError(f"{file} is not the file that was saved (its checksum differs). Copy the run anew.")


def _listed(outputs: Tensor) -> list[Any]:
    """Outputs as JSON has them: of a sequence its row, of residues a row each."""
    return outputs[0].tolist() if len(outputs) == 1 else outputs.tolist()


def read_predictor_json(path: Path) -> dict[str, Any]:
    """What stands in a `predictor.json`.

    Raises:
        ValueError: if it cannot be read, is none, is of a later version, or damaged.
    """
    content = read_json(path)
    version = content.get("format_version")
    if not isinstance(version, int):
        raise ValueError(f"{path} is no predictor: it has no format_version.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written in format {version}; this esmtune reads up to {FORMAT_VERSION}. Upgrade it."
        )
    members, needs = content.get("members", ["members/0"]), content.get("needs", [])
    # No path from a file is followed.
    if not isinstance(members, list) or not members or members != [f"members/{n}" for n in range(len(members))]:
        raise ValueError(f"{path} is damaged: its members are {members!r}.")
    if not isinstance(needs, list) or not all(isinstance(name, str) for name in needs):
        raise ValueError(f"{path} is damaged: it needs {needs!r}.")
    return content


def needed_modules(spec: Spec, fitted: Task) -> list[str]:
    """The modules, beside this package's, in which parts of a predictor are defined."""
    parts: list[Any] = [head[spec.head["name"]], tuning[spec.tuning["name"]]]
    for _, part, _ in fitted.parts():
        name = getattr(part, "loss_name", "")
        parts += [type(part), *(door[name] for door in (loss, class_loss, ranking, distribution) if name in door)]
    modules = {part.__module__ for part in parts}
    return sorted(module for module in modules if not module.startswith("esmtune."))


def check_needs(content: Mapping[str, Any], folder: Path) -> None:
    """Refuse a predictor that has a user's own part whose module was not imported. It is not imported here.

    Raises:
        ValueError: naming the module.
    """
    missing = [name for name in content.get("needs", []) if name not in sys.modules]
    if missing:
        name = missing[0]
        raise ValueError(
            f"{folder} has parts that are defined in {name!r}, which is not imported. Import it first, in the shell by "
            f"--import {name}; that runs its code, so know whose it is."
        )


def calibrations(content: Mapping[str, Any]) -> tuple[Calibration, ...]:
    """What a predictor knows of its errors; nothing, if it is of an earlier release."""
    return tuple(Calibration.loaded(found) for found in content.get("calibration", ()))


def saved_scalings(content: Mapping[str, Any]) -> tuple[Scaling, ...]:
    """How the probabilities of a predictor are mended, if they are."""
    return tuple(Scaling.loaded(found) for found in content.get("scaling", ()))


def parsed(content: dict[str, Any]) -> tuple[Spec, dict[str, str], list[Mapping[str, Any]]]:
    """What a predictor is, the checksums of its files, and its golden rows, from any format up to today's."""
    source = dict(content["encoder"])
    shape = ESM2Config(**{key: source.pop(key) for key in ("num_layers", "embed_dim", "num_heads")})
    if content["format_version"] == 1:  # one target a sequence, read from the last layer
        target = {"name": content["target"], "kind": content["task"]["name"], "form": "one"}
        content = {**content, "targets": [target], "layers": [shape.num_layers], "mix": False}
        if content["head"]["name"] == "mlp":
            content["head"] = {"depth": 1, **content["head"]}
    names = ("tuning", "mix", "head", "task", "max_length", "trained_on")
    spec = Spec(
        encoder=Source(**source),
        shape=shape,
        layers=tuple(content["layers"]),
        targets=tuple(Target(**target) for target in content["targets"]),
        dropout_samples=int(content.get("dropout_samples", 0)),
        precision=content.get("precision"),
        **{name: content[name] for name in names},
    )
    return spec, dict(content["weights"]), content["golden"]
