r"""Find the final answer in a reply, and check it.

Thoughts are no part of a reply. It counts by what it *states* as its answer, never by a number somewhere in its
reasoning. The last statement counts (`statements`), without what follows it in its sentence (`tails`).

Without any, the whole of a reply of one short line counts, or the last line if it is nothing but a value or a choice,
or is short and says one of its subject ("So the number of balls is 5"). A reply that was cut off has no last line, and
a statement that runs into the cut is not complete.
"""

from __future__ import annotations

import re

from onesteptrain.evaluation.answers.equivalence import is_bare_value, is_value, same_answer
from onesteptrain.evaluation.answers.notation import plain_signs, unwrapped
from onesteptrain.evaluation.answers.statements import last_statement
from onesteptrain.evaluation.answers.tails import heads, said_of_subject
from onesteptrain.evaluation.answers.thoughts import without_thoughts

_SHORT = 60
"""Characters of a reply, or of a last line, that is an answer as it stands."""

_FRONT = 300
"""Characters of a statement in which its value is looked for."""

_SENTENCES = re.compile(r"(?<=[a-z)\d][.!?])\s+(?=[A-Z])")
_LABELLED = re.compile(r"[A-Za-z ]{2,40}:\s*(\S.*)")


def is_correct(prediction: str, gold: str, *, finished: bool = True) -> bool:
    """Whether the final answer of a reply equals the right one.

    Args:
        prediction: The reply.
        gold: The right answer: a number, fraction, expression, choice or short text.
        finished: The reply ended by itself.
    """
    answer = extract_answer(prediction, finished=finished)
    return answer is not None and same_answer(answer, gold)


def extract_answer(prediction: str, *, finished: bool = True) -> str | None:
    """The final answer that a reply states; nothing where it states none, or was cut off in it."""
    said = without_thoughts(prediction)
    if said is None:
        return None
    text = plain_signs(said).strip()
    statement = last_statement(text, finished=finished)
    if statement is not None:
        if statement.taken_back:
            return _unstated(text[statement.end :].strip()) if finished else None
        return _without_tail(statement.answer) or None
    return _unstated(text) if finished else None


def _without_tail(answer: str) -> str:
    """A value without what follows it in its sentence; words stay whole, as they may need what follows."""
    front = answer[:_FRONT]
    if is_bare_value(answer) or (is_value(answer) and "," not in answer):
        return answer.strip()
    said = said_of_subject(front)
    values = [head for head in [*heads(front), *([said] if said else [])] if is_value(head)]
    return (values[0] if values else answer).strip()


def _unstated(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip(" `*$")]
    if not lines:
        return None
    value = _concluded(lines[-1]) if len(lines[-1]) <= _SHORT else None
    if value is not None:
        return value
    if len(lines) == 1 and len(text) <= _SHORT:
        return _without_tail(lines[0])
    return lines[-1] if is_bare_value(lines[-1]) else None


def _concluded(line: str) -> str | None:
    """The value that a short line says of its subject in its last sentence: "The total is 5", "Total: 5"."""
    last = unwrapped(_SENTENCES.split(line)[-1])
    labelled = _LABELLED.fullmatch(last)
    said = labelled[1] if labelled is not None else said_of_subject(last)
    readings = [said, *heads(said)] if said is not None else []
    return next((reading for reading in readings if is_bare_value(reading)), None)
