"""The digits world: arithmetic on pictures of handwritten digits, with planted noise whose labels no method sees.

`onesteptrain.synthetic.files` says what a world consists of. Pool, held-out rows and benchmark share no scan of a
digit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from onesteptrain.synthetic.files import (
    FILES,
    Row,
    Span,
    World,
    first_difference,
    refuse_existing,
    sources,
    write_world,
)
from onesteptrain.synthetic.planting import Craft, PlantingOptions, clean_rows, plant
from onesteptrain.synthetic.questions import QUESTIONS, SKILLS, Skill, solve
from onesteptrain.synthetic.scans import Drawing, Part, draw, plan

__all__ = ["NOISE_KINDS", "OFF_TOPIC", "NoiseKind", "Problem", "World", "WorldOptions", "make_world", "problems"]

NoiseKind = Literal["misread", "swapped_image", "wrong_operation", "slip", "cut_off", "off_topic"]

NOISE_KINDS: tuple[NoiseKind, ...] = ("misread", "swapped_image", "wrong_operation", "slip", "cut_off", "off_topic")

CONFUSED = {3: 8, 1: 7}
"""What most misread rows have in common: digits that are taken for another, always the same."""

MISUNDERSTOOD: Skill = "difference"
"""The skill that wrong operations gather at, as a teacher's misunderstandings do: its rows are mostly bad."""

INSTEAD: dict[Skill, Skill] = {"sum": "difference", "difference": "sum", "product": "sum", "count": "difference"}
"""Wrong operation: what is done in place of what was asked, always the same."""


@dataclass(frozen=True)
class WorldOptions(PlantingOptions):
    """What digits world to make."""

    noise_kinds: tuple[NoiseKind, ...] = NOISE_KINDS
    """What can be wrong with a row."""

    known_kinds: ClassVar[tuple[str, ...]] = NOISE_KINDS


@dataclass(frozen=True)
class Problem:
    """One row before it is written."""

    skill: Skill
    wording: int
    digits: tuple[int, ...]
    """What the picture shows."""

    drawing: Drawing
    answer: str
    """What the assistant says."""

    result: int
    """What is right."""

    noise: NoiseKind | None = None
    copy_of: int | None = None
    """Place of the row that this one repeats."""

    @property
    def question(self) -> str:
        """What the user asks."""
        return QUESTIONS[self.skill][self.wording]

    @property
    def error(self) -> Span | None:
        """Where the answer goes wrong."""
        if self.noise is None:
            return None
        if self.noise == "off_topic":
            return Span(0, len(self.answer))
        return first_difference(self.answer, solve(self.skill, self.digits).text)


def make_world(options: WorldOptions, folder: Path) -> World:
    """Make a world in a new folder, which appears whole or not at all.

    Raises:
        RunError: the folder exists.
        MissingExtraError: scikit-learn is not installed.
    """
    refuse_existing(folder)
    chance = sources(options.seed)
    rows = {
        "pool": noisy_problems(options, chance["pool"]),
        "heldout": problems(options.heldout_rows, "heldout", chance["heldout"]),
        "benchmark": problems(options.benchmark_rows, "benchmark", chance["benchmark"]),
    }
    return write_world(folder, {name: [_row(one, name) for one in rows[name]] for name in FILES}, options.seed)


def problems(count: int, part: Part, generator: np.random.Generator) -> list[Problem]:
    """Draw clean problems: every skill as often, two to four digits."""
    drawn = []
    for _ in range(count):
        skill = SKILLS[generator.integers(len(SKILLS))]
        digits = tuple(int(digit) for digit in generator.integers(0, 10, generator.integers(2, 5)))
        wording = int(generator.integers(len(QUESTIONS[skill])))
        solution = solve(skill, digits)
        drawn.append(Problem(skill, wording, digits, plan(generator, digits, part), solution.text, solution.result))
    return drawn


def noisy_problems(options: WorldOptions, generator: np.random.Generator) -> list[Problem]:
    """Draw the pool: clean problems, some of them spoiled, and near-duplicates of both in the same share."""
    craft = Craft(spoil=spoil, repeat=_near_copy, allows=lambda *_: True, invites=_invites)
    return plant(problems(clean_rows(options), "pool", generator), options.noise_kinds, options, generator, craft)


def _invites(problem: Problem, kind: NoiseKind) -> bool:
    if kind == "misread":
        return bool(set(CONFUSED) & set(problem.digits))
    return kind == "wrong_operation" and problem.skill == MISUNDERSTOOD


def spoil(problem: Problem, kind: NoiseKind, generator: np.random.Generator) -> Problem:
    """Make a clean problem bad in one way; what is right stays on record."""
    if kind == "swapped_image":
        other = _another(problem, generator)
        right = solve(problem.skill, other.digits).result
        return replace(problem, digits=other.digits, drawing=other.drawing, result=right, noise=kind)
    return replace(problem, answer=_spoiled_answer(problem, kind, generator), noise=kind)


def _spoiled_answer(problem: Problem, kind: NoiseKind, generator: np.random.Generator) -> str:
    if kind == "misread":
        return solve(problem.skill, _misread(problem.digits, generator)).text
    if kind == "wrong_operation":
        done = [solve(skill, problem.digits) for skill in (INSTEAD[problem.skill], *SKILLS) if skill != problem.skill]
        wrong = [one.text for one in done if one.result != problem.result]
        return wrong[0] if wrong else solve(problem.skill, problem.digits, slip=1).text  # all zeros: nothing differs
    if kind == "slip":
        slips = [slip for slip in (-2, -1, 1, 2) if problem.result + slip >= 0]  # a negative count would give it away
        return solve(problem.skill, problem.digits, slip=int(generator.choice(slips))).text
    if kind == "cut_off":
        end = problem.answer.index(" The answer is")
        return problem.answer[: int(generator.integers(end // 2, end))]
    return OFF_TOPIC[int(generator.integers(len(OFF_TOPIC)))].format(*generator.integers(0, 100, 2))


OFF_TOPIC = (
    "The picture was taken on a sunny day. There are {} trees and {} birds.",
    "I think this is about sport. The team scored {} points in {} games.",
    "Thank you for asking. Please call us at number {} before {} o'clock.",
    "The recipe needs {} eggs and {} grams of flour.",
)


def _misread(digits: Sequence[int], generator: np.random.Generator) -> tuple[int, ...]:
    """Read some digits as others: three times of four by the fixed confusions, where one fits, else one at random."""
    confused = tuple(CONFUSED.get(digit, digit) for digit in digits)
    if confused != tuple(digits) and generator.random() < 0.75:
        return confused
    wrong = list(digits)
    place = int(generator.integers(len(digits)))
    wrong[place] = (digits[place] + int(generator.integers(1, 10))) % 10
    return tuple(wrong)


def _near_copy(problem: Problem, source: int, generator: np.random.Generator) -> Problem:
    """The same scans and question, a little moved, lit and worded otherwise."""
    again = plan(generator, problem.digits, "pool")
    drawing = problem.drawing._replace(shifts=again.shifts, ink=again.ink)
    wording = int(generator.integers(len(QUESTIONS[problem.skill])))
    return replace(problem, drawing=drawing, wording=wording, copy_of=source)


def _another(problem: Problem, generator: np.random.Generator) -> Problem:
    while True:
        (found,) = problems(1, "pool", generator)
        if found.digits != problem.digits:
            return found


def _row(problem: Problem, part: Part) -> Row:
    return Row(
        question=problem.question,
        answer=problem.answer,
        result=str(problem.result),
        skill=problem.skill,
        level=len(problem.digits),
        picture=functools.partial(draw, problem.digits, problem.drawing, part),
        kind=problem.noise,
        error=problem.error,
        copy_of=problem.copy_of,
    )
