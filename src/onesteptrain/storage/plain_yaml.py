"""YAML as plain values, from files that nobody vouches for: no key twice, no alias or nesting without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from onesteptrain.errors import ConfigError

_MOST_VALUES, _DEEPEST = 100_000, 50


def parse_yaml(text: str, where: str | Path) -> Any:
    """The values of a YAML text; aliases may stand in it, as long as what they spell out is not endless.

    Args:
        text: The YAML.
        where: How messages call it.

    Raises:
        ConfigError: it is no YAML, or not plain.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {}, (), where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise _too_deep(where) from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is no YAML ({' '.join(str(error).split())}); mend it") from error


def _measure(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...], where: str | Path) -> int:
    """Number of values that a node stands for, those of aliases each time; refuses what is not plain."""
    if id(node) in above or len(above) > _DEEPEST:
        raise _too_deep(where)
    if id(node) not in sizes:
        inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node, where)
        parts = inside if isinstance(node, yaml.CollectionNode) else []
        sizes[id(node)] = 1 + sum(_measure(part, sizes, (*above, id(node)), where) for part in parts)
        if sizes[id(node)] > _MOST_VALUES:
            raise ConfigError(f"{where} spells out more than {_MOST_VALUES} values, by aliases; write them out")
    return sizes[id(node)]


def _refuse_repeated(node: yaml.MappingNode, where: str | Path) -> None:
    names = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where} has the key {name!r} twice; keep one")


def _too_deep(where: str | Path) -> ConfigError:
    return ConfigError(f"{where} is nested more than {_DEEPEST} levels deep, or in itself; mend it")
