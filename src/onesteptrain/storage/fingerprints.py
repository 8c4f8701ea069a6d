"""Short names for requests, by the content of all that they depend on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onesteptrain.storage.run_directory import fingerprint


def content_id(values: Iterable[Any]) -> str:
    """A short name for a request: the same for the same values and the same content of the files that they name."""
    text = json.dumps([_content(value) for value in values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


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
        return _fingerprint_once(str(value), _stamp(Path(value)))
    return value


def names_file(value: Any) -> bool:
    """Whether an option names a file or folder that is there, such as a checkpoint; a word alone never does."""
    return (isinstance(value, Path) or (isinstance(value, str) and os.sep in value)) and Path(value).exists()


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files of a path: while they stay, so does its fingerprint."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    stats = [(file, file.stat()) for file in files]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


@functools.lru_cache(maxsize=64)
def _fingerprint_once(path: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    return fingerprint(path)


def as_place(checkpoint: str) -> str | Path:
    """A checkpoint as its folder where there is one, so that its content counts; else its hub name."""
    return Path(checkpoint) if Path(checkpoint).exists() else checkpoint
