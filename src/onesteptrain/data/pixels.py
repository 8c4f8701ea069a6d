"""Pictures as a viewer shows them: 8 bits of red, green and blue, on white, however the file keeps them.

Grey of 16 bits is scaled by the range of its type, whole numbers of 32 bits by the smallest of 8 and 16 bits that holds
them, floats in 0 to 1 by that range, others by their own. Where one value would be left of a picture that has more, it
is refused, for all such pictures would be equal. Pictures are compared by what the file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_STRIP = 2**20
"""Pixels that are changed at once, so that memory holds a picture twice at most."""

_FORMATS_OF_FRAMES = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")


class FlattenedError(ValueError):
    """A picture would be shown as one even area, and is none."""


class Range(NamedTuple):
    """The values that are shown as black and as white."""

    low: float
    high: float


def as_shown(image: Image.Image) -> Image.Image:
    """The picture in RGB.

    Raises:
        FlattenedError: nothing of it would be left.
    """
    if _is_wide(image):
        return _scaled(image, _range_of_type(image))
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "RGB" and isinstance(image, ImageFile.ImageFile):  # nobody else holds it
        return image
    return image.convert("RGB")


def as_compared(image: Image.Image) -> Image.Image:
    """The picture in RGB, with wide grey spread over its own range, so that dark pictures are told apart."""
    return _scaled(image, _own_range(image)) if _is_wide(image) else as_shown(image)


def stored_pixels(image: Image.Image) -> Iterator[bytes]:
    """What the file holds, in the fewest channels that hold it: the same for lossless copies in other formats."""
    if _is_wide(image):
        kind, strips = np.float32 if image.mode == "F" else np.int32, _strips(image)
        yield f"{image.width}x{image.height} {image.mode[0]}".encode()
        yield from (np.asarray(strip).astype(kind).tobytes() for _, strip in strips)
        return
    clear = image.has_transparency_data and _least_alpha(image) < 255
    yield f"{image.width}x{image.height}{' on what is behind' if clear else ''}".encode()
    yield from (_straight(strip, "RGBA" if clear else "RGB").tobytes() for _, strip in _strips(image))


def what_changes(image: Image.Image) -> list[str]:
    """What is changed to show a picture, in words, as the head of its file tells it."""
    changes = []
    if image.mode == "F":
        changes.append("hold floats, which are scaled to 8 bits")
    elif _is_wide(image):
        changes.append("have more than 8 bits of grey, which are scaled to 8 bits")
    elif image.has_transparency_data:
        changes.append("may be transparent, and are shown on white")
    elif image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        changes.append(f"are in {image.mode}, and are converted to RGB")
    if image.format in _FORMATS_OF_FRAMES and getattr(image, "is_animated", False):
        changes.append("have several frames, of which the first is read")
    return changes


def _is_wide(image: Image.Image) -> bool:
    return image.mode in _WIDE


def _range_of_type(image: Image.Image) -> Range:
    if image.mode.startswith("I;16"):
        return Range(0, 65535)
    low, high = own = _own_range(image)
    if image.mode == "F":
        return Range(0, 1) if low >= 0 and high <= 1 else own
    return next((Range(0, top) for top in (255, 65535) if low >= 0 and high <= top), own)


def _own_range(image: Image.Image) -> Range:
    lows, highs = [], []
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    if not lows:
        raise FlattenedError("holds no finite number")
    return Range(min(lows), max(highs))


def _scaled(image: Image.Image, shown: Range) -> Image.Image:
    """Shown by a range; what is no number is black."""
    span = shown.high - shown.low or 1.0
    made = Image.new("L", image.size)
    for box, strip in _strips(image):
        share = (np.asarray(strip).astype(np.float64) - shown.low) / span
        levels = np.rint(255 * np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)).astype(np.uint8)
        made.paste(Image.fromarray(levels), box)
    own = _own_range(image)
    if _is_even(made.getextrema()) and own.low < own.high:
        raise FlattenedError(
            f"its values, {own.low:.6g} to {own.high:.6g}, would all be shown alike on the scale from "
            f"{shown.low:.6g} to {shown.high:.6g}"
        )
    return made.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    made = Image.new("RGB", image.size, "white")
    for box, strip in _strips(image):
        layer = _straight(strip, "RGBA")
        made.paste(layer, box, layer.getchannel("A"))
    if _is_even(*made.getextrema()) and not _is_even(*_straight(image, "RGBA").getextrema()):
        raise FlattenedError("it is transparent, and nothing of it can be seen on white")
    return made


def _is_even(*extrema: object) -> bool:
    return all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in extrema)


def _least_alpha(image: Image.Image) -> int:
    return min(int(_straight(strip, "RGBA").getchannel("A").getextrema()[0]) for _, strip in _strips(image))  # type: ignore[arg-type]


def _straight(image: Image.Image, mode: str) -> Image.Image:
    """In a mode, of any other; Pillow goes from some only by a way between."""
    if image.mode == mode:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert(mode)


def _strips(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Bands of rows, each with the corner at which it stands."""
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield (0, top), image.crop((0, top, image.width, min(top + rows, image.height)))
