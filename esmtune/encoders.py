"""An encoder from anywhere: a Hugging Face name or folder, a file, or random weights; and to a folder.

Weights are read from safetensors, or from a pickle with `weights_only=True`, which runs no code.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from esmtune.alphabet import SYMBOLS
from esmtune.attention import rotary_frequencies
from esmtune.checkpoints import Stored, checkpoint_format, digest, digest_next
from esmtune.config import Computed
from esmtune.esm2 import ESM2, OFFICIAL, RANDOM, ESM2Config
from esmtune.hub import from_hub, read_json, weight_files
from esmtune.registry import nearest


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an encoder's weights came from, what they are, and what was left out of them."""

    name: str
    sha256: str  # of the encoder's tensors, whatever file they came in; the LM head is not counted
    license: str | None
    left_out: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return self.name.startswith(RANDOM)


def load_encoder(name: str | os.PathLike[str], *, held: Computed = "float32") -> tuple[ESM2, Source]:
    """Load an encoder by a Hugging Face name, a folder, a `.pt` file, or make a random one by `random:NAME`.

    Returns the encoder, in evaluation mode, and where it came from. With `held` "bfloat16" the matrices of its layers
    are rounded, those in safetensors as they are read, which takes half of the memory: for an encoder that computes
    under autocast in bfloat16, where the numbers are the same, and neither learns nor is saved.

    >>> encoder, source = load_encoder("random:esm2_t6_8M_UR50D")
    >>> encoder.config.num_layers, source.is_random
    (6, True)

    Raises:
        ValueError: if the name or the weights cannot be had or understood, with what to do.
    """
    name = os.fspath(name)
    if name.startswith(RANDOM):
        encoder, source = _random(name)
        return hold(encoder, held), source
    path = Path(name)
    if path.is_file():
        return _assemble(_read_file(path), str(path.resolve()), _license_of(name, {}), held)
    if path.is_dir():
        return _from_folder(path, str(path.resolve()), held)
    short = name.removeprefix("facebook/")
    if short in OFFICIAL:
        return _from_folder(from_hub(f"facebook/{short}"), short, held)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_folder(from_hub(name), name, held)
    raise ValueError(
        f"there is no encoder {name!r}: it is no file, no folder and no name of an ESM-2.{nearest(short, OFFICIAL)} "
        f"The official ones are {', '.join(OFFICIAL)}; write {RANDOM}NAME for random weights."
    )


def save_huggingface(encoder: ESM2, folder: str | os.PathLike[str], *, license: str | None = None) -> None:
    """Write an encoder as transformers' `EsmModel.save_pretrained` does: `config.json` and `model.safetensors`."""
    folder = Path(folder)
    form = checkpoint_format["huggingface"]()
    weights = {}
    for ours, weight in encoder.state_dict().items():
        numbers = re.findall(r"\.(\d+)\.", ours)
        pattern = re.sub(r"\.\d+\.", ".{}.", ours)
        if pattern == "frequency":
            for number in range(encoder.config.num_layers):
                weights[form.frequency[0].format(number)] = weight.clone()
        else:
            weights[form.names[pattern].format(*numbers)] = weight.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        **_COMPUTES,
        **_KEPT,
        "hidden_size": encoder.config.embed_dim,
        "num_hidden_layers": encoder.config.num_layers,
        "num_attention_heads": encoder.config.num_heads,
        "intermediate_size": 4 * encoder.config.embed_dim,
        "architectures": ["EsmModel" if encoder.lm_head is None else "EsmForMaskedLM"],
    }
    if license:
        config["license"] = license
    if encoder.lm_head is not None:  # EsmForMaskedLM keeps the encoder under `esm.`
        weights = {name if name.startswith("lm_head.") else f"esm.{name}": weight for name, weight in weights.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes for its owner alone


def encoder_digest(encoder: ESM2) -> str:
    """The digest of an encoder without its LM head."""
    return digest({name: w for name, w in encoder.state_dict().items() if not name.startswith("lm_head.")})


def hold(encoder: ESM2, precision: Computed) -> ESM2:
    """The same, the matrices of its layers rounded to bfloat16 if that is the precision; all else stays as it is.

    >>> encoder, _ = load_encoder("random:esm2_t6_8M_UR50D")
    >>> hold(encoder, "bfloat16").layers[0].query.weight.dtype
    torch.bfloat16
    """
    for name, weight in encoder.named_parameters():
        weight.data = _held(name, weight.data, precision)
    return encoder


def _held(name: str, weight: Tensor, precision: Computed) -> Tensor:
    """A weight as products in a precision take it, if it is one of the matrices of which layers consist."""
    is_rounded = precision == "bfloat16" and name.startswith("layers.") and weight.ndim == 2
    return weight.to(torch.bfloat16) if is_rounded else weight


def unfilled(encoder: ESM2) -> ESM2:
    """The same on the CPU, with weights that are to be loaded; to_empty would import a computer algebra system."""
    for module in encoder.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)))
        for name, values in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(values.shape, dtype=values.dtype))
    return encoder


def _random(name: str) -> tuple[ESM2, Source]:
    short = name.removeprefix(RANDOM).removeprefix("facebook/")
    if short not in OFFICIAL:
        raise ValueError(
            f"{name!r}: random weights need the name of an ESM-2.{nearest(short, OFFICIAL)} "
            f"There are: {', '.join(OFFICIAL)}."
        )
    encoder = ESM2(OFFICIAL[short]).eval()
    for weight in encoder.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
    return encoder, Source(name=f"{RANDOM}{short}", sha256=encoder_digest(encoder), license=None)


def _from_folder(folder: Path, name: str, held: Computed) -> tuple[ESM2, Source]:
    config_file = folder / "config.json"
    if (folder / "predictor.json").is_file() or (folder / "predictor" / "predictor.json").is_file():
        raise ValueError(f"{folder} is a predictor of esmtune, not an encoder.")
    if not config_file.is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no Hugging Face folder of an ESM-2.")
    config = read_json(config_file)
    for key, value in _COMPUTES.items():
        got = config.get(key)
        got = _ABSENT.get(key, value) if got is None else got
        if got != value:
            raise ValueError(f"{config_file}: {key} is {got!r}, but an ESM-2 has {value!r}: another model.")
    theirs = Stored(weight_files(folder))
    num_heads = config.get("num_attention_heads")
    if num_heads is not None and not isinstance(num_heads, int):
        raise ValueError(f"{config_file}: num_attention_heads should be a whole number, got {num_heads!r}.")
    return _assemble(theirs, name, _license_of(name, config), held, num_heads=num_heads)


def _read_file(path: Path) -> Stored | dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return Stored([path])
    try:
        # fair-esm's files keep their settings in a Namespace: a bag of values, which runs nothing when it is filled.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors of many kinds, and all mean the same to the user
        # torch's own words begin with the advice to read the file unsafely.
        stranger = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {stranger[1]}" if stranger else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights ({reason}). It is read with weights_only=True, "
            "which takes tensors and runs no code; a damaged file, or one with other things in it, is refused."
        ) from None
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path} holds no table of weights.")
    return weights


def _assemble(
    theirs: Stored | dict[str, Tensor], name: str, license: str | None, held: Computed, num_heads: int | None = None
) -> tuple[ESM2, Source]:
    form = next((f for f in (checkpoint_format[n]() for n in checkpoint_format) if f.fits(theirs)), None)
    if form is None:
        raise ValueError(f"{name}: no known format of ESM-2 weights; known are {', '.join(checkpoint_format)}.")
    try:
        names, left_out = form.convert(theirs)
        encoder, sha256 = _filled(theirs, names, num_heads, held)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return encoder.eval(), Source(name=name, sha256=sha256, license=license, left_out=tuple(sorted(left_out)))


def _filled(
    theirs: Stored | dict[str, Tensor], names: Mapping[str, str], num_heads: int | None, held: Computed
) -> tuple[ESM2, str]:
    """An encoder of weights that are read one by one, and their digest in float32; `names` says what ours are called.

    What was read becomes the weights: a copy would double the memory that loading takes.
    """
    shape = _shape_of(theirs, names, num_heads)
    with torch.device("meta"):  # to draw random weights would take longer than to load
        encoder = ESM2(shape, lm_head=any(name.startswith("lm_head.") for name in names))
    total, weights, expected = hashlib.sha256(), {}, encoder.state_dict()

    def made(name: str, weight: Tensor) -> Tensor:
        if name not in expected or weight.shape != expected[name].shape:
            wanted = tuple(expected[name].shape) if name in expected else "nothing"
            raise ValueError(f"weight {name!r} should be {wanted} for {shape}, got {tuple(weight.shape)}.")
        if not torch.stack(weight.aminmax()).isfinite().all():  # NaN is its own extreme; nothing is copied
            raise ValueError(f"weight {name!r} holds NaN or infinity: the file is damaged.")
        weight = weight.to(torch.float32).contiguous()
        if not name.startswith("lm_head."):
            digest_next(total, name, weight)
        return _held(name, weight, held)

    for name in sorted(expected.keys() | names.keys()):
        if name not in names and name != "frequency":
            raise ValueError(f"weight {name!r} should be {tuple(expected[name].shape)} for {shape}, got nothing.")
        if name not in names:
            weights[name] = made(name, rotary_frequencies(shape.embed_dim // shape.num_heads))
        elif isinstance(theirs, Stored):
            weights[name] = theirs.made(names[name], partial(made, name))
        else:
            weights[name] = made(name, theirs.pop(names[name]))  # each is held once
    encoder.load_state_dict(weights, assign=True)
    return encoder, total.hexdigest()


def _shape_of(theirs: Mapping[str, Tensor], names: Mapping[str, str], num_heads: int | None) -> ESM2Config:
    """Read the size of an encoder off its weights."""
    num_layers = len({n.split(".")[1] for n in names if n.startswith("layers.")})
    embedding = tuple(theirs[names["embed_tokens.weight"]].shape)
    if len(embedding) != 2 or embedding[0] != len(SYMBOLS):
        raise ValueError(f"weight 'embed_tokens.weight' should be ({len(SYMBOLS)}, channels), got {embedding}.")
    dim = embedding[1]
    if num_heads is None and "frequency" in names:
        num_heads = dim // (2 * max(1, theirs[names["frequency"]].numel()))
    if num_heads is None:
        same = [c.num_heads for c in OFFICIAL.values() if (c.num_layers, c.embed_dim) == (num_layers, dim)]
        if not same:
            raise ValueError(
                f"{num_layers} layers of {dim} channels are none of the official sizes, and without rotary frequencies "
                "the number of heads cannot be told. Write the weights as a Hugging Face folder with a config.json."
            )
        num_heads = same[0]
    return ESM2Config(num_layers=num_layers, embed_dim=dim, num_heads=num_heads)


def _license_of(name: str, config: Mapping[str, Any]) -> str | None:
    """MIT for Meta's own weights; what the folder's configuration says for others; unknown otherwise."""
    if name in OFFICIAL:
        return "MIT"
    license = config.get("license")
    return license if isinstance(license, str) else None


# What in a config.json changes the outputs, what transformers takes for written where it is not, and what is only kept.
_COMPUTES: dict[str, Any] = {
    "model_type": "esm",
    "vocab_size": 33,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "rope_theta": 10000.0,
    "is_decoder": False,
}
_ABSENT = {"position_embedding_type": "absolute", "token_dropout": False, "layer_norm_eps": 1e-12}
_KEPT = {"max_position_embeddings": 1026, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
