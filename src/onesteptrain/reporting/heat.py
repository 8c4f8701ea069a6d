"""Token heat map: an answer as HTML in which words that help and words that harm have a colour.

Tokens are joined to words, because nobody reads "Str|awb|erry". A word's utility is the sum of its tokens', so that
the words of an answer add up to what its tokens do. Harm is orange and underlined, help is blue: told apart by
colour-blind readers, and on paper by the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

_WORD = re.compile(r"\S+")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls that a page must not hold, or that turn the order of the text round."""

_STEPS = (0.1, 0.3, 0.6, 1.0)
"""Strength at which the next shade begins, in parts of the full one; below the first there is no colour."""

_USUAL = 0.95
_MOST_CHARACTERS = 3000

LEGEND = Markup(
    '<p class="legend">Training on <span class="heat harm3">these words</span> makes answers to your anchors worse, on '
    '<span class="heat help3">these</span> better; the stronger the colour, the more. '
    "Words without colour hardly matter.</p>"
)
"""What the colours mean, for readers who know nothing of gradients."""

STYLE = Markup("""
:root { --harm-rgb: 217 95 2; --help-rgb: 31 119 200; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; line-height: 1.7; }
.heat { border-radius: 2px; padding: 0 .08em; unicode-bidi: isolate; print-color-adjust: exact; }
.harm1, .harm2, .harm3, .harm4 { border-bottom: 2px solid rgb(var(--harm-rgb)); }
.harm1 { background: rgb(var(--harm-rgb) / .08); } .harm2 { background: rgb(var(--harm-rgb) / .18); }
.harm3 { background: rgb(var(--harm-rgb) / .32); } .harm4 { background: rgb(var(--harm-rgb) / .48); }
.help1 { background: rgb(var(--help-rgb) / .08); } .help2 { background: rgb(var(--help-rgb) / .18); }
.help3 { background: rgb(var(--help-rgb) / .32); } .help4 { background: rgb(var(--help-rgb) / .48); }
""")
"""Rules for the colours, in light and dark; inert text needs no script."""


class Word(NamedTuple):
    """A word of an answer."""

    start: int
    """Characters of the answer: the first, and the one after the last."""

    end: int

    utility: float
    """Sum over its tokens, in nats; NaN where it has no token in the loss."""


def join_words(answer: str, places: Sequence[tuple[int, int]], utility: Sequence[float]) -> list[Word]:
    """Join tokens to the words between blanks.

    Args:
        answer: The text.
        places: Characters of each token, the first and the one after the last, as `token_places` gives them.
        utility: Of each token; a positive one helps.

    Returns:
        The words in order. A token belongs to the word of its first character that is no blank; one of blanks only, or
        of no characters (end of turn), to none.

    Raises:
        ValueError: there are not as many places as utilities.
    """
    sums = np.full(len(answer) + 1, np.nan)
    for (start, end), value in zip(places, utility, strict=True):
        first = start + len(answer[start:end]) - len(answer[start:end].lstrip())
        if first < end:
            sums[first] = value + np.nan_to_num(sums[first])
    spans = [match.span() for match in _WORD.finditer(answer)]
    return [Word(start, end, _sum(sums[start:end])) for start, end in spans]


def heat_scale(words: Sequence[Word]) -> float:
    """The utility that has the full colour: what 95 of 100 words do not reach; 1 where nothing is known."""
    sizes = np.abs([word.utility for word in words if np.isfinite(word.utility)])
    return float(np.quantile(sizes, _USUAL)) or float(sizes.max()) or 1.0 if len(sizes) else 1.0


def heat_map(answer: str, words: Sequence[Word], scale: float, most: int = _MOST_CHARACTERS) -> Markup:
    """An answer as inert HTML with its words coloured; needs the rules of `STYLE`, and `LEGEND` once on the page.

    Args:
        answer: The text; anything in it stays text.
        words: As `join_words` gives them.
        scale: The utility that has the full colour, one for all answers that are compared.
        most: Characters that are shown.
    """
    parts: list[Markup] = []
    before = 0
    for word in words:
        if word.start >= most:
            break
        parts.append(inert(answer[before : word.start]))
        text, shade = inert(answer[word.start : min(word.end, most)]), shade_of(word.utility, scale)
        parts.append(Markup('<span class="heat {}">{}</span>').format(shade, text) if shade else text)
        before = min(word.end, most)
    parts.append(inert(answer[before:most]))
    if len(answer) > most:
        parts.append(Markup(' <span class="note">… cut: {} of {} characters</span>').format(most, len(answer)))
    return Markup('<div class="answer" dir="auto">{}</div>').format(Markup("").join(parts))


def shade_of(utility: float, scale: float) -> str:
    """The class of a word: harm1 to harm4, help1 to help4, or none where it hardly matters."""
    strength = abs(utility) / scale
    reached = sum(strength >= step for step in _STEPS)  # of NaN none
    return f"{'harm' if utility < 0 else 'help'}{reached}" if reached else ""


def inert(text: str) -> Markup:
    """Any text as HTML, controls and marks that turn its order round replaced by a sign that shows."""
    return escape(_UNSEEN.sub("\ufffd", text))


def _sum(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(np.nansum(values)) if np.isfinite(values).any() else float("nan")
