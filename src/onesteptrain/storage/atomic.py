"""The one way to write a file or a folder: it appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onesteptrain.errors import RunError


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A path to write a file or make a folder at; it takes its place when the block ends without an error.

    The path is free and its parent is there. What stands at `out` is replaced.
    """
    part, aside = out.with_name(out.name + ".part"), out.with_name(out.name + ".old.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove(part)  # left by a process that was killed
    try:
        yield part
        if out.exists() and (out.is_dir() or part.is_dir()):  # folders do not swap: the old one steps aside
            remove(aside)
            os.replace(out, aside)
        os.replace(part, out)
        remove(aside)
    finally:
        remove(part)


@contextlib.contextmanager
def whole_folder(out: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """A folder to fill while the block runs; it takes its place when the block ends without an error.

    Args:
        out: The place.
        marker: File that every folder of this kind has; a folder without it is somebody's own and never replaced.
        overwrite: Replace a folder of this kind.

    Raises:
        RunError: the place is taken.
    """
    _refuse_taken(out, marker, overwrite)
    with whole(out) as part:
        part.mkdir()
        yield part
        _refuse_taken(out, marker, overwrite)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _refuse_taken(out: Path, marker: str, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / marker).is_file():
        raise RunError(f"output {out} exists and is no folder with a {marker}; choose another --out")
    if not overwrite:
        raise RunError(f"output {out} exists; choose another --out, or add --overwrite")


def refuse_existing(out: Path, example: str, *, overwrite: bool) -> None:
    """Never replace a file unasked, and never a folder with a file, for which `example` is a name.

    Raises:
        RunError: the place is taken.
    """
    if out.is_dir():
        raise RunError(f"output {out} is a folder; give a file name such as {example}")
    if out.exists() and not overwrite:
        raise RunError(f"output {out} exists; give another path, or add --overwrite")


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing need be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
