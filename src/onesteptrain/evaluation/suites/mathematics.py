"""Two benchmarks of mathematics on pictures.

MathVision: competition mathematics on pictures, free answers and choices.

Columns: `id`, `question` (with marks such as <image1> for parts of the one picture), `options` (list of texts, empty
for a free answer), `image` (path), `decoded_image`, `answer` (the letter of an option, or LaTeX), `level`, `subject`.

Source: Wang et al., arXiv:2402.14804; data set MathLLMs/MathVision; code mathllm/MATH-V.

MathVista: choices, integers, decimals of a given precision, and lists.

Columns: `pid`, `question`, `image` (path), `decoded_image`, `choices` (list of texts or nothing), `unit`, `precision`,
`answer` (of a choice its text), `question_type` (multi_choice, free_form), `answer_type` (text, integer, float, list),
`metadata` (category, context, grade, language, skills, source, task, ...), `query`. The split `test` has no answers.

Source: Lu et al., arXiv:2310.02255; data set AI4Math/MathVista; code lupantech/MathVista, `calculate_score.py`, whose
rules are followed here once the answer is found. The official code asks a language model to find it; here a reply
counts by what it states, and one that states nothing is wrong.
"""

from __future__ import annotations

import ast
import functools
import re
import string
from collections.abc import Mapping, Sequence

from onesteptrain.errors import PoolError
from onesteptrain.evaluation.answers import choice, same_answer
from onesteptrain.evaluation.benchmark import Question
from onesteptrain.evaluation.suites.rows import (
    REASON,
    Row,
    Suite,
    asked,
    fields_of,
    image_of,
    option_at,
    text_of,
    texts_of,
)

_ENDINGS = {
    "text": f"{REASON} the letter of the right option.",
    "integer": f"{REASON} an integer alone.",
    "float": f"{REASON} a number alone, with DECIMALS.",
    "list": f"{REASON} a list such as [1, 2].",
}
_FIELDS = ("category", "context", "grade", "language", "skills", "source", "task")
_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?|[-−]?\.\d+")
_LETTER = re.compile(r"(?<!\w)\(([A-Za-z])\)")
_UNDECIDED = re.compile(r"\b(?:or|not|neither|either|between)\b|n't\b", re.IGNORECASE)


def mathvision_question(row: Row) -> Question:
    """One row of MathVision as a question."""
    options, answer = texts_of(row, "options"), text_of(row, "answer")
    value = option_at(row, options, answer) if options else answer
    ending = f"{REASON} the letter of the right option." if options else f"{REASON} the value alone."
    return Question(
        uid=text_of(row, "id"),
        turns=asked(image_of(row, "decoded_image", "image"), text_of(row, "question"), options, ending),
        answer=answer,
        fields=fields_of(row, "subject", "level"),
        check=functools.partial(_is_option, answer, value),
    )


def _is_option(answer: str, value: str, stated: str) -> bool:
    """By the letter, or as the official code does by the option's text, unless that reads as a letter itself."""
    if same_answer(stated, answer):
        return True
    return not re.fullmatch(r"\(?[A-Za-z]\)?", value.strip()) and same_answer(stated, value)


def mathvista_question(row: Row) -> Question:
    """One row of MathVista as a question."""
    kind, choices, answer = text_of(row, "answer_type"), texts_of(row, "choices"), text_of(row, "answer")
    if kind not in _ENDINGS or (choices and answer not in choices):
        raise PoolError(
            f"{row.where}: answer_type is {kind!r} and the answer {answer!r} of the choices {choices}; "
            f"needed is one of {', '.join(_ENDINGS)}, and an answer that stands among the choices"
        )
    unit = row.columns.get("unit")
    text = text_of(row, "question") + (f" (Unit: {unit})" if unit else "")
    decimals = _precision(row) if kind == "float" else 0
    ending = _ENDINGS["text" if choices else kind].replace(
        "DECIMALS", f"{decimals} decimal place{'s'[: decimals != 1]}"
    )
    metadata = row.columns.get("metadata")
    plain = {name: metadata[name] for name in _FIELDS if name in metadata} if isinstance(metadata, Mapping) else {}
    return Question(
        uid=text_of(row, "pid"),
        turns=asked(image_of(row, "decoded_image", "image"), text, choices, ending),
        answer=answer,
        fields={"question_type": "multi_choice" if choices else "free_form", "answer_type": kind, **plain},
        check=functools.partial(is_right, answer, choices=choices, kind=kind, decimals=decimals),
    )


def is_right(answer: str, stated: str, *, choices: Sequence[str], kind: str, decimals: int) -> bool:
    """Whether a stated answer is right by the benchmark's rules.

    A choice is told by its letter, or by the one text that is named; else by that nearest in edit distance. An integer
    is cut off at the point and a decimal rounded, as `int(float(x))` and `round(float(x), precision)` do; one number in
    the statement may have a unit. What is no plain number, such as a fraction, is compared by its meaning.
    """
    if choices:
        return chosen(stated, choices) == answer
    if kind == "list":
        return _values(stated) == _values(answer)
    numbers = _NUMBER.findall(stated)
    if kind in ("integer", "float") and len(numbers) == 1 and not re.search(r"[/^\\*+=]", stated):
        got, gold = (float(number.replace(",", "").replace("−", "-")) for number in (numbers[0], answer))
        return int(got) == int(gold) if kind == "integer" else round(got, decimals) == round(gold, decimals)
    return same_answer(stated, answer)


def chosen(stated: str, choices: Sequence[str]) -> str | None:
    """The choice that a statement means, by its letter or its text; nothing for one that means several, or says not."""
    same = [text for text in choices if same_answer(stated, text)]
    if len(same) == 1:
        return same[0]
    inside = {letter.upper() for letter in _LETTER.findall(stated)}
    letter = choice(stated) or (inside.pop() if len(inside) == 1 else "")
    place = string.ascii_uppercase.find(letter) if letter else -1
    if 0 <= place < len(choices):
        return choices[place]
    if len(inside) > 1 or _UNDECIDED.search(stated):
        return None
    named = [text for text in choices if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", stated, re.IGNORECASE)]
    longest = [text for text in named if not any(text != other and text in other for other in named)]
    if len(longest) > 1:
        return None
    return longest[0] if longest else min(choices, key=lambda text: edit_distance(stated.casefold(), text.casefold()))


def edit_distance(first: str, second: str) -> int:
    """Fewest characters to insert, delete or replace to make one text the other (Levenshtein)."""
    before = list(range(len(second) + 1))
    for row, left in enumerate(first, 1):
        now = [row]
        for column, right in enumerate(second, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (left != right)))
        before = now
    return before[-1]


def _precision(row: Row) -> int:
    value = row.columns.get("precision")
    if isinstance(value, int | float) and value == value and value >= 0:
        return int(value)
    raise PoolError(f"{row.where}: precision is {value!r}; a question for a decimal needs the number of its places")


def _values(text: str) -> object:
    """A Python list as numbers; what is none as it stands."""
    try:
        return [float(item) for item in ast.literal_eval(text.strip(" .$"))]
    except (ValueError, SyntaxError, TypeError):
        return text.replace(" ", "")


MATHVISION = Suite("MathLLMs/MathVision", ("test", "testmini"), mathvision_question)
MATHVISTA = Suite("AI4Math/MathVista", ("testmini",), mathvista_question)
