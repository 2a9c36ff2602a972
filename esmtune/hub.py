"""Weights from Hugging Face, or from its cache where there is no network."""

import json
import os
from pathlib import Path
from typing import Any

from esmtune.esm2 import OFFICIAL, RANDOM
from esmtune.registry import nearest


def weight_files(folder: Path) -> list[Path]:
    """The whole weights, or the shards of them, in the order in which transformers looks for them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not single.is_file() and index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(f"{index} names no files.")
        for name in names.values():
            if not isinstance(name, str) or name != os.path.basename(name) or not (folder / name).is_file():
                raise ValueError(f"{index} names {name!r}, which is not in {folder}. The download is incomplete.")
        return [folder / name for name in sorted(set(names.values()))]
    if not single.is_file():
        pickles = ", ".join(sorted(p.name for p in folder.glob("*.bin")))
        hint = f" To read the pickle, name it itself: --encoder {folder / pickles.split(', ')[0]}." if pickles else ""
        raise ValueError(f"{folder} holds no model.safetensors.{hint}")
    return [single]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: if it cannot be read or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return content


def from_hub(repository: str) -> Path:
    """The folder of a model in Hugging Face's cache, downloaded if it is not there yet."""
    from huggingface_hub import snapshot_download  # a quarter of a second that only this needs

    patterns = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
        weight_files(folder)
        return folder
    except (OSError, ValueError):  # not in the cache, or not whole
        pass
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
        weight_files(folder)  # without a network, the hub hands out what is in the cache, whole or not
        return folder
    except Exception as error:  # the hub's errors have no common ancestor but Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        short = repository.removeprefix("facebook/")
        hint = f" For random weights, write {RANDOM}{short}." if short in OFFICIAL else nearest(short, OFFICIAL)
        raise ValueError(
            f"the encoder {repository!r} cannot be had.{hint} Tried: a file or folder of that name; Hugging Face's "
            f"cache; downloading it from Hugging Face ({type(error).__name__}: {reason}). To get it offline, run "
            f"`hf download {repository} --include config.json --include 'model*.safetensors*' --local-dir FOLDER` "
            "where there is a network, copy FOLDER here, and write its path instead of the name."
        ) from error
