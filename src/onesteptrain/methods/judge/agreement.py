"""Mode agreement: the judge answers the question itself, and a sample is accepted where both come to the same answer.

The sample's last answer is in no request. The turns before it are asked as they are, control tokens made harmless.
"""

from __future__ import annotations

from typing import Any

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.errors import SampleError
from onesteptrain.evaluation.answers import extract_answer
from onesteptrain.methods.judge.pictures import data_url
from onesteptrain.methods.judge.quoting import neutral


def own_answer(sample: Sample) -> str | None:
    """The final answer that the last assistant turn states; nothing where it states none.

    Raises:
        SampleError: there is no assistant turn.
    """
    return extract_answer(sample.turns[_last_answer(sample)].text)


def question_prompt(sample: Sample, *, answer_request: str, max_side: int) -> list[dict[str, Any]]:
    """The turns before the last answer, as messages.

    Args:
        sample: Its last assistant turn, and what comes after, is left out.
        answer_request: Put behind the question; empty for nothing.
        max_side: Longest side of an image, in pixels; larger ones are scaled down.

    Raises:
        SampleError: there is no question, no answer, or an image cannot be loaded.
    """
    history = sample.turns[: _last_answer(sample)]
    if not any(turn.role == "user" for turn in history):
        raise SampleError("no user turn before the last answer; a judge needs a question")
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": _content(turn, max_side)} for turn in history]
    if answer_request:
        asked = {"type": "text", "text": f"\n{answer_request}"}
        if messages[-1]["role"] == "user":
            messages[-1]["content"].append(asked)
        else:
            messages.append({"role": "user", "content": [asked]})
    return messages


def _last_answer(sample: Sample) -> int:
    places = [place for place, turn in enumerate(sample.turns) if turn.role == "assistant"]
    if not places:
        raise SampleError("no assistant turn; there is nothing to judge")
    return places[-1]


def _content(turn: Turn, max_side: int) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": data_url(part, max_side=max_side)}}
        if isinstance(part, ImageRef)
        else {"type": "text", "text": neutral(part)}
        for part in turn.parts
    ]
