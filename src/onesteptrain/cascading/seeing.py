"""What the cheap stage shows of every row, and what it makes one expect of the dear score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.cascading.doubt import Features, Values
from onesteptrain.cascading.ridge import fit_ridge
from onesteptrain.errors import ScoreError
from onesteptrain.storage.score_table import ScoreTable

FIRST_ORDER = ("utility", "harm", "gain", "worst_utility", "loss", "worst_loss")
"""First-order columns that the doubt is learned from; with --agreement, the squared length of the gradient too: what
the first order leaves out grows with it."""

GLIMPSE = "glimpse"
"""Column of a sketch of each row's gradient, as far as one pass shows it."""

_BESIDE = ("glimpse_length",)

_SHORTEST = 0.1
"""Of the median length of a glimpse: added to each, so that one of nothing counts as little."""

_ROWS_AT_ONCE = 8192

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """The cheap stage of a pool."""

    table: ScoreTable
    columns: Features
    """Numbers that go with how far off the expectation may be, "row column"; NaN where a row has none."""

    glimpsed: bool
    """Whether the dear score is not among the columns, even roughly, and has to be learned from glimpses."""

    @property
    def usable(self) -> Positions:
        """Rows with all numbers."""
        return np.flatnonzero(np.isfinite(self.columns).all(1))

    def expect(self, known: Positions, values: Values) -> Values:
        """What each row's dear score may be expected to be, from those of a few rows; theirs as the others tell it."""
        if not self.glimpsed:
            return self.columns[:, 0]
        some = np.concatenate([sketches[np.isin(rows, known)] for rows, sketches in self._glimpses()])
        # what a line misses grows with the gradient: each row counts by what it is in lengths of its own
        shortest = _SHORTEST * float(np.median(np.linalg.norm(some, axis=1)))
        lengths = np.linalg.norm(some, axis=1) + shortest
        line, held_out = fit_ridge(some / lengths[:, None], values / lengths)
        expected = np.full(len(self.columns), np.nan)
        for rows, sketches in self._glimpses():
            theirs = np.linalg.norm(sketches, axis=1) + shortest
            expected[rows] = theirs * line(sketches / theirs[:, None])
        expected[known] = lengths * held_out
        return expected

    def features(self, expected: Values) -> Features:
        """What the doubt is learned from."""
        return np.column_stack([expected, self.columns]) if self.glimpsed else self.columns

    def _glimpses(self) -> Iterator[tuple[Positions, Features]]:
        """Positions and sketches of the rows that have one, some at a time."""
        start = 0
        with pq.ParquetFile(self.table.path) as file:
            for group in file.iter_batches(_ROWS_AT_ONCE, columns=[GLIMPSE]):
                column = group.column(0)
                there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
                if len(there):
                    yield start + there, column.flatten().to_numpy().reshape(len(there), -1).astype(np.float64)
                start += len(column)


def see(table: ScoreTable) -> Seen:
    """Read what a cheap stage has measured.

    Raises:
        ScoreError: it has neither first-order columns nor glimpses.
    """
    glimpsed = GLIMPSE in table.names
    wanted = _BESIDE if glimpsed else FIRST_ORDER
    if missing := [name for name in wanted if name not in table.names]:
        raise ScoreError(f"{table.path} has no column {missing[0]!r}; a cascade begins with estimator fd or jvp")
    columns = [table.numbers(name) for name in wanted]
    if "gradient_norm" in table.names:
        columns.append(np.square(table.numbers("gradient_norm")))
    return Seen(table, np.stack(columns, axis=1), glimpsed)
