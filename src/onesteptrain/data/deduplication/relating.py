"""How two rows are alike, in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onesteptrain.data.deduplication.index import Index
from onesteptrain.data.deduplication.near_text import similarity
from onesteptrain.data.deduplication.pairs import image_distance
from onesteptrain.data.deduplication.verifying import Answer, AnswerRelation, Pair, compare_answers

Kind = Literal[
    "same row",
    "same question and image, near answer",
    "same question and image, other answer",
    "same question, near image",
    "same question, near image, other answer",
    "near question, same image",
    "near question, near image",
    "near question, other answer",
    "by way of other rows",
]

CONTRADICTIONS: tuple[Kind, ...] = ("same question and image, other answer", "same question, near image, other answer")
"""One question about one picture with two answers: at least one is wrong, unless the question is an open one."""

LOOK_ALIKE: Kind = "near question, other answer"
"""Most likely another question about the same picture: "in May" and "in June"."""


class Relation(NamedTuple):
    """How a row is like another."""

    kind: Kind
    answer: AnswerRelation
    similarity: float
    """Jaccard similarity of the questions."""

    distance: int | None
    """Bits in which the images differ at most; 0 without images, None where their numbers differ."""


@dataclass(frozen=True)
class Relations:
    """Tells how entries are alike; knows which units were confirmed to be near."""

    index: Index
    answers: Mapping[int, Answer]
    pairs: frozenset[Pair]
    """Confirmed pairs of units, the lower one first."""

    threshold: float

    def between(self, first: int, second: int) -> Relation:
        """How the first entry is like the second."""
        index = self.index
        units = [int(index.unit_of[entry]) for entry in (first, second)]
        questions, pictures = zip(*(index.units[unit] for unit in units), strict=True)
        texts = [index.questions[question] for question in questions]
        answer = self.answer(first, second)
        near = units[0] == units[1] or (min(units), max(units)) in self.pairs
        kind = (
            _kind(questions[0] == questions[1], pictures[0] == pictures[1], answer) if near else "by way of other rows"
        )
        return Relation(kind, answer, similarity(*texts), image_distance(index, *pictures))

    def answer(self, first: int, second: int) -> AnswerRelation:
        """How the answers of two entries are alike."""
        return compare_answers(self.answers[first], self.answers[second], self.threshold)


def _kind(same_question: bool, same_image: bool, answer: AnswerRelation) -> Kind:
    if not same_question:
        if answer == "other":
            return LOOK_ALIKE
        return "near question, same image" if same_image else "near question, near image"
    if not same_image:
        return "same question, near image, other answer" if answer == "other" else "same question, near image"
    if answer == "same":
        return "same row"
    return "same question and image, near answer" if answer == "near" else "same question and image, other answer"
