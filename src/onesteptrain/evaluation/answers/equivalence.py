"""Whether two short answers mean the same: choices and words by themselves, everything mathematical by math-verify."""

from __future__ import annotations

import functools
import logging
import re
import threading

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns wherever its timeouts cannot be used

_SECONDS = 5
"""Most time for one answer; only the main thread can be interrupted."""

_LONGEST = 150
"""Characters that are handed to math-verify."""

_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})")
_NUMBER = r"-?\s*(?:\d+\s+\d+\s*/\s*\d+|\d+\s*/\s*-?\d+|\d+(?:\.\d+)?|\.\d+|\d*\\[dt]?frac\s*\{-?\d+\}\s*\{-?\d+\})"
_VALUE_AND_UNIT = re.compile(rf"(?P<value>{_NUMBER})(?P<space>\s*)(?P<unit>[^\d\s.,;:=+*/()\[\]{{}}$\\^_-].*)?")
_CHOICE = re.compile(r"(?:(?:option|choice)\s+)?(?:\(([A-J])\)|([A-J])(?=[.):]|$))(.*)", re.DOTALL)
_HEDGE = re.compile(r"\b(?:or|and|not|either|neither|to)\b|\([A-J]\)")
_WRAPPERS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$(.*)\$\$",
        r"\$([^$]*)\$",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\\boxed\{(.*)\}",
        r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}",
        r"`+([^`]+)`+",
        r"[\"“]([^\"]*)[\"”]",
    )
]
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"[−–‒]", "-"),
        (r"\\%", "%"),
        (r"\\[,!;: ]|~", " "),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree", "°"),
        (r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1"),
        (r"(?<![\d,.(\[{])(\d{1,3})((?:,\d{3})+)(?![\d,])", lambda m: m[1] + m[2].replace(",", "")),
        (r"^(-?)\s*(?:\\\$|[$€£¥])\s*(?=[\d.-])", r"\1"),
        (r"^(?:approximately|about|roughly|exactly|equal to|≈|\\approx)\s+", ""),
        (r"^\([A-J]\)\s+(?=\S)", ""),
    )
]
_UNIT_NAMES = """
    mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre; in inch inche; mi mile;
    ft foot feet; g gram; kg kilogram; mg milligram; lb pound; l liter litre; ml milliliter millilitre; s sec second;
    min minute; h hr hour; day; week; month; year; ° degree deg; rad radian; n newton; j joule; w watt; v volt;
    a ampere amp; hz hertz; k kelvin; pa pascal; mph; km/h kph; m/s
"""
_UNITS = {spelling: names.split()[0] for names in _UNIT_NAMES.split(";") for spelling in names.split()}
_WORD = re.compile(r"[a-z]{2,}")
_NOT_WORDS = re.compile(r"\\[A-Za-z]+|\b(?:pi|sin|cos|tan|cot|log|ln|exp|sqrt|max|min)\b")
_CALCULATION = re.compile(r"[+*×·÷]|\\cdot|\\div|\\times(?!\s*10\s*\^)|(?<=[\dA-Za-z)}])\s*-")
_EXPLOSIVE = re.compile(r"\^[^+*]*\^|\^\s*\{?\s*-?\d{4,}|!|\d{40,}")


@functools.lru_cache(maxsize=8192)
def same_answer(stated: str, gold: str) -> bool:
    """Whether an answer equals the right one.

    A unit that only one of them names is ignored, and so is a percent sign; two measuring units must agree. A
    calculation such as "3 + 5" is no answer where a number is asked for.
    """
    if (letter := _choice(gold)) is not None:
        return _choice(stated) == letter
    stated, gold = _clean(stated), _clean(gold)
    if _INTEGER.fullmatch(stated) and _INTEGER.fullmatch(gold):
        return stated == gold
    if "=" not in gold:
        stated = _clean(stated.rpartition("=")[2])
    (stated, stated_unit), (gold, gold_unit) = _split_unit(stated), _split_unit(gold)
    if None not in (stated_unit, gold_unit) and stated_unit != gold_unit:
        return False
    if _is_text(stated) or _is_text(gold):
        return bool(_plain(gold)) and _plain(stated) == _plain(gold)
    if re.fullmatch(_NUMBER, gold) and _CALCULATION.search(stated):
        return False
    return _same_mathematics(stated, gold)


def is_bare_value(line: str) -> bool:
    """Whether a line is nothing but a number, with its unit if it has one, or a choice."""
    value = _split_unit(_clean(line))[0]
    return _choice(line) is not None or re.fullmatch(_NUMBER + "%?", value) is not None


def _same_mathematics(stated: str, gold: str) -> bool:
    if any(len(text) > _LONGEST or _EXPLOSIVE.search(text) for text in (stated, gold)):
        return _plain(stated) == _plain(gold)
    # math-verify's timeouts are signals, which exist in the main thread only
    seconds = _SECONDS if threading.current_thread() is threading.main_thread() else None
    wanted, got = (parse(f"${_mixed(text)}$", parsing_timeout=seconds) for text in (gold, stated))
    return bool(verify(wanted, got, timeout_seconds=seconds))


def _choice(text: str) -> str | None:
    """The letter of "B", "(B)", "B. 12 cm" or "option B"; nothing for two letters at once."""
    text = _unwrapped(text)
    match = _CHOICE.match(text) or _CHOICE.fullmatch(text.upper() if re.fullmatch(r"\(?[a-j]\)?\.?", text) else "")
    if match is None or _HEDGE.search(match.group(3)):
        return None
    return match.group(1) or match.group(2)


def _clean(text: str) -> str:
    text = _unwrapped(text)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text).strip()
    return text


def _unwrapped(text: str) -> str:
    """Without the marks around an answer: dollars, boxes, stars, quotes, the full stop."""
    before = None
    while text != before:
        before = text
        text = text.strip(" \t\n*_").rstrip(".,;:!").strip()
        for wrapper in _WRAPPERS:
            if (match := wrapper.fullmatch(text)) is not None:
                text = match.group(1)
    return text


def _split_unit(text: str) -> tuple[str, str | None]:
    """A number without its unit, and the measuring unit by its short name; other texts as they are."""
    match = _VALUE_AND_UNIT.fullmatch(text)
    if match is None or not match["unit"] or match["unit"].startswith("%") or _HEDGE.search(match["unit"]):
        return text, None
    known = _measuring_unit(match["unit"])
    if known is None and not (match["space"] and re.match(r"[A-Za-z]{2,}[^\d=]*$", match["unit"])):
        return text, None  # as likely a variable: 5x, 2ab
    return match["value"], known


def _measuring_unit(text: str) -> str | None:
    unit = re.sub(r"[\s^{}.]", "", text.lower())
    for word, power in (("square", "2"), ("cubic", "3")):
        unit = unit.removeprefix(word) + power if unit.startswith(word) else unit
    name, power = re.fullmatch(r"(.*?)([23²³]?)", unit).groups()  # type: ignore[union-attr]  # matches any text
    known = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
    return known and known + power.translate({ord("²"): "2", ord("³"): "3"})


def _is_text(text: str) -> bool:
    return _WORD.search(_NOT_WORDS.sub(" ", text)) is not None


def _plain(text: str) -> str:
    """Words alone, for comparing texts."""
    words = re.sub(r"[^\w\s./-]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def _mixed(text: str) -> str:
    """Mixed numbers as LaTeX writes them: 1 1/2."""
    return re.sub(r"(?<![\d/])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}", text)
