"""How two rows are alike, in words and numbers; the answers of near rows are read again for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onesteptrain.data.deduplication.index import Index, Sources
from onesteptrain.data.deduplication.near_text import near_texts, similarity
from onesteptrain.data.deduplication.pairs import Pair, image_distance
from onesteptrain.data.pool import Sample, plain_text, text_of

AnswerRelation = Literal["same", "near", "other"]

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


class FinalAnswers(NamedTuple):
    """How the final answers of rows are read and compared; `onesteptrain.evaluation.answers` knows it."""

    extract: Callable[[str], str | None]
    """The final answer that a text states, if it states one."""

    same: Callable[[str, str], bool]
    """Whether two final answers mean the same."""


class Answer(NamedTuple):
    """What a row answers."""

    text: str
    """Plain text."""

    final: str | None
    """The final answer that it states."""


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
    finals: FinalAnswers

    def between(self, first: int, second: int) -> Relation:
        """How the first entry is like the second."""
        index = self.index
        units = [int(index.unit_of[entry]) for entry in (first, second)]
        questions, pictures = zip(*(index.units[unit] for unit in units), strict=True)
        texts = [index.questions[question] for question in questions]
        answer = self.answer(first, second)
        near = units[0] == units[1] or (min(units), max(units)) in self.pairs
        same = questions[0] == questions[1], pictures[0] == pictures[1]
        kind = _kind(*same, answer) if near else "by way of other rows"
        return Relation(kind, answer, similarity(*texts), image_distance(index, *pictures))

    def answer(self, first: int, second: int) -> AnswerRelation:
        """Where both entries state a final answer, that decides: two ways to it are near, two results are not."""
        left, right = self.answers[first], self.answers[second]
        if left.text == right.text:
            return "same"
        if left.final is not None and right.final is not None:
            near = left.final == right.final or self.finals.same(left.final, right.final)
        else:
            near = near_texts(left.text, right.text, self.threshold)
        return "near" if near else "other"


def read_answers(index: Index, sources: Sources, entries: Iterable[int], finals: FinalAnswers) -> dict[int, Answer]:
    """What some entries answer; rows that answer alike share one text."""

    def answer(sample: Sample) -> Answer:
        return Answer(plain_text(sample, "assistant"), finals.extract(text_of(sample, "assistant")))

    first = {index.answers[entry]: entry for entry in entries}
    read = {index.answers[entry]: answer(sample) for entry, sample in index.revisit(sources, set(first.values()))}
    return {entry: read[index.answers[entry]] for entry in entries}


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
