"""Printing: results to stdout, progress and advice to stderr."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LISTED = 5
"""Things that a text for people names; it counts the others."""


def say(text: str, facts: Mapping[str, Any], *, as_json: bool, then: Sequence[object] = ()) -> None:
    """Print a result, for people or as one JSON object; people are also told which command may come next.

    Args:
        text: The result for people.
        facts: The result for machines.
        as_json: Whether a machine reads.
        then: The next command, after the word `ost`.
    """
    sys.stdout.write((json.dumps(dict(facts), allow_nan=False) if as_json else text) + "\n")
    sys.stdout.flush()
    if then and not as_json:
        tell("next: " + shlex.join(["ost", *map(str, then)]))


def tell(text: str) -> None:
    """Say on stderr what has been done."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


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
    return [f"{title}: {len(items)}", *(f"  {item}" for item in items[:LISTED]), *more]


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
