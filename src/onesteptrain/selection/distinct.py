"""The representation filter: go down a ranking and pass over every row that is too similar to a kept one.

Source: DEITA (arXiv:2312.15685), the diversity part of the score-first selection, with cosine similarity.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ConfigError

_BLOCK = 512
"""Rows that are compared with the kept ones at a time."""

_WIDE_BLOCK = 8192
"""Kept rows in one matrix product: with the block, 32 MB of similarities."""


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
    found = np.zeros(len(units), np.bool_)
    for first, start in itertools.product(range(0, len(units), _BLOCK), range(0, len(kept), _WIDE_BLOCK)):
        some = slice(first, first + _BLOCK)
        found[some] |= (units[some] @ kept[start : start + _WIDE_BLOCK].T >= threshold).any(1)
    return found


def unit_vectors(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Vectors of length one, in float64; a vector of zeros stays one."""
    wide = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(float).tiny)
    return wide
