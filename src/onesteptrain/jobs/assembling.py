"""A job, which holds a recipe, and its file, where the keys of the recipe stand beside the others.

Apart from `reading`, which every command needs at once: a recipe loads torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from onesteptrain.jobs.reading import from_plain, refuse_renamed
from onesteptrain.jobs.recipe import Recipe
from onesteptrain.jobs.steps import plain

T = TypeVar("T")

_OF_RECIPE = {option.name for option in dataclasses.fields(Recipe)}


def assemble(cls: type[T], values: Mapping[str, Any]) -> T:
    """A job of the values of its fields, those of its recipe beside the others."""
    recipe, rest = _split(values)
    return cls(**{"recipe": Recipe(**recipe), **rest})


def flat(job: Any) -> dict[str, Any]:
    """A job as the plain values that a file holds."""
    values = dataclasses.asdict(job)
    return plain({**values.pop("recipe"), **values})  # type: ignore[no-any-return]


def job_from_plain(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make a job of the plain values of a file.

    Raises:
        ConfigError: a value is missing, unknown, of another type, or has another name now.
    """
    refuse_renamed(values, where=where)
    known = [option.name for option in dataclasses.fields(cls) if option.name != "recipe"]  # type: ignore[arg-type]
    recipe, rest = _split(values)
    nested = {"recipe": from_plain(Recipe, recipe, where=where), **rest}
    return from_plain(cls, nested, where=where, known=[*sorted(_OF_RECIPE), *known])


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of the recipe, and the others."""
    recipe = {name: value for name, value in values.items() if name in _OF_RECIPE}
    return recipe, {name: value for name, value in values.items() if name not in _OF_RECIPE}
