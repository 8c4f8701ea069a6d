"""What a row becomes, whatever its shape: turns of text and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image of a sample comes from: a file, or bytes or a Pillow image that stand in the row."""

    source: Path | bytes | Image.Image
    """File path (already resolved against the image root), or the image itself, encoded or not."""

    name: str
    """How messages call it: the path as written in the row, or e.g. "data URI"."""

    root: Path | None = field(default=None, compare=False, repr=False)
    """The folder that a file must be in, links followed; None for any."""


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
