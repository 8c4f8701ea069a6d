r"""Find the final answer in a reply, and check it.

A reply counts by what it *states* as its answer, never by a number somewhere in its reasoning. A statement is, and the
last one counts:

- `\boxed{X}`,
- "answer is X", "Answer: X", "answer = X" (up to the end of the sentence or line),
- `#### X` and `<answer>X</answer>`.

Without any, the whole of a reply of one short line counts, or the last line if it is nothing but a value or a choice.
A reply that was cut off has no last line, and a statement that runs into the cut is not complete.
"""

from __future__ import annotations

import re

from onesteptrain.evaluation.answers.equivalence import is_bare_value, same_answer

_STATED = re.compile(r"\banswers?\b[^\n]{0,60}?(?:\b(?:is|are)\b\s*[:=]?|[:=])[\s*]*", re.IGNORECASE)
_HASHES = re.compile(r"####\s*")
_BOXED = re.compile(r"\\boxed\s*\{")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_END = re.compile(r"\.(?=\s)|\n")
_SHORT = 60
"""Characters of a reply that is an answer as it stands."""


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
    text = prediction.strip()
    stated = [(match.start(), _sentence(text, match.end(), finished)) for match in _STATED.finditer(text)]
    stated += [(match.start(), _sentence(text, match.end(), finished)) for match in _HASHES.finditer(text)]
    stated += [(match.start(), _braced(text, match.end())) for match in _BOXED.finditer(text)]
    stated += [(match.start(), match.group(1)) for match in _TAGGED.finditer(text)]
    if stated:
        answer = max(stated, key=lambda pair: pair[0])[1]
        return (answer or "").strip() or None
    return _unstated(text) if finished else None


def _sentence(text: str, start: int, finished: bool) -> str | None:
    """What stands from a position to the end of its sentence; nothing where the reply was cut off before that."""
    boxed = _BOXED.search(text, start)
    end = _END.search(text, start)
    if boxed is not None and (end is None or boxed.start() < end.start()):
        return _braced(text, boxed.end())
    if end is None:
        return text[start:] if finished else None
    return text[start : end.start()]


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace before a position and its partner; nothing where that is missing."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def _unstated(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if len(lines) == 1 and len(text) <= _SHORT:
        return lines[0]
    return lines[-1] if is_bare_value(lines[-1]) else None
