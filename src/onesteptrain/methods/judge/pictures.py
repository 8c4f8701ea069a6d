"""Images as data URLs, the form in which every OpenAI-compatible endpoint takes them."""

from __future__ import annotations

import base64
import io

from PIL import Image

from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef

_ORIENTATION = 0x0112
_UPRIGHT = (None, 1)


def data_url(ref: ImageRef, *, max_side: int) -> str:
    """An image as a data URL.

    A PNG or JPEG that is upright, in RGB or grey, and small enough goes out byte for byte as it stands. Another one is
    made what training will see (turned upright, RGB), scaled down with its shape kept, and encoded again: as JPEG if it
    was one, else as PNG.

    Args:
        ref: Where it is.
        max_side: Longest side, in pixels.

    Raises:
        SampleError: the image is missing, too large, broken, or no image.
    """
    image = load_image(ref)
    content = ref.source if isinstance(ref.source, bytes) else ref.source.read_bytes()
    with Image.open(io.BytesIO(content)) as head:
        kind = "jpeg" if head.format == "JPEG" else "png"
        as_it_stands = (
            head.format in ("PNG", "JPEG")
            and head.mode in ("RGB", "L")
            and "transparency" not in head.info
            and head.getexif().get(_ORIENTATION) in _UPRIGHT
            and max(image.size) <= max_side
        )
    return _url(kind, content if as_it_stands else _encoded(image, kind, max_side))


def blank_url() -> str:
    """A grey square, for asking an endpoint whether it takes images at all."""
    return _url("png", _encoded(Image.new("RGB", (64, 64), "grey"), "png", 64))


def _encoded(image: Image.Image, kind: str, max_side: int) -> bytes:
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return stream.getvalue()


def _url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
