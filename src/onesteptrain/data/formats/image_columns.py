"""The ways in which rows name images: paths, data URIs, bytes, and dicts or lists of these."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from onesteptrain.data.formats.turns import ImageRef
from onesteptrain.errors import SampleError

_FAR_AWAY = ("http://", "https://", "s3://", "gs://", "hf://", "oss://")


def column_images(row: Mapping[str, object], image_root: Path) -> list[ImageRef]:
    """The images of the `images` column, or else of the `image` column: one, or a list.

    Raises:
        SampleError: an image is named in a way that cannot be used.
    """
    value = row.get("images") or row.get("image")
    values = value if isinstance(value, list) else [value]
    return [image_ref(item, image_root) for item in values if item is not None and item != ""]


def image_ref(value: object, image_root: Path) -> ImageRef:
    """One image, not opened yet: a path, a data URI, bytes, or a dict with `bytes`, `path` or `url`.

    Raises:
        SampleError: it is somewhere on the net, or is nothing of all this.
    """
    if isinstance(value, Mapping):
        return _from_struct(value, image_root)
    if isinstance(value, bytes):
        return ImageRef(value, "bytes in the row")
    if not isinstance(value, str):
        raise SampleError(f"an image is given as {type(value).__name__}; give a path, a data URI or bytes")
    if value.startswith("data:"):
        return ImageRef(_decoded(value.partition(",")[2]), "data URI")
    if value.startswith(_FAR_AWAY):
        raise SampleError(f"image {value[:100]!r} is not on this machine; download it first and give its path")
    return ImageRef(image_root / value.removeprefix("file://"), value)


def _from_struct(value: Mapping[str, object], image_root: Path) -> ImageRef:
    content, path = value.get("bytes"), value.get("path") or value.get("url")
    if isinstance(content, str) and content:  # bytes in JSON
        content = _decoded(content)
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
