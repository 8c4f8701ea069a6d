"""What commands share: panels of options, the options of all commands, and options from a file.

A command is a frozen dataclass: its fields are the options, their docstrings the help, and calling it does the work.
Fields that are options classes of the library are spread out, each class in a panel of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict

from onesteptrain.errors import ConfigError


def panel(title: str, place: int) -> Parameter:
    """The fields of an options class as options of a command, in a panel of the help."""
    return Parameter(name="*", group=Group(title, sort_key=place))


MAIN = Group("Everyday options", sort_key=0)
HOW = panel("How it is done", 1)
FILES = panel("How files are read", 2)
MODEL = panel("How the model is loaded", 3)
WORK = panel("How the work is done", 4)
OUTPUT = panel("Output", 5)


@dataclass(frozen=True)
class Printing:
    """Options of every command."""

    json: bool = False
    """Print the result as JSON."""

    config: Path | None = None
    """YAML file with a section of options for each command, such as the config.yaml of an earlier run; the command
    line wins over it."""


@dataclass(frozen=True)
class Output(Printing):
    """Options of commands that write."""

    overwrite: bool = False
    """Replace what is there from an earlier call."""


@dataclass(frozen=True)
class FromFile:
    """Takes what the command line leaves open from the file that `--config` names."""

    command: str
    """Whose section."""

    partly: bool = False
    """Pass over options that the reader does not ask for."""

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill the arguments.

        Raises:
            ConfigError: the file cannot be read, or has sections that are no command's.
        """
        named = arguments.get("--config", None)
        if named is None or not named.tokens:
            return
        path = Path(named.tokens[0].value)
        options = dict(_leaves(_sections(path).get(self.command, {})))
        data = {commands[-1]: options} if commands else options
        Dict(data, source=str(path), allow_unknown=self.partly)(app, commands, arguments)


def _read(path: Path, needed: str) -> dict[str, Any]:
    """A YAML file of options by their names."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; {needed}")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML ({' '.join(str(error).split())}); {needed}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{path} holds no options; {needed}")
    return options


def _leaves(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options nested by owner, as a run records them, one by one; `method: {name, options}` is the method's name."""
    for key, value in options.items():
        if key == "method" and isinstance(value, Mapping):
            yield "method", value.get("name")
            yield from _leaves(value.get("options") or {})
        elif isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file; a typo in the name of one must not go unnoticed."""
    from onesteptrain.cli import COMMANDS

    needed = "give the config.yaml of a run, or a section for each command, such as `score:`, with its options indented"
    sections = _read(path, needed)
    for name, options in sections.items():
        if name not in COMMANDS or not isinstance(options, dict):
            raise ConfigError(f"{path} has a section {name!r}, but there is no such command; {needed}")
    return sections
