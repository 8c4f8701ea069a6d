"""The one way to write a file or a folder: it appears whole or not at all, and only what is ours is replaced."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onesteptrain.errors import RunError
from onesteptrain.storage.ownership import MARKER, delete_made, kind_of, mark, note_made, passing, remove


@contextlib.contextmanager
def whole(out: Path, *, kind: str = "files", writer: int | None = None) -> Iterator[Path]:
    """A path to write a file or make a folder at; it takes its place when the block ends without an error.

    All of it is on the disk by then, so that a loss of power leaves the old content or the new.

    The path is free and its parent is there. A file replaces the file at `out`; a folder gets a marker, and replaces
    one of the same kind: what the old marker lists is deleted, all else stays.

    Args:
        out: The place.
        kind: What a folder holds.
        writer: Number of the writer, where several may write the same file at a time; the last one counts.

    Raises:
        RunError: the place is taken by something else.
    """
    part = passing(out, writer)
    out.parent.mkdir(parents=True, exist_ok=True)
    _settle(out)
    remove(part)  # left by a process that was killed
    note_made(out)
    try:
        yield part
        if part.is_dir():
            refuse_taken(out, kind, overwrite=True)
            mark(part, kind, full=True)
            _onto_disk(part)
            _swap(part, out)
        elif out.is_dir():
            raise RunError(f"output {out} is a folder; give a file name")
        else:
            _onto_disk(part)
            os.replace(part, out)
        _sync(out.parent)
    finally:
        remove(part)


@contextlib.contextmanager
def whole_folder(out: Path, *, kind: str, overwrite: bool) -> Iterator[Path]:
    """A folder to fill while the block runs; it takes its place when the block ends without an error.

    Args:
        out: The place.
        kind: What the folder holds.
        overwrite: Replace a folder of this kind.

    Raises:
        RunError: the place is taken.
    """
    refuse_taken(out, kind, overwrite=overwrite)
    with whole(out, kind=kind) as part:
        part.mkdir()
        yield part
        refuse_taken(out, kind, overwrite=overwrite)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_own(path: Path, text: str) -> None:
    """Write a file whole or not at all that holds a person's work: no later `--overwrite` deletes it."""
    part = passing(path)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def refuse_taken(out: Path, kind: str, *, overwrite: bool) -> None:
    """Never replace a folder unasked, and never one that is not ours and of the same kind.

    Raises:
        RunError: the place is taken.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise RunError(f"output {out} is a file; give another path, for a folder")
    if (there := kind_of(out)) is None:
        raise RunError(f"output {out} exists and is no folder that ost made (it has no {MARKER}); give another path")
    if there != kind:
        raise RunError(f"output {out} holds {there}, not {kind}; give another path")
    if not overwrite:
        raise RunError(f"output {out} exists; give another path, or add --overwrite")


def refuse_existing(out: Path, example: str, *, overwrite: bool) -> None:
    """Never replace a file unasked, and never a folder with a file, for which `example` is a name.

    Raises:
        RunError: the place is taken.
    """
    if out.is_dir():
        raise RunError(f"output {out} is a folder; give a file name such as {example}")
    if out.exists() and not overwrite:
        raise RunError(f"output {out} exists; give another path, or add --overwrite")


def _onto_disk(path: Path) -> None:
    """Wait until a file, or all below a folder, is on the disk."""
    for place, _, names in os.walk(path):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))
    if path.is_file():
        _sync(path)


def _sync(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems sync no folders
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _swap(part: Path, out: Path) -> None:
    """Put a folder in the place of one of ours, which steps aside, as folders do not swap."""
    if out.exists():
        os.replace(out, _aside(out))
    os.replace(part, out)
    _settle(out)


def _settle(out: Path) -> None:
    """End a swap of folders, that of a process that was killed too: what is not ours moves into the new folder."""
    aside = _aside(out)
    if not aside.exists():
        return
    if not out.exists():
        os.replace(aside, out)
        return
    delete_made(aside)
    for place, _, names in os.walk(aside):
        for left in (Path(place, name) for name in names):
            target = out / left.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(left, target if not target.exists() else target.with_name(f"{target.name}.kept"))
    remove(aside)


def _aside(out: Path) -> Path:
    return passing(out.with_name(f"{out.name}.old"))
