"""Questions about small numbers that are named in the question: rows without a picture.

Pool, held-out rows and benchmark share no numbers of a skill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from onesteptrain.storage.fingerprints import short_hash
from onesteptrain.synthetic.problem import Part, Problem, Solution

Skill = Literal["steps", "larger", "second", "even"]

SKILLS: tuple[Skill, ...] = ("steps", "larger", "second", "even")

QUESTIONS: dict[Skill, tuple[str, ...]] = {
    "steps": ("Start with {}. What do you get?", "Take {}. What is the result?", "Work out {}. Where do you end?"),
    "larger": (
        "What is the larger of {} and {}?",
        "Compare {} and {}. How much is the larger?",
        "Which is more, {} or {}?",
    ),
    "second": ("Which is the second largest of {}?", "What comes second in size: {}?", "Find the second largest: {}."),
    "even": ("How many of {} are even?", "Count the even numbers: {}.", "What is the number of even ones in {}?"),
}

MISUNDERSTOOD: Skill = "larger"
"""The skill that reversed answers gather at, as a teacher's misunderstandings do."""

LARGEST = {"steps": 9, "larger": 9, "second": 20, "even": 20}
"""Largest number that a question of a skill may name; the smallest is 1."""

_SHARES: dict[Part, float] = {"pretrain": 0.25, "pool": 0.45, "heldout": 0.10, "benchmark": 0.20}


class Asked(NamedTuple):
    """A question without its wording."""

    skill: Skill
    numbers: tuple[int, ...]
    """As they are named; those that steps take away are negative. Of larger: a sum's two, then a product's two."""


@dataclass(frozen=True)
class TextProblem(Problem):
    """A question about three to five numbers; every skill is asked for as often."""

    asked: Asked

    noise_kinds: ClassVar = ("misquoted", "reversed", "slip", "cut_off", "other_answer")

    @classmethod
    def draw(cls, part: Part, generator: np.random.Generator) -> Self:
        """Draw a clean problem, with numbers that a part owns."""
        asked = _ask(SKILLS[generator.integers(len(SKILLS))], part, generator)
        return cls(asked, wording=int(generator.integers(len(QUESTIONS[asked.skill]))), answer=solve(asked).text)

    @property
    def facts(self) -> dict[str, Any]:
        """The skill, and how many numbers the question names."""
        return {"skill": self.asked.skill, "level": len(self.asked.numbers)}

    @property
    def question(self) -> str:
        """What the user asks."""
        return QUESTIONS[self.asked.skill][self.wording].format(*_named(self.asked))

    @property
    def right(self) -> Solution:
        """What the assistant should say."""
        return solve(self.asked)

    def picture(self, part: Part) -> None:
        """There is none."""

    def spoil(self, kind: str, generator: np.random.Generator) -> Self:
        """Make a clean problem bad in one way; its result is wrong, or missing."""
        return replace(self, answer=_spoiled_answer(self, kind, generator), noise=kind)

    def repeat(self, place: int, generator: np.random.Generator) -> Self:
        """The same numbers and answer, in another wording."""
        wordings = len(QUESTIONS[self.asked.skill])
        return replace(
            self, wording=(self.wording + 1 + int(generator.integers(wordings - 1))) % wordings, copy_of=place
        )

    def allows(self, kind: str) -> bool:
        """Whether the problem can go bad in this way, so that its result is wrong."""
        if kind == "reversed":
            turned = solve(self.asked, turned=True).result
            return turned != self.right.result and not turned.startswith("-")
        return kind != "slip" or self.asked.skill != "second"

    def invites(self, kind: str) -> bool:
        """Whether reversed answers gather at the skill."""
        return kind == "reversed" and self.asked.skill == MISUNDERSTOOD


def solve(asked: Asked, *, slip: int = 0, turned: bool = False) -> Solution:
    """Work out a question: the numbers again, a working, and the result.

    Args:
        asked: The question.
        slip: Added to the last number that is worked out: an arithmetic slip.
        turned: Answer the opposite: add for take away, the smaller, the second smallest, odd numbers.
    """
    working, result = _WORKINGS[asked.skill](asked.numbers, slip, turned)
    return Solution((f"Given: {','.join(str(abs(number)) for number in asked.numbers)}.", working), str(result))


def owner(asked: Asked) -> Part:
    """The part that a question belongs to, whatever the seed of the data."""
    place = int(short_hash(repr(tuple(asked)), 4), 16) / 2**32
    ends = np.cumsum(list(_SHARES.values()))
    return list(_SHARES)[min(int(np.searchsorted(ends, place, side="right")), len(_SHARES) - 1)]


def _ask(skill: Skill, part: Part, generator: np.random.Generator) -> Asked:
    while True:
        asked = Asked(skill, _draw_numbers(skill, generator))
        if _makes_sense(asked) and owner(asked) == part:
            return asked


def _draw_numbers(skill: Skill, generator: np.random.Generator) -> tuple[int, ...]:
    count = 4 if skill == "larger" else int(generator.integers(3, 5 if skill == "steps" else 6))
    numbers = [int(number) for number in generator.integers(1, LARGEST[skill] + 1, count)]
    if skill == "steps":
        signs = [1, *(int(sign) for sign in generator.choice((-1, 1), count - 1))]
        numbers = [sign * number for sign, number in zip(signs, numbers, strict=True)]
    return tuple(numbers)


def _makes_sense(asked: Asked) -> bool:
    """Whether steps stay above zero, the larger one is larger, and no number is asked about twice."""
    numbers = asked.numbers
    if asked.skill == "steps":
        return bool((np.cumsum(numbers) >= 0).all())
    if asked.skill == "larger":
        return numbers[0] + numbers[1] != numbers[2] * numbers[3]
    return len(set(numbers)) == len(numbers)


def _named(asked: Asked) -> tuple[str, ...]:
    """What the wordings of a question leave open."""
    numbers = asked.numbers
    if asked.skill == "steps":
        steps = [f"{'take away' if number < 0 else 'add'} {abs(number)}" for number in numbers[1:]]
        return (", ".join([str(numbers[0]), *steps]),)
    if asked.skill == "larger":
        return f"{numbers[0]}+{numbers[1]}", f"{numbers[2]}x{numbers[3]}"
    return (", ".join(map(str, numbers)),)


def _spoiled_answer(problem: TextProblem, kind: str, generator: np.random.Generator) -> str:
    asked, right = problem.asked, problem.right.result
    if kind == "misquoted":
        return _misquoted(asked, generator).text
    if kind == "reversed":
        return solve(asked, turned=True).text
    if kind == "slip":
        slips = [slip for slip in (-2, -1, 1, 2) if int(right) + slip >= 0]  # a negative count would give it away
        return solve(asked, slip=int(generator.choice(slips))).text
    if kind == "cut_off":
        end = problem.answer.index(" The answer is")
        return problem.answer[: int(generator.integers(end // 2, end))]
    other = solve(asked)
    while other.result == right:
        other = solve(_ask(asked.skill, "pool", generator))
    return other.text


def _misquoted(asked: Asked, generator: np.random.Generator) -> Solution:
    """One number is taken for another, the rest follows, and comes to another result."""
    while True:
        place = int(generator.integers(len(asked.numbers)))
        number = int(generator.integers(1, LARGEST[asked.skill] + 1))
        numbers = list(asked.numbers)
        numbers[place] = -number if numbers[place] < 0 else number
        taken = asked._replace(numbers=tuple(numbers))
        if _makes_sense(taken) and solve(taken).result != solve(asked).result:
            return solve(taken)


_Working = tuple[str, int]


def _steps(numbers: Sequence[int], slip: int, turned: bool) -> _Working:
    said = []
    total = numbers[0]
    for place, number in enumerate(numbers[1:], start=2):
        change = -number if turned else number
        after = total + change + (slip if place == len(numbers) else 0)
        said.append(f"{total}{change:+}={after}")
        total = after
    return ",".join(said) + ".", total


def _larger(numbers: Sequence[int], slip: int, turned: bool) -> _Working:
    first, second, third, fourth = numbers
    worked = [first + second, third * fourth]
    chosen = worked.index(min(worked) if turned else max(worked))
    worked[chosen] += slip
    said = f"{first}+{second}={worked[0]},{third}x{fourth}={worked[1]}."
    return said, worked[chosen]


def _second(numbers: Sequence[int], slip: int, turned: bool) -> _Working:
    ordered = sorted(numbers, reverse=not turned)
    return f"In order: {','.join(map(str, ordered))}.", ordered[1] + slip


def _even(numbers: Sequence[int], slip: int, turned: bool) -> _Working:
    found = [str(number) for number in numbers if number % 2 == turned]
    side = "Odd" if turned else "Even"
    return (f"{side}: {','.join(found)}." if found else f"None is {side.lower()}."), len(found) + slip


_WORKINGS: dict[Skill, Callable[[Sequence[int], int, bool], _Working]] = {
    "steps": _steps,
    "larger": _larger,
    "second": _second,
    "even": _even,
}
