"""Rows in Arrow columns: Parquet files, a folder made by `Dataset.save_to_disk`, or a Dataset in memory.

Dataset folders are read without the `datasets` library: that would read images into the rows when it writes a dataset
back, and the rows would no longer be the pool's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.data.formats.container import RawRow, RowNumbers, file_digests, readable
from onesteptrain.data.formats.uids import ID_COLUMNS, id_column
from onesteptrain.errors import PoolError
from onesteptrain.storage.ownership import leaving

STATE = "state.json"
"""The file that marks a dataset folder and lists its shards."""

SPLITS = "dataset_dict.json"
"""The file that marks a folder with one dataset folder a split."""

_INFO = "dataset_info.json"
_ROWS_AT_ONCE = 64
"""Rows that become Python objects together: few, since each may hold images."""

_IDS_AT_ONCE = 2**14
_ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ArrowRows:
    """A container: one Parquet file, or the streams of a dataset's folder, one after the other."""

    path: Path
    shards: tuple[_ParquetShard | _StreamShard, ...]

    @property
    def folder(self) -> Path:
        """The folder of the file, or the folder of a dataset."""
        return self.path.parent

    def digests(self) -> Iterator[bytes]:
        """Hashes of the files in order."""
        return file_digests(shard.path for shard in self.shards)

    def count(self) -> int:
        """Number of rows, from the files' own records."""
        with readable(self.path):
            return sum(shard.num_rows for shard in self.shards)

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order; those before `ids_until` hold their id alone, where every row has one."""
        first = 0
        for shard in self.shards:
            with readable(shard.path):
                after = first + shard.num_rows
                if start < after:
                    yield from _shard_rows(shard, max(start - first, 0), min(ids_until, after) - first)
                first = after

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows."""
        first = copied = 0
        for shard in self.shards:
            after = first + shard.num_rows
            chosen = rows[np.searchsorted(rows, first) : np.searchsorted(rows, after)] - first
            target = out if shard.path == self.path else out / shard.path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shard.copy_rows(chosen, target)
            first, copied = after, copied + len(chosen)
        return copied


@dataclass(frozen=True)
class _HfFolder(ArrowRows):
    """A container: the folder of one dataset."""

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self.path

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows as a dataset folder that `load_from_disk` opens with the same features."""
        out.mkdir()
        copied = super().copy_rows(rows, out, suffix)
        state = _read_json(self.path / STATE)
        # datasets finds the results of `map` again by this; the subset must not be taken for the pool
        identity = hashlib.sha256(str(state.get("_fingerprint")).encode() + rows.tobytes()).hexdigest()
        state["_fingerprint"] = identity[:16]
        (out / STATE).write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
        if (self.path / _INFO).exists():
            shutil.copyfile(self.path / _INFO, out / _INFO)
        return copied


def open_parquet(path: Path) -> ArrowRows:
    """A Parquet file.

    Raises:
        PoolError: it cannot be read, or is none.
    """
    shard = _ParquetShard(path)
    with readable(path):
        _ = shard.num_rows
    return ArrowRows(path, (shard,))


def open_hf_folder(path: Path) -> ArrowRows:
    """The folder of one dataset.

    Raises:
        PoolError: files are missing or broken, or the folder was written by a very old `datasets`.
    """
    state = _read_json(path / STATE)
    if state.get("_indices_data_files"):
        raise PoolError(f"{path}: was saved by a very old version of datasets; load and save it with a new one")
    shards = tuple(_StreamShard(path / name) for name in _names(path, state))
    for shard in shards:
        with readable(shard.path):
            _ = shard.schema
    return _HfFolder(path, shards)


def _names(path: Path, state: Mapping[str, Any]) -> list[str]:
    """The names of the shards, which are those of files in the folder, each once."""
    try:
        names = [str(file["filename"]) for file in state.get("_data_files", ())]
    except (TypeError, KeyError) as error:
        raise PoolError(f"{path / STATE}: names no files; save the dataset again with save_to_disk") from error
    for name in (*names, _INFO):
        if (why := leaving(path, name)) is not None:
            raise PoolError(
                f"{path / STATE}: the file {name!r} {why}, and only files in the folder itself are read; "
                "save the dataset again with save_to_disk"
            )
    if len(set(map(os.path.normpath, names))) < len(names):
        raise PoolError(f"{path / STATE}: names a file twice; save the dataset again with save_to_disk")
    return names


def dataset_rows(path: Path, dataset: Any, start: int, ids_until: int) -> Iterator[RawRow]:
    """The rows of a `datasets.Dataset` in memory, which messages call `path`."""
    return _shard_rows(_DatasetShard(path, dataset), start, ids_until)


def _shard_rows(shard: _ParquetShard | _StreamShard | _DatasetShard, start: int, ids_until: int) -> Iterator[RawRow]:
    name = _complete_id_column(shard) if ids_until > start else None
    values = _values(shard.batches(None, start if name is None else ids_until))
    if name is not None:
        values = itertools.chain(itertools.islice(_values(shard.batches([name], start)), ids_until - start), values)
    return (RawRow(f"{shard.path.name} row {row}", value) for row, value in enumerate(values, start))


@dataclass(frozen=True)
class _ParquetShard:
    """One Parquet file; it is opened anew for each use, so that a pool can be sent to another process."""

    path: Path

    @property
    def schema(self) -> pa.Schema:
        return pq.read_schema(self.path)

    @cached_property
    def num_rows(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    def batches(self, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[pa.RecordBatch]:
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            ends = np.cumsum(sizes, dtype=np.int64)
            first = int(np.searchsorted(ends, start, "right"))  # the groups before it are not read
            if first == len(ends):
                return
            start -= int(ends[first]) - sizes[first]
            rows = _ROWS_AT_ONCE if columns is None else _IDS_AT_ONCE
            groups = file.iter_batches(batch_size=rows, row_groups=range(first, len(ends)), columns=columns)
            yield from _from(start, groups)

    def copy_rows(self, rows: RowNumbers, out: Path) -> None:
        with self._open() as file:
            groups = file.metadata.num_row_groups
            codec = file.metadata.row_group(0).column(0).compression if groups else "SNAPPY"
            rows_a_group = file.metadata.row_group(0).num_rows if groups else 1
            compression = "NONE" if codec == "UNCOMPRESSED" else codec
            with pq.ParquetWriter(out, file.schema_arrow, compression=compression) as writer:
                for group in _grouped(_taken(self.batches(), rows), rows_a_group):
                    writer.write_table(pa.Table.from_batches(group), row_group_size=max(rows_a_group, 1))

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False)


@dataclass(frozen=True)
class _StreamShard:
    """One Arrow stream, mapped into memory and not read into it."""

    path: Path

    @property
    def schema(self) -> pa.Schema:
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            return stream.schema

    @cached_property
    def num_rows(self) -> int:
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            return sum(batch.num_rows for batch in stream)

    def batches(self, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in _from(start, stream):
                batch.validate(full=True)  # a broken one would end the process
                yield batch if columns is None else batch.select(columns)

    def copy_rows(self, rows: RowNumbers, out: Path) -> None:
        with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_stream(sink, self.schema) as writer:
            for batch in _taken(self.batches(), rows):
                writer.write_batch(batch)


@dataclass(frozen=True)
class _DatasetShard:
    """A Dataset as its Arrow columns, where images stay as they are stored."""

    path: Path
    dataset: Any

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.features.arrow_schema

    @property
    def num_rows(self) -> int:
        return len(self.dataset)

    def batches(self, columns: Sequence[str] | None = None, start: int = 0) -> Iterator[pa.RecordBatch]:
        view = self.dataset.with_format("arrow", columns=columns and list(columns))
        size = _ROWS_AT_ONCE if columns is None else _IDS_AT_ONCE
        for first in range(start, self.num_rows, size):
            yield from view[first : first + size].to_batches()


def _complete_id_column(shard: _ParquetShard | _StreamShard | _DatasetShard) -> str | None:
    """The column that holds the id of every row of a file, if there is one."""
    name = next((column for column in ID_COLUMNS if column in shard.schema.names), None)
    if name is None or any(id_column(value) is None for value in _values(shard.batches([name]))):
        return None
    return name


def _values(batches: Iterator[pa.RecordBatch]) -> Iterator[Mapping[str, object]]:
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            yield from batch.slice(start, _ROWS_AT_ONCE).to_pylist()


def _from(start: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches without the rows before `start`."""
    for batch in batches:
        if start < batch.num_rows:
            yield batch.slice(start)
        start = max(start - batch.num_rows, 0)


def _taken(batches: Iterator[pa.RecordBatch], rows: RowNumbers) -> Iterator[pa.RecordBatch]:
    """The chosen rows of each batch that has any."""
    first = 0
    for batch in batches:
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if high > low:
            yield batch.take(pa.array(rows[low:high] - first))
        first += batch.num_rows


def _grouped(batches: Iterator[pa.RecordBatch], rows_a_group: int) -> Iterator[list[pa.RecordBatch]]:
    """Batches put together until they fill a row group, or the memory that one may take."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        rows, size = (sum(getattr(part, name) for part in group) for name in ("num_rows", "nbytes"))
        if rows >= rows_a_group or size >= _ROW_GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PoolError(f"{path}: cannot be read ({error}); save the dataset again with save_to_disk") from error
