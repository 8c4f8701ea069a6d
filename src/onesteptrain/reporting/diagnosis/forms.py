"""In what form an answer concludes: how it is stated, and what kind of thing is stated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from onesteptrain.evaluation.answers import extract_answer
from onesteptrain.reporting.diagnosis.measured import Values

_CHOICE = re.compile(r"\(?[A-Z]\)?\.?")


def answer_form(text: str) -> str:
    """The form of an answer, such as "stated number", "boxed choice" or "unstated text".

    Stated is what `extract_answer` finds in a text that could go on: "the answer is 7.", `#### 7`, <answer>7</answer>.
    """
    stated = extract_answer(f"{text.rstrip()}\n...", finished=False)
    how = "unstated" if stated is None else "boxed" if "\\boxed" in text else "stated"
    return f"{how} {_kind(stated if stated is not None else extract_answer(text))}"


def rarity(forms: Sequence[str], anchors: Sequence[str]) -> Values:
    """How rare each form is among the anchors: minus the number of anchors with it."""
    counts = Counter(anchors)
    return -np.array([counts[form] for form in forms], np.float64)


def _kind(answer: str | None) -> str:
    if answer is None:
        return "text"
    if _CHOICE.fullmatch(answer.strip()):
        return "choice"
    return "number" if re.search(r"\d", answer) else "text"
