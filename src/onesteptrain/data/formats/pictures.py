"""The pictures that a row names: in columns, in messages, in parts; as path, data URI, bytes, or a dict of these."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from onesteptrain.data.formats.turns import ImageRef
from onesteptrain.errors import SampleError

IMAGE_COLUMNS = ("images", "image")
"""Columns that are read as pictures unasked; those that hold the same count once."""

_CONTENT_KEYS = ("bytes", "data", "base64")
_PLACE_KEYS = ("path", "url", "image", "image_url", "image_path", "img", "source", "file_name", "filename", "file")
_OF_MESSAGES = ("role", "from", "content", "value", "text")
_FAR_AWAY = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FILE_URI = re.compile(r"\Afile:(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_ENDING = r"\.(?:png|jpe?g|jfif|gif|webp|bmp|tiff?|avif|heic|svg)"
_FILE = re.compile(rf"[^\n]{{1,1000}}{_ENDING}(?:[?#]\S*)?\s*|data:image/[^\n]*(?:\n.*)?", re.IGNORECASE | re.DOTALL)
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk0|SUkq|TU0A)[A-Za-z0-9+/\s]{60,}={0,2}\s*")
_HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_NAME = re.compile(
    r"(?:input_|question_)?(?:image|img|picture|pic|photo|screenshot)s?"
    r"(?:_?(?:path|file|file_?name|url|uri|name|bytes|base64|b64|pil|\d+))*s?",
    re.IGNORECASE,
)


def pictures_of(holder: Mapping[str, object], columns: Sequence[str], image_root: Path) -> list[ImageRef]:
    """The pictures in the columns of a row, or beside the content of a message.

    Args:
        holder: The row or message.
        columns: Columns that hold pictures, in this order; where none of them is filled, `images` or `image` counts.
        image_root: The folder that relative paths start from.

    Raises:
        SampleError: a picture is named in a way that cannot be used, or two columns name different ones.
    """
    if columns and (named := [name for name in columns if _is_filled(holder.get(name))]):
        return [ref for name in named for ref in _column(name, holder[name], image_root)]
    found = [
        _column(name, holder[name], image_root) for name in IMAGE_COLUMNS if name in holder and _is_filled(holder[name])
    ]
    if len(found) == 2 and found[0] != found[1]:
        raise SampleError(
            "the columns images and image hold different pictures; say which counts with --image-column, or empty one"
        )
    return found[0] if found else []


def image_ref(value: object, image_root: Path) -> ImageRef:
    """One image, not opened yet: a path, a data URI, bytes, a Pillow image, or a dict with `bytes`, `path` or `url`.

    Raises:
        SampleError: it is somewhere on the net, or is nothing of all this.
    """
    if isinstance(value, str):
        return _from_text(value, image_root)
    if isinstance(value, Mapping):
        return _from_struct(value, image_root)
    if isinstance(value, bytes):
        return ImageRef(value, "bytes in the row")
    if isinstance(value, Image.Image):
        return ImageRef(value, "Pillow image in the row")
    raise SampleError(f"an image is given as {type(value).__name__}; give a path, a data URI or bytes")


def names_image(part: Mapping[str, object]) -> bool:
    """Whether a part of a message holds an image or says where it is."""
    return any(_is_filled(part.get(key)) for key in (*_CONTENT_KEYS, *_PLACE_KEYS))


def look_alikes(row: Mapping[str, object], messages: Iterable[Mapping[str, object]], known: set[str]) -> list[str]:
    """The columns of a row, and keys of its messages, that look like pictures and are not read as such.

    Args:
        row: The raw row.
        messages: Its messages.
        known: Columns that are read as something else.
    """
    found = [name for name, value in row.items() if name not in known and _looks_like(name, value)]
    for message in messages:
        found += [name for name, value in message.items() if name not in _OF_MESSAGES and _looks_like(name, value)]
    return list(dict.fromkeys(found))


def names_picture(text: str) -> bool:
    """Whether a text is the name of a picture file or a data URI."""
    return _FILE.fullmatch(text) is not None


def _looks_like(name: object, value: object) -> bool:
    """By what it holds; or by its name, where it holds a text or more."""
    if isinstance(value, list):
        return bool(value) and _looks_like(name, value[0])
    if isinstance(value, str):
        named = isinstance(name, str) and _NAME.fullmatch(name) is not None
        return value != "" and (named or names_picture(value) or _BASE64.match(value) is not None)
    if isinstance(value, Mapping):
        return _is_filled(value.get("bytes")) or any(_looks_like(key, value.get(key)) for key in _PLACE_KEYS)
    return isinstance(value, Image.Image) or (isinstance(value, bytes) and value.startswith(_HEADS))


def _is_filled(value: object) -> bool:
    if isinstance(value, dict):
        return any(_is_filled(item) for item in value.values())
    return bool(value) or isinstance(value, int | float)


def _column(name: str, value: object, image_root: Path) -> list[ImageRef]:
    values = value if isinstance(value, list) else [value]
    for number, item in enumerate(values, 1):
        if not _is_filled(item):
            raise SampleError(f"picture {number} of {len(values)} in the column {name} is empty; name its file")
    return [image_ref(item, image_root) for item in values]


def _from_text(text: str, image_root: Path) -> ImageRef:
    bare = text.lstrip()
    start = bare[:5].lower()
    if start == "data:":
        return ImageRef(_decoded(bare.partition(",")[2]), "data URI")
    if "://" in bare and _FAR_AWAY.match(bare):
        raise SampleError(f"image {bare[:100]!r} is not on this machine; download it first and give its path")
    if _BASE64.match(bare):
        raise SampleError(
            f"an image is given as bare base64 ({bare[:20]}...), which could be a path; "
            "write data:image/png;base64, before it"
        )
    if start == "file:":
        return ImageRef(image_root / _FILE_URI.sub("", bare, count=1), bare, root=image_root)
    return ImageRef(image_root / text, text, root=image_root)


def _from_struct(value: Mapping[str, object], image_root: Path) -> ImageRef:
    content = next((value[key] for key in _CONTENT_KEYS if _is_filled(value.get(key))), None)
    place = next((value[key] for key in _PLACE_KEYS if _is_filled(value.get(key))), None)
    if isinstance(content, str):  # bytes in JSON
        content = _decoded(content.rpartition(",")[2])
    if isinstance(content, bytes):
        return ImageRef(content, place if isinstance(place, str) else "bytes in the row")
    if place is None:
        keys = sorted(map(str, value))
        raise SampleError(f"an image is given as a dict with the keys {keys}; it needs bytes, path or url")
    return image_ref(place, image_root)


def _decoded(text: str) -> bytes:
    """Base64 as it is found in the wild: with line ends, escapes, the alphabet of URLs, and without its padding."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        plain = "".join(unquote(text).split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"image bytes are not valid base64 ({error}); write them again") from error
