"""Where the images of a row go: `<image>` in the text, image parts, or the start of the first question."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onesteptrain.data.formats.turns import ImageRef, Role
from onesteptrain.errors import SampleError

PLACEHOLDER = "<image>"

Part = str | ImageRef | None
"""A text, an image, or None: the place of the next image of the row's image column."""

Draft = tuple[Role, list[Part]]
"""A turn whose images are not all in place yet."""

_FIRST = re.compile(r"\A(?:<image>\n?)+")
_LAST = re.compile(r"(?:\n?<image>)+\Z")


def split_at_placeholders(text: str, *, llava: bool) -> list[Part]:
    r"""The text in pieces, with None for each placeholder.

    Args:
        text: What the row holds.
        llava: Take away one newline between the text and each image before or after all of it: the LLaVA convention
            "<image>\nQuestion" means the image and then "Question".
    """
    if llava:
        text = _LAST.sub(_without_newlines, _FIRST.sub(_without_newlines, text))
    pieces: list[Part] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        pieces += [None, piece] if number else [piece]
    return [piece for piece in pieces if piece != ""]


def put_in_place(drafts: Sequence[Draft], images: Sequence[ImageRef]) -> list[Draft]:
    """The same turns with the images of the image column in their places.

    Raises:
        SampleError: there are more or fewer places than images.
    """
    places = sum(part is None for part in _all_parts(drafts))
    if not places and images:
        return _before_first_question(drafts, images)
    if places != len(images):
        raise SampleError(
            f"{_counted(places, 'image placeholder')} but {_counted(len(images), 'image')}; "
            f"there must be one {PLACEHOLDER} for each image, or none at all to put the images first"
        )
    rest = iter(images)
    return [(role, [next(rest) if part is None else part for part in parts]) for role, parts in drafts]


def _before_first_question(drafts: Sequence[Draft], images: Sequence[ImageRef]) -> list[Draft]:
    first = next((number for number, (role, _) in enumerate(drafts) if role == "user"), None)
    if first is None:
        raise SampleError(f"{_counted(len(images), 'image')} but no user turn to put them in; add the question")
    return [(role, [*images, *parts] if number == first else parts) for number, (role, parts) in enumerate(drafts)]


def _all_parts(drafts: Iterable[Draft]) -> Iterable[Part]:
    return (part for _, parts in drafts for part in parts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _without_newlines(found: re.Match[str]) -> str:
    return found[0].replace("\n", "")
