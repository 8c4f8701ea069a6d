"""Parquet: one file, or all the files under a folder in the order of their paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.data.formats.arrow import ROWS_AT_ONCE, ArrowRows, readable, taken
from onesteptrain.data.formats.container import RowNumbers
from onesteptrain.errors import PoolError

_ROW_GROUP_BYTES = 64 * 2**20
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class ParquetShard:
    """One Parquet file; it is opened anew for each use, so that a pool can be sent to another process."""

    path: Path

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        return list(pq.read_schema(self.path).names)

    @property
    def num_rows(self) -> int:
        """Number of rows, from the footer."""
        return int(pq.read_metadata(self.path).num_rows)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in small batches; in larger ones where only some columns are asked for."""
        with self._open() as file:
            rows = ROWS_AT_ONCE if columns is None else 2**14
            yield from file.iter_batches(batch_size=rows, columns=columns)

    def copy_rows(self, rows: RowNumbers, out: Path) -> None:
        """Write the chosen rows with the same schema, compression and size of row groups."""
        with self._open() as file:
            groups = file.metadata.num_row_groups
            codec = file.metadata.row_group(0).column(0).compression if groups else "SNAPPY"
            rows_a_group = file.metadata.row_group(0).num_rows if groups else 1
            compression = "NONE" if codec == "UNCOMPRESSED" else codec
            with pq.ParquetWriter(out, file.schema_arrow, compression=compression) as writer:
                for group in _grouped(taken(self.batches(), rows), rows_a_group):
                    writer.write_table(pa.Table.from_batches(group), row_group_size=max(rows_a_group, 1))

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False)


def open_parquet(path: Path) -> ArrowRows:
    """A Parquet file, or a folder with such files at any depth; hidden files and folders are left out.

    Raises:
        PoolError: not Parquet, or the folder mixes the splits of a dataset.
    """
    inside = (file.relative_to(path) for file in path.rglob("*.parquet")) if path.is_dir() else ()
    names = sorted(name for name in inside if not any(part.startswith(".") for part in name.parts))
    splits = sorted({match[1] for name in names if (match := _SPLIT.fullmatch(name.stem))})
    if len(splits) > 1:
        raise PoolError(
            f"{path}: holds the splits {', '.join(splits)}; a pool is one of them: "
            "give its file, or put its files into a folder of their own"
        )
    files = [path / name for name in names] if path.is_dir() else [path]
    for file in files:
        with readable(file):
            pq.read_metadata(file)
    return ArrowRows(path, tuple(ParquetShard(file) for file in files))


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
