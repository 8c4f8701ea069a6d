"""Replies in JSON, or as a Python dict: the value under the key that names the answer."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_NAMES = ("finalanswer", "correctanswer", "answer", "ans", "solution", "result", "choice", "option", "prediction")
"""Keys in small letters alone, the one that counts first."""

_START = re.compile(r"\{(?=\s*[\"'])")
_LATEX = re.compile(r"(?<!\\)\\(?=[A-Za-z]{2}|[()\[\]])")
"""A backslash of LaTeX that was not doubled, as JSON asks for."""

_FLAT = re.compile(r"\{[^{}]*\}")
_MOST = 50
"""Objects of a reply that are looked at."""


class InObject(NamedTuple):
    """An answer in an object, and where the object stands."""

    start: int
    end: int
    answer: str


def answers_in_objects(text: str) -> Iterator[InObject]:
    """The answers of all objects that name one; those inside of other objects are theirs."""
    at = 0
    for match in list(_START.finditer(text))[:_MOST]:
        if match.start() < at:
            continue
        found = _decoded(text, match.start())
        if found is not None and (answer := _answer(found[0])) is not None:
            at = found[1]
            yield InObject(match.start(), at, answer)


def _decoded(text: str, start: int) -> tuple[Mapping[str, Any], int] | None:
    """The object that begins at a place, and where it ends."""
    tail = _LATEX.sub(r"\\\\", text[start:])
    with contextlib.suppress(ValueError, RecursionError):
        value, length = json.JSONDecoder(strict=False).raw_decode(tail)
        return value, len(text) - len(_LATEX.sub(r"\\\\", tail[length:]))
    flat = _FLAT.match(text, start)
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        value = ast.literal_eval(flat[0]) if flat is not None else None
        return (value, flat.end()) if flat is not None and isinstance(value, dict) else None
    return None


def _answer(found: Mapping[Any, Any]) -> str | None:
    """What an object says is the answer; nothing where no key names one, empty where there is none."""
    keys = {re.sub(r"[^a-z]", "", str(key).casefold()): key for key in found}
    name = next((name for name in _NAMES if name in keys), None)
    if name is None:
        return None
    said, unit = _said(found[keys[name]]), found.get(keys.get("unit", keys.get("units")))
    return f"{said} {unit}" if isinstance(unit, str) and re.fullmatch(r"[-+\d.,/]+", said) else said


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            f"{_said(value['value'])} {value.get('unit') or ''}".strip() if "value" in value else _answer(value) or ""
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
