r"""Where in a conversation its pictures stand: `<image>` in the texts, parts of the content, or the first question.

Other marks become `<image>` first: those that name their picture (`<img>a.png</img>`, `![](a.png)`), those with its
number (`<image 1>`, `<|image_1|>`), and the marks of other models (`<IMAGE>`, `<ImageHere>`, ...). Only where a row has
no `<image>`, and only outside answers, which may talk of "<image 1>".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from onesteptrain.data.formats.loss_weights import AnswerLoss
from onesteptrain.data.formats.pictures import image_ref, names_picture
from onesteptrain.data.formats.turns import ImageRef, Role
from onesteptrain.errors import SampleError

PLACEHOLDER = "<image>"

Part = str | ImageRef | None
"""A text, an image, or None: the place of the next image of the row's image column."""

_FIRST = re.compile(r"\A(?:<image>\n?)+")
_LAST = re.compile(r"(?:\n?<image>)+\Z")
_BRACKETS = re.compile(r"[<\[{!&]")
_NAMED = re.compile(
    r"```.*?```|`[^`\n]*`"  # code only shows how a picture is named
    r"|<img>\s*(?P<tag>[^<>\n]+?)\s*</img>"
    r"|!\[[^\]\n]*\]\(\s*<?(?P<link>[^()\n]+?)>?(?:\s+[\"'][^\"'\n]*[\"'])?\s*\)",
    re.DOTALL,
)
_MARK = re.compile(
    r"(?:<\|?|\[|\{\{?)\s*(?:image|img|picture|pic)\s*[_:#-]?\s*(?P<number>\d{1,3})\s*(?:\|?>|\]|\}?\})"
    r"|<\s*image\s*/?>(?:\s*</image>)?|&lt;\s*image\s*/?&gt;|<image[_-]?(?:here|placeholder|token|pad|soft_token)>|<start_of_image>"
    r"|(?:<img>\s*)?<img_context>(?:\s*</img>)?|<img\s*/?>(?:\s*</img>)?|<\|?img\|?>|<img_?placeholder>"
    r"|(?:<\|(?:vision_start|begin_of_image)\|>)?<\|image(?:_pad|_placeholder)?\|>(?:<\|(?:vision_end|end_of_image)\|>)?"
    r"|(?:<im_start>)?(?:<im_patch>)+(?:<im_end>)?|\[(?:img|image)\]|\{\{?\s*(?:img|image)\s*\}?\}",
    re.IGNORECASE,
)
_LIKE_A_MARK = re.compile(
    r"</?[^<>\s]{0,12}(?:image|img|picture|photo)[^<>\n]{0,200}>|&lt;\s*image\s*/?&gt;"
    r"|[\[{]\s*(?:image|img|picture|photo|pic)s?[ _:#-]?\d*\s*[\]}]",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(r"(?<!\w)\w[\w.-]{0,200}/[\w./-]{0,500}\.(?:png|jpe?g|gif|webp|bmp|tiff?)\b", re.IGNORECASE)


class Draft(NamedTuple):
    """A turn whose images are not all in place yet."""

    role: Role
    parts: list[Part]
    llava: bool = False
    r"""Written with `from`, where a newline beside an image at an end belongs to it: "<image>\nQuestion"."""

    loss: AnswerLoss = AnswerLoss()
    """What it counts in the loss, where it is an answer."""


def placed(drafts: Sequence[Draft], images: Sequence[ImageRef], image_root: Path) -> list[list[str | ImageRef]]:
    """The parts of each turn with the images of the image column, and those that the texts name, in their places.

    Raises:
        SampleError: there are more or fewer places than images, or what may be a place cannot be understood.
    """
    if all(isinstance(part, str) for draft in drafts for part in draft.parts):
        drafts, images = _with_placeholders(drafts, images, image_root)
        turns = [_split(draft) for draft in drafts]
    else:
        turns = [draft.parts for draft in drafts]
    places = sum(parts.count(None) for parts in turns)
    if not places and images:
        turns = _without_places(drafts, turns, images)
    elif places != len(images):
        raise SampleError(
            f"{_counted(places, 'image placeholder')} but {_counted(len(images), 'image')}; "
            f"there must be one {PLACEHOLDER} for each image, or none at all to put the images first"
        )
    rest = iter(images)
    return [[next(rest) if part is None else part for part in parts] for parts in turns]


def may_name_picture(texts: Sequence[str]) -> bool:
    """Whether texts without pictures look as if one belonged there: a mark in brackets, an HTML tag, a path."""
    return any(_LIKE_A_MARK.search(text) or _FILE_NAME.search(text) for text in texts)


def _split(draft: Draft) -> list[Part]:
    """The parts with None for each placeholder."""
    pieces: list[Part] = []
    for text in map(str, draft.parts):
        if draft.llava:
            text = _LAST.sub(_without_newlines, _FIRST.sub(_without_newlines, text))
        first, *others = text.split(PLACEHOLDER)
        pieces += [first, *(piece for other in others for piece in (None, other))] if others else [first]
    return [piece for piece in pieces if piece != ""]


def _with_placeholders(
    drafts: Sequence[Draft], images: Sequence[ImageRef], image_root: Path
) -> tuple[Sequence[Draft], Sequence[ImageRef]]:
    """Turns in which every mark is the placeholder, and the images in the order of these."""
    if any(PLACEHOLDER in str(part) for draft in drafts for part in draft.parts):
        return drafts, images
    asked = [draft for draft in drafts if draft.role != "assistant"]
    if not any(_BRACKETS.search(str(part)) for draft in asked for part in draft.parts):
        return drafts, images
    named, refs = _named_marks(drafts, image_root)
    if refs:
        _refuse_others(refs, images)
        return named, refs
    return _foreign_marks(drafts, images)


def _named_marks(drafts: Sequence[Draft], image_root: Path) -> tuple[list[Draft], list[ImageRef]]:
    refs: list[ImageRef] = []

    def place(match: re.Match[str]) -> str:
        name = match["tag"] or (match["link"] if match["link"] and names_picture(match["link"]) else None)
        if name is None:
            return match[0]
        refs.append(image_ref(name, image_root))
        return PLACEHOLDER

    return [_mapped(draft, lambda text: _NAMED.sub(place, text)) for draft in drafts], refs


def _foreign_marks(drafts: Sequence[Draft], images: Sequence[ImageRef]) -> tuple[Sequence[Draft], Sequence[ImageRef]]:
    """Marks with numbers, or in the way of another model; an image that is named again stands at its first mark."""
    numbers: dict[int | None, None] = {}

    def place(match: re.Match[str]) -> str:
        if not images and (match[0][0] != "<" or match[0][:4].lower() == "<img"):
            return match[0]  # words in brackets, or HTML
        number = None if match["number"] is None else int(match["number"])
        if number is not None and number in numbers:
            return match[0]
        numbers[number] = None
        return PLACEHOLDER

    marked = [_mapped(draft, lambda text: _MARK.sub(place, text)) for draft in drafts]
    if not numbers:
        _refuse_unknown_marks(drafts, images)
    if None not in numbers and images and numbers:
        return marked, _by_number([number for number in numbers if number is not None], images)
    if len(numbers) > 1:
        raise SampleError(f"some marks of images have a number and others have none; write {PLACEHOLDER} for each")
    return marked, images


def _by_number(numbers: Sequence[int], images: Sequence[ImageRef]) -> list[ImageRef]:
    """The images in the order in which a text first names their numbers, which start at 0 or 1."""
    first = min(*numbers, 1)
    if sorted(numbers) != list(range(first, first + len(images))):
        raise SampleError(
            f"{_counted(len(images), 'image')}, but the marks in the text have the numbers "
            f"{', '.join(map(str, numbers))}; number the images from 1, with a mark for each, or write {PLACEHOLDER}"
        )
    return [images[number - first] for number in numbers]


def _refuse_unknown_marks(drafts: Sequence[Draft], images: Sequence[ImageRef]) -> None:
    texts = [str(part) for draft in drafts if draft.role != "assistant" for part in draft.parts]
    found = next(filter(None, map(_LIKE_A_MARK.search, texts)), None)
    if images and found is not None:
        raise SampleError(
            f"{found[0][:60]!r} may be the place of an image, but no mark that is known; write {PLACEHOLDER} there, "
            "or first in the question if it is none"
        )


def _mapped(draft: Draft, change: Callable[[str], str]) -> Draft:
    """A question with a change to its texts; answers stay."""
    if draft.role == "assistant":
        return draft
    return draft._replace(parts=[change(str(part)) for part in draft.parts])


def _without_places(drafts: Sequence[Draft], turns: list[list[Part]], images: Sequence[ImageRef]) -> list[list[Part]]:
    """The images of the column before the first question, unless the parts hold them already."""
    refs = [part for parts in turns for part in parts if isinstance(part, ImageRef)]
    if refs:
        _refuse_others(refs, images)
        return turns
    first = next((number for number, draft in enumerate(drafts) if draft.role == "user"), None)
    if first is None:
        raise SampleError(f"{_counted(len(images), 'image')} but no user turn to put them in; add the question")
    return [[*images, *parts] if number == first else parts for number, parts in enumerate(turns)]


def _refuse_others(refs: Sequence[ImageRef], images: Sequence[ImageRef]) -> None:
    """Make sure that images which stand in the messages and in a column are the same."""
    if images and [ref.source for ref in refs] != [image.source for image in images]:
        raise SampleError(
            f"the messages name {_counted(len(refs), 'image')}, and a column has other ones ({len(images)}); "
            "leave them in one of the two"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _without_newlines(match: re.Match[str]) -> str:
    return match[0].replace("\n", "")
