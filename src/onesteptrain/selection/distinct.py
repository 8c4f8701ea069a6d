"""The representation filter: go down a ranking and pass over every row that is too similar to a kept one.

Source: DEITA (arXiv:2312.15685), the diversity part of the score-first selection, with cosine similarity.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.scores import ScoreTable

COLUMN = "representation"
"""Column of the score table with one vector a row."""

_BLOCK = 512
"""Rows that are compared with the kept ones at a time."""

_WIDE_BLOCK = 8192
"""Kept rows in one matrix product: with the block, 32 MB of similarities."""

_READ_ROWS = 4096


class Distinct(NamedTuple):
    """What came out of going down a ranking."""

    rows: NDArray[np.int64]
    """Kept positions, best first."""

    skipped: int
    """Rows that were looked at and passed over as too similar."""


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that filters nothing or everything.

    Raises:
        ConfigError: it does not lie between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"distinct is {threshold}; it is a cosine similarity between 0 and 1, such as 0.9")


def distinct_rows(
    vectors: NDArray[np.float32], ranking: NDArray[np.int64], *, count: int, threshold: float
) -> Distinct:
    """Keep a row if its cosine similarity to every row kept before it is below a threshold.

    The result is that of comparing one row after the other in float64; only the work is done in blocks. Memory beside
    the vectors is 8 bytes a number of the kept rows; time grows with rows looked at times rows kept.

    Args:
        vectors: One vector a row, "row dim"; none of the ranked ones is zero. May be mapped from a file.
        ranking: Positions to go down, best first.
        count: Stop at this many kept rows.
        threshold: Cosine similarity at which a row is too similar.
    """
    count = min(count, len(ranking))
    kept = np.empty((count, vectors.shape[1]))
    rows: list[int] = []
    looked_at = 0
    for start in range(0, len(ranking), _BLOCK):
        block = ranking[start : start + _BLOCK]
        units = _units(vectors[block])
        alike = _alike(units, kept[: len(rows)], threshold)
        among = units @ units.T >= threshold
        for place, row in enumerate(block):
            if len(rows) == count:
                return Distinct(np.array(rows, np.int64), looked_at - len(rows))
            looked_at += 1
            if not alike[place]:
                kept[len(rows)] = units[place]
                rows.append(int(row))
                alike |= among[place]
    return Distinct(np.array(rows, np.int64), looked_at - len(rows))


def read_representations(table: ScoreTable, ranked: NDArray[np.int64]) -> NDArray[np.float32]:
    """The vectors of a score table, "row dim", mapped from a temporary file so that memory does not grow with the pool.

    Args:
        table: A table with a column `representation`.
        ranked: Positions that must have a vector that can be compared; others may have none, which reads as zero.

    Raises:
        ScoreError: there is no such column, its vectors differ in length, or a ranked row has none to compare.
    """
    length = _vector_length(table)
    if not length:
        raise _not_comparable(table, int(ranked[0]))
    needed = np.zeros(table.rows, np.bool_)
    needed[ranked] = True
    with tempfile.TemporaryFile() as scratch:
        vectors = np.memmap(scratch, np.float32, "w+", shape=(table.rows, length))
    first = 0
    for column in _batches(table):
        rows = slice(first, first + len(column))
        vectors[rows][column.is_valid().to_numpy(zero_copy_only=False)] = _values(column).reshape(-1, length)
        usable = np.isfinite(vectors[rows]).all(1) & vectors[rows].any(1)
        broken = np.flatnonzero(needed[rows] & ~usable)
        if len(broken):
            raise _not_comparable(table, first + int(broken[0]))
        first = rows.stop
    return vectors


def _alike(units: NDArray[np.float64], kept: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Which vectors are too similar to a kept one."""
    found = np.zeros(len(units), np.bool_)
    for start in range(0, len(kept), _WIDE_BLOCK):
        found |= (units @ kept[start : start + _WIDE_BLOCK].T >= threshold).any(1)
    return found


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def _vector_length(table: ScoreTable) -> int:
    """How many numbers each vector has; 0 if no row has one."""
    if COLUMN not in table.names:
        raise ScoreError(
            f"{table.path} has no column {COLUMN!r}, which --distinct compares; score with a method that keeps one, "
            "such as deita"
        )
    lengths = sorted(
        {length for column in _batches(table) for length in pc.list_value_length(column).unique().to_pylist()} - {None}
    )
    if len(lengths) > 1:
        raise ScoreError(
            f"the vectors in column {COLUMN!r} of {table.path} have {' and '.join(map(str, lengths))} numbers; "
            "all must have as many: score the pool again with one proxy"
        )
    return int(lengths[0]) if lengths else 0


def _batches(table: ScoreTable) -> Iterator[pa.Array]:
    """The column of vectors, some rows at a time."""
    with pq.ParquetFile(table.path) as file:
        for batch in file.iter_batches(_READ_ROWS, columns=[COLUMN]):
            column = batch.column(0)
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                raise ScoreError(
                    f"column {COLUMN!r} of {table.path} holds {column.type}, not lists; score the pool again"
                )
            yield column


def _values(column: pa.Array) -> NDArray[np.float32]:
    """All numbers of some vectors one after the other."""
    return column.drop_null().flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _not_comparable(table: ScoreTable, row: int) -> ScoreError:
    return ScoreError(
        f"row {row} of {table.path} has a score but no {COLUMN} to compare (it is missing, zero or not finite); "
        "score the pool again, or leave --distinct out"
    )
