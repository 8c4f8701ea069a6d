"""Rows in Arrow columns, on disk as Parquet files or as a Hugging Face dataset folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from onesteptrain.data.formats.container import RawRow, RowNumbers, file_digests
from onesteptrain.data.formats.uids import ID_COLUMNS, id_column
from onesteptrain.errors import PoolError

ROWS_AT_ONCE = 64
"""Rows that become Python objects together: few, since each may hold images."""


class Rows(Protocol):
    """Some rows of a pool in Arrow columns."""

    @property
    def path(self) -> Path:
        """The file, or how messages call what is in memory."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""

    @property
    def num_rows(self) -> int:
        """Number of rows, from the file's own records."""

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order, as many at a time as the file holds together; only some columns if they are named."""


class Shard(Rows, Protocol):
    """One file of a pool."""

    def copy_rows(self, rows: RowNumbers, out: Path) -> None:
        """Write the chosen rows to a file of the same schema, metadata included."""


@dataclass(frozen=True)
class ArrowRows:
    """A container: one file, or the files of a folder, one after the other."""

    path: Path
    shards: tuple[Shard, ...]

    def digests(self) -> Iterator[bytes]:
        """Hashes of the files in order."""
        return file_digests(shard.path for shard in self.shards)

    def count(self) -> int:
        """Number of rows, from the files' own records."""
        with readable(self.path):
            return sum(shard.num_rows for shard in self.shards)

    def raw_rows(self, ids_until: int = 0) -> Iterator[RawRow]:
        """All rows in order; those before `ids_until` hold their id alone, where every row of the file has one."""
        first = 0
        for shard in self.shards:
            with readable(shard.path):
                yield from shard_rows(shard, min(ids_until - first, shard.num_rows))
                first += shard.num_rows

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows; a folder comes back as a folder with the same file names."""
        first = copied = 0
        for shard in self.shards:
            after = first + shard.num_rows
            chosen = rows[np.searchsorted(rows, first) : np.searchsorted(rows, after)] - first
            target = out if shard.path == self.path else out / shard.path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shard.copy_rows(chosen, target)
            first, copied = after, copied + len(chosen)
        return copied


def taken(batches: Iterator[pa.RecordBatch], rows: RowNumbers) -> Iterator[pa.RecordBatch]:
    """The chosen rows of each batch that has any."""
    first = 0
    for batch in batches:
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if high > low:
            yield batch.take(pa.array(rows[low:high] - first))
        first += batch.num_rows


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What Arrow says of a broken file, as our own error."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise PoolError(f"{path}: cannot be read ({what}); write or download the file again") from error


def shard_rows(shard: Rows, ids_until: int) -> Iterator[RawRow]:
    """The rows of a file; the first ones hold their id alone, where every row has one."""
    name = _complete_id_column(shard) if ids_until > 0 else None
    row = 0
    if name is not None:
        for value in _values(shard.batches([name])):
            if row == ids_until:
                break
            yield RawRow(f"{shard.path.name} row {row}", value)
            row += 1
    for value in _values(shard.batches(), skip=row):
        yield RawRow(f"{shard.path.name} row {row}", value)
        row += 1


def _complete_id_column(shard: Rows) -> str | None:
    """The column that holds the id of every row of a file, if there is one."""
    name = next((column for column in ID_COLUMNS if column in shard.columns), None)
    if name is None or any(id_column(value) is None for value in _values(shard.batches([name]))):
        return None
    return name


def _values(batches: Iterator[pa.RecordBatch], skip: int = 0) -> Iterator[Mapping[str, object]]:
    for batch in batches:
        for start in range(min(skip, batch.num_rows), batch.num_rows, ROWS_AT_ONCE):
            yield from batch.slice(start, ROWS_AT_ONCE).to_pylist()
        skip -= min(skip, batch.num_rows)
