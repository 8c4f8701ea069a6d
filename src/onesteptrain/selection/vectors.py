"""Columns of vectors in a score table, read so that memory does not grow with the pool."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.storage.score_table import ScoreTable

REPRESENTATION = "representation"
SKETCH = "sketch"

_USES: Mapping[str, str] = {
    REPRESENTATION: "which --distinct and --prefer cover compare; score with a method that keeps one, such as deita, "
    "or one_step with --representation",
    SKETCH: "which --prefer setwise compares; score with --sketch 512",
}

_READ_ROWS = 4096


def read_vectors(
    table: ScoreTable, column: str, ranked: NDArray[np.int64], *, zeros: bool = False
) -> NDArray[np.float32]:
    """The vectors of a score table, "row dim", mapped from a temporary file.

    Args:
        table: A table with such a column.
        column: A column with one vector a row.
        ranked: Positions that must have a vector that can be compared; others may have none, which reads as zero.
        zeros: Whether a vector of zeros can be compared.

    Raises:
        ScoreError: there is no such column, its vectors differ in length, or a ranked row has none to compare.
    """
    length = _vector_length(table, column)
    if not length:
        raise _not_comparable(table, column, int(ranked[0]))
    needed = np.zeros(table.rows, np.bool_)
    needed[ranked] = True
    with tempfile.TemporaryFile() as scratch:
        vectors = np.memmap(scratch, np.float32, "w+", shape=(table.rows, length))
    first = 0
    for part in _batches(table, column):
        rows = slice(first, first + len(part))
        there = part.is_valid().to_numpy(zero_copy_only=False)
        vectors[rows][there] = _values(part).reshape(-1, length)
        usable = there & np.isfinite(vectors[rows]).all(1) & (zeros | vectors[rows].any(1))
        broken = np.flatnonzero(needed[rows] & ~usable)
        if len(broken):
            raise _not_comparable(table, column, first + int(broken[0]))
        first = rows.stop
    return vectors


def _vector_length(table: ScoreTable, column: str) -> int:
    """How many numbers each vector has; 0 if no row has one."""
    if column not in table.names:
        raise ScoreError(f"{table.path} has no column {column!r}, {_USES[column]}")
    lengths = sorted(
        {length for part in _batches(table, column) for length in pc.list_value_length(part).unique().to_pylist()}
        - {None}
    )
    if len(lengths) > 1:
        raise ScoreError(
            f"the vectors in column {column!r} of {table.path} have {' and '.join(map(str, lengths))} numbers; "
            "all must have as many: score the pool again with one proxy"
        )
    return int(lengths[0]) if lengths else 0


def _batches(table: ScoreTable, column: str) -> Iterator[pa.Array]:
    """The column of vectors, some rows at a time."""
    with pq.ParquetFile(table.path, pre_buffer=False) as file:  # to buffer is to read the whole column first
        for batch in file.iter_batches(_READ_ROWS, columns=[column]):
            part = batch.column(0)
            if not (pa.types.is_list(part.type) or pa.types.is_large_list(part.type)):
                raise ScoreError(
                    f"column {column!r} of {table.path} holds {part.type}, not lists; score the pool again"
                )
            yield part


def _values(part: pa.Array) -> NDArray[np.float32]:
    """All numbers of some vectors one after the other."""
    return part.drop_null().flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _not_comparable(table: ScoreTable, column: str, row: int) -> ScoreError:
    return ScoreError(
        f"row {row} of {table.path} has a score but no {column} to compare (it is missing, zero or not finite); "
        "score the pool again, or select by what all rows have"
    )
