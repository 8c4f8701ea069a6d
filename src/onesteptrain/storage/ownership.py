"""What is ours: a marker in each folder that we make lists the files that we have written there.

`--overwrite` replaces a folder with a marker alone, and deletes only what the marker lists. The marker has a line for
each file, so that a kill loses none: first `{"kind": ...}`, then names from the folder; `name/` is all below it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MARKER = ".onesteptrain.jsonl"
PASSING = ".onesteptrain.part"
"""How a name ends, and begins with a dot, while a file or folder is being written."""


def mark(folder: Path, kind: str, *, full: bool = False) -> None:
    """Make a folder ours; if it is `full`, all files that are in it now are ours, else none of them."""
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder)) if full else []
    lines = "\n".join(json.dumps(line) for line in ({"kind": kind}, *names))
    (folder / MARKER).write_text(lines, encoding="utf-8")
    note_made(folder)


def kind_of(folder: Path) -> str | None:
    """What a folder of ours holds; None for a folder that is not."""
    lines = list(_lines(folder))
    return str(lines[0].get("kind")) if lines and isinstance(lines[0], dict) else None


def note_made(path: Path, *, tree: bool = False) -> None:
    """Tell the nearest marked folder above that a path is ours, before it is written.

    Args:
        path: A file, or a folder with a marker of its own.
        tree: It is a folder in which all is ours, whatever is written there.
    """
    path = Path(os.path.abspath(path))
    for above in path.parents:
        if above.name.endswith(PASSING):  # its marker will list all that is in it
            return
        if (above / MARKER).is_file():
            line = "\n" + json.dumps(path.relative_to(above).as_posix() + ("/" if tree else ""))
            with (above / MARKER).open("ab", buffering=0) as marker:  # one write, so that processes do not mix
                marker.write(line.encode())
            return


def delete_made(folder: Path) -> None:
    """Delete what the marker lists, then the marker, and folders that are empty after that; nothing else."""
    if kind_of(folder) is None:
        return
    names = dict.fromkeys(line for line in _lines(folder) if isinstance(line, str))
    for name in names:
        if leaving(folder, name) is None:
            _delete(folder / name, tree=name.endswith("/"))
    (folder / MARKER).unlink()
    for name in names:
        if leaving(folder, name) is None:
            _drop_empty(folder / name, folder)


def passing(path: Path, writer: int | None = None) -> Path:
    """The name of a file or folder while it is being written, by one of several writers if there are some."""
    return path.with_name(f".{path.name}{'' if writer is None else f'.{writer}'}{PASSING}")


def leaving(folder: Path, name: str) -> str | None:
    """Why a name that a file gives is none of a file in a folder, in words; None if it is one.

    Links lead out of the folder, but those to the files of the same repository in the cache of the Hugging Face hub.
    """
    if is_outside(name):
        return "leaves the folder"
    parts = Path(name).parts
    steps = [folder.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return "is a link" if any(step.is_symlink() and not _is_cached(step, folder) for step in steps) else None


def is_outside(name: str) -> bool:
    """Whether a name, by its words alone, is none of a file below the folder that it is relative to."""
    path = Path(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable() or not path.parts


def _is_cached(link: Path, folder: Path) -> bool:
    blobs = link.resolve().parent
    return blobs.name == "blobs" and blobs.parent / "snapshots" in folder.resolve().parents


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; nothing need be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete(path: Path, *, tree: bool) -> None:
    remove(passing(path))
    if path.is_dir() and not tree:
        delete_made(path)
    else:
        remove(path)


def _lines(folder: Path) -> Iterator[object]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (folder / MARKER).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that a kill has cut
                yield json.loads(line)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in (*names, *links) if Path(place, name) != folder / MARKER)


def _drop_empty(path: Path, folder: Path) -> None:
    """Delete a folder and those above it, up to `folder`, as far as they are empty."""
    for place in (path, *path.parents):
        if place == folder or folder not in place.parents:
            return
        with contextlib.suppress(OSError):
            place.rmdir()
