"""What a row becomes, whatever its format: turns of text and images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image of a sample comes from: a file, or bytes that stand in the row."""

    source: Path | bytes
    """File path (already resolved against the image root), or the encoded image itself."""

    name: str
    """How messages call it: the path as written in the row, or e.g. "data URI"."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    parts: tuple[str | ImageRef, ...]
    """Texts and images in the order in which the model reads them; placeholders are already resolved."""

    @property
    def text(self) -> str:
        """The texts of this turn, joined, without its images."""
        return "".join(part for part in self.parts if isinstance(part, str))
