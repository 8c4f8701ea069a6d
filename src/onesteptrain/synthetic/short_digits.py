"""Questions about pictures of digits that are answered by the result alone, without reasoning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from onesteptrain.synthetic.digits import DigitProblem
from onesteptrain.synthetic.problem import Part, Problem, Solution, Span, first_difference


@dataclass(frozen=True)
class ShortDigitProblem(Problem):
    """A question of the digits data that asks for the result alone."""

    reasoned: DigitProblem
    """The question with a reasoned answer."""

    noise_kinds: ClassVar = ("swapped_image", "wrong_operation", "slip")

    @classmethod
    def draw(cls, part: Part, generator: np.random.Generator) -> Self:
        """Draw a clean problem, with scans that a part owns."""
        reasoned = DigitProblem.draw(part, generator)
        return cls(reasoned, wording=reasoned.wording, answer=reasoned.right.result)

    @property
    def facts(self) -> dict[str, Any]:
        """The skill, and the number of digits."""
        return self.reasoned.facts

    @property
    def question(self) -> str:
        """What the user asks."""
        return f"{self.reasoned.question} Give the number only."

    @property
    def right(self) -> Solution:
        """What the assistant should say: the result, without what leads there."""
        return Solution((), self.reasoned.right.result)

    @property
    def error(self) -> Span | None:
        """Where the number goes wrong."""
        return None if self.noise is None else first_difference(self.answer, self.right.result)

    def picture(self, part: Part) -> bytes:
        """Draw the digits as a PNG of 32 x 32 pixels, light on dark."""
        return self.reasoned.picture(part)

    def spoil(self, kind: str, generator: np.random.Generator) -> Self:
        """Make a clean problem bad in one way; its result is wrong for what the picture shows."""
        spoiled = self.reasoned.spoil(kind, generator)
        if kind == "swapped_image":
            while spoiled.right.result == self.answer:
                spoiled = self.reasoned.spoil(kind, generator)
            return replace(self, reasoned=spoiled, noise=kind)
        return replace(self, answer=_result(spoiled.answer), noise=kind)

    def repeat(self, place: int, generator: np.random.Generator) -> Self:
        """The same scans and question, a little moved, lit and worded otherwise."""
        again = self.reasoned.repeat(place, generator)
        return replace(self, reasoned=again, wording=again.wording, copy_of=place)

    def invites(self, kind: str) -> bool:
        """Whether the skill is the misunderstood one."""
        return self.reasoned.invites(kind)


def _result(answer: str) -> str:
    return answer.rpartition("The answer is ")[2].removesuffix(".")
