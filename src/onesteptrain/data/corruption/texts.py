"""Ways in which a text goes wrong. Each gives the one stretch that is replaced, or None where it does not apply."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from onesteptrain.data.corruption.answers import LETTER, OPPOSITES, Anchor, Span, overlap, plain, polar
from onesteptrain.data.corruption.numbers import Number, change, numbers, same_value, written

_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([A-J])[).:：]\s*(.*?)(?=\s+\(?[A-J][).:：]\s|\n|\Z)", re.MULTILINE)
_RESULT = re.compile(r"=\s*[^\w\s=]*\s*\Z")
_LISTED = re.compile(r"\d\s?,\s?[^\W\d]*\Z"), re.compile(r"\s?,\s?[^\W\d]*\d")
"""Before and after a number in a list: 3, 5 or red3, blue5."""

_NEAREST = 3
"""Questions most like one's own, of which chance takes one."""

_NEAR = 20
"""Steps within which one is put before another."""

_SEPARATORS = ("|", ";", "；", "/", "、", "，", ",")


_T = TypeVar("_T")


class Change(NamedTuple):
    """Characters of the last text that are replaced, and what stands there then."""

    start: int
    end: int
    new: str


TextKind = Callable[[Anchor, Sequence[Anchor], random.Random], Change | None]
"""From an anchor, the other anchors and a source of chance to a change of its text."""


def other_answer(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """The answer to a question much like this one, with a final answer of the same form that differs."""
    alike = [other for other in others if other.form == own.form and bool(other.chain) == bool(own.chain)]
    donors = [other for other in alike if own.differs(other) and not _same_question(own, other)]
    if not donors or not own.text:
        return None
    new = chance.choice(nearest(own, donors, chance)[:_NEAREST]).text
    common = next((i for i, (a, b) in enumerate(zip(own.text, new, strict=False)) if a != b), 0)
    start = re.search(r"\S*\Z", new[:common]).start()  # type: ignore[union-attr]  # matches any text
    return Change(start, len(own.text), new[start:])


def wrong_step(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """Another number in the chain; the final answer stays."""
    inside = [n for n in numbers(own.text) if own.chain and own.chain[0].start <= n.start < own.chain[-1].end]
    return _replaced(own.text, [(chosen, change(chosen, chance))]) if (chosen := _one(inside, chance)) else None


def wrong_result(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """Another number in the final answer; the chain stays."""
    final = _final_number(own)
    return _replaced(own.text, [(final, change(final, chance))]) if final else None


def carried_error(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """The final number changed from where the chain first finds it, behind "=" if it does, to the end."""
    final = _final_number(own)
    equal = [number for number in numbers(own.text) if final and same_value(number, final)]
    before = [(n, own.text[max(0, n.start - 20) : n.start]) for n in equal if final and n.start < final.start]
    results = [number for number, text in before if _RESULT.search(text)]
    results += [n for n, text in before if not _LISTED[0].search(text) and not _LISTED[1].match(own.text, n.end)]
    if not results:
        return None
    first = results[0]
    later = [number for number in equal if number.start >= first.start]
    coarse = min(later, key=lambda number: number.decimals)
    new = change(coarse, chance)
    scaled = [(old, written(new.digits * 10 ** (old.decimals - coarse.decimals), old)) for old in later]
    return _replaced(own.text, scaled)


def wrong_choice(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """Another option, yes for no, or other words that the question or an anchor offers."""
    if own.form == "letter":
        return _other_letter(own, others, chance)
    place = own.final.start if own.form == "yes or no" else 0
    if own.form in ("yes or no", "open") and (word := polar(own.text[place:])):
        new = _opposite(word[1], {plain(other.said) for other in others})
        return Change(place + word.start(1), place + word.end(1), new)
    if own.form != "words":
        return None
    listed = _listed(own.question, own.said)
    offered = chance.sample(listed, len(listed))
    alike = [other for other in others if other.form == "words" and bool(other.chain) == bool(own.chain)]
    offered += [other.said for other in nearest(own, alike, chance)]
    new = next((word for word in offered if not overlap(word, own.said)), "")
    return Change(own.final.start, own.final.end, new) if new else None


def cut_off(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """The end in the middle of a sentence, and before the final answer unless that comes first."""
    if own.final.stated and not own.chain and own.final.end - own.final.start > len(own.text) - 5:
        return None
    last = own.final.begins if own.final.begins > 0 else len(own.text)
    inside = [span for span in own.sentences if span.start < last]
    places = [place for span in inside for place in _inner_ends(own.text, span) if place >= min(12, last // 3)]
    return Change(chance.choice(places), len(own.text), "") if places else None


def foreign_sentence(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """A sentence that only one other anchor says, and that says something new, in place of one of the chain."""
    known = set(plain(own.question + " " + own.text).split())
    if not (place := _one([span for span in own.chain if len(own.text[slice(*span)]) > 3], chance)):
        return None
    for donor in chance.sample(others, len(others)):
        for said in chance.sample(sorted(donor.chain_texts), len(donor.chain_texts)):
            alone = sum(said in other.chain_texts for other in others) == 1
            if alone and len(said) > 3 and not known.issuperset(plain(said).split()):
                return Change(*place, said)
    return None


def shuffled_steps(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """A step put before one that most of its numbers come from, or else the last step to a conclusion put first."""
    said = [own.text[slice(*span)] for span in own.chain]
    used = [{number.text for number in numbers(text)} for text in said]
    known = given = {number.text for number in numbers(own.question)}
    pairs = []
    for first, found in enumerate(used):
        later = range(first + 1, min(first + _NEAR, len(used)))
        pairs += [(first, n) for n in later if len((found - known) & used[n]) > len(used[n] - given) / 2]
        known = known | found
    if not pairs and own.final.stated and len(said) > 2:
        pairs = [(0, len(said) - 1)]
    if not (pair := _one(pairs, chance)):
        return None
    first, last = pair
    order = [last, *range(first, last)]
    gaps = [own.text[a.end : b.start] for a, b in zip(own.chain[first:last], own.chain[first + 1 :], strict=False)]
    new = "".join(said[place] + gap for place, gap in zip(order, [*gaps, ""], strict=True))
    return Change(own.chain[first].start, own.chain[last].end, new)


def bare_answer(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    """The final answer alone, without the chain."""
    return Change(0, len(own.text), own.said) if own.final.stated and own.chain else None


def nearest(own: Anchor, others: Iterable[Anchor], chance: random.Random) -> list[Anchor]:
    """Other anchors, those first that are most like this one; chance decides among equals."""
    return sorted(others, key=lambda other: (own.distance(other), chance.random()))


def _same_question(own: Anchor, other: Anchor) -> bool:
    return plain(own.question) == plain(other.question) and own.fingerprints == other.fingerprints


def _one(items: Sequence[_T], chance: random.Random) -> _T | None:
    return chance.choice(items) if items else None


def _replaced(text: str, pairs: Sequence[tuple[Number, Number]]) -> Change:
    """One change that holds all replacements, in reading order."""
    start = place = pairs[0][0].start
    new = ""
    for old, number in pairs:
        new += text[place : old.start] + number.text
        place = old.end
    return Change(start, place, new)


def _final_number(own: Anchor) -> Number | None:
    """The number that the final answer is about: its first one if it is stated, else its last."""
    inside = [number for number in numbers(own.text) if own.final.start <= number.start < own.final.end]
    if not inside or own.form in ("letter", "yes or no"):
        return None
    return inside[0] if own.final.stated else inside[-1]


def _other_letter(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> Change | None:
    match = LETTER.match(own.said)
    options = dict(_OPTION.findall(own.question))
    if match is None:
        return None
    letter = match[1].upper()
    seen = {other.said[m.start(1)].upper() for other in others if (m := LETTER.match(other.said))}
    letters = sorted((set(options) if letter in options and len(options) > 1 else seen | set("ABCD")) - {letter})
    other = chance.choice(letters)
    rest = own.said[match.end(1) :]
    if options.get(letter) and other in options:
        rest = rest.replace(options[letter], options[other])
    new = (other if match[1].isupper() else other.lower()) + rest
    return Change(own.final.start + match.start(1), own.final.end, new)


def _opposite(word: str, seen: set[str]) -> str:
    """The word for the contrary, rather one that the anchors use; written as large as the word."""
    pairs = [pair for pair in OPPOSITES if word.casefold() in pair]
    found = [pair[1 - pair.index(word.casefold())] for pair in pairs]
    new = next((other for other in found if other in seen), found[0])
    return new.upper() if word.isupper() and len(word) > 1 else new.capitalize() if word[0].isupper() else new


def _listed(question: str, said: str) -> list[str]:
    """What the question lists beside the answer."""
    for line in reversed(question.splitlines()):
        listing = re.split(r"[:：]\s", line, maxsplit=1)[-1]
        for separator in _SEPARATORS:
            items = [item.strip() for item in listing.split(separator)]
            if plain(said) in map(plain, items) and len(items) > 1:
                return [item for item in items if item and len(item) <= 60 and plain(item) != plain(said)]
    return []


def _inner_ends(text: str, span: Span) -> list[int]:
    """Places inside a sentence where a word ends, or a letter of a script without spaces; not behind the last."""
    said = text[slice(*span)]
    ends = [match.end() for match in re.finditer(r"[\u3040-\u30ff\u3400-\u9fff](?=\w{2})|\b\w++(?=\W+\w)", said)]
    return [span.start + end for end in ends if not unicodedata.category(said[end]).startswith("M")]
