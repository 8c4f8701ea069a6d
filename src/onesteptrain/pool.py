"""The pool: the samples that are chosen from.

A `Sample` is one conversation with its images, whatever file format it came from. Images stay references until they
are asked for, so that a pool streams in bounded memory. A row that cannot be read becomes `Unreadable` with a reason,
and the rows after it go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a pool that can be read."""

    uid: str
    """The row's id, or the hash of its content; a repeated one gets "#2", "#3", ... in pool order."""

    row: int
    """Position in the pool, from 0."""

    turns: tuple[Turn, ...]

    fields: Mapping[str, object] = field(default_factory=dict)
    """The row's other columns (topic, level, ...): groups, strata and reports use them, scores do not."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in reading order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One row of a pool that cannot be read, and why."""

    uid: str
    row: int
    reason: str
