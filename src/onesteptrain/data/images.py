"""Opening the images of a sample, and telling whether two of them show the same.

An image comes out as a viewer shows it: turned as its EXIF note says, its first frame, on white (`pixels.py`). Scores
and training see the same.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

from markupsafe import Markup, escape
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from onesteptrain.data.formats.memory import encoded
from onesteptrain.data.formats.turns import ImageRef
from onesteptrain.data.image_files import image_file, short_name
from onesteptrain.data.pixels import FlattenedError, as_compared, as_shown, stored_pixels, what_changes
from onesteptrain.errors import SampleError

T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""Pixels above which an image is taken for a decompression bomb: the number from which Pillow warns."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
"""What is opened; other formats that Pillow knows run programs of their own, or read more than a picture."""


def load_image(ref: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image to RGB; memory holds it twice at most, while its pixels are bounded before.

    Args:
        ref: Where it is.
        max_pixels: Refuse more than that; the size is read from the head of the file, before anything is decoded.

    Raises:
        SampleError: the image is missing, too large, broken, no image, or would be shown as an even area and is none.
    """
    return _decoded(ref, as_shown, max_pixels)


class Compared(NamedTuple):
    """An image as it is compared with others."""

    fingerprint: str
    """Of what the file holds; see `image_fingerprint`."""

    look: Image.Image
    """In RGB, with dark ones of more than 8 bits spread over all levels, so that no two look alike by that."""


def load_for_comparison(ref: ImageRef) -> Compared:
    """Decode one image, once, to compare it.

    Raises:
        SampleError: as of `load_image`.
    """
    return _decoded(ref, lambda image: Compared(_digest(image), as_compared(image)), MAX_PIXELS)


def image_fingerprint(ref: ImageRef) -> str:
    """SHA-256 of what the file holds, turned: the same for a PNG and its copy in WebP lossless, not for a JPEG of it.

    Raises:
        SampleError: the image cannot be loaded.
    """
    return _decoded(ref, _digest, MAX_PIXELS)


def image_size(ref: ImageRef) -> tuple[int, int]:
    """Width and height in pixels as the head of the file gives them, before it is turned; nothing is decoded.

    Raises:
        SampleError: the image is missing, or no image.
    """
    with _head(ref) as image:
        return image.size


def image_changes(ref: ImageRef) -> list[str]:
    """What is changed to show an image, in words, as the head of its file tells it; nothing where it cannot be read."""
    try:
        with _head(ref) as image:
            return what_changes(image)
    except SampleError:
        return []


def image_bytes(ref: ImageRef) -> bytes:
    """The encoded image as it stands; of a Pillow image, a PNG of it.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(ref.source, Path):
        return image_file(ref.source, ref.name, ref.root).read_bytes()
    return ref.source if isinstance(ref.source, bytes) else encoded(ref.source)


def thumbnail_html(ref: ImageRef, side: int = 96) -> Markup:
    """A small copy for notebooks, or why there is none."""
    try:
        image = load_image(ref)
    except SampleError as error:
        return escape(error)
    image.thumbnail((side, side))
    return Markup('<img src="data:image/png;base64,{}">').format(base64.b64encode(encoded(image)).decode())


def _digest(image: Image.Image) -> str:
    made = hashlib.sha256()
    for part in stored_pixels(image):
        made.update(part)
    return made.hexdigest()


@contextmanager
def _head(ref: ImageRef) -> Iterator[Image.Image]:
    source = _opened(ref)
    try:
        with _opening(source) as image:
            yield image
    except SampleError:  # of what is done with it
        raise
    except Exception as error:  # Pillow's decoders raise whatever they like on broken files
        raise SampleError(
            f"image {short_name(ref.name)}: has no size that can be read ({error}); get it again"
        ) from error


def _decoded(ref: ImageRef, use: Callable[[Image.Image], T], max_pixels: int) -> T:
    """What is made of an image, after its size was looked at."""
    source = _opened(ref)
    try:
        with _opening(source) as image:
            if image.width * image.height <= max_pixels:
                return use(_upright(image))
            size = f"{image.width} x {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = "far too many pixels"
    except UnidentifiedImageError as error:
        known = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM or ICO"
        raise SampleError(
            f"image {short_name(ref.name)}: not an image in {known}; convert it to PNG or JPEG"
        ) from error
    except FlattenedError as error:
        raise SampleError(
            f"image {short_name(ref.name)}: {error}; convert it to 8 bits, or lay it on a background"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever they like on broken files
        raise SampleError(
            f"image {short_name(ref.name)}: broken or cut off ({error}); get it again or take the row out"
        ) from error
    raise SampleError(
        f"image {short_name(ref.name)}: {size}, more than {max_pixels:,}; scale it down or take the row out"
    )


def _opening(source: Path | io.BytesIO | Image.Image) -> AbstractContextManager[Image.Image]:
    return nullcontext(source) if isinstance(source, Image.Image) else Image.open(source, formats=_formats())


@functools.cache
def _formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _opened(ref: ImageRef) -> Path | io.BytesIO | Image.Image:
    if not isinstance(ref.source, Path):
        return io.BytesIO(ref.source) if isinstance(ref.source, bytes) else ref.source
    return image_file(ref.source, ref.name, ref.root)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # Pillow would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - a broken EXIF note; the pixels are fine
        return image
