"""Opening the images of a sample, and telling whether two of them show the same.

An image comes out as `transformers` and TRL show it to a model: turned as its EXIF note says, then `convert("RGB")`,
which drops transparency. A score must see what training will see.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import unquote

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
            f"image {_short(ref.name)}: not an image that Pillow can read; convert it to PNG or JPEG"
        ) from error
    except _DECODE_ERRORS as error:
        raise SampleError(
            f"image {_short(ref.name)}: broken or cut off ({error}); get it again or take the row out"
        ) from error
    raise SampleError(f"image {_short(ref.name)}: {size}, more than {max_pixels:,}; scale it down or take the row out")


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
        raise SampleError(f"image {_short(ref.name)}: has no size that can be read ({error}); get it again") from error


def image_fingerprint(ref: ImageRef) -> str:
    """SHA-256 of the size and the RGB pixels: the same for a PNG and its copy in WebP lossless, not for a JPEG of it.

    Raises:
        SampleError: the image cannot be loaded.
    """
    image = load_image(ref)
    return hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).hexdigest()


def image_file(path: Path, name: str) -> Path:
    """The file of an image, which may be spelled in another way than its name in the row.

    Tried are: escapes of a file URI, backslashes, spaces around, and both ways to write accents in Unicode.

    Args:
        path: Where it should be.
        name: How the row names it.

    Raises:
        SampleError: there is no such file.
    """
    what = ""
    for spelling in _spellings(path, is_uri=name[:5].lower() == "file:"):
        try:
            if spelling.is_file():
                return spelling
            if not what:
                link = spelling.is_symlink()
                what = (
                    "is a folder" if spelling.is_dir() else "is a link that leads nowhere" if link else "no such file"
                )
        except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be entered
            what = what or f"cannot be a file here ({getattr(error, 'strerror', None) or error})"
    raise SampleError(
        f"image {_short(name)}: {what} (looked for {_short(str(path))}); "
        "mend the path, or give the folder that holds the images as image root"
    )


def _spellings(path: Path, *, is_uri: bool) -> Iterator[Path]:
    written = str(path)
    for text in (unquote(written), written) if is_uri else (written,):
        yield Path(text)
        for plain in (text, re.sub(r"\s*/\s*", "/", text.replace("\\", "/")).strip()):
            yield from (Path(unicodedata.normalize(form, plain)) for form in ("NFC", "NFD"))


def image_bytes(ref: ImageRef) -> bytes:
    """The encoded image as it stands; of a Pillow image, a PNG of it.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(ref.source, Path):
        return image_file(ref.source, ref.name).read_bytes()
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
    return image_file(ref.source, ref.name)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:  # a broken EXIF note; the pixels are fine
        return image


def _short(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:200] + "...")
