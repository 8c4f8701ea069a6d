r"""Where a reply states its answer: \boxed{X}, "the answer is X", "B is correct", a heading, #### X, tags, JSON.

A sentence that only mentions an answer ("I hope the answer is helpful", "if the answer is 5") states none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from onesteptrain.evaluation.answers.equivalence import is_bare_value
from onesteptrain.evaluation.answers.objects import answers_in_objects

_NOUN = r"(?:answers?|ans\.?)(?!\w)"
_SUBJECT = (
    rf"(?:(?:the|my|our)\s+)?(?:[*_]{{0,3}}(?:final|correct|right|best|exact|numerical|short)\s+)*[*_]{{0,3}}"
    rf"(?:{_NOUN}|(?<=correct )(?:option|choice|statement)|(?<=right )(?:option|choice)|(?<=best )(?:option|choice))"
)
_COPULA = (
    r"(?:\b(?:is|are|was|equals?|becomes?|(?:must|should|would|will|has to) be|(?:comes|turns) out to be)\b"
    r"(?:\s+(?:therefore|thus|then|also|simply|just|hence|clearly|probably|likely|now|indeed"
    r"|given by|equal to|option|choice)\b)*"
    r"\s*[:=]?|[*_\"]*\s*[:=]|\s[–—-]\s|\s*(?:[=-]>|→))"
)
_STATED = re.compile(
    rf"\b{_SUBJECT}(?P<about>(?:(?!\n|[?!:=]|\.(?!\d)).){{0,60}}?){_COPULA}[\s*_]*(?:(?<=\n)[•-]\s+)?", re.IGNORECASE
)
_HEADING = re.compile(
    r"^[#*_>\s]*(?:the\s+)?(?:(?:final|correct)\s+)*answer[*_:\s]*\n[\s*_>]*", re.IGNORECASE | re.MULTILINE
)
_ELSEWHERE = re.compile(
    r"(?:正确)?答案(?:选)?\s*(?:应?[是为為]|:)\s*|故?选\s*(?=[A-J])|(?:答え|正解|回答)(?:は|:)\s*|\bla\s+respuesta(?:\s+\w+){0,2}?\s+es\s*:?\s*"
    r"|\brespuesta(?:\s+final)?\s*:\s*|\bla\s+r[ée]ponse(?:\s+\w+){0,2}?\s+est\s*:?\s*|\br[ée]ponse(?:\s+finale)?\s*:\s*"
    r"|\bdie\s+(?:\w+\s+)?antwort\s+(?:ist|lautet)\s*:?\s*|\bantwort\s*:\s*|\bответ\s*(?:[:—-])\s*",
    re.IGNORECASE,
)
_REVERSED = re.compile(
    r"(?:^|(?<=[.!?,]\s))[ \t]*(?:(?:so|thus|therefore|hence)\b,?\s*)?(?P<answer>(?:(?!\bis\b)[^!?,;\n]){1,60}?)[*_]*"
    r"\s+is\s+(?:therefore\s+)?(?:(?:the|my|our)\s+(?:final\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice)|correct|right)"
    r"(?=[.,;!]|\s*$|\s+(?:because|since|as|here)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_PICKED = re.compile(
    r"\b(?:I|we)(?:'d|'ll| would| will)?\s+(?:choose|pick|select|go with|chose)\s+"
    r"(?=(?:option |choice )?(?:\([A-J]\)|[A-J]\b))"
)
_HASHES = re.compile(r"####[ \t]*(?!\s*(?:final\s+)?answer\b)(?=\S)", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[\w.]+))")
_POWER = re.compile(r"\s*\^\s*(?:\{\s*\w+\s*\}|\w)")
"""Behind a box, of which it is a part."""

_ANOTHER = re.compile(r"[\s$]*(?:,|;|and|or|,\s*and)[\s$]*\\boxed\s*\{")
_TAGGED = re.compile(
    r"<answer>(.*?)(?:</answer>|(?P<open>\Z))|<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.IGNORECASE | re.DOTALL
)
_PASSING = re.compile(
    r"(?:\b(?:if|whether|hope|suppose|supposing|assume|assuming|unless|maybe|perhaps|imagine|let me know|confiden\w+"
    r"|make sure|not sure|doubt|wonder|says?|said|claims?|check|verify|confirm|explain|explanation|someone"
    r"|student)\b[^,]*"
    r"|\b(?:in|of|with|about|on|from|than|behind|is|was|are|an?|any|no|another|this|that|each|his|her|their|your|wrong)\s+"
    r"|\w's\s+)$",
    re.IGNORECASE,
)
_SURE = re.compile(
    r"\b(?:conclude|so|follows|means|shows|find|found|see|get|think|believe|know|say)\s+that\s+$", re.IGNORECASE
)
_REMARK = re.compile(
    r"(?:(?:very|quite|indeed|also|absolutely|now|not)\s+)*(?:helpful|useful|clear|unclear|correct|incorrect|right|wrong|reasonable"
    r"|consistent|valid|unique|obvious|complete|accurate|plausible|sensible|found|obtained|shown|computed|calculated|derived"
    r"|verified|confirmed|above|below|based|supported|rounded|expressed|written|in the|as follows|what|well)\b",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"[\s.!?*_}$]*(?:(?:oh|hmm|but)\b[,.\s]*)?(?:(?:wait|no(?=[,.])|actually|sorry|scratch that"
    r"|correction|hold on)\b[,.:!\s]*)+",
    re.IGNORECASE,
)
_ABBREVIATED = r"\b(?:approx|no|nr|st|mt|mr|mrs|ms|dr|prof|vs|e\.g|i\.e|ca|jr|sr|u\.s|u\.k|sq|fig|rs|p\.m|a\.m)\."
_STOP = re.compile(
    rf"(?P<held>\$\$.*?\$\$|\$(?:(?!\.\s)[^$\n])+\$|\\\[.*?\\\]|\\\(.*?\\\)|```.*?```|\{{[^{{}}]*\}}|{_ABBREVIATED}(?=\s+[\dA-Z]))"
    r"|(?P<stop>\.(?=\s|$|[*_\"'`)]+(?:\s|$))|(?<=[\d)])\.(?=[A-Z][a-z])|[!?](?=\s+[A-Z(]|\s*$|\s*\n)|\n|</)",
    re.DOTALL | re.IGNORECASE,
)


_CLAUSE = 200
"""Characters before "the answer is" that are looked at."""


class Statement(NamedTuple):
    """An answer as it is stated."""

    start: int
    end: int
    answer: str
    """Nothing where the reply was cut off in it."""

    taken_back: bool = False
    """The next sentence says that this is not it."""


def last_statement(text: str, *, finished: bool) -> Statement | None:
    """The last statement of an answer; remarks about an answer count only where nothing else is stated."""
    objects = [Statement(*one) for one in answers_in_objects(text)]
    inside = [range(one.start, one.end) for one in objects]
    plain = [one for one in _statements(text, finished) if not any(one.start in place for place in inside)]
    found = sorted([*plain, *objects], key=lambda one: one.start)
    if not found:
        return None
    firm = [one for one in found if not _REMARK.match(one.answer.strip(" *_"))]
    if not firm and not re.fullmatch(r"\W*\w+\W*", found[-1].answer):
        return None
    last = (firm or found)[-1]
    back = _TAKEN_BACK.match(text, last.end)
    return last if back is None else last._replace(end=back.end(), taken_back=True)


def _statements(text: str, finished: bool) -> Iterator[Statement]:
    for pattern in (_STATED, _HEADING, _PICKED, _ELSEWHERE, _HASHES):
        for match in pattern.finditer(text):
            if pattern is not _STATED or not _in_passing(text, match.start()):
                yield _sentence(text, match.start(), match.end(), finished)
    for match in _REVERSED.finditer(text):
        if is_bare_value(match["answer"]):
            yield Statement(match.start(), match.end(), match["answer"])
    boxed_to = 0
    for match in _BOXED.finditer(text):
        if match.start() < boxed_to:
            continue
        boxed_to, answer = (match.end(), match["bare"]) if match["bare"] else _braced(text, match.end())
        if power := _POWER.match(text, boxed_to):
            boxed_to, answer = power.end(), f"({answer}){power[0].strip()}"
        yield Statement(match.start(), boxed_to, answer)
    for match in _TAGGED.finditer(text):
        if match["open"] is None or finished:
            inner = match[1] if match[1] is not None else match[3]
            stated = last_statement(inner.strip(), finished=True)
            yield Statement(match.start(), match.end(), stated.answer if stated is not None else inner.strip())


def _in_passing(text: str, start: int) -> bool:
    """Whether what stands before it in its clause keeps "the answer is" from being a statement."""
    clause = re.split(r"[.!?\n,;:(]", text[max(0, start - _CLAUSE) : start])[-1]
    return _PASSING.search(clause) is not None and _SURE.search(clause) is None


def _sentence(text: str, start: int, after: int, finished: bool) -> Statement:
    """The statement up to the end of its sentence; empty where the reply was cut off before that."""
    for match in _STOP.finditer(text, after):
        if match["stop"] is not None and match.start() > after:
            return Statement(start, match.end(), text[after : match.start()])
    return Statement(start, len(text), text[after:] if finished else "")


def _braced(text: str, start: int) -> tuple[int, str]:
    """Where the brace before a position is closed, and what stands between; boxes joined by "and" count as one."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            more = _ANOTHER.match(text, place + 1)
            end, rest = _braced(text, more.end()) if more is not None else (place + 1, "")
            return end, text[start:place] + (f" and {rest}" if rest else "")
    return len(text), ""
