"""Whether two short answers mean the same: choices and words by themselves, everything mathematical by math-verify."""

from __future__ import annotations

import functools
import logging
import re
import threading

from math_verify import parse, verify

from onesteptrain.evaluation.answers.choices import choice, choice_text
from onesteptrain.evaluation.answers.notation import cleaned, latex, plain_signs, unwrapped
from onesteptrain.evaluation.answers.parts import Parts, parts_of, quantities, value_of_equation
from onesteptrain.evaluation.answers.tails import heads, said_of_subject
from onesteptrain.evaluation.answers.units import NUMBER, split_unit

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns wherever its timeouts cannot be used

_SECONDS = 5
"""Most time for one answer; only the main thread can be interrupted."""

_LONGEST = 150
"""Characters of a value, and of what is handed to math-verify."""

_COMPARED = 500
"""Characters of a statement that are compared; loops of a model are longer."""

_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})")
_POLAR = re.compile(r"(yes|no|true|false)\b(?!\.?\s*\d)(?:\s*[,.;:!(–—-].*)?", re.IGNORECASE | re.DOTALL)
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_CAPITAL_K = re.compile(r"(?<=\d)K\b")
"""Kelvin, or thousands."""

_WORD = re.compile(r"[a-z]{2,}|[A-Z][A-Z]|\d0s$")
_NOT_WORDS = re.compile(r"\\[A-Za-z]+|(?<![A-Za-z])(?:pi|sin|cos|tan|cot|log|ln|exp|sqrt|max|min)(?![A-Za-z])")
_CALCULATION = re.compile(r"[+*×·÷±]|\\cdot|\\div|\\pm|\\times(?!\s*10\s*\^)|(?<=[\dA-Za-z)}])\s*-|[<>≤≥]|\\[lg]eq?\b")
_EXPLOSIVE = re.compile(r"\^[^+*]*\^|\^\s*\{?\s*-?\d{4,}|[eE][-+]?\d{3,}|!|\d{40,}")


@functools.lru_cache(maxsize=8192)
def same_answer(stated: str, gold: str) -> bool:
    """Whether an answer equals the right one.

    A unit that only one of them names is ignored, and so is a percent sign; two measuring units must agree. A
    calculation such as "3 + 5" is no answer where a number is asked for.
    """
    stated, gold = plain_signs(stated[:_COMPARED]), plain_signs(gold)
    if (letter := choice(gold)) is not None:
        return choice(stated) == letter or (bool(choice_text(gold)) and _any_reading(stated, choice_text(gold)))
    return _any_reading(stated, gold)


def is_bare_value(text: str) -> bool:
    """Whether a text is nothing but a number, with its unit if it has one, a choice, yes or no."""
    if len(text) > _LONGEST:
        return False
    value = split_unit(cleaned(text))[0]
    return choice(text) is not None or polarity(text) is not None or re.fullmatch(NUMBER + "%?", value) is not None


def is_value(text: str) -> bool:
    """Whether a text is a bare value, several, or an expression without words."""
    return len(text) <= _LONGEST and (
        is_bare_value(text) or not _is_text(cleaned(text)) or parts_of(cleaned(text)).all(is_bare_value)
    )


def polarity(text: str) -> str | None:
    """Yes, no, true or false, where a text begins with that and does not take it back."""
    match = _POLAR.fullmatch(unwrapped(text))
    word = match[1].lower() if match is not None else ""
    return (
        word
        if match is not None and not re.search(rf"\b{_OPPOSITES[word]}\b(?!\s+\w)", match[0].lower()[len(word) :])
        else None
    )


def _any_reading(stated: str, gold: str) -> bool:
    readings = [stated, *heads(unwrapped(stated))]
    readings += [said for text in readings if (said := said_of_subject(unwrapped(text))) is not None]
    return any(_same(reading, gold) for reading in readings) or (
        _CAPITAL_K.search(stated + " " + gold) is not None
        and any(_same(*(_CAPITAL_K.sub("k", side) for side in (reading, gold))) for reading in readings)
    )


def _same(stated: str, gold: str) -> bool:
    if (wanted := polarity(gold)) is not None and len(unwrapped(gold)) == len(wanted):
        return polarity(stated) == wanted
    if _plain(unwrapped(stated)) == _plain(unwrapped(gold)) and _is_text(unwrapped(gold)):
        return True
    stated, gold = cleaned(stated), cleaned(gold)
    if _INTEGER.fullmatch(stated) and _INTEGER.fullmatch(gold):
        return stated == gold
    if (same := quantities(stated, gold)) is not None:
        return same
    if len(parts_of(stated).items) == 1:
        stated, gold = (_worked_out(side) for side in (stated, gold))
        stated, gold = value_of_equation(stated, gold), value_of_equation(gold, stated)
    got, several = parts_of(stated), parts_of(gold)
    if len(got.items) > 1 or len(several.items) > 1:
        return _same_parts(got, several)
    return _same_value(stated, gold)


def _worked_out(text: str) -> str:
    """6 of "6 = 2*3": the number that a text says a calculation gives, which it does."""
    *sides, last = (re.sub(r"(?<=\d)\s*x\s*(?=\d)", r" \\times ", side.strip()) for side in text.split("="))
    numbers = {side for side in sides if re.fullmatch(NUMBER, side)}
    if len(numbers) != 1 or not _CALCULATION.search(last.lstrip("-+")):
        return text
    number = numbers.pop()
    return number if _same_mathematics(number, last) else text


def _same_parts(got: Parts, wanted: Parts) -> bool:
    """Whether each part has its partner: in the same place, or anywhere in a set or a list with "and"."""
    if len(got.items) != len(wanted.items) or not got.fits(wanted):
        return False
    left = list(wanted.items)
    for item in got.items:
        candidates = left if got.unordered or wanted.unordered else left[:1]
        partner = next((other for other in candidates if _same_item(item, other)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _same_item(stated: str, gold: str) -> bool:
    if (letter := choice(gold)) is not None:
        return choice(stated) == letter
    return _same(stated, gold)


def _same_value(stated: str, gold: str) -> bool:
    (stated, stated_unit), (gold, gold_unit) = split_unit(stated), split_unit(gold)
    if None not in (stated_unit, gold_unit) and stated_unit != gold_unit:
        return False
    if "%" in (stated[-1:], gold[-1:]) and (stated_unit or gold_unit):
        return False
    if _is_text(stated) or _is_text(gold):
        return bool(_plain(gold)) and _plain(stated) == _plain(gold)
    if re.fullmatch(NUMBER, gold) and _CALCULATION.search(stated.lstrip("-+")) and not re.fullmatch(NUMBER, stated):
        return False
    return _same_mathematics(stated, gold)


def _same_mathematics(stated: str, gold: str) -> bool:
    if any(len(text) > _LONGEST or _EXPLOSIVE.search(text) for text in (stated, gold)):
        return _plain(stated) == _plain(gold)
    # math-verify's timeouts are signals, which exist in the main thread only
    seconds = _SECONDS if threading.current_thread() is threading.main_thread() else None
    wanted, got = (parse(f"${latex(text)}$", parsing_timeout=seconds) for text in (gold, stated))
    return bool(verify(wanted, got, timeout_seconds=seconds))


def _is_text(text: str) -> bool:
    return _WORD.search(_NOT_WORDS.sub(" ", text)) is not None


def _plain(text: str) -> str:
    """Words alone, for comparing texts."""
    words = [word.strip(".") for word in re.sub(r"[^\w\s./'!<>=+-]", " ", text.casefold()).split()]
    return " ".join(word for word in words if word and word not in {"a", "an", "the"})
