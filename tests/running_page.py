"""The keys of `ost run` as docs/running.md lists them: `python -m tests.running_page` writes the tables anew."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from onesteptrain.jobs.job import Job
from onesteptrain.jobs.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "running.md"
START = "## All keys\n"


def docstrings(cls: type) -> dict[str, str]:
    """What stands under each field of a dataclass."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id: " ".join(said.value.value.split())
        for field, said in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
    }


def default_of(field: dataclasses.Field) -> str:
    """A default as YAML has it."""
    value = field.default
    if value is dataclasses.MISSING or value is None:
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def rows(cls: type, under: str = "") -> Iterator[str]:
    """A line for each key, and those of what is nested in it after the others."""
    said, types = docstrings(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = types[field.name]
        if kind is Recipe:
            continue
        nested = dataclasses.is_dataclass(kind)
        default = "" if nested else default_of(field)
        text = said.get(field.name, "").replace("|", "\\|")
        yield f"| `{under}{field.name}` | {default} | {text} |"
        if nested:
            yield from rows(kind, f"{under}{field.name}.")


def tables() -> str:
    """The tables of the page."""
    head = "| key | default | |\n| --- | --- | --- |\n"
    parts = {"The job": Job, "Pool, anchors, proxy": Recipe}
    return "\n".join(f"\n### {title}\n\n{head}" + "\n".join(rows(cls)) + "\n" for title, cls in parts.items())


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"(?<={re.escape(START)}).*", lambda _: tables(), page, flags=re.S), encoding="utf-8")
