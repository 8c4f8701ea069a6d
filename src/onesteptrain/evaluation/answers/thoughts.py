"""Thoughts that a model writes before its reply: they are no part of it, and nothing in them is an answer."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|seed:think"
_OPENED = re.compile(rf"<\s*(?:{_NAMES})\s*>|◁think▷|\[THINK\]|<\|begin_of_thought\|>", re.IGNORECASE)
_CLOSED = re.compile(rf"<\s*/\s*(?:{_NAMES})\s*>|◁/think▷|\[/THINK\]|<\|end_of_thought\|>", re.IGNORECASE)


def without_thoughts(reply: str) -> str | None:
    """What a reply says after and between its thoughts; nothing where a thought has no end.

    A reply to a prompt that ends in an opening tag begins inside the thought, so what stands before a lone closing tag
    is thought too.
    """
    said, rest = "", reply
    while True:
        opened, closed = _OPENED.search(rest), _CLOSED.search(rest)
        if opened is None and closed is None:
            return said + rest
        if closed is None:
            return None
        if opened is None or closed.start() < opened.start():
            said = ""
        else:
            said += rest[: opened.start()]
        rest = rest[closed.end() :]
