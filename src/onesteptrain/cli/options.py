"""What commands share: panels of options, the options of all commands, and options from a file.

A command is a frozen dataclass: its fields are the options, their docstrings the help, and calling it does the work.
Results go to stdout, progress and advice to stderr.
Fields that are options classes of the library are spread out, each class in a panel of its own.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Group, Parameter, Token
from cyclopts.config import Dict

from onesteptrain.cli.output import tell
from onesteptrain.errors import ConfigError, one_line, several_lines
from onesteptrain.jobs.reading import from_plain, read_yaml


def panel(title: str, place: int) -> Parameter:
    """The fields of an options class as options of a command, in a panel of the help."""
    return Parameter(name="*", group=Group(title, sort_key=place))


MAIN = Group("Everyday options", sort_key=0)
HOW = panel("How it is done", 1)
FILES = panel("How files are read", 2)
MODEL = panel("How the model is loaded", 3)
WORK = panel("How the work is done", 3)
OUTPUT = Parameter(group=Group("Output", sort_key=4))
RARELY = Parameter(group=Group("Rare options", sort_key=5))


RARE = (
    *("last_layers", "lora_rank", "attention", "compile", "batch_tokens"),
    *("fd_epsilon", "group_route", "reference_folds", "corrupted", "agreement", "sketch"),
    *("shard_rows", "chunk_rows", "readers", "max_failed_share"),
)
"""Options that few people need: one option takes them all, so that the help of the others can be read."""

COMMON = re.compile(f"^(?!({'|'.join(RARE)})$)")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command has."""

    json: Annotated[bool, OUTPUT] = False
    """Print the result as JSON."""

    config: Annotated[Path | None, OUTPUT] = None
    """YAML file with a section of options for each command, such as the config.yaml of an earlier run; the command
    line wins over it."""

    def say(self, text: str, facts: Mapping[str, Any], then: Sequence[object] = ()) -> None:
        """Print a result, for people or as one JSON object; people are also told which command may come next.

        Args:
            text: The result for people.
            facts: The result for machines.
            then: The next command, after the word `ost`.
        """
        sys.stdout.write((json.dumps(dict(facts), allow_nan=False) if self.json else several_lines(text)) + "\n")
        sys.stdout.flush()
        if then and not self.json:
            tell("next: " + one_line(shlex.join(["ost", *map(str, then)])))


@dataclass(frozen=True, kw_only=True)
class Writer(Command):
    """What every command has that writes."""

    overwrite: Annotated[bool, OUTPUT] = False
    """Replace what is there from an earlier call."""


@dataclass(frozen=True, kw_only=True)
class ModelRunner(Writer):
    """What every command has that runs a model."""

    set: Annotated[tuple[str, ...], RARELY] = ()
    """Rare options as NAME=VALUE: last_layers of scope last, lora_rank of scope lora, attention, compile, batch_tokens;
    fd_epsilon, group_route, reference_folds, corrupted, agreement, sketch; shard_rows, chunk_rows, readers,
    max_failed_share. The file that `ost init` writes says what each does."""


def with_rare(command: Any) -> Any:
    """A command whose options classes hold what `--set` gives.

    Raises:
        ConfigError: one of them is none of this command, or has a value of another kind.
    """
    if not isinstance(command, ModelRunner):
        return command
    given = dict(_pair(text) for text in command.set)
    for field in dataclasses.fields(command):
        options = getattr(command, field.name)
        names = vars(options).keys() & given.keys() if dataclasses.is_dataclass(options) else ()
        if names:
            values = dataclasses.asdict(options) | {name: given.pop(name) for name in names}
            made = from_plain(type(options), values, where="--set")
            command = dataclasses.replace(command, **{field.name: made})
    if given:
        raise ConfigError(f"--set {next(iter(given))}: no option of this command; there are {', '.join(RARE)}")
    return command


def _pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


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
        self._set_rare(options, arguments, str(path))
        data = {commands[-1]: options} if commands else options
        Dict(data, source=str(path), allow_unknown=self.partly)(app, commands, arguments)

    def _set_rare(self, options: dict[str, Any], arguments: ArgumentCollection, source: str) -> None:
        """Hand rare options over to `--set`, unless it has them from the command line."""
        rare = arguments.get("--set", None)
        if rare is None:
            return
        given = {_pair(token.value)[0] for token in rare.tokens}
        values = {name: options.pop(name) for name in RARE if name in options}
        for name in values.keys() - given:
            text = f"{name}={json.dumps(values[name])}"
            rare.append(Token(keyword="--set", value=text, source=source, index=len(rare.tokens)))


def _leaves(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options nested by owner, as a run records them, one by one; `method: {name, options}` is the method's name.

    An option of the method that the command has too is `method_NAME`.
    """
    for key, value in options.items():
        if key == "method" and isinstance(value, Mapping):
            yield "method", value.get("name")
            for name, leaf in _leaves(value.get("options") or {}):
                yield f"method_{name}" if name in options else name, leaf
        elif isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield key, value


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file; a typo in the name of one must not go unnoticed."""
    from onesteptrain.cli import COMMANDS

    needed = "give the config.yaml of a run, or a section for each command, such as `score:`, with its options indented"
    sections = read_yaml(path, needed)
    for name, options in sections.items():
        if name not in COMMANDS or not isinstance(options, dict):
            raise ConfigError(f"{path} has a section {name!r}, but there is no such command; {needed}")
    return sections
