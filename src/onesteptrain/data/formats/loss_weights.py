"""What each answer of a row counts in the loss, by the flags that trainers read.

A message may carry `loss` and `loss_scale` (ms-swift), `weight` (OpenAI), `loss_weight` (LLaMA-Factory), `train` and
`train_detail` (axolotl), `loss_mask` (1 for in the loss), and a row `weight` (Fireworks). All are factors of one
number: 0 takes the answer out of the loss, where it stays as context, and 1 is what an answer without a flag counts.
Only answers are ever in the loss, so flags of other turns say nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onesteptrain.data.formats.turns import Turn
from onesteptrain.errors import SampleError

FLAGS = ("loss", "loss_scale", "loss_weight", "loss_mask", "weight", "train", "training", "trainable")
_DETAIL, _ROW_WEIGHT = "train_detail", "weight"

_WORDS = {"true": 1.0, "yes": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "off": 0.0, "": None, "null": None, "none": None}
_MOST = 1_000_000
_NEEDED = f"a loss weight is true, false, or a number from 0 to {_MOST:,}"
_SHOWN = 40

NOTHING_LEFT = (
    "nothing is left to learn: every answer is out of the loss (by flags such as loss, weight, train or loss_scale); "
    "turn one on, or take this row out"
)


class AnswerLoss(NamedTuple):
    """What an answer counts; see `Turn`."""

    weight: float = 1.0
    unlearned: tuple[tuple[int, int], ...] = ()


def answer_loss(number: int, message: Mapping[str, object], text: str) -> AnswerLoss:
    """Read the flags of one message, which is an answer.

    Args:
        number: Which message it is, from 1.
        message: As the row holds it.
        text: The answer.

    Raises:
        SampleError: a flag cannot be understood.
    """
    weight = 1.0
    for flag in FLAGS:
        weight *= _factor(f"message {number} has {flag}", message.get(flag), f"{_NEEDED}: mend it, or take it out")
    details = message.get(_DETAIL)
    if not details:
        return AnswerLoss(weight)
    trained = _trained(number, details)
    return AnswerLoss(weight if trained else 0.0, _between(trained, text))


def in_loss(turns: Sequence[Turn], row: Mapping[str, object]) -> tuple[Turn, ...]:
    """The turns, with the weight of their row in that of each answer.

    Raises:
        SampleError: the row's weight cannot be used, or no answer is left in the loss.
    """
    value = row.get(_ROW_WEIGHT)
    number = value if isinstance(value, int | float) else None  # a text is some other column
    do = f"{_NEEDED}: mend it, or give the column another name if it is none"
    weight = _factor(f"the row has {_ROW_WEIGHT}", number, do)
    weighed = tuple(dataclasses.replace(turn, weight=turn.weight * weight) for turn in turns)
    if not any(turn.weight for turn in weighed if turn.role == "assistant"):
        raise SampleError(NOTHING_LEFT)
    return weighed


def without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """A range of characters without the white space at its ends, which tokenizers join to the next word.

    One that holds nothing else is left as it is.
    """
    inside = text[start:end]
    if not inside.strip() or end > len(text):
        return start, end
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


def _factor(what: str, value: object, needed: str) -> float:
    number = _number(value) if isinstance(value, str) else value
    if number is None or number != number:  # null, or the NaN of a frame
        return 1.0
    if isinstance(number, int | float) and 0 <= number <= _MOST:
        return float(number)
    raise SampleError(f"{what} {repr(value)[:_SHOWN]}; {needed}")


def _number(text: str) -> float | str | None:
    """What a text means; itself where it means nothing."""
    word = text.strip().casefold()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return text if math.isnan(number := float(word)) else number
    except ValueError:
        return text


def _trained(number: int, details: object) -> list[tuple[int, int]]:
    """Ranges of characters that are trained on, in order; axolotl gives the last one, not the one after it."""
    trained = []
    for detail in details if isinstance(details, list) else [details]:
        given: Mapping[str, Any] = detail if isinstance(detail, Mapping) else {}
        start, last = given.get("begin_offset"), given.get("end_offset")
        if not (type(start) is int and type(last) is int and 0 <= start <= last):
            raise SampleError(
                f"message {number} has {_DETAIL} {repr(detail)[:_SHOWN]}; each needs begin_offset and end_offset, in "
                "characters, and train: mend it, or take it out"
            )
        if _factor(f"message {number} has {_DETAIL} with train", given.get("train"), _NEEDED):
            trained.append((start, last + 1))
    return sorted(trained)


def _between(trained: Sequence[tuple[int, int]], text: str) -> tuple[tuple[int, int], ...]:
    """What of a text lies outside some ranges."""
    gaps, at = [], 0
    for start, end in [*trained, (len(text), len(text))]:
        if at < min(start, len(text)):
            gaps.append(without_space(text, at, min(start, len(text))))
        at = max(at, end)
    return tuple(gaps)
