"""Many files as one pool: those of a folder or of a pattern, by name, one after the other."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onesteptrain.data.formats.compression import plain_name
from onesteptrain.data.formats.container import Container, RawRow, RowNumbers
from onesteptrain.errors import PoolError

_KINDS = {".parquet": "Parquet", ".jsonl": "JSONL", ".ndjson": "JSONL", ".tar": "tar", ".json": "JSON"}
"""Files of a folder that are rows, by suffix."""

_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}")
_OPENED_AT_ONCE = 16


@dataclass(frozen=True)
class ManyFiles:
    """A container: several others, one after the other; rows are numbered on."""

    path: Path
    folder: Path
    parts: tuple[Container, ...]

    def digests(self) -> Iterator[bytes]:
        """Hashes of the files in order."""
        return itertools.chain.from_iterable(part.digests() for part in self.parts)

    def count(self) -> int:
        """Number of rows in all files."""
        return sum(part.count() for part in self.parts)

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order; files that end before it are counted and not read."""
        first = 0
        for part in self.parts:
            row = max(start - first, 0)
            if row and row >= part.count():
                first += part.count()
                continue
            for raw in part.raw_rows(row, ids_until=ids_until - first):
                yield raw
                row += 1
            first += row

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows into a folder with the same file names."""
        first = copied = 0
        for part in self.parts:
            after = first + part.count()
            chosen = rows[np.searchsorted(rows, first) : np.searchsorted(rows, after)] - first
            target = out / part.path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            first, copied = after, copied + part.copy_rows(chosen, target, target.suffix)
        return copied


def files_of_rows(folder: Path) -> list[Path]:
    """The files of a folder that hold rows, at any depth, by name; hidden files and folders are left out.

    Raises:
        PoolError: they are of several kinds.
    """
    names = (file.relative_to(folder) for file in folder.rglob("*"))
    kinds: dict[str, list[Path]] = {}
    for name in sorted(name for name in names if not any(part.startswith(".") for part in name.parts)):
        if kind := _KINDS.get(plain_name(name).suffix.lower()):
            kinds.setdefault(kind, []).append(folder / name)
    if len(kinds) > 1:
        kinds.pop("JSON", None)  # notes beside the rows, such as dataset_infos.json
    if len(kinds) > 1:
        there = " and ".join(f"{len(files)} {kind}" for kind, files in kinds.items())
        some = kinds[next(iter(kinds))][0]
        raise PoolError(
            f"{folder}: holds {there} files; say which are the pool with a pattern such as {folder / f'*{some.suffix}'}"
        )
    return next(iter(kinds.values()), [])


def is_pattern(path: Path) -> bool:
    """Whether a path is no file or folder but stands for several: it has `*`, `?` or `[` in it."""
    return glob.has_magic(str(path)) and not path.exists()


def matching(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder that all files of a pattern are below, and what it stands for, by name; hidden files are left out.

    Raises:
        PoolError: nothing is there.
    """
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    found = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
    if not found:
        raise PoolError(f"{pattern}: no file has such a name; `*` stands for any part of a name, `**` for folders")
    return Path(*plain), found


def open_many(path: Path, folder: Path, files: list[Path], opened: Callable[[Path], Container]) -> Container:
    """Files as one pool.

    Args:
        path: How messages call it.
        folder: What all files are below.
        files: The files, in order.
        opened: Opens one.

    Raises:
        PoolError: they are of several splits of a dataset, or one cannot be opened.
    """
    splits = sorted({match[1] for file in files if (match := _SPLIT.fullmatch(plain_name(file).stem))})
    if len(splits) > 1:
        raise PoolError(
            f"{path}: holds the splits {', '.join(splits)}; a pool is one of them: "
            f"give a pattern such as {folder / f'{splits[0]}-*'}"
        )
    with ThreadPoolExecutor(min(_OPENED_AT_ONCE, len(files), os.cpu_count() or 1)) as threads:
        return ManyFiles(path, folder, tuple(threads.map(opened, files)))
