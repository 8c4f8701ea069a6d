"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from onesteptrain.errors import RunError


@contextlib.contextmanager
def whole_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill while the block runs; it takes its place when the block ends without an error.

    Args:
        out: The place.
        overwrite: Replace a folder that is there.

    Raises:
        RunError: something is there.
    """
    refuse_taken(out, overwrite=overwrite)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    part.mkdir(parents=True)
    try:
        yield part
        refuse_taken(out, overwrite=overwrite)
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_taken(out: Path, *, overwrite: bool) -> None:
    """Refuse a place where something is that must not be replaced, before work is spent.

    Raises:
        RunError: something is there.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not (overwrite and out.is_dir()):
        raise RunError(f"output {out} exists; choose another --out{', or add --overwrite' if out.is_dir() else ''}")
