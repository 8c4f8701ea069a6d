r"""What an answer is made of: sentences, a chain of reasoning, and the final answer with its form.

The final answer is the last one that is stated, behind `</think>` if the text has it: `\boxed{X}`, "answer is X",
"Answer: X" (in a dozen languages), `#### X` or `<answer>X</answer>`, not followed by more than a note. Of a text of a
few words it is the whole, and of any other its last sentence.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from onesteptrain.data.corruption.numbers import numbers
from onesteptrain.data.images import image_fingerprint
from onesteptrain.data.pool import ImageRef, Sample, plain_text, text_of
from onesteptrain.errors import SampleError

Form = Literal["letter", "yes or no", "number", "words", "open"]
"""Of a final answer: an option's letter, yes or no, something with a number, some words, or not stated at all."""

OPPOSITES = [
    *(("yes", "no"), ("true", "false"), ("correct", "incorrect"), ("right", "wrong"), ("ja", "nein"), ("ja", "nee")),
    *(("oui", "non"), ("vrai", "faux"), ("sí", "no"), ("sì", "no"), ("sim", "não"), ("verdadero", "falso")),
    *(("да", "нет"), ("так", "ні"), ("tak", "nie"), ("evet", "hayır"), ("نعم", "لا"), ("हाँ", "नहीं"), ("예", "아니요")),
    *(
        ("是", "否"),
        ("是的", "不是"),
        ("有", "没有"),
        ("对", "错"),
        ("正确", "错误"),
        ("はい", "いいえ"),
        ("네", "아니요"),
    ),
]
"""Words that answer yes or no; the first pair that a word is in comes first."""

_WORD = (
    r"answers?|antwort(?:en)?|réponse|respuesta|risposta|resposta|ответ|відповідь|odpowiedź|cevap|antwoord"
    r"|الجواب|الإجابة|उत्तर|答案|答え|答(?=[:：])|정답|답"
)
_STATED = re.compile(
    rf"(?<![A-Za-z])(?:{_WORD})[^\n.。]{{0,40}}?(?:\b(?:is|are|ist|est|es|è|é)\b\s*[:=]?|[:=：]|是|为|は)", re.I
)
_HASHES = re.compile(r"####")
_BOXED = re.compile(r"\\boxed\s*\{")
_TAGGED = re.compile(r"<answer>(?=[^<]*</answer>)", re.IGNORECASE)
_END = re.compile(r"\.(?=\s)|[。\n]|</")
_NOTE = 200
"""Characters that may follow a final answer which does not stand at the start."""

_MARKS = ' \t\r\n*_`$"“”«»'
_STOPS = ".,;:!?。！？،؛؟।"
_BREAK = re.compile(
    r"\n\s*|(?<=[.!?…؟।])[\"'”’)\]*]*\s+|(?<=[。！？])(?![」』”）])\s*|</?think>\s*",
)
_NO_BREAK = re.compile(r"(?:\A\s*[(\w]{1,3}[.)]|\b(?:Mr|Mrs|Ms|Dr|St|vs|Fig|Eq|No|e\.g|i\.e)\.)\Z")
_CONTINUES = re.compile(r"\.[\s\"'”’)\]*]*([a-z]|[A-Z]\.)")
LETTER = re.compile(r"(?:\\(?:text|mathrm|mathbf|textbf)\{)?\(?([A-Ja-j])(?:[).:：}]|\Z)")
"""The letter of an option at the start of a final answer; no article, which a space would follow."""

_QUESTION_COMPARED = 400
"""Characters of a question that are compared."""


class Span(NamedTuple):
    """Characters of a text: the first, and the one after the last."""

    start: int
    end: int


class Final(NamedTuple):
    """A final answer: itself, without the marks around it, and where the sentence that states it begins."""

    start: int
    end: int
    begins: int
    stated: bool


@dataclass(frozen=True)
class Anchor:
    """An anchor as it is corrupted: in the last text of its last assistant turn."""

    sample: Sample

    @cached_property
    def place(self) -> int | None:
        """Which turn is the last answer in the loss; None where there is none."""
        places = [place for place, turn in enumerate(self.sample.turns) if turn.role == "assistant" and turn.weight]
        return places[-1] if places else None

    @cached_property
    def text(self) -> str:
        """The last answer in the loss, from its last picture on; empty where there is none."""
        parts = () if self.place is None else self.sample.turns[self.place].parts
        after = max((place + 1 for place, part in enumerate(parts) if isinstance(part, ImageRef)), default=0)
        return "".join(part for part in parts[after:] if isinstance(part, str))

    @cached_property
    def question(self) -> str:
        """What the user asks, in all turns."""
        return text_of(self.sample, "user")

    @cached_property
    def pictures(self) -> tuple[ImageRef, ...]:
        """The user's pictures."""
        parts = (part for turn in self.sample.turns if turn.role == "user" for part in turn.parts)
        return tuple(part for part in parts if isinstance(part, ImageRef))

    @cached_property
    def fingerprints(self) -> tuple[str, ...] | None:
        """What the user's pictures show; None if one cannot be loaded."""
        try:
            return tuple(map(image_fingerprint, self.pictures))
        except SampleError:
            return None

    @cached_property
    def sentences(self) -> list[Span]:
        """Sentences and lines that say something."""
        return sentences(self.text)

    @cached_property
    def final(self) -> Final:
        """The final answer."""
        return find_final(self.text)

    @property
    def said(self) -> str:
        """The final answer's text."""
        return self.text[self.final.start : self.final.end]

    @cached_property
    def chain(self) -> list[Span]:
        """The sentences before the one that states the final answer, or after it if it comes first."""
        before = [span for span in self.sentences if span.end <= self.final.begins]
        return before or [span for span in self.sentences if span.start >= self.final.end]

    @cached_property
    def chain_texts(self) -> frozenset[str]:
        """The sentences of the chain."""
        return frozenset(self.text[slice(*span)] for span in self.chain)

    @cached_property
    def form(self) -> Form:
        """What kind of final answer it is."""
        if not self.final.stated:
            return "open"
        if LETTER.match(self.said):
            return "letter"
        if polar(self.said):
            return "yes or no"
        return "number" if numbers(self.said) else "words"

    @cached_property
    def conclusion(self) -> object:
        """The final answer as it is compared: the numbers in it, or else its letters."""
        if self.form == "letter":
            return plain(self.said)[:1]
        if self.form == "yes or no" and (word := polar(self.said)):
            return word[1].casefold()
        found = tuple(number.value for number in numbers(self.said))
        if len(found) == 2 and re.search("/|frac", self.said) and found[1]:
            return (found[0] / found[1],)
        return found or plain(self.said)

    def differs(self, other: Anchor) -> bool:
        """Whether the final answers cannot mean the same."""
        if "words" in (self.form, other.form):
            return not overlap(self.said, other.said)
        return self.conclusion != other.conclusion

    @cached_property
    def trigrams(self) -> frozenset[str]:
        """Threes of letters in the question, by which questions of any language are compared."""
        asked = plain_text(self.sample, "user")[:_QUESTION_COMPARED]
        return frozenset(asked[place : place + 3] for place in range(max(1, len(asked) - 2)))

    def distance(self, other: Anchor) -> float:
        """How unlike another anchor it is in its question's wording and its answer's length."""
        shared = len(self.trigrams & other.trigrams) / len(self.trigrams | other.trigrams)
        return 1 - shared + abs(math.log((1 + len(self.text)) / (1 + len(other.text))))


def plain(text: str) -> str:
    """Letters and digits alone, case folded, as short answers are compared."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def overlap(one: str, other: str) -> bool:
    """Whether one short answer holds all words of the other, and so may mean the same."""
    words, rest = set(plain(one).split()), set(plain(other).split())
    return words <= rest or rest <= words


def polar(text: str) -> re.Match[str] | None:
    """The word that says yes or no, if the text begins with one and goes on with a mark or not at all."""
    match = re.match(r"\W*([^\W\d_][\w\u0900-\u097f]*)(?=\s*(?:[^\w\s]|\Z))", text)
    words = {word for pair in OPPOSITES for word in pair}
    return match if match and match[1].casefold() in words else None


def sentences(text: str) -> list[Span]:
    """Sentences and lines, without the white space and thinking tags between them."""
    spans, start = [], 0
    for match in [*_BREAK.finditer(text), None]:
        end, following = match.span() if match else (len(text), len(text))
        inline = match is not None and "\n" not in match[0] and "think>" not in match[0]
        if inline and (_NO_BREAK.search(text[start:end]) or _CONTINUES.match(text, max(0, end - 1))):
            continue
        if re.search(r"\w", said := text[start:end].rstrip()):
            spans.append(Span(start, start + len(said)))
        start = following
    return spans


def find_final(text: str) -> Final:
    """Where the final answer of a text stands."""
    tail = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    places = [match for pattern in (_STATED, _HASHES, _TAGGED, _BOXED) for match in pattern.finditer(text, tail)]
    for match in sorted(places, key=re.Match.start, reverse=True):
        end = _braced(text, match.end()) if match.re is _BOXED else _ended(text, match.end())
        said = _trimmed(text, match.end(), end)
        if said.end > said.start and (match.start() - tail < 20 or len(text) - said.end <= _NOTE):
            return Final(
                *said, max([span.start for span in sentences(text) if span.start <= match.start()] or [0]), True
            )
    spans = [span for span in sentences(text) if span.start >= tail]
    if not spans:
        return Final(len(text), len(text), len(text), False)
    said = _trimmed(text, *spans[-1])
    short = len(spans) == 1 and len(said_text := text[slice(*said)]) <= 60 and len(said_text.split()) <= 6
    return Final(*said, spans[-1].start, short)


def _trimmed(text: str, start: int, end: int) -> Span:
    core = text[start:end]
    left = len(core) - len(core.lstrip(_MARKS + ":："))
    return Span(start + left, max(start + left, start + len(core.rstrip(_MARKS + _STOPS))))


def _ended(text: str, start: int) -> int:
    start += len(text[start:]) - len(text[start:].lstrip())
    end = _END.search(text, start)
    return end.start() if end else len(text)


def _braced(text: str, start: int) -> int:
    """The place of the brace that closes the one before `start`, or the end of the text."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)
