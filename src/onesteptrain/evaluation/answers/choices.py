"""Choices by letter: "B", "(B)", "B. 12 cm", "option B, the red one", "B is correct" - and not "A dog" or "A or B"."""

from __future__ import annotations

import re

from onesteptrain.evaluation.answers.notation import unwrapped, without_commands

_KIND = (
    r"(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:(?:option|choice|answer|letter|point|figure|graph|picture|image)\s+)?"
)
_REASON = r"because|since|as|for|so|due|given|which|where|by"
_AFTER_BARE = rf"""
    \s*$ | [.):,;] | \s*[-:–—]\s | \s+\( | \s+(?:{_REASON})\b | \s+(?:and|but)\s+not\b | \s+(?:not|rather|instead)\b
    | \s+is\s+(?:the\s+)?(?:only\s+)?(?:correct|right|best|true|answer)\b
"""
_CHOICE = re.compile(
    rf"(?i:{_KIND})(?:\((?P<inside>[A-Ja-j])\)|(?P<bare>[A-J])(?={_AFTER_BARE})|(?P<small>[a-j])(?=\)))(?P<rest>.*)",
    re.DOTALL | re.VERBOSE,
)
_LETTER = r"(?:(?:option|choice)\s+)?(?:\([A-Ja-j]\)|[A-J](?=[\s.,;:)]|$))"
_HEDGED = re.compile(
    rf"""^[.):]?\s*(?:(?:,|/|;|&|\bor\b|\band\b(?!\s+not\b)|\bto\b)\s*)+(?:(?i:or|and)\s+)?{_LETTER}(?!\s+[a-z]+\s+(?!or|and))
    | ^\s*(?:or|to)\b | ^\s*and\b(?!\s+not\b) | \b(?:or|either|neither)\s+{_LETTER}
    | \b(?:maybe|perhaps|not\ sure|wrong|incorrect|no,|wait|actually)\b
    """,
    re.VERBOSE,
)


def choice(text: str) -> str | None:
    """The letter, in capitals, of a text that names one choice; nothing for another text, or for two letters."""
    text = unwrapped(without_commands(text))
    text = re.sub(r"^(?:\[([A-J])\]|\\?\{([A-J])\\?\})", r"(\1\2)", text)
    if re.fullmatch(r"[A-Ja-j]", text):
        return text.upper()
    match = _CHOICE.fullmatch(text)
    if match is None or _HEDGED.search(match["rest"]):
        return None
    return (match["inside"] or match["bare"] or match["small"]).upper()


def choice_text(text: str) -> str:
    """What stands behind the letter of "(B) 12 cm" or "B: 12 cm"; nothing where there is only a letter."""
    match = re.fullmatch(r"(?:\([A-J]\)|[A-J][.):])\s*(\S.*)", unwrapped(text), re.DOTALL)
    return match[1] if match is not None else ""
