"""A YAML file for `ost run` to begin with: each key with what it means, and what is known of the user's own files."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from onesteptrain.data.pool import Pool, Sample, open_pool
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.jobs.job import Job
from onesteptrain.jobs.recipe import Recipe
from onesteptrain.storage.atomic import write_text

_LOOKED_AT = 500
"""Rows whose columns are looked at."""

_MOST_STRATA = 20
_EVERYDAY = ("pool", "anchors", "heldout", "anchor_by", "proxy", "out", "keep")


def field_docs(cls: type) -> dict[str, str]:
    """What the fields of a dataclass mean, by their names: the strings below them in its source."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        for field, below in itertools.pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs


def job_keys() -> Iterator[tuple[str, str, Any]]:
    """Name, meaning and default of each key that a job file may hold, the everyday ones first."""
    docs = {name: doc for cls in (Recipe, Job) for name, doc in field_docs(cls).items()}
    defaults = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for cls in (Recipe, Job)
        for field in dataclasses.fields(cls)
        if field.name != "recipe"
    }
    for name in (*_EVERYDAY, *(name for name in defaults if name not in _EVERYDAY)):
        yield name, docs.get(name, ""), defaults[name]


def job_template(
    pool: Path, *, heldout: Path | None = None, anchors: Path | None = None, proxy: str, out: Path = Path("run")
) -> str:
    """The text of a job file for a user's own files.

    Raises:
        ConfigError: neither or both of heldout and anchors are given.
        PoolError: a file cannot be read.
    """
    if (heldout is None) == (anchors is None):
        raise ConfigError("give either --heldout (a file to draw anchors from) or --anchors (a file to use)")
    opened, trusted = open_pool(pool), open_pool(heldout or anchors or pool)
    strata = _strata(trusted) if heldout is not None else []
    given: dict[str, Any] = {
        "pool": str(pool),
        "heldout": heldout and str(heldout),
        "anchors": anchors and str(anchors),
    }
    given |= {"anchor_by": strata or None, "proxy": proxy, "out": str(out), "keep": ["20%"]}
    if heldout is not None and len(trusted) < 100:
        given["anchor_count"] = len(trusted)
    lines = [f"## {len(opened)} rows in {pool}, {len(trusted)} in {heldout or anchors}."]
    lines += ["## What stands behind one # is the default; take the # away to change it.", ""]
    for name, meaning, default in job_keys():
        lines += textwrap.wrap(meaning, 100, initial_indent="## ", subsequent_indent="## ")
        lines += [_line(name, given[name])] if given.get(name) else _default(name, default)
        lines.append("")
    return "\n".join(lines)


def write_job_file(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a job file.

    Raises:
        RunError: it exists.
    """
    if path.exists() and not overwrite:
        raise RunError(f"output {path} exists; give another --out, or add --overwrite")
    write_text(path, text)


def _strata(pool: Pool) -> list[str]:
    """Columns with a few values, none of which stands in most of the rows alone."""
    values: dict[str, list[Any]] = defaultdict(list)
    rows = [row for row in itertools.islice(pool, _LOOKED_AT) if isinstance(row, Sample)]
    for row in rows:
        for name, value in row.fields.items():
            if isinstance(value, str | int):
                values[name].append(value)
    whole = {name: set(column) for name, column in values.items() if len(column) == len(rows)}
    return [name for name, kinds in whole.items() if 2 <= len(kinds) <= min(_MOST_STRATA, len(rows) // 2)][:2]


def _line(name: str, value: Any) -> str:
    """A key with its value, or alone where it has none."""
    if value is None or value is dataclasses.MISSING:
        return f"{name}:"
    text = yaml.safe_dump(
        [list(value) if isinstance(value, tuple) else value], default_flow_style=True, allow_unicode=True, width=1000
    )
    return f"{name}: {text.strip()[1:-1]}"


def _default(name: str, default: Any) -> list[str]:
    """A key as a comment; options one level down come with what they mean."""
    if not dataclasses.is_dataclass(default):
        return [f"# {_line(name, default)}"]
    docs = field_docs(type(default))
    lines = [f"# {name}:"]
    for field in dataclasses.fields(default):
        lines += textwrap.wrap(docs.get(field.name, ""), 96, initial_indent="#   ## ", subsequent_indent="#   ## ")
        lines.append(f"#   {_line(field.name, getattr(default, field.name))}")
    return lines
