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
    return cls(**_nested(values))


def flat(job: Any) -> dict[str, Any]:
    """A job as the plain values that a file holds."""
    values = dataclasses.asdict(job)
    return plain({**values.pop("recipe"), **values})  # type: ignore[no-any-return]


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    recipe = {name: value for name, value in values.items() if name in _OF_RECIPE}
    rest = {name: value for name, value in values.items() if name not in _OF_RECIPE}
    return {"recipe": Recipe(**recipe), **rest}


def job_from_plain(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Make a job of the plain values of a file.

    Raises:
        ConfigError: a value is missing, unknown, of another type, or has another name now.
    """
    refuse_renamed(values, where=where)
    known = [option.name for option in dataclasses.fields(cls) if option.name != "recipe"]  # type: ignore[arg-type]
    recipe = {name: value for name, value in values.items() if name in _OF_RECIPE}
    rest = {name: value for name, value in values.items() if name not in _OF_RECIPE}
    nested = {"recipe": from_plain(Recipe, recipe, where=where), **rest}
    return from_plain(cls, nested, where=where, known=[*sorted(_OF_RECIPE), *known])
