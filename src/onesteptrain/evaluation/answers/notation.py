"""The many ways to write one answer: marks around it, signs of other keyboards, number words, LaTeX."""

from __future__ import annotations

import re
import unicodedata

_KEYBOARD = {0xFF01 + place: 0x21 + place for place in range(94)} | {
    ord(sign): plain
    for signs, plain in (("。", "."), ("、", ","), ("‘’", "'"), ("“”「」", '"'), ("\u00a0\u2009\u202f\u3000", " "))
    for sign in signs
}
_BOLD = re.compile(r"(?<![\w*])\*\*(\S(?:[^*\n]*\S)?)\*\*(?![\w*])")
_TYPE_TAG = re.compile(r"</?(?:b|strong|em|i|u)>", re.IGNORECASE)
_WRAPPERS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$(.*)\$\$",
        r"\$([^$]*)\$",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\\(?:boxed|text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}",
        r"```\w*\n(.*)```",
        r"`+([^`]+)`+",
        r"[\"']([^\"']*)[\"']",
        r"<([a-z]+)>(.*)</\1>",
    )
]
_DIGITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SMALL = {word: value for value, word in enumerate(f"{_DIGITS} seventeen eighteen nineteen".split())}
_TENS = {
    word: 10 * value
    for value, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_WORD = "|".join([*_SMALL, *_TENS, "hundred"])
_SAID = re.compile(rf"(?:{_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_WORD}|{'|'.join(_SCALES)}))*\b", re.IGNORECASE)
_SAID_PART = re.compile(rf"(?:({'|'.join(_SMALL)}|an?)[\s-]+)?({'|'.join(_PARTS)})s?\b(?!\s+of\b)", re.IGNORECASE)
_MAGNITUDE = re.compile(rf"(-?\d+(?:\.\d+)?)\s+(hundred|{'|'.join(_SCALES)}|dozen)\b", re.IGNORECASE)
_SHORT = re.compile(r"((?:US)?[$€£¥₹]?\s?-?\d+(?:\.\d+)?)(k|M|B|bn|mn)(?=$|\s+(?:[A-Za-z]{2,}|[$€£¥₹]))")
_SHORT_FOR = {"k": "thousand", "M": "million", "mn": "million", "B": "billion", "bn": "billion"}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_BEFORE = re.compile(
    r"^(?:approximately|approx\.?|about|roughly|around|exactly|precisely|only|just|simply|equal to|given by|a total of"
    r"|≈|~|\\approx|=|(?:no|nr)\.(?=\s*\d)|n[°º](?=\s*\d)|number(?=\s+\d)|#(?=\d))\s*",
    re.IGNORECASE,
)
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\%", "%"),
        (r"\\left|\\right(?![a-z])|\\displaystyle", ""),
        (r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1 "),
        (r"\{,\}", ","),
        (r"\\[,!;: ]|~", " "),
        (r"\s+", " "),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|º", "°"),
        (r"[−–‒](?=\s*[\d.\\A-Za-z(])", "-"),
        (r"^(?:minus|negative) (?=[\d.])", "-"),
        (r"(?<![\d,.(\[{])(\d{1,3})((?:[,'’_]\d{3})+)(?![\d,_])", lambda m: m[1] + re.sub(r"\D", "", m[2])),
        (r"(?<![\d,.(\[{])(\d{1,2})((?:,\d{2})+,\d{3})(?![\d,])", lambda m: m[1] + m[2].replace(",", "")),
        (
            r"(?<![\d,.(\[{/] )(?<![\d,.(\[{/])(\d{1,3})((?: \d{3})+)(?![\d,/]| ?/| \d)",
            lambda m: m[1] + m[2].replace(" ", ""),
        ),
        (r"(?<=[\w)}])\s*\*\*\s*(?=[-\w(])", "^"),
        (r"\^\s*\(\s*([-+]?\d+(?:[./]\d+)?)\s*\)|\^\s*(-\d+(?:\.\d+)?)", lambda m: f"^{{{m[1] or m[2]}}}"),
        (r"(\d)\s*(?:[×x*]|\\times|\\cdot|·)\s*10\s*\^\s*\{?\s*([-+]?\d+)\}?", r"\1e\2"),
        (
            r"(\d)\s*(?:[×x*]|\\times|\\cdot|·)\s*10([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)",
            lambda m: f"{m[1]}e{m[2].translate(_SUPERSCRIPT)}",
        ),
        (r"(\d+)\s*(?:percent|per cent|pct)\b", r"\1%"),
        (r"(\d+) and (?:a|one) half\b", r"\1 1/2"),
        (r"(\d{1,2}) o'clock", r"\1:00"),
        (r"(\d)\s*%\s+[A-Za-z].*$", r"\1%"),
        (r"^\([A-J]\)\s+(?=\S)|^[A-J][):]\s+(?=\S)", ""),
    )
]
_SIGNS = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "≤": r"\le ",
    "≥": r"\ge ",
    "∪": r"\cup ",
}


def plain_signs(text: str) -> str:
    """Full-width letters, curly quotes, narrow spaces and fractions such as ½ by the signs of a plain keyboard."""
    text = re.sub(r"(\d?)([¼-¾⅐-⅞])", _vulgar, text.translate(_KEYBOARD))
    return _BOLD.sub(r"\1", _TYPE_TAG.sub("", text))


def unwrapped(text: str) -> str:
    """Without the marks around an answer: dollars, boxes, stars, quotes, the full stop."""
    before = None
    while text != before:
        before = text
        text = re.sub(r"^[*_]+|(?<!\\)[*_]+$", "", text.strip()).rstrip(".,;:").strip()
        for wrapper in _WRAPPERS:
            if (match := wrapper.fullmatch(text)) is not None:
                text = match.groups()[-1]
    return text


def without_commands(text: str) -> str:
    """A text without the LaTeX that only sets it in another type, or spaces it."""
    text = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    return re.sub(r"\\[,!;: ]|~|\\quad\b", " ", text)


def cleaned(text: str) -> str:
    """One spelling of an answer: digits for words, no thousands separators, no words that only soften it."""
    text = _BEFORE.sub("", unwrapped(plain_signs(text)))
    for pattern, new in _REWRITES:
        text = unwrapped(pattern.sub(new, text))
    text = _BEFORE.sub("", text)
    for pattern, read in ((_SAID_PART, _said_part), (_SAID, _said)):
        match = pattern.match(text)
        text = read(match) + text[match.end() :] if match is not None else text
    if (short := _SHORT.match(text)) is not None:
        text = f"{short[1]} {_SHORT_FOR[short[2]]}{text[short.end() :]}"
    return _MAGNITUDE.sub(_magnitude, text)


def latex(text: str) -> str:
    """An expression as math-verify reads it: 1 1/2, 2√3, x², 1.5e3."""
    text = re.sub(r"(?<![\d/])(\d+)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)", r" \\times 10^{\1}", text)
    text = re.sub(
        r"√\s*\(([^()]*)\)|√\s*(\w)",
        lambda match: rf"\sqrt{{{match[1] or match[2]}}}" if match[1] or not match[2].isdigit() else match[0],
        text,
    )
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(pi|sqrt|sin|cos|tan|cot|log|ln|exp)(?![A-Za-z])", r"\\\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPT)}}}", text)
    for sign, name in _SIGNS.items():
        text = text.replace(sign, name)
    return text


def _vulgar(match: re.Match[str]) -> str:
    whole, sign = match.groups()
    parts = unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
    return f"{whole} {parts}" if whole else parts


def _said(match: re.Match[str]) -> str:
    total, group = 0, 0
    for word in re.split(r"[\s-]+", match[0].lower()):
        if word in _SCALES:
            total, group = total + max(group, 1) * _SCALES[word], 0
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word != "and":
            group += _SMALL.get(word, 0) + _TENS.get(word, 0)
    return str(total + group)


def _said_part(match: re.Match[str]) -> str:
    count = _SMALL.get((match[1] or "one").lower(), 1)
    return f"{count}/{_PARTS[match[2].lower()]}"


def _magnitude(match: re.Match[str]) -> str:
    from decimal import Decimal

    factor = {"hundred": 100, "dozen": 12, **_SCALES}[match[2].lower()]
    return f"{(Decimal(match[1]) * factor).normalize():f}"
