"""Corrupted anchors: trusted samples, each made wrong in one known way, to learn what harm looks like to a proxy.

An anchor is known to be right, so what is wrong with its corrupted copy, and where, is known too, whatever the data
are about. Corruptions are generic: they know numbers, sentences, options and pictures, but no language and no format.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from onesteptrain.data.corruption import pictures, texts
from onesteptrain.data.corruption.answers import Anchor
from onesteptrain.data.corruption.pictures import PictureKind
from onesteptrain.data.corruption.texts import Change, TextKind
from onesteptrain.data.formats.turns import ImageRef, Turn
from onesteptrain.data.pool import Sample, text_of
from onesteptrain.errors import ConfigError
from onesteptrain.storage.seeds import seeded_bits, uniform

__all__ = ["KINDS", "STYLE", "Corrupted", "corrupt"]

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "other_answer": "The answer is that of another anchor, with a different final answer of the same form.",
        "wrong_step": "A number in the reasoning is wrong; the final answer is right.",
        "wrong_result": "A number in the final answer is wrong; the reasoning is right.",
        "carried_error": "The result is wrong from where the reasoning finds it, and the final answer follows it.",
        "wrong_choice": "The final answer is another option, yes for no, or other words.",
        "other_picture": "The pictures are those of another anchor.",
        "blank_picture": "The pictures are grey all over.",
        "cut_off": "The answer ends in the middle of a sentence.",
        "foreign_sentence": "A sentence of the reasoning is replaced by one of another anchor's.",
        "shuffled_steps": "A step of the reasoning comes before one that it needs.",
        "bare_answer": "The final answer stands alone, without its reasoning: a change of style, not an error.",
    }
)
"""What each kind of corruption does."""

STYLE = "bare_answer"
"""The kind that changes the style alone: no error, and none that must be noticed."""

_TEXT_KINDS: dict[str, TextKind] = {
    name: getattr(texts, name) for name in KINDS if name not in ("other_picture", "blank_picture")
}
_PICTURE_KINDS: dict[str, PictureKind] = {
    "other_picture": pictures.other_picture,
    "blank_picture": pictures.blank_picture,
}

_LAST_CHARACTERS = 12
"""Most characters before a cut that are marked."""


class Corrupted(NamedTuple):
    """A copy of an anchor with one thing wrong."""

    sample: Sample
    """Its uid is the anchor's, "~" and the kind; row and fields are the anchor's."""

    anchor: str
    """Uid of the anchor."""

    kind: str
    """One of `KINDS`."""

    span: tuple[int, int] | None
    """Characters of the assistant's text, as `text_of` gives it, where it is wrong: the stretch that differs, from its
    first character to its last; of a cut, the last word before it; of pictures, None."""


def corrupt(anchors: Sequence[Sample], *, count: int, seed: int = 0) -> list[Corrupted]:
    """Corrupt anchors, each as often as the others and in as many different ways as apply.

    What comes out depends on the seed and on the anchors with their uids, not on their order; a smaller count gives the
    beginning of what a larger one gives.

    Args:
        anchors: Samples that are right, with different uids.
        count: Most that are made; fewer where fewer ways apply, as each applies to an anchor once.
        seed: Another seed, other errors.

    Raises:
        ConfigError: count is not positive.
    """
    if count < 1:
        raise ConfigError(f"count of corrupted anchors is {count}; it must be at least 1")
    by_uid = [Anchor(sample) for sample in sorted(anchors, key=lambda sample: sample.uid)]
    order = sorted(by_uid, key=lambda anchor: uniform(seed, "corruption", anchor.sample.uid))
    untried = {anchor.sample.uid: list(KINDS) for anchor in order}
    made: dict[tuple[str, str], Corrupted] = {}
    often: Counter[str] = Counter()
    while any(untried.values()):
        for anchor in order:
            uid = anchor.sample.uid
            untried[uid].sort(key=lambda kind: (often[kind], uniform(seed, "corruption", uid, kind)))
            while untried[uid]:
                one = _corrupted(anchor, by_uid, untried[uid].pop(0), seed)
                new = one and (one.kind if one.span is None else text_of(one.sample, "assistant"))
                if one and new and (uid, new) not in made:
                    made[uid, new] = one
                    often[one.kind] += 1
                    break
            if len(made) == count:
                return list(made.values())
    return list(made.values())


def _corrupted(own: Anchor, anchors: Sequence[Anchor], kind: str, seed: int) -> Corrupted | None:
    uid = own.sample.uid
    others = [anchor for anchor in anchors if anchor is not own]
    chance = random.Random(seeded_bits(seed, "corruption", uid, kind))
    span = None
    if kind in _PICTURE_KINDS:
        new = _PICTURE_KINDS[kind](own, others, chance)
        turns = new and _with_pictures(own.sample.turns, new)
    else:
        change = _TEXT_KINDS[kind](own, others, chance)
        turns = change and _with_text(own, change)
        span = change and _span(own, change)
    if not turns or turns == own.sample.turns:
        return None
    return Corrupted(dataclasses.replace(own.sample, uid=f"{uid}~{kind}", turns=turns), uid, kind, span)


def _with_pictures(turns: Sequence[Turn], new: Sequence[ImageRef]) -> tuple[Turn, ...]:
    rest = iter(new)
    return tuple(
        dataclasses.replace(
            turn, parts=tuple(next(rest) if isinstance(part, ImageRef) else part for part in turn.parts)
        )
        if turn.role == "user"
        else turn
        for turn in turns
    )


def _with_text(own: Anchor, change: Change) -> tuple[Turn, ...]:
    turns, last = list(own.sample.turns), own.place or 0  # a change was made, so there is one
    parts = list(turns[last].parts)
    while parts and isinstance(parts[-1], str):
        parts.pop()
    new = own.text[: change.start] + change.new + own.text[change.end :]
    turns[last] = dataclasses.replace(turns[last], parts=(*parts, new), unlearned=())
    return tuple(turns)


def _span(own: Anchor, change: Change) -> tuple[int, int]:
    start, end = change.start, change.start + len(change.new)
    if not change.new:
        kept = own.text[max(0, start - _LAST_CHARACTERS) : start]
        start -= len((kept.split() or [kept])[-1])
    up_to = dataclasses.replace(own.sample, turns=own.sample.turns[: (own.place or 0) + 1])
    before = len(text_of(up_to, "assistant")) - len(own.text)
    return before + start, before + end
