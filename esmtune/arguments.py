"""What a command line says, in the form in which the parser takes it: modules, parts and configuration files."""

import importlib
import os
import sys
from pathlib import Path

import cyclopts.config
from cyclopts import CycloptsError

PARTS = ("--task", "--head", "--tuning")  # --head mlp is short for --head.name mlp


def prepared(arguments: list[str]) -> tuple[list[str], tuple[cyclopts.config.Toml, ...]]:
    """The arguments that are left, and the configuration file that one named; modules that others named are imported.

    Raises:
        ValueError: for a module that cannot be imported, or a file that is none.
    """
    arguments = _switched_on([_spelled_out(argument) for argument in _imported(arguments)])
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    if "--config" not in arguments[:-1]:
        return arguments, ()
    place = arguments.index("--config")
    file = arguments[place + 1]
    if not Path(file).is_file():
        raise ValueError(f"there is no configuration file {file}.")
    config = cyclopts.config.Toml(file, must_exist=True, use_commands_as_keys=False)
    try:
        _ = config.config  # which is read once
    except CycloptsError as error:
        raise ValueError(f"{file} is no TOML: {error.__cause__}.") from None
    return arguments[:place] + arguments[place + 2 :], (config,)


def _imported(arguments: list[str]) -> list[str]:
    """Import the modules that --import names, for the parts in them; returns the other arguments."""
    rest, names = [], []
    given = iter(arguments)
    for argument in given:
        option, equals, name = argument.partition("=")
        if option == "--import":
            names.append(name if equals else next(given, ""))
        else:
            rest.append(argument)
    if names:
        sys.path.insert(0, os.getcwd())  # as python -m has it
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"--import {name}: {error}. Name a module that Python finds, or one in this folder."
            ) from None
    return rest


def _spelled_out(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name.startswith(tuple(f"{part}." for part in PARTS)):  # --task.class-weights is --task.class_weights
        name = f"--{name[2:].replace('-', '_')}"
    return f"{name}.name{equals}{value}" if name in PARTS else f"{name}{equals}{value}"


def _switched_on(arguments: list[str]) -> list[str]:
    """An option of a part that has no value is true, as other options are.

    >>> _switched_on(["--head.ridge", "--tuning.rslora", "--head.hidden", "64", "--tuning.rank=4"])
    ['--head.ridge=true', '--tuning.rslora=true', '--head.hidden', '64', '--tuning.rank=4']
    """
    of_parts, words = tuple(f"{part}." for part in PARTS), (".name", ".order", ".loss", ".pool", ".targets")
    return [
        f"{argument}=true"
        if argument.startswith(of_parts)
        and not argument.endswith(words)
        and "=" not in argument
        and (after is None or after.startswith("--"))
        else argument
        for argument, after in zip(arguments, [*arguments[1:], None], strict=True)
    ]
