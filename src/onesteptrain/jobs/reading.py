"""Options from YAML: the one reader of `ost run`, `ost compare` and `--config`.

What stands under a key is checked against the type of the field that it names. A key of an earlier version is refused
with the name that it has now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onesteptrain.errors import ConfigError
from onesteptrain.selection import SelectOptions
from onesteptrain.storage.plain_yaml import parse_yaml

T = TypeVar("T")

RENAMED = {
    "working": "scoring",
    "checking": "anchor_reading",
    "reading": "pool_reading",
    "second_look": "second_pass",
    **{option.name: f"select.{option.name}" for option in dataclasses.fields(SelectOptions)},
}
"""Keys of earlier versions, and where they are now."""


def read_yaml(file: Path, needed: str, *, section: str | None = None) -> dict[str, Any]:
    """The keys of a YAML file.

    Args:
        file: The file.
        needed: What to give in place of a file that cannot be used.
        section: The keys may stand one level down, under this name alone.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; {needed}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no YAML ({error}); mend the file") from error
    content = parse_yaml(text, file)
    if isinstance(content, dict) and set(content) == {section}:
        content = content[section]
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no options; {needed}")
    return content


def with_overrides(values: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Values in which options of a command line, such as `--score.step-size 1e-4`, win.

    Raises:
        ConfigError: a word belongs to no option.
    """
    merged: dict[str, Any] = {**values}
    options: list[tuple[list[str], list[str]]] = []
    for token in tokens:
        if token.startswith("--"):
            name, _, value = token.removeprefix("--").partition("=")
            options.append((name.replace("-", "_").split("."), [value] if value else []))
        elif options:
            options[-1][1].append(token)
        else:
            raise ConfigError(f"{token!r} belongs to no option; give options such as --score.step-size 1e-4")
    for path, words in options:
        inside = merged
        for name in path[:-1]:
            inside[name] = {**inside[name]} if isinstance(inside.get(name), Mapping) else {}
            inside = inside[name]
        parsed = [parse_yaml(word, word) for word in words] or [True]
        several = len(parsed) > 1 or isinstance(inside.get(path[-1]), list | tuple)
        inside[path[-1]] = parsed if several else parsed[0]
    return merged


def refuse_renamed(values: Mapping[str, Any], *, where: str) -> None:
    """Refuse keys of earlier versions.

    Raises:
        ConfigError: there is one.
    """
    for name in RENAMED.keys() & values.keys():
        raise ConfigError(f"{where}: {name} is now {RENAMED[name]}; write it there")


def from_plain(cls: type[T], values: Mapping[str, Any], *, where: str, known: Sequence[str] | None = None) -> T:
    """Make a dataclass of plain values, checked against its types; a name that it does not know is refused.

    Raises:
        ConfigError: a value is missing, unknown or of another type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    # plain dataclasses inside take over the strictness of the one around them; 300 is a budget as good as "300"
    strict = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    body = {"__annotations__": {"value": cls}, "__pydantic_config__": strict}
    holder: Any = dataclass(type("Holder", (), body))
    try:
        made: T = TypeAdapter(holder).validate_python({"value": dict(values)}).value
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise ConfigError(f"{where}: {cause}") from error
        place = ".".join(str(part) for part in first["loc"][1:])
        names = known or [option.name for option in dataclasses.fields(cls)]  # type: ignore[arg-type]
        told = f"; its options are {', '.join(names)}" if len(first["loc"]) == 2 else ""
        raise ConfigError(f"{where}: {place}: {first['msg']}{told}") from error
    return made
