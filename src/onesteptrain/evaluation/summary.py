"""Accuracy with its uncertainty, in all and by any column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

_Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


class Accuracy(NamedTuple):
    """Share of right answers, with the 95 % interval of Wilson."""

    correct: int
    questions: int
    value: float
    low: float
    high: float


def wilson(correct: int, questions: int) -> Accuracy:
    """The interval holds at 0 % and 100 % and for few questions too, where the usual one has no width.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    share = correct / questions
    shrink = 1 + _Z95**2 / questions
    middle = (share + _Z95**2 / (2 * questions)) / shrink
    half = _Z95 / shrink * math.sqrt(share * (1 - share) / questions + _Z95**2 / (4 * questions**2))
    return Accuracy(correct, questions, share, max(0.0, middle - half), min(1.0, middle + half))


def accuracy_by(graded: Iterable[tuple[object, bool]]) -> dict[str, Accuracy]:
    """Accuracy of each group of graded answers, groups in alphabetical order; a missing group is "-"."""
    groups: dict[str, list[bool]] = {}
    for group, correct in graded:
        groups.setdefault("-" if group is None else str(group), []).append(correct)
    return {name: wilson(sum(marks), len(marks)) for name, marks in sorted(groups.items())}
