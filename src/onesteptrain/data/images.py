"""Opening the images of a sample, and telling whether two of them show the same.

An image comes out as `transformers` and TRL show it to a model: turned as its EXIF note says, then `convert("RGB")`,
which drops transparency. A score must see what training will see.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

from markupsafe import Markup, escape
from PIL import Image, ImageOps, UnidentifiedImageError

from onesteptrain.data.formats.memory import encoded
from onesteptrain.data.formats.turns import ImageRef
from onesteptrain.errors import SampleError

MAX_PIXELS = 89_478_485
"""Pixels above which an image is taken for a decompression bomb: the number from which Pillow warns."""

_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders raise on broken files."""


def load_image(ref: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image to RGB.

    Args:
        ref: Where it is.
        max_pixels: Refuse more than that; the size is read from the head of the file, before anything is decoded.

    Raises:
        SampleError: the image is missing, too large, broken, or no image.
    """
    source = _opened(ref)
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
            if image.width * image.height <= max_pixels:
                return _upright(image).convert("RGB")
            size = f"{image.width} x {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = "far too many pixels"
    except UnidentifiedImageError as error:
        raise SampleError(
            f"image {_name(ref)}: not an image that Pillow can read; convert it to PNG or JPEG"
        ) from error
    except _DECODE_ERRORS as error:
        raise SampleError(
            f"image {_name(ref)}: broken or cut off ({error}); get it again or take the row out"
        ) from error
    raise SampleError(f"image {_name(ref)}: {size}, more than {max_pixels:,}; scale it down or take the row out")


def image_size(ref: ImageRef) -> tuple[int, int]:
    """Width and height in pixels as the head of the file gives them, before it is turned; nothing is decoded.

    Raises:
        SampleError: the image is missing, or no image.
    """
    source = _opened(ref)
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
            return image.size
    except (Image.DecompressionBombError, UnidentifiedImageError, *_DECODE_ERRORS) as error:
        raise SampleError(f"image {_name(ref)}: has no size that can be read ({error}); get it again") from error


def image_fingerprint(ref: ImageRef) -> str:
    """SHA-256 of the size and the RGB pixels: the same for a PNG and its copy in WebP lossless, not for a JPEG of it.

    Raises:
        SampleError: the image cannot be loaded.
    """
    image = load_image(ref)
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def image_bytes(ref: ImageRef) -> bytes:
    """The encoded image as it stands; of a Pillow image, a PNG of it.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(ref.source, Path):
        return ref.source.read_bytes()
    return ref.source if isinstance(ref.source, bytes) else encoded(ref.source)


def thumbnail_html(ref: ImageRef, side: int = 96) -> Markup:
    """A small copy for notebooks, or why there is none."""
    try:
        image = load_image(ref)
    except SampleError as error:
        return escape(error)
    image.thumbnail((side, side))
    return Markup('<img src="data:image/png;base64,{}">').format(base64.b64encode(encoded(image)).decode())


def _opened(ref: ImageRef) -> Path | io.BytesIO | Image.Image:
    if not isinstance(ref.source, Path):
        return io.BytesIO(ref.source) if isinstance(ref.source, bytes) else ref.source
    if not ref.source.is_file():
        what = "is a folder" if ref.source.is_dir() else "no such file"
        raise SampleError(
            f"image {_name(ref)}: {what} (looked for {ref.source}); "
            "mend the path, or give the folder that holds the images as image root"
        )
    return ref.source


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:  # a broken EXIF note; the pixels are fine
        return image


def _name(ref: ImageRef) -> str:
    return repr(ref.name if len(ref.name) <= 200 else ref.name[:200] + "...")
