"""Answers that are more than one value: lists, pairs and sets, equations, ratios and times of day."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

_BETWEEN = re.compile(r"\s*(?:,\s*(?:and|or)\b|[,;]|\b(?:and|or)\b|&)\s*")
_OPEN, _CLOSE = "([{", ")]}"
_NAME = r"(?:[A-Za-z]|\\[a-z]+|[A-Za-z]_\{?\w+\}?)(?:\s*\([a-z]\))?"
_ASSIGNED = re.compile(rf"({_NAME}|[A-Za-z ]{{2,40}})\s*=\s*([^=<>]+)")
_CLOCK = re.compile(r"(\d{1,2})\s*:\s*([0-5]\d)(?::\d\d)?\s*(?:([ap])\.?\s?m\.?|noon|hours|h)?", re.IGNORECASE)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+|\d+(?:\.\d+)?\s+to\s+\d+(?:\.\d+)?")
_FRACTION = re.compile(r"(\d+)\s*/\s*(\d+)|\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}")


class Parts(NamedTuple):
    """The values of an answer; one where it is no list."""

    items: tuple[str, ...]
    brackets: str
    """The pair around them, such as "()"; nothing around a bare list."""

    unordered: bool
    """Their order means nothing: a set, or a list with "and" or "or"; equations are sorted by name."""

    def all(self, holds: Callable[[str], bool]) -> bool:
        """Whether something holds for each of several values."""
        return len(self.items) > 1 and all(holds(item) for item in self.items)

    def fits(self, other: Parts) -> bool:
        """Whether the brackets agree; a bare list goes with any."""
        return not self.brackets or not other.brackets or self.brackets == other.brackets


def parts_of(text: str) -> Parts:
    """Split an answer at its outer commas and its outer "and" and "or"."""
    brackets = _around(text)
    inner = text.strip().replace("\\{", "{").replace("\\}", "}")[1:-1] if brackets else text
    items, joints = _split(inner)
    names = [match[1] for item in items if (match := _ASSIGNED.fullmatch(item)) is not None]
    unordered = brackets == "{}" or any(re.search("and|or|&", joint) for joint in joints)
    if len(names) == len(items) == len(set(names)) > 1:
        items, unordered = sorted(items), False
    if len(items) == 1 or not all(items):
        return Parts((text,), "", False)
    return Parts(tuple(items), brackets, unordered)


def value_of_equation(text: str, other: str) -> str:
    """The value that an equation ends in, or gives its one name; an equation as it is where the other is one too.

    A chain such as 3 + 5 = 8 ends in its value. Commas and words end an expression, so nothing is taken from behind
    them.
    """
    sides = [side.strip() for side in re.split(r"(?<![<>!\\])=", text)]
    if len(sides) == 1 or not all(sides):
        return text
    if len(sides) == 2 and re.fullmatch(_NAME, sides[1]) and re.search(r"\d", sides[0]):
        sides = sides[::-1]
    if "=" in other:
        theirs = other.partition("=")[0].strip()
        return (
            sides[-1]
            if theirs == sides[0] or (not re.fullmatch(_NAME, sides[0]) and not re.fullmatch(_NAME, theirs))
            else text
        )
    return sides[-1]


def quantities(stated: str, gold: str) -> bool | None:
    """Whether two times of day or ratios are the same; nothing where there is none to compare."""
    clocks = _CLOCK.fullmatch(stated), _CLOCK.fullmatch(gold)
    if clocks[1] is not None and (clocks[0] is not None or _RATIO.fullmatch(stated)):
        return clocks[0] is not None and _same_time(clocks[0], clocks[1])
    got, wanted = _ratio(stated), _ratio(gold)
    if not _RATIO.fullmatch(stated) and not _RATIO.fullmatch(gold):
        return None
    if ("to" in stated and ":" not in gold) or ("to" in gold and ":" not in stated):
        return stated == gold
    return got is not None and got == wanted


def _around(text: str) -> str:
    """The brackets that open before the first and close after the last sign, if one pair does."""
    text = text.strip().replace("\\{", "{").replace("\\}", "}")
    if len(text) < 2 or text[0] not in _OPEN or text[-1] not in _CLOSE:
        return ""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in _OPEN) - (sign in _CLOSE)
        if depth == 0:
            return text[0] + text[-1] if place == len(text) - 1 else ""
    return ""


def _split(text: str) -> tuple[list[str], list[str]]:
    """The pieces between separators that no bracket holds, and those separators."""
    pieces, joints, start = [], [], 0
    for match in _BETWEEN.finditer(text):
        before = text[: match.start()]
        if sum(map(before.count, _OPEN)) == sum(map(before.count, _CLOSE)):
            pieces.append(text[start : match.start()].strip())
            joints.append(match[0])
            start = match.end()
    return [*pieces, text[start:].strip()], joints


def _same_time(stated: re.Match[str], gold: re.Match[str]) -> bool:
    halves = [match[3].lower() if match[3] else None for match in (stated, gold)]
    hours = [int(match[1]) for match in (stated, gold)]
    if stated[2] != gold[2]:
        return False
    if None not in halves:
        return hours[0] == hours[1] and halves[0] == halves[1]
    day = [hour % 12 + 12 * (half == "p") if half else hour for hour, half in zip(hours, halves, strict=True)]
    return hours[0] == hours[1] or day[0] == day[1]


def _ratio(text: str) -> tuple[Fraction, ...] | None:
    """The terms of a ratio or fraction, in shares of the last one."""
    if (match := _FRACTION.fullmatch(text)) is not None:
        terms = [part for part in match.groups() if part]
    elif _RATIO.fullmatch(text) is not None:
        terms = re.split(r"\s*(?::|to)\s*", text)
    else:
        return None
    last = Fraction(terms[-1])
    return tuple(Fraction(term) / last for term in terms) if last else None
