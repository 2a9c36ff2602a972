"""Small weights put beside, or around, the frozen linear maps of an encoder: PEFT's, in our tree and in its files.

PEFT is imported where it is needed and not before: that takes seconds.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from esmtune.checkpoints import checkpoint_format, read_safetensors
from esmtune.esm2 import ESM2
from esmtune.registry import nearest

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


def linear_maps(encoder: ESM2) -> dict[str, str]:
    """The path of each linear map in the layers, adapted or not, and what transformers calls it.

    >>> from esmtune.esm2 import ESM2Config
    >>> encoder = ESM2(ESM2Config(num_layers=2, embed_dim=16, num_heads=2))
    >>> linear_maps(encoder)["layers.1.contract"]
    'encoder.layer.1.output.dense'
    """
    names = checkpoint_format["huggingface"]().names
    return {
        f"layers.{number}.{word}": names[f"layers.{{}}.{word}.weight"].removesuffix(".weight").format(number)
        for number, layer in enumerate(encoder.layers)
        for word, module in layer.named_children()
        if not isinstance(module, nn.LayerNorm)
    }


def is_adapted(encoder: ESM2) -> bool:
    """Whether an encoder has adapters in it."""
    return hasattr(encoder, "peft_config")


def adapter_weights(encoder: ESM2) -> dict[str, Tensor]:
    """The weights of the adapters alone, under their names in the encoder's state dict."""
    around = [f"{path}." for path in linear_maps(encoder) if _around(encoder, path)]
    return {
        name: weight
        for name, weight in encoder.state_dict().items()
        for prefix in around
        if name.startswith(prefix) and not name.startswith(f"{prefix}base_layer.")
    }


def inject(encoder: ESM2, kind: str, targets: str, **settings: Any) -> dict[str, float]:
    """Put new adapters on all linear maps with certain names, in place, and freeze every weight.

    Args:
        encoder: a plain encoder.
        kind: PEFT's name for it: LORA, IA3, LOHA, LOKR, OFT or HRA.
        targets: last words of paths, with commas between them, such as `query,value`.
        settings: those of PEFT's configuration.

    Returns:
        The names of the weights that are to learn, each with 1, its share of the learning rate.

    Raises:
        ValueError: for a target that matches nothing, and for an encoder that has adapters already.
    """
    _must_be_plain(encoder)
    paths = _matching(encoder, targets)
    if kind == "IA3":  # of the feed-forward network's inner channels it is the input of `contract` that is scaled
        settings["feedforward_modules"] = [path for path in paths if path.endswith(".contract")]
    return _injected(encoder, _configured(kind, target_modules=paths, **settings))


def merge(encoder: ESM2) -> None:
    """Work the adapters into the weights they stand beside, in place; what is left is a plain encoder.

    This is computed in float64, so that each weight is rounded once, however short its type is.

    Raises:
        ValueError: for adapters with NaN or infinity in them; the encoder stays as it is.
    """
    if broken := [name for name, weight in adapter_weights(encoder).items() if not weight.isfinite().all()]:
        raise ValueError(f"adapter weight {broken[0]!r} holds NaN or infinity and cannot be merged.")
    _remove(encoder, _merge)


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
    config.target_modules = [name for path, name in theirs.items() if _around(encoder, path)]
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
    _must_be_plain(encoder)
    written = _read_config(folder)
    weights, left_out, prefix = _read_weights(folder, encoder)
    try:
        config = _understood(written, encoder, prefix)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    try:
        with torch.random.fork_rng(devices=[]):
            _injected(encoder, config)
        _fill(encoder, weights)
    except Exception as error:  # PEFT checks little: what it raises for odd settings has no ancestor but Exception
        _remove(encoder)
        raise ValueError(f"{folder} does not fit the encoder: {error}") from None
    return left_out


def _must_be_plain(encoder: ESM2) -> None:
    if is_adapted(encoder):
        raise ValueError("the encoder has adapters already: merge them first.")


def _around(encoder: ESM2, path: str) -> bool:
    """Whether there is an adapter around a linear map."""
    return hasattr(encoder.get_submodule(path), "base_layer")


def _configured(kind: str, **settings: Any) -> Any:
    """PEFT's configuration of a kind of adapter."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**settings)


def _matching(encoder: ESM2, targets: str) -> list[str]:
    paths = list(linear_maps(encoder))
    there = list(dict.fromkeys(path.split(".")[-1] for path in paths))
    words = [word.strip() for word in targets.split(",")]
    for word in words:
        if word not in there:
            raise ValueError(f"target {word!r} matches nothing.{nearest(word, there)} There are: {', '.join(there)}.")
    return [path for path in paths if path.split(".")[-1] in words]


def _injected(encoder: ESM2, config: Any) -> dict[str, float]:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, encoder)
    moving = {name: 1.0 for name, weight in encoder.named_parameters() if weight.requires_grad}
    encoder.requires_grad_(False).train(encoder.training)  # what is new would train, whatever the encoder does
    return moving


def _merge(adapter: Any) -> None:
    device, dtype = adapter.weight.device, adapter.weight.dtype
    adapter.to("cpu", torch.float64).merge(safe_merge=True)
    adapter.to(device, dtype)


def _remove(encoder: ESM2, before: Callable[[Any], None] = lambda adapter: None) -> None:
    """Put the linear maps back in the places of the adapters around them."""
    for layer in encoder.layers:
        for word, module in list(layer.named_children()):
            if hasattr(module, "base_layer"):
                before(module)
                setattr(layer, word, module.base_layer)
    if is_adapted(encoder):
        del encoder.peft_config


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
    for name, weight in read_safetensors(folder / WEIGHTS).items():
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
    usual = _configured(kind).to_dict()
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
        theirs = _configured(kind, **settings, **given)
        targets = {p: prefix + t for p, t in linear_maps(encoder).items()}
        paths = [path for path, name in targets.items() if check_target_module_exists(theirs, name)]
        inner = {"feedforward_modules": [p for p in paths if _is_inner(theirs, targets[p])]} if kind == "IA3" else {}
        return _configured(kind, target_modules=paths, **settings, **inner)
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
