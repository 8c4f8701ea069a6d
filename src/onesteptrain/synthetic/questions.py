"""What is asked about the digits, and the answer with its reasoning line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Skill = Literal["sum", "difference", "product", "count"]

SKILLS: tuple[Skill, ...] = ("sum", "difference", "product", "count")

QUESTIONS: dict[Skill, tuple[str, ...]] = {
    "sum": ("What is the sum of all digits?", "Add up all the digits.", "What do the digits add up to?"),
    "difference": (
        "What is the largest digit minus the smallest?",
        "How much larger is the largest digit than the smallest?",
        "Subtract the smallest digit from the largest.",
    ),
    "product": (
        "What is the first digit times the last?",
        "Multiply the first digit by the last.",
        "What is the product of the first and the last digit?",
    ),
    "count": ("How many digits are odd?", "Count the odd digits.", "What is the number of odd digits?"),
}


class Solution(NamedTuple):
    """A worked answer in parts, so that a world can spoil one part and keep the others."""

    reading: str
    """What the picture shows."""

    working: str
    """The steps from there."""

    result: int

    @property
    def text(self) -> str:
        """The answer as it stands in the pool."""
        return f"{self.reading} {self.working} The answer is {self.result}."


def solve(skill: Skill, digits: Sequence[int], slip: int = 0) -> Solution:
    """Work out a question.

    Args:
        skill: What is asked.
        digits: What the picture shows, or is taken to show.
        slip: Added to the last result of the working: an arithmetic slip.
    """
    working, result = _WORKINGS[skill](digits, slip)
    return Solution(read(digits), working, result)


def read(digits: Sequence[int]) -> str:
    """The sentence that says what the picture shows; terse, as every token costs the demo time."""
    return f"The digits: {','.join(map(str, digits))}."


def _sum(digits: Sequence[int], slip: int) -> tuple[str, int]:
    steps = []
    total = digits[0]
    for place, digit in enumerate(digits[1:], start=2):
        after = total + digit + (slip if place == len(digits) else 0)
        steps.append(f"{total}+{digit}={after}")
        total = after
    return ",".join(steps) + ".", total


def _difference(digits: Sequence[int], slip: int) -> tuple[str, int]:
    largest, smallest = max(digits), min(digits)
    result = largest - smallest + slip
    return f"{largest}-{smallest}={result}.", result


def _product(digits: Sequence[int], slip: int) -> tuple[str, int]:
    result = digits[0] * digits[-1] + slip
    return f"{digits[0]}x{digits[-1]}={result}.", result


def _count(digits: Sequence[int], slip: int) -> tuple[str, int]:
    odd = [str(digit) for digit in digits if digit % 2]
    result = len(odd) + slip
    return (f"Odd: {','.join(odd)}." if odd else "None is odd."), result


_WORKINGS: dict[Skill, Callable[[Sequence[int], int], tuple[str, int]]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "count": _count,
}
