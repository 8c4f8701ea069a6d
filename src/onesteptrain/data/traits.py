"""What a sample is like as it stands: how it answers, what it shows, how long it is. No model is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from onesteptrain.data.corruption.answers import Anchor
from onesteptrain.data.images import image_size
from onesteptrain.data.pool import Role, Sample, plain_text, text_of
from onesteptrain.errors import SampleError

_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "letter": "conclude with an option's letter",
        "yes or no": "conclude with yes or no",
        "number": "conclude with a number",
        "words": "conclude with a few words",
        "open": "state no conclusion",
    }
)
"""What rows do whose final answer has one of these forms."""

_MARKS: Mapping[str, str] = MappingProxyType(
    {
        r"\boxed": r"put the answer into \boxed{}",
        "<answer>": "put the answer into <answer> tags",
        "####": "mark it by ####",
    }
)
"""What rows do whose answer holds a mark."""

_PICTURES = {0: "show no picture", 1: "show one picture"}


class Traits(NamedTuple):
    """What a sample is like."""

    form: Mapping[str, str]
    """By what it is about, what rows like this one do, as in "conclude with a number"."""

    sizes: Mapping[str, float]
    """By what is measured, as in "answers": characters, or the longest side of its pictures in pixels, NaN without."""

    words: frozenset[str]
    """Of the questions, in small letters, with every number alike."""


def read_traits(sample: Sample) -> Traits:
    """What a sample is like; a picture that cannot be opened has no size."""
    answer = Anchor(sample)
    return Traits(
        {
            "reasoning": "reason before they conclude" if answer.chain else "answer without reasoning",
            "thoughts": "think in <think> tags" if "<think>" in answer.text else "have no <think> tags",
            "conclusion": _FORMS[answer.form],
            "mark": next((does for mark, does in _MARKS.items() if mark in answer.text), "put the answer into words"),
            "turns": "ask once" if _count(sample, "user") == 1 else "ask several times",
            "system": "have a system turn" if _count(sample, "system") else "have no system turn",
            "pictures": _PICTURES.get(len(sample.images), "show several pictures"),
        },
        {
            "answers": float(len(text_of(sample, "assistant"))),
            "questions": float(len(text_of(sample, "user"))),
            "pictures": max(_sides(sample), default=math.nan),
        },
        frozenset(re.findall(r"\w+", re.sub(r"\d+", "0", plain_text(sample, "user")))),
    )


def _count(sample: Sample, role: Role) -> int:
    return sum(turn.role == role for turn in sample.turns)


def _sides(sample: Sample) -> Iterator[float]:
    for image in sample.images:
        try:
            yield float(max(image_size(image)))
        except SampleError:
            continue
