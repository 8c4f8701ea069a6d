r"""Text of a sample on its way into a prompt: it must stay data, whatever it says.

A chat template turns messages into one string, and a tokenizer reads control tokens such as `<|im_end|>` out of that
string, even where a sample wrote them. Two ways to take this power from a text:

- `quoted`, where the text is shown to be graded: JSON on one line, in which angle brackets, square-bracket tokens,
  line breaks, invisible characters and look-alikes of brackets are written as \uXXXX. Nothing is lost.
- `neutral`, where the text is asked as it is: a space is put behind the opening bracket of everything that could be a
  control token. Other texts are left alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_NONCE_DIGITS = 20
_ANGLED = re.compile(r"([<＜﹤])(?=[^\s<>＜﹤＞﹥]+[>＞﹥])")
_SQUARE = re.compile(r"\[(?=/?[A-Za-z_]{3,}\])")
_TO_JUDGE = re.compile(r"[<>\x7f]|[^\x00-\x7f]")
_STRUCTURE = frozenset('<>[]{}|"\\')
_INVISIBLE = {"Cc", "Cf", "Co", "Zl", "Zp"}
"""Control, format and private characters, line and paragraph separators."""

_JOINERS = "\u200c\u200d"
"""Format characters that some scripts and emoji are written with."""


def neutral(text: str) -> str:
    """The text with a space behind the opening bracket of all that could be a control token."""
    return _SQUARE.sub("[ ", _ANGLED.sub(r"\1 ", encodable(text)))


def quoted(value: Any) -> str:
    """A value as JSON on one line that neither ends its line nor holds a control token."""
    line = _TO_JUDGE.sub(lambda found: _escaped(found[0]), encodable(json.dumps(value, ensure_ascii=False)))
    return _SQUARE.sub(r"\\u005b", line)


def nonce(parts: Sequence[str]) -> str:
    """A code that follows from all that a prompt shows: 20 hexadecimal digits.

    A text that holds the code of its own prompt could only be found by trying, about 2**80 times.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(encodable(part).encode()).digest())
    return digest.hexdigest()[:_NONCE_DIGITS]


def encodable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


@functools.lru_cache(maxsize=4096)
def _escaped(char: str) -> str:
    """The JSON escape of a bracket, of an invisible character and of a look-alike; another character as it is."""
    plain = set(unicodedata.normalize("NFKC", char))
    hidden = unicodedata.category(char) in _INVISIBLE and char not in _JOINERS
    if not (hidden or _STRUCTURE & plain):
        return char
    return f"\\u{ord(char):04x}" if char.isascii() else json.dumps(char)[1:-1]
