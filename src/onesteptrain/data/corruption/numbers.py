"""Numbers in texts: found as they are written, and changed so that they look the same and say something else."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

_NUMBER = re.compile(r"(?<!\d)(?:\d{1,3}(?:([,.'’\u00a0\u202f])\d{3})(?:\1\d{3})*(?:[.,]\d+)?(?!\d)|\d+(?:\.\d+)?)")
_LABEL_BEFORE = re.compile(
    r"(?:[_^]\{?-?|(?<![^\W\d_])[^\W\d_]|\b(?:steps?|cases?|figures?|fig\.|parts?|methods?|equations?|eq\.|no\.)\s*)\Z",
    re.IGNORECASE,
)
"""Indices and exponents, x1 and O2, "Step 1"."""

_LABEL_AFTER = re.compile(r"(?:st|nd|rd|th|-?D)\b")
_MARKER = re.compile(r"(?m)^[ \t>*#-]*\(?\d{1,2}[.):](?=\s)|\(\d\)|\[\d{1,2}\]|\w+://\S+")
"""List markers at the start of a line, references such as (1), and addresses."""

_MOST_DIGITS = 18
"""A longer row of digits is no quantity."""


class Number(NamedTuple):
    """A number without its sign, as it stands in a text."""

    start: int
    text: str

    @property
    def end(self) -> int:
        """The place after it."""
        return self.start + len(self.text)

    @property
    def digits(self) -> int:
        """All its digits as one whole number."""
        return int("".join(filter(str.isdecimal, self.text)))

    @property
    def decimals(self) -> int:
        """Digits behind the decimal point: behind the last mark, unless that groups thousands."""
        mark = re.search(r"[.,](\d+)\Z", self.text)
        marks = [character for character in self.text if not character.isdecimal()]
        grouped = not marks or marks.count(marks[-1]) > 1 or (marks == [","] and len(self.text) > 4)
        return 0 if mark is None or grouped else len(mark[1])

    @property
    def value(self) -> float:
        """What it amounts to."""
        return self.digits / float(10**self.decimals)


def numbers(text: str) -> list[Number]:
    """The quantities of a text; no list markers, indices, exponents, ordinals or labels such as "Step 2"."""
    return list(_quantities(text))


def same_value(one: Number, other: Number) -> bool:
    """Whether two numbers are equal, as 4,866 and 4866.00 are."""
    return one.value == other.value


def change(number: Number, chance: random.Random) -> Number:
    """Another number with as many digits: one digit replaced, or up to 3 more or less in the last digit.

    Only the first four digits that count are changed, as one further behind would hardly be an error.
    """
    value, width = number.digits, sum(map(str.isdecimal, number.text))
    least = 10 ** (width - 1) if width > 1 and value >= 10 ** (width - 1) else 1
    last = max(0, len(str(value)) - 4)
    near = [value + step * 10**last for step in (-3, -2, -1, 1, 2, 3)]
    places = [10**place for place in range(last, width)]
    replaced = [value + (digit - value // place % 10) * place for place in places for digit in range(10)]
    new = [other for other in (near if chance.random() < 0.5 else replaced) if other != value]
    return written(chance.choice([other for other in new if least <= other < 10**width]), number)


def written(digits: int, like: Number) -> Number:
    """Digits in the places of another number's, between its marks and in its script."""
    width = sum(map(str.isdecimal, like.text))
    new = iter(str(digits).zfill(width))
    return Number(like.start, "".join(_digit(next(new), old) if old.isdecimal() else old for old in like.text))


def _quantities(text: str) -> Iterator[Number]:
    taken = {place for match in _MARKER.finditer(text) for place in range(*match.span())}
    for match in _NUMBER.finditer(text):
        before, after = text[max(0, match.start() - 12) : match.start()], text[match.end() : match.end() + 3]
        digits = sum(map(str.isdecimal, match[0]))
        if match.start() in taken or digits > _MOST_DIGITS:
            continue
        if not _LABEL_BEFORE.search(before) and not _LABEL_AFTER.match(after):
            yield Number(match.start(), match[0])


def _digit(new: str, like: str) -> str:
    return chr(ord(like) - unicodedata.decimal(like) + int(new))
