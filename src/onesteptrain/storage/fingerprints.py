"""Names by content: of files and folders, and of requests with all that they depend on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onesteptrain.storage.ownership import MARKER


def fingerprint(path: str | Path) -> str:
    """Hash of the content of a file or of all files in a folder; a name that is no path stands for itself."""
    path = Path(path)
    if not path.exists():
        return f"name:{path}"
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file))
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def fingerprint_once(path: str | Path) -> str:
    """The same, read again only where sizes or times of the files have changed."""
    return _fingerprint_of(str(path), _stamp(Path(path)))


def content_id(values: Iterable[Any]) -> str:
    """A short name for a request: the same for the same values and the same content of the files that they name."""
    text = json.dumps([_content(value) for value in values], sort_keys=True)
    return short_hash(text, 6)


def short_hash(text: str, size: int) -> str:
    """A hash of so many bytes, in hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def _content(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _content(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_content(item) for item in value]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Path) or names_file(value):
        return fingerprint_once(value)
    return value


def names_file(value: Any) -> bool:
    """Whether an option names a file or folder that is there, such as a checkpoint; a word alone never does."""
    return (isinstance(value, Path) or (isinstance(value, str) and os.sep in value)) and Path(value).exists()


def _counts(file: Path) -> bool:
    """The list of what we made is no content."""
    return file.is_file() and file.name != MARKER


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files of a path: while they stay, so does its fingerprint."""
    files = sorted(filter(_counts, path.rglob("*"))) if path.is_dir() else [path] if path.exists() else []
    stats = [(file, file.stat()) for file in files]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


@functools.lru_cache(maxsize=64)
def _fingerprint_of(path: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    return fingerprint(path)


def as_place(checkpoint: str) -> str | Path:
    """A checkpoint as its folder where there is one, so that its content counts; else its hub name."""
    return Path(checkpoint) if Path(checkpoint).exists() else checkpoint
