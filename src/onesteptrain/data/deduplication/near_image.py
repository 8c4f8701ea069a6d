"""Whether two images show the same: a perceptual hash finds the candidates, comparing spot by spot decides.

A hash of the whole image overlooks what matters in charts and tables: the same layout with another number in it. So two
images are the same picture only if no spot of them differs by more than what compression and scaling do.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from onesteptrain.data.images import load_for_comparison
from onesteptrain.data.pool import ImageRef
from onesteptrain.errors import MissingExtraError

Hashes = NDArray[np.uint64]

_SIDE = 16
BITS = _SIDE * _SIDE
"""Bits of a perceptual hash."""

WORDS = BITS // 64
"""64-bit words of a perceptual hash."""
_THUMBNAIL = 384
"""Longest side at which images are compared spot by spot."""

_LUMA_BLUR, _CHROMA_BLUR = 2, 4
"""Pixels around a spot that are averaged with it; JPEG keeps colour at half the resolution."""

_MOST_LUMA, _MOST_CHROMA = 20, 30
"""Levels, of 255, by which a spot of a copy may deviate in brightness and in colour. JPEG at quality 50, halving and
doubling made at most 19 and 24 of 350 diagrams, tables and charts; another digit makes 50 in the median, another colour
80 and more."""

_WEIGHTS = np.random.default_rng(0).integers(1, 2**63, BITS, np.uint64)
_MIXED = np.random.default_rng(1).permutation(BITS)
"""Order in which bits are cut into chunks: neighbours agree where an image is even, so each chunk takes bits from all
over it."""


class ImageHash(NamedTuple):
    """What is kept of an image."""

    digest: bytes
    """Of its size and what the file holds: the same for the same pixels."""

    bits: Hashes
    """Its difference hash, in words of 64 bits."""


def hash_image(ref: ImageRef) -> ImageHash:
    """Decode an image and hash it.

    Raises:
        SampleError: the image cannot be loaded.
        MissingExtraError: imagehash is not installed.
    """
    return _hash_file(ref) if isinstance(ref.source, Path) else _hash(ref)


def chunk_keys(bits: Hashes, distance: int) -> Hashes:
    """One key a chunk for each hash, `[image, chunk]`; two hashes within the distance share at least one.

    With one chunk more than bits may differ, some chunk has no difference (the pigeonhole principle).
    """
    single = np.unpackbits(bits.view(np.uint8), axis=-1)[:, _MIXED] * _WEIGHTS
    borders = np.linspace(0, BITS, distance + 2).astype(int)[:-1]
    return np.add.reduceat(single, borders, axis=-1)


def distances(first: Hashes, second: Hashes) -> NDArray[np.int64]:
    """Bits in which hashes differ."""
    return np.asarray(np.bitwise_count(first ^ second).sum(axis=-1, dtype=np.int64))


def thumbnail(ref: ImageRef) -> Image.Image:
    """The image as brightness and colour, made small enough to hold many of them: at most 442 kB.

    Raises:
        SampleError: the image cannot be loaded.
    """
    image = load_for_comparison(ref).look.convert("YCbCr")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return image


def same_picture(first: Image.Image, second: Image.Image) -> bool:
    """Whether two thumbnails differ nowhere by more than compression, scaling and overall lighting do."""
    size = (min(first.width, second.width), min(first.height, second.height))
    left, right = (_spots(image, size) for image in (first, second))
    if left[0].std() > 1 and right[0].std() > 1:  # lighting; an even image has none to take out
        left[0] = (left[0] - left[0].mean()) * (right[0].std() / left[0].std()) + right[0].mean()
    deviation = np.abs(left - right)
    return bool(deviation[0].max() <= _MOST_LUMA and deviation[1:].max() <= _MOST_CHROMA)


def _hash(ref: ImageRef) -> ImageHash:
    try:
        from imagehash import dhash
    except ImportError as error:
        raise MissingExtraError('near images are found with imagehash: pip install "onesteptrain[guard]"') from error
    image = load_for_comparison(ref)
    bits = np.packbits(dhash(image.look, _SIDE).hash.ravel()).view(np.uint64)
    return ImageHash(bytes.fromhex(image.fingerprint)[:16], bits)


_hash_file = functools.lru_cache(maxsize=4096)(_hash)
"""Several rows ask about one image, often one after the other."""


def _spots(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """Brightness and both colour channels, smoothed: `[channel, down, right]`."""
    scaled = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    blurs = (_LUMA_BLUR, _CHROMA_BLUR, _CHROMA_BLUR)
    channels = zip(scaled.split(), blurs, strict=True)
    return np.stack([np.asarray(channel.filter(ImageFilter.BoxBlur(blur)), np.float32) for channel, blur in channels])
