"""Answers in chat templates that write thoughts: their prompt opens one, they add empty ones, or take old ones out.

What the template itself writes around an answer is no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Messages = list[dict[str, Any]]
Render = Callable[[Messages, bool], str]

_STAND_IN = "answer-in-question"
_EMPTY = re.compile(r"\s*(?:<think>)?\s*</think>\s*")


def without_wrapper(text: str, span: tuple[int, int], answer: str) -> tuple[int, int]:
    """The range of an answer without an empty thought in front of it that the answer does not have itself."""
    wrapper = _EMPTY.match(text, *span)
    if wrapper is None or _EMPTY.match(answer):
        return span
    return wrapper.end(), span[1]


def span_by_stand_in(render: Render, messages: Messages, index: int, full: str) -> tuple[int, int] | None:
    """Where an answer stands in a rendered conversation, as another text in its place shows; nothing where none does.

    Templates that treat the last turn differently, or a generation prompt that opens a thought, do not matter here.
    """
    content = [{"type": "text", "text": _STAND_IN}]
    instead = [*messages[:index], {**messages[index], "content": content}, *messages[index + 1 :]]
    before, found, behind = render(instead, False).partition(_STAND_IN)
    end = len(full) - len(behind)
    if not found or not full.startswith(before) or not full.endswith(behind) or end <= len(before):
        return None
    mark = render(instead[: index + 1], False).rpartition(_STAND_IN)[2].rstrip()
    return len(before), end + (len(mark) if behind.startswith(mark) else 0)


def kept_forms(answer: str) -> Sequence[str]:
    """What a template may keep of an answer: all, all behind the tag that its prompt has opened, or no thoughts."""
    return (answer, answer.removeprefix("<think>"), answer.rpartition("</think>")[2])
