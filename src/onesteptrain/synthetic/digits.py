"""The digits data: arithmetic on pictures of real handwritten digits (UCI, by way of scikit-learn).

Pool, held-out rows and benchmark share no scan of a digit.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onesteptrain.errors import MissingExtraError
from onesteptrain.synthetic.problem import Part, Problem, Solution, Span

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

CONFUSED = {3: 8, 1: 7}
"""What most misread rows have in common: digits that are taken for another, always the same."""

MISUNDERSTOOD: Skill = "difference"
"""The skill that wrong operations gather at, as a teacher's misunderstandings do: its rows are mostly bad."""

INSTEAD: dict[Skill, Skill] = {"sum": "difference", "difference": "sum", "product": "sum", "count": "difference"}
"""Wrong operation: what is done in place of what was asked, always the same."""

OFF_TOPIC = (
    "The picture was taken on a sunny day. There are {} trees and {} birds.",
    "I think this is about sport. The team scored {} points in {} games.",
    "Thank you for asking. Please call us at number {} before {} o'clock.",
    "The recipe needs {} eggs and {} grams of flour.",
)

CELL = 16
"""Side of the square that one digit fills, in pixels."""

COLUMNS = 2
"""A picture has 2 x 2 cells: at most four digits."""

_SHARES: dict[Part, float] = {"pretrain": 0.10, "pool": 0.50, "heldout": 0.15, "benchmark": 0.25}


class Drawing(NamedTuple):
    """How a picture shows some digits: everything that is not the digits themselves."""

    scans: tuple[int, ...]
    """Which scan of its digit stands in for each digit."""

    cells: tuple[int, ...]
    """Rising cell numbers, in reading order."""

    shifts: tuple[tuple[int, int], ...]
    """Pixels to the right and down, from 0 to 2."""

    ink: float
    """Brightness of the strokes, from 0 to 1."""


@dataclass(frozen=True)
class DigitProblem(Problem):
    """A question about two to four digits; every skill is asked for as often."""

    skill: Skill
    digits: tuple[int, ...]
    """What the picture shows."""

    drawing: Drawing

    noise_kinds: ClassVar = ("misread", "swapped_image", "wrong_operation", "slip", "cut_off", "off_topic")

    @classmethod
    def draw(cls, part: Part, generator: np.random.Generator) -> Self:
        """Draw a clean problem, with scans that a part owns."""
        skill = SKILLS[generator.integers(len(SKILLS))]
        digits = tuple(int(digit) for digit in generator.integers(0, 10, generator.integers(2, 5)))
        wording = int(generator.integers(len(QUESTIONS[skill])))
        drawing = plan(generator, digits, part)
        return cls(skill, digits, drawing, wording=wording, answer=solve(skill, digits).text)

    @property
    def facts(self) -> dict[str, Any]:
        """The skill, and the number of digits."""
        return {"skill": self.skill, "level": len(self.digits)}

    @property
    def question(self) -> str:
        """What the user asks."""
        return QUESTIONS[self.skill][self.wording]

    @property
    def right(self) -> Solution:
        """What the assistant should say."""
        return solve(self.skill, self.digits)

    @property
    def error(self) -> Span | None:
        """Where the answer goes wrong; all of it, off the topic."""
        return Span(0, len(self.answer)) if self.noise == "off_topic" else super().error

    def picture(self, part: Part) -> bytes:
        """Draw the digits as a PNG of 32 x 32 pixels, light on dark."""
        return paint(self.digits, self.drawing, part)

    def spoil(self, kind: str, generator: np.random.Generator) -> Self:
        """Make a clean problem bad in one way; a swapped image is on record, as what the picture shows."""
        if kind == "swapped_image":
            other = self
            while other.digits == self.digits:
                other = self.draw("pool", generator)
            return replace(self, digits=other.digits, drawing=other.drawing, noise=kind)
        return replace(self, answer=_spoiled_answer(self, kind, generator), noise=kind)

    def repeat(self, place: int, generator: np.random.Generator) -> Self:
        """The same scans and question, a little moved, lit and worded otherwise."""
        again = plan(generator, self.digits, "pool")
        drawing = self.drawing._replace(shifts=again.shifts, ink=again.ink)
        wording = int(generator.integers(len(QUESTIONS[self.skill])))
        return replace(self, drawing=drawing, wording=wording, copy_of=place)

    def invites(self, kind: str) -> bool:
        """Whether the fixed confusions fit, or the skill is the misunderstood one."""
        if kind == "misread":
            return bool(set(CONFUSED) & set(self.digits))
        return kind == "wrong_operation" and self.skill == MISUNDERSTOOD


def solve(skill: Skill, digits: Sequence[int], slip: int = 0) -> Solution:
    """Work out a question: a reading, a working, and the result.

    Args:
        skill: What is asked.
        digits: What the picture shows, or is taken to show.
        slip: Added to the last result of the working: an arithmetic slip.
    """
    working, result = _WORKINGS[skill](digits, slip)
    return Solution((read(digits), working), str(result))


def read(digits: Sequence[int]) -> str:
    """The sentence that says what the picture shows; terse, as every token costs the demo time."""
    return f"The digits: {','.join(map(str, digits))}."


@functools.cache
def scans(part: Part) -> tuple[tuple[NDArray[np.float64], ...], ...]:
    """The scans of one part, by digit, 8 x 8 with ink from 0 to 16; no scan is in two parts.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError('the digits data need scikit-learn: pip install "onesteptrain[synthetic]"') from error
    data: Any = load_digits()
    order = np.random.default_rng(2605).permutation(len(data.images))
    starts = np.cumsum([0.0, *_SHARES.values()]) * len(order)
    place = list(_SHARES).index(part)
    mine = order[round(starts[place]) : round(starts[place + 1])]
    return tuple(tuple(data.images[index] for index in mine if data.target[index] == digit) for digit in range(10))


def plan(generator: np.random.Generator, digits: Sequence[int], part: Part) -> Drawing:
    """Choose at random how to show some digits."""
    count = len(digits)
    return Drawing(
        tuple(int(generator.integers(len(scans(part)[digit]))) for digit in digits),
        tuple(sorted(int(cell) for cell in generator.permutation(COLUMNS * COLUMNS)[:count])),
        tuple((int(right), int(down)) for right, down in generator.integers(0, 3, (count, 2))),
        float(generator.uniform(0.75, 1.0)),
    )


def paint(digits: Sequence[int], drawing: Drawing, part: Part) -> bytes:
    """Draw some digits as a PNG of 32 x 32 pixels, light on dark."""
    canvas = np.zeros((COLUMNS * CELL, COLUMNS * CELL))
    for digit, scan, cell, (right, down) in zip(digits, drawing.scans, drawing.cells, drawing.shifts, strict=True):
        ink = Image.fromarray((scans(part)[digit][scan] / 16 * 255).astype(np.uint8))
        large = np.asarray(ink.resize((CELL - 2, CELL - 2), Image.Resampling.BILINEAR), dtype=np.float64)
        top, left = cell // COLUMNS * CELL + down, cell % COLUMNS * CELL + right
        canvas[top : top + CELL - 2, left : left + CELL - 2] = large
    stream = io.BytesIO()
    Image.fromarray((canvas * drawing.ink).astype(np.uint8)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _spoiled_answer(problem: DigitProblem, kind: str, generator: np.random.Generator) -> str:
    skill, digits, right = problem.skill, problem.digits, problem.right.result
    if kind == "misread":
        return solve(skill, _misread(digits, generator)).text
    if kind == "wrong_operation":
        done = [solve(other, digits) for other in (INSTEAD[skill], *SKILLS) if other != skill]
        wrong = [solution.text for solution in done if solution.result != right]
        return wrong[0] if wrong else solve(skill, digits, slip=1).text  # all zeros: nothing differs
    if kind == "slip":
        slips = [slip for slip in (-2, -1, 1, 2) if int(right) + slip >= 0]  # a negative count would give it away
        return solve(skill, digits, slip=int(generator.choice(slips))).text
    if kind == "cut_off":
        end = problem.answer.index(" The answer is")
        return problem.answer[: int(generator.integers(end // 2, end))]
    return OFF_TOPIC[int(generator.integers(len(OFF_TOPIC)))].format(*generator.integers(0, 100, 2))


def _misread(digits: Sequence[int], generator: np.random.Generator) -> tuple[int, ...]:
    """Read some digits as others: three times of four by the fixed confusions, where one fits, else one at random."""
    confused = tuple(CONFUSED.get(digit, digit) for digit in digits)
    if confused != tuple(digits) and generator.random() < 0.75:
        return confused
    wrong = list(digits)
    place = int(generator.integers(len(digits)))
    wrong[place] = (digits[place] + int(generator.integers(1, 10))) % 10
    return tuple(wrong)


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
    return (f"Odd: {','.join(odd)}." if odd else "None is odd."), len(odd) + slip


_WORKINGS: dict[Skill, Callable[[Sequence[int], int], tuple[str, int]]] = {
    "sum": _sum,
    "difference": _difference,
    "product": _product,
    "count": _count,
}
