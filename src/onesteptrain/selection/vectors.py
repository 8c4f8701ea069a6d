"""Columns of vectors in a score table, and which rows' vectors resemble each other.

Vectors are read so that memory does not grow with the pool. Source of the filter: DEITA (arXiv:2312.15685), the
diversity part of the score-first selection, with cosine similarity.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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
    SKETCH: "which --prefer setwise compares; score with --set sketch=512",
}

_READ_ROWS = 4096

_BLOCK = 512
"""Rows that are compared with the kept ones at a time."""

_WIDE_BLOCK = 8192
"""Kept rows in one matrix product: with the block, 32 MB of similarities."""


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


class Distinct(NamedTuple):
    """What came out of going down a ranking."""

    rows: NDArray[np.int64]
    """Kept positions, best first."""

    skipped: int
    """Rows that were looked at and passed over as too similar."""


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
        units = unit_vectors(vectors[block])
        alike = resembling(units, kept[: len(rows)], threshold)
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


def resembling(units: NDArray[np.float64], kept: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Which unit vectors are too similar to one of the kept unit vectors."""
    alike = np.zeros(len(units), np.bool_)
    for first, start in itertools.product(range(0, len(units), _BLOCK), range(0, len(kept), _WIDE_BLOCK)):
        some = slice(first, first + _BLOCK)
        alike[some] |= (units[some] @ kept[start : start + _WIDE_BLOCK].T >= threshold).any(1)
    return alike


def unit_vectors(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Vectors of length one, in float64; a vector of zeros stays one."""
    wide = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(float).tiny)
    return wide
