"""What one row of synthetic data is before it is written: a question, what the picture shows, and what was planted."""

from __future__ import annotations

import abc
import itertools
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

Part = Literal["pretrain", "pool", "heldout", "benchmark"]
"""Who owns a picture: the files share none, and the packaged models have seen only those of the first part."""


class Span(NamedTuple):
    """Characters of an answer: the first, and the one after the last."""

    start: int
    end: int


class Solution(NamedTuple):
    """A worked answer in parts, so that one part can be spoiled and the others kept."""

    chain: tuple[str, ...]
    """All sentences but the conclusion: what the picture shows, and the steps from there."""

    result: str

    @property
    def text(self) -> str:
        """The answer as it stands in the pool."""
        return " ".join([*self.chain, f"The answer is {self.result}."])


@dataclass(frozen=True, kw_only=True)
class Problem(abc.ABC):
    """One row before it is written; each kind of data adds what is asked and what is shown."""

    noise_kinds: ClassVar[tuple[str, ...]]
    """What can be wrong with such a row."""

    wording: int
    """Which of the wordings of its question."""

    answer: str
    """What the assistant says."""

    noise: str | None = None
    """What is wrong with the row."""

    copy_of: int | None = None
    """Place of the row that this one repeats."""

    source: str | None = None
    """Part of a mixed pool that the row belongs to, a column that everybody may see."""

    @classmethod
    @abc.abstractmethod
    def draw(cls, part: Part, generator: np.random.Generator) -> Self:
        """Draw a clean problem, with a picture that a part owns."""

    @property
    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Columns that everybody may see: `skill`, what is asked for, and `level`, how much the picture shows."""

    @property
    @abc.abstractmethod
    def question(self) -> str:
        """What the user asks."""

    @property
    @abc.abstractmethod
    def right(self) -> Solution:
        """What the assistant should say of what the picture shows."""

    @property
    def error(self) -> Span | None:
        """Where the answer goes wrong."""
        return None if self.noise is None else first_difference(self.answer, self.right.text)

    @abc.abstractmethod
    def picture(self, part: Part) -> bytes | None:
        """Draw the picture, as a PNG; nothing where the row is text alone."""

    @abc.abstractmethod
    def spoil(self, kind: str, generator: np.random.Generator) -> Self:
        """Make a clean problem bad in one way; what the picture shows stays on record."""

    @abc.abstractmethod
    def repeat(self, place: int, generator: np.random.Generator) -> Self:
        """Make a near-duplicate of the problem, which stands at a place."""

    def allows(self, kind: str) -> bool:
        """Whether a clean problem can go bad in this way at all."""
        return True

    @abc.abstractmethod
    def invites(self, kind: str) -> bool:
        """Whether a problem is one that this kind of noise, a systematic one, gathers at."""


def first_difference(answer: str, right: str) -> Span:
    """Where an answer first departs from the right one: a whole word, or the digits from the first wrong one on."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(answer, right, strict=False))
    reached = len(list(same))
    started = re.search(r"[A-Za-z]*$", answer[:reached])
    rest = re.match(r"[A-Za-z]+|\d+|.?", answer[reached:], re.DOTALL)
    start = started.start() if started and answer[reached : reached + 1].isalpha() else reached
    return Span(start, reached + (rest.end() if rest else 0))
