"""What a row becomes, whatever its format: turns of text and images.

Rows name images by path, data URI, bytes or dicts and lists of these; their places are `<image>` in the text, image
parts, or the start of the first question.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from onesteptrain.errors import SampleError

Role = Literal["system", "user", "assistant"]

PLACEHOLDER = "<image>"
_FIRST = re.compile(r"\A(?:<image>\n?)+")
_LAST = re.compile(r"(?:\n?<image>)+\Z")
_FAR_AWAY = ("http://", "https://", "s3://", "gs://", "hf://", "oss://")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image of a sample comes from: a file, or bytes or a Pillow image that stand in the row."""

    source: Path | bytes | Image.Image
    """File path (already resolved against the image root), or the image itself, encoded or not."""

    name: str
    """How messages call it: the path as written in the row, or e.g. "data URI"."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    parts: tuple[str | ImageRef, ...]
    """Texts and images in the order in which the model reads them; placeholders are already resolved."""

    weight: float = 1.0
    """What each token of an answer counts in the loss; 0 leaves the answer as context alone."""

    unlearned: tuple[tuple[int, int], ...] = ()
    """Ranges of characters of an answer's text that are out of the loss: the first, and the one after the last. One
    that goes beyond the text takes the end-of-turn mark along."""

    @property
    def text(self) -> str:
        """The texts of this turn, joined, without its images."""
        return "".join(part for part in self.parts if isinstance(part, str))


Part = str | ImageRef | None
"""A text, an image, or None: the place of the next image of the row's image column."""

Draft = tuple[Role, list[Part]]
"""A turn whose images are not all in place yet."""


def column_images(row: Mapping[str, object], image_root: Path) -> list[ImageRef]:
    """The images of the `images` column, or else of the `image` column: one, or a list.

    Raises:
        SampleError: an image is named in a way that cannot be used.
    """
    value = row.get("images") or row.get("image")
    values = value if isinstance(value, list) else [value]
    return [image_ref(item, image_root) for item in values if item is not None and item != ""]


def image_ref(value: object, image_root: Path) -> ImageRef:
    """One image, not opened yet: a path, a data URI, bytes, a Pillow image, or a dict with `bytes`, `path` or `url`.

    Raises:
        SampleError: it is somewhere on the net, or is nothing of all this.
    """
    if isinstance(value, Mapping):
        return _from_struct(value, image_root)
    if isinstance(value, bytes):
        return ImageRef(value, "bytes in the row")
    if isinstance(value, Image.Image):
        return ImageRef(value, "Pillow image in the row")
    if not isinstance(value, str):
        raise SampleError(f"an image is given as {type(value).__name__}; give a path, a data URI or bytes")
    if value.startswith("data:"):
        return ImageRef(_decoded(value.partition(",")[2]), "data URI")
    if value.startswith(_FAR_AWAY):
        raise SampleError(f"image {value[:100]!r} is not on this machine; download it first and give its path")
    return ImageRef(image_root / value.removeprefix("file://"), value)


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
    places = sum(part is None for _, parts in drafts for part in parts)
    if not places and images:
        return _before_first_question(drafts, images)
    if places != len(images):
        raise SampleError(
            f"{_counted(places, 'image placeholder')} but {_counted(len(images), 'image')}; "
            f"there must be one {PLACEHOLDER} for each image, or none at all to put the images first"
        )
    rest = iter(images)
    return [(role, [next(rest) if part is None else part for part in parts]) for role, parts in drafts]


def _from_struct(value: Mapping[str, object], image_root: Path) -> ImageRef:
    content, path = value.get("bytes"), value.get("path") or value.get("url")
    if isinstance(content, str) and content:  # bytes in JSON
        content = _decoded(content.rpartition(",")[2])
    if isinstance(content, bytes):
        return ImageRef(content, path if isinstance(path, str) else "bytes in the row")
    if path is None:
        raise SampleError(f"an image is given as a dict with the keys {sorted(value)}; it needs bytes, path or url")
    return image_ref(path, image_root)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"image bytes are not valid base64 ({error}); write them again") from error


def _before_first_question(drafts: Sequence[Draft], images: Sequence[ImageRef]) -> list[Draft]:
    first = next((number for number, (role, _) in enumerate(drafts) if role == "user"), None)
    if first is None:
        raise SampleError(f"{_counted(len(images), 'image')} but no user turn to put them in; add the question")
    return [(role, [*images, *parts] if number == first else parts) for number, (role, parts) in enumerate(drafts)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _without_newlines(match: re.Match[str]) -> str:
    return match[0].replace("\n", "")
