"""Ways in which pictures go wrong: the user's pictures anew, or None where it does not apply."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image

from onesteptrain.data.corruption.answers import Anchor
from onesteptrain.data.corruption.texts import nearest
from onesteptrain.data.formats.memory import encoded
from onesteptrain.data.images import image_fingerprint, load_image
from onesteptrain.data.pool import ImageRef

PictureKind = Callable[[Anchor, Sequence[Anchor], random.Random], tuple[ImageRef, ...] | None]
"""From an anchor, the other anchors and a source of chance to other pictures."""

_GREY = (128, 128, 128)


def other_picture(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> tuple[ImageRef, ...] | None:
    """The pictures of the question that is most like this one and has another final answer."""
    if not own.pictures or not own.fingerprints:
        return None
    fitting = [other for other in others if len(other.pictures) == len(own.pictures)]
    for donor in nearest(own, filter(own.differs, fitting), chance):
        if donor.fingerprints and not set(donor.fingerprints) & set(own.fingerprints):
            return donor.pictures
    return None


def blank_picture(own: Anchor, others: Sequence[Anchor], chance: random.Random) -> tuple[ImageRef, ...] | None:
    """Grey pictures of the same sizes."""
    if not own.pictures or not own.fingerprints:
        return None
    blank = tuple(map(_blank, own.pictures))
    return None if set(map(image_fingerprint, blank)) & set(own.fingerprints) else blank


def _blank(picture: ImageRef) -> ImageRef:
    return ImageRef(encoded(Image.new("RGB", load_image(picture).size, _GREY)), f"{picture.name} (blank)")
