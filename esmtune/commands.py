"""Options as they are written in the shell."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from esmtune.config import TrainConfig

LINE = 78  # characters


def command_of(data: str, options: Mapping[str, Any], file: Callable[[str], str] = str) -> list[str]:
    """The words of the command that trains on data with options, but for those that are as by default.

    `file` says how text is to stand there that may be the path of a file.

    >>> " ".join(command_of("tm.csv", {"head": {"name": "mlp", "hidden": 64, "ridge": True}, "report": False}))
    'esmtune train tm.csv --head mlp --head.hidden 64 --head.ridge=true --report=false'
    """
    usual = vars(TrainConfig())
    words = ["esmtune train", shlex.quote(data)]
    for name, value in options.items():
        own = tuple(value) if isinstance(value, list) else value
        if own is not None and own != usual.get(name):
            words += _option(name, own, file)
    return words


def in_lines(words: list[str]) -> str:
    """Words as a command of several lines, none of them much too long.

    >>> print(in_lines(["esmtune train", "x" * 70, "--seed 1"]).replace("x" * 70, "x"))
    esmtune train x \\
      --seed 1
    """
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > LINE and len(lines[-1]) > len(words[0]):
            lines.append(" ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def in_its_folder(text: str) -> str:
    """A path of this machine as its last part; anything else as it is.

    >>> in_its_folder("/home/me/tm.csv"), in_its_folder("lora")
    ('tm.csv', 'lora')
    """
    return Path(text).name if Path(text).is_absolute() else text


def _option(name: str, value: Any, file: Callable[[str], str]) -> Iterator[str]:
    """An option with its value, and those of a part after it."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, Mapping):
        if "name" in value:
            yield f"{flag} {shlex.quote(str(value['name']))}"
        for option, own in value.items():
            if option != "name":
                yield from _option(f"{name}.{option}", own, file)
    elif isinstance(value, bool):
        yield flag if value and "." not in name else f"{flag}={str(value).lower()}"  # that of a part takes a word
    elif isinstance(value, list | tuple):
        yield " ".join((flag, *(shlex.quote(str(each)) for each in value)))
    else:
        text = file(str(value))
        yield f"{flag}={shlex.quote(text)}" if text.startswith("-") else f"{flag} {shlex.quote(text)}"
