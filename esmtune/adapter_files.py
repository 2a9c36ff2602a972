"""Adapters in PEFT's files, under transformers' names: written, and read with every setting understood or refused."""

import json
import re
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from esmtune.adapters import configured, injected, is_adapted, is_around, linear_maps, must_be_plain, remove
from esmtune.checkpoints import Stored, checkpoint_format
from esmtune.esm2 import ESM2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# The kinds that are known, by PEFT's names, and the settings of each that say what is computed.
_SETTINGS = {
    "LORA": ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias"),
    "IA3": (),
    "LOHA": ("r", "alpha", "rank_dropout", "module_dropout"),
    "LOKR": (
        "r",
        "alpha",
        "rank_dropout",
        "module_dropout",
        "decompose_both",
        "decompose_factor",
        "rank_dropout_scale",
    ),
    "OFT": ("r", "oft_block_size", "coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms"),
    "HRA": ("r", "apply_GS"),
}

# Which linear maps are adapted. What modules_to_save names is judged by the weights that come of it.
_TARGETS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern")

_KEPT = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "modules_to_save", "megatron_core"),
)

# How the weights began, before those in the file took their place; other beginnings change the encoder too.
_BEGINNINGS = ("init_weights", "init_lora_weights", "init_ia3_weights")

_HARMLESS = (True, False, None, "gaussian", "orthogonal", "eva")


def save_adapter(encoder: ESM2, folder: Path | str, *, base: str | None = None) -> None:
    """Write the adapters as PEFT does, under transformers' names, so that `PeftModel` puts them on an `EsmModel`.

    Args:
        encoder: an adapted encoder.
        folder: gets `adapter_config.json` and `adapter_model.safetensors`, and is made where it is not there.
        base: name or folder of the encoder that the adapters belong to, noted in the configuration.
    """
    from peft import get_peft_model_state_dict

    folder, theirs = Path(folder), linear_maps(encoder)
    assert is_adapted(encoder), "there are no adapters to save"
    config = deepcopy(getattr(encoder, "peft_config")["default"])  # noqa: B009
    config.target_modules = [name for path, name in theirs.items() if is_around(encoder, path)]
    if hasattr(config, "feedforward_modules"):
        config.feedforward_modules = [name for path, name in theirs.items() if path in config.feedforward_modules]
    config.base_model_name_or_path, config.inference_mode = base, True
    weights = {
        f"base_model.model.{_renamed(name, theirs)}": weight.contiguous()
        for name, weight in get_peft_model_state_dict(encoder, save_embedding_layers=False).items()
    }
    config.save_pretrained(str(folder))
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors writes for its owner alone


def load_adapter(encoder: ESM2, folder: Path | str) -> tuple[str, ...]:
    """Put the adapters of a folder on a plain encoder, in place, and freeze every weight. No code of the folder runs.

    The folder may be ours, or PEFT's for any of transformers' models with an ESM-2 in it.

    Returns:
        The names of the weights that are no part of the encoder, such as a classifier's, and were left out.

    Raises:
        ValueError: for a folder that is damaged, is none of PEFT's or does not fit; the encoder stays as it is.
    """
    folder = Path(folder)
    must_be_plain(encoder)
    written = _read_config(folder)
    weights, left_out, prefix = _read_weights(folder, encoder)
    try:
        config = _understood(written, encoder, prefix)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    try:
        with torch.random.fork_rng(devices=[]):
            injected(encoder, config)
        _fill(encoder, weights)
    except Exception as error:  # PEFT checks little: what it raises for odd settings has no ancestor but Exception
        remove(encoder)
        raise ValueError(f"{folder} does not fit the encoder: {error}") from None
    return left_out


def _renamed(name: str, paths: Mapping[str, str]) -> str:
    """A weight's name with the path of its linear map replaced."""
    path = next(path for path in paths if name.startswith(f"{path}."))
    return paths[path] + name.removeprefix(path)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = " Its adapter_model.bin is a pickle, which is not read: write it anew with a newer PEFT."
        raise ValueError(
            f"{folder} is no adapter: it has no {CONFIG} with {WEIGHTS} beside it.{hint if pickled else ''}"
        )
    try:
        written = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} cannot be read as JSON ({error}).") from None
    kind = written.get("peft_type") if isinstance(written, dict) else None
    if kind not in list(_SETTINGS):
        raise ValueError(f"{folder / CONFIG}: peft_type is {kind!r}; what can be read is {', '.join(_SETTINGS)}.")
    return written


def _read_weights(folder: Path, encoder: ESM2) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The weights under our paths, those left out, and what stands before the encoder in their names."""
    form = checkpoint_format["huggingface"]()
    ours = {theirs: path for path, theirs in linear_maps(encoder).items()}
    weights, left_out, prefixes = {}, [], set()
    for name, weight in Stored([folder / WEIGHTS]).items():
        short = name.removeprefix("base_model.model.")
        prefix = "esm." if short.startswith("esm.") else ""
        short = short.removeprefix(prefix)
        if any(short.startswith(f"{path}.") for path in ours):
            weights[_renamed(short, ours)] = weight
            prefixes.add(prefix)
        elif short.startswith((*form.ignored, "lm_head.")):
            left_out.append(name)
        else:
            raise ValueError(
                f"{folder / WEIGHTS}: weight {name!r} {tuple(weight.shape)} has no place beside a linear map "
                f"of this encoder, which has {len(encoder.layers)} layers. Is it for another encoder?"
            )
    if len(prefixes) != 1:
        raise ValueError(
            f"{folder / WEIGHTS} has no weights for an ESM-2." if not prefixes else f"{folder}: two models."
        )
    return weights, tuple(left_out), prefixes.pop()


def _understood(written: Mapping[str, Any], encoder: ESM2, prefix: str) -> Any:
    """PEFT's configuration as it is to be, in our names; a setting that would change the numbers unseen is refused."""
    from peft.tuners.tuners_utils import check_target_module_exists

    kind: str = written["peft_type"]
    usual = configured(kind).to_dict()
    for setting, value in written.items():
        if setting in _BEGINNINGS:
            known = value in _HARMLESS
        else:
            known = setting in (*_SETTINGS[kind], *_TARGETS, *_KEPT) or value in (usual.get(setting), None, False, {})
        if not known:
            raise ValueError(f"{setting} is {value!r}, which is not known here.")
    settings = {name: written[name] for name in _SETTINGS[kind] if name in written}
    given = {name: written[name] for name in _TARGETS if name in usual and name in written}
    try:
        theirs = configured(kind, **settings, **given)
        targets = {p: prefix + t for p, t in linear_maps(encoder).items()}
        paths = [path for path, name in targets.items() if check_target_module_exists(theirs, name)]
        inner = {"feedforward_modules": [p for p in paths if _is_inner(theirs, targets[p])]} if kind == "IA3" else {}
        return configured(kind, target_modules=paths, **settings, **inner)
    except Exception as error:  # as above
        raise ValueError(f"it is no configuration of PEFT's ({error}).") from None


def _is_inner(config: Any, name: str) -> bool:
    """Whether IA3 scales what enters the linear map rather than what leaves it."""
    inner = config.feedforward_modules or ()
    return bool(re.fullmatch(inner, name)) if isinstance(inner, str) else name.endswith(tuple(inner))


def _fill(encoder: ESM2, weights: Mapping[str, Tensor]) -> None:
    """Load all weights of the adapters, or none."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = get_peft_model_state_dict(encoder, save_embedding_layers=False)
    for name in sorted(wanted.keys() | weights.keys()):
        got = tuple(weights[name].shape) if name in weights else "nothing"
        room = tuple(wanted[name].shape) if name in wanted else "nothing"
        if got != room:
            raise ValueError(f"weight {name!r} should be {room}, got {got}.")
        if not weights[name].isfinite().all():
            raise ValueError(f"weight {name!r} holds NaN or infinity: the file is damaged.")
    set_peft_model_state_dict(encoder, dict(weights))
