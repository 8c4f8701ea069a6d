"""Words and lines that commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from onesteptrain.errors import one_line, several_lines

LISTED = 5
"""Things that a text for people names; it counts the others."""


def tell(text: str) -> None:
    """Say on stderr what has been done."""
    print(several_lines(text), file=sys.stderr, flush=True)  # noqa: T201


def moved_images(image_root: Path, out: Path) -> str:
    """A line for people whose rows now stand in another folder than the one that their image paths start from."""
    if image_root.absolute() == out.absolute().parent:
        return ""
    return f"\nrelative image paths in it still start from {image_root}; give that folder as the image root"


def listed(title: str, items: Sequence[str]) -> list[str]:
    """The first few of some things, under their number."""
    if not items:
        return []
    more = [f"  ... and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return [f"{title}: {len(items)}", *(f"  {one_line(item)}" for item in items[:LISTED]), *more]


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
