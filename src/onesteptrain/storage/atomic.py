"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from onesteptrain.errors import RunError


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
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        _refuse_taken(out, marker, overwrite)
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_taken(out: Path, marker: str, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / marker).is_file():
        raise RunError(f"output {out} exists and is no folder with a {marker}; choose another --out")
    if not overwrite:
        raise RunError(f"output {out} exists; choose another --out, or add --overwrite")
