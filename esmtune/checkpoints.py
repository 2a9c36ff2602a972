"""Weights as files hold them: a format is a table from our names to theirs, total or refused.

Add a format at the end, decorated with its name: how others name what we have, and what they
have that we leave out.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esmtune.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Format:
    """How others name what we have, with `{}` for the number of a layer, and what they have that we do not."""

    names: Mapping[str, str]
    frequency: tuple[str, ...]  # where they keep the rotary frequencies
    tied: tuple[str, ...]  # copies of the embedding
    ignored: tuple[str, ...]  # beginnings of names
    positions: str = ""  # learned positions: official files hold them unused, beside rotary frequencies
    prefixes: tuple[str, ...] = ("",)  # what may stand before every name
    synonyms: Mapping[str, str] = field(default_factory=dict)  # other endings of names, and what they mean

    def convert(self, theirs: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
        """Their name for each of ours; also return the names that were left out. Only copies are looked at.

        Raises:
            ValueError: for a weight that no rule speaks of or that is there twice, for copies that disagree,
                and for learned positions without rotary frequencies.
        """
        ours, left_out, copies = {}, [], []
        back = {their_name: our_name for our_name, their_name in self.names.items()}
        for name in theirs:
            short = self._canonical(name)
            layers = re.findall(r"\.(\d+)\.", short)
            pattern = self._pattern(name)
            if pattern in back and "{" not in short:
                our_name = back[pattern].format(*layers)
                if our_name in ours:
                    raise ValueError(f"weight {name!r} is there twice, under two names.")
                ours[our_name] = name
            elif pattern in self.frequency:
                if ours.setdefault("frequency", name) != name:
                    copies.append((name, "frequency", "the rotary frequencies of another layer"))
            elif pattern in self.tied:
                copies.append((name, "embed_tokens.weight", "the embedding, to which ESM-2 ties it"))
            elif pattern.startswith(self.ignored):
                left_out.append(name)
                if short == self.positions and not any(self._pattern(n) in self.frequency for n in theirs):
                    raise ValueError(f"weight {name!r} holds learned positions, but an ESM-2 has rotary ones.")
            else:
                raise ValueError(f"weight {name!r} {tuple(theirs[name].shape)} has no place in ESM-2.")
        for name, original, what in copies:
            if original in ours:
                _same(theirs[ours[original]], theirs[name], name, what)
        return ours, left_out

    def fits(self, names: Iterable[str]) -> bool:
        """Whether the names look like this format's."""
        return self.names["embed_tokens.weight"] in {self._canonical(name) for name in names}

    def _pattern(self, name: str) -> str:
        return re.sub(r"\.\d+\.", ".{}.", self._canonical(name))

    def _canonical(self, name: str) -> str:
        prefix = next(p for p in sorted(self.prefixes, key=len, reverse=True) if name.startswith(p))
        short = name.removeprefix(prefix)
        for other, meaning in self.synonyms.items():
            if short.endswith(other):
                return short.removesuffix(other) + meaning
        return short


checkpoint_format: Registry[Callable[[], Format]] = Registry("checkpoint format")


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        digest_next(total, name, weights[name])
    return total.hexdigest()


def digest_next(total: Any, name: str, weight: Tensor) -> None:
    """Add the next weight, in the order of names, to what hashlib has of those before it."""
    weight = weight.detach().cpu().contiguous()
    total.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
    total.update(weight.reshape(-1).view(torch.uint8).numpy().data)


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None


class Stored(Mapping[str, Tensor]):
    """The weights in safetensors files, each read when it is asked for.

    What was read stays when a file is written over. A file is mapped into memory anew for each weight: mapped once, it
    would stay there beside what was read of it.

    Raises:
        ValueError: if a file is truncated or is none, also when a weight is asked for; for a name in two files.
    """

    def __init__(self, files: Iterable[Path]):
        self._file_of: dict[str, Path] = {}
        for path in files:
            with _opened(path) as file:
                names = dict.fromkeys(file.keys(), path)
            if self._file_of.keys() & names.keys():
                twice = min(self._file_of.keys() & names.keys())
                raise ValueError(f"{path} holds {twice!r}, which another file holds too.")
            self._file_of |= names

    def made(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What is made of a weight while it is mapped; if that is the weight itself, a copy of it."""
        with _opened(self._file_of[name]) as file:
            mapped = file.get_tensor(name)
            made = make(mapped)
            return made.clone() if made.data_ptr() == mapped.data_ptr() else made

    def __getitem__(self, name: str) -> Tensor:
        return self.made(name, lambda weight: weight)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of  # else it would be read

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}). Is it complete? Copy or download it anew."
        ) from None


def _same(first: Tensor, second: Tensor, name: str, what: str) -> None:
    if first.shape != second.shape or not torch.equal(first, second):
        raise ValueError(f"weight {name!r} {tuple(second.shape)} differs from {what}: this is no ESM-2.")


def _weights_and_biases(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {
        f"layers.{{}}.{us}.{p}": f"{prefix}.{{}}.{them}.{p}" for us, them in names.items() for p in ("weight", "bias")
    }


@checkpoint_format("fair-esm")
def fair_esm() -> Format:
    """Names of `esm.ESM2` in facebookresearch/esm, in a `.pt` of theirs or a state dict."""
    return Format(
        names={
            "embed_tokens.weight": "embed_tokens.weight",
            "norm.weight": "emb_layer_norm_after.weight",
            "norm.bias": "emb_layer_norm_after.bias",
            "lm_head.dense.weight": "lm_head.dense.weight",
            "lm_head.dense.bias": "lm_head.dense.bias",
            "lm_head.norm.weight": "lm_head.layer_norm.weight",
            "lm_head.norm.bias": "lm_head.layer_norm.bias",
            "lm_head.bias": "lm_head.bias",
            **_weights_and_biases(
                "layers",
                {
                    "attention_norm": "self_attn_layer_norm",
                    "query": "self_attn.q_proj",
                    "key": "self_attn.k_proj",
                    "value": "self_attn.v_proj",
                    "out": "self_attn.out_proj",
                    "feed_forward_norm": "final_layer_norm",
                    "expand": "fc1",
                    "contract": "fc2",
                },
            ),
        },
        frequency=("layers.{}.self_attn.rot_emb.inv_freq",),
        tied=("lm_head.weight",),
        ignored=("contact_head.",),
        prefixes=("", "encoder.", "encoder.sentence_encoder."),
    )


@checkpoint_format("huggingface")
def huggingface() -> Format:
    """Names of `EsmModel`, and of the models built on it, in huggingface/transformers."""
    return Format(
        names={
            "embed_tokens.weight": "embeddings.word_embeddings.weight",
            "norm.weight": "encoder.emb_layer_norm_after.weight",
            "norm.bias": "encoder.emb_layer_norm_after.bias",
            "lm_head.dense.weight": "lm_head.dense.weight",
            "lm_head.dense.bias": "lm_head.dense.bias",
            "lm_head.norm.weight": "lm_head.layer_norm.weight",
            "lm_head.norm.bias": "lm_head.layer_norm.bias",
            "lm_head.bias": "lm_head.bias",
            **_weights_and_biases(
                "encoder.layer",
                {
                    "attention_norm": "attention.LayerNorm",
                    "query": "attention.self.query",
                    "key": "attention.self.key",
                    "value": "attention.self.value",
                    "out": "attention.output.dense",
                    "feed_forward_norm": "LayerNorm",
                    "expand": "intermediate.dense",
                    "contract": "output.dense",
                },
            ),
        },
        frequency=(
            "encoder.layer.{}.attention.self.rotary_embeddings.inv_freq",
            "encoder.layer.*.attention.self.rotary_embeddings.inv_freq",  # transformers 5 writes the star
            "rotary_embeddings.inv_freq",
        ),
        tied=("lm_head.decoder.weight",),
        ignored=("contact_head.", "pooler.", "classifier.", "embeddings.position_"),
        positions="embeddings.position_embeddings.weight",
        prefixes=("", "esm."),
        synonyms={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    )
