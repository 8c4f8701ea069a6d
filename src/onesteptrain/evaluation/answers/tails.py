"""What may follow an answer in its sentence without changing it: a reason, a remark in brackets, what it is not."""

from __future__ import annotations

import re

from onesteptrain.evaluation.answers.units import measuring_unit

_REASONS = (
    r"because|since|as|for|so|which|where|who|given|due\ to|meaning|making|based\ on|according\ to|that\ is|i\.e\.|by"
    r"|using"
)
_LONGEST = 200
"""Characters that the answer in a statement may take; tails are looked for up to there."""

_TAIL = re.compile(
    rf"""
      \s*(?:[,;]|\s[-–—])?\s+(?:{_REASONS})\b.*
    | \s*[,;]\s*(?:because|since|as|so|which|given|i\.e\.)\b.*
    | \s*[,;]?\s*(?:\band\b|\bbut\b)?\s*\b(?:not|rather\ than|instead\ of)\b(?!\s+(?:sure|certain)).*
    | \s*,\s*(?:the|it|this|that|they|we|there|with|obtained|found|rounded|after|when|if\ we)\b.*
    | \s+is\s+(?:the\s+|my\s+|our\s+)?(?:final\s+)?(?:correct|right|answer)\b.*
    | (?<![=+*/<>,-])\s+\((?!\s*or\b)[^()]*\)
    | \s*[;]\s.* | \s+[–—]\s.* | \s*—.* | \s+-\s+[A-Za-z].*
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|sorry|scratch|hmm|i mean|or rather|or maybe|or perhaps|not sure|no wait)\b|\bno,"
    r"|\b(?:which|that|this|it)(?:'s| is| was| seems) (?:wrong|incorrect|not (?:right|correct)|too)\b",
    re.IGNORECASE,
)
_INSTEAD = re.compile(
    r"not\s+[^,;]{1,30}?(?:,|;)?\s*\b(?:but|it is|it's)\s+(?P<answer>\S.*)", re.DOTALL | re.IGNORECASE
)
_SUBJECT = re.compile(
    r"(?:(?:so|thus|therefore|hence|then|and|finally|consequently|overall|in total|altogether)\b,?\s*)*"
    r"(?P<subject>(?:it|that|this|these|they|he|she|there|we|i|you|the|a|an|its|number|total|value|sum|[a-z])\b[^=?;]{0,70}?)"
    r"\s*(?:'s|'re|\b(?:is|are|was|were|equals?|has|have|get|gets|see|sees|got|find|obtain|becomes?))\s+"
    r"(?:equal to\s+|therefore\s+|at\s+)?(?P<answer>\S.*)",
    re.DOTALL | re.IGNORECASE,
)
_UNSURE = re.compile(r"\b(?:if|or|not|maybe|perhaps|might|could|suppose|assume|no)\b|n't\b", re.IGNORECASE)


def heads(text: str) -> list[str]:
    """What a statement says without each tail it may have, the longest first; nothing where it is taken back."""
    found = [match["answer"]] if (match := _INSTEAD.match(text)) is not None else []
    base = found[0] if found else text
    for match in _tails(base):
        head, tail = base[: match.start()].strip(), match[0]
        in_brackets = tail.strip().strip("()")
        if head and not _TAKEN_BACK.search(tail) and measuring_unit(in_brackets) is None:
            found.append(head)
    return found


def said_of_subject(sentence: str) -> str | None:
    """What a plain sentence says of its subject: 5 in "So the number of balls is 5"; nothing where it is unsure."""
    match = _SUBJECT.fullmatch(sentence)
    if match is None or _UNSURE.search(match["subject"]):
        return None
    return match["answer"]


def _tails(text: str) -> list[re.Match[str]]:
    places = [
        place for place in range(1, min(len(text), _LONGEST)) if text[place] in " ,;—" and text[place - 1] not in " ,;"
    ]
    found = [match for place in places if (match := _TAIL.fullmatch(text, place)) is not None]
    return found[::-1]
