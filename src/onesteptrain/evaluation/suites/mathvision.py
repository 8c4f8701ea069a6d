"""MathVision: competition mathematics on pictures, free answers and choices.

Columns: `id`, `question` (with marks such as <image1> for parts of the one picture), `options` (list of texts, empty
for a free answer), `image` (path), `decoded_image`, `answer` (the letter of an option, or LaTeX), `level`, `subject`.

Source: Wang et al., arXiv:2402.14804; data set MathLLMs/MathVision; code mathllm/MATH-V.
"""

from __future__ import annotations

import functools
import re

from onesteptrain.evaluation.answers import same_answer
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.suites.columns import REASON, asked, fields_of, image_of, option_at, text_of, texts_of
from onesteptrain.evaluation.suites.suite import Row, Suite


def question(row: Row) -> Question:
    """One row as a question.

    Raises:
        PoolError: the row is not in the benchmark's schema.
    """
    options, answer = texts_of(row, "options"), text_of(row, "answer")
    value = option_at(row, options, answer) if options else answer
    ending = f"{REASON} the letter of the right option." if options else f"{REASON} the value alone."
    return Question(
        uid=text_of(row, "id"),
        turns=asked(image_of(row, "decoded_image", "image"), text_of(row, "question"), options, ending),
        answer=answer,
        fields=fields_of(row, "subject", "level"),
        check=functools.partial(_is_right, answer, value),
    )


def _is_right(answer: str, value: str, stated: str) -> bool:
    """By the letter, or as the official code does by the option's text, unless that reads as a letter itself."""
    if same_answer(stated, answer):
        return True
    return not re.fullmatch(r"\(?[A-Za-z]\)?", value.strip()) and same_answer(stated, value)


SUITE = Suite("MathLLMs/MathVision", ("test", "testmini"), question)
