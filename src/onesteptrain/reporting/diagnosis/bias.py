"""What else a score goes by: length, pictures, source, form; and a score without that part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from onesteptrain.reporting.diagnosis.measured import Values

Column = Values | Sequence[object]
"""Numbers, NaN where there is none; or one value of any kind a row, None where there is none."""

_NOTABLE = {"spearman": 0.3, "eta_squared": 0.06}
"""A medium effect (Cohen, Statistical Power Analysis, 1988)."""

_MOST_BINS = 20
_ROWS_A_BIN = 50
_ROWS_A_GROUP = 50
"""On average; small groups differ by chance, in (groups - 1) / (rows - 1) of the variance."""

_ROUNDS = 5
"""Through the columns, of a correction for several; they settle within two or three."""


class Association(NamedTuple):
    """How a score goes with another column."""

    column: str
    measure: Literal["spearman", "eta_squared"]
    size: float
    """Rank correlation, -1 to 1; or the share of the variance of the score's ranks between groups, 0 to 1."""

    notable: bool
    """At least a medium effect."""

    rows: int


def associations(score: Values, columns: Mapping[str, Column]) -> list[Association]:
    """How a score goes with each of some columns, the strongest first.

    A column that is the same in all rows, or whose values have too few rows each, says nothing and is left out.
    """
    said = [told for name, column in columns.items() if (told := associate(score, name, column)) is not None]
    return sorted(said, key=lambda told: -abs(told.size) / _NOTABLE[told.measure])


def associate(score: Values, name: str, column: Column) -> Association | None:
    """How a score goes with one column; None if that cannot be said."""
    keys = column_keys(column)
    used = np.isfinite(score) & (keys >= 0)
    distinct = len(np.unique(keys[used]))
    if distinct < 2 or len(np.unique(score[used])) < 2:
        return None
    if isinstance(column, np.ndarray):
        size = float(spearmanr(score[used], column[used]).statistic)
        return Association(name, "spearman", size, abs(size) >= _NOTABLE["spearman"], int(used.sum()))
    if distinct * _ROWS_A_GROUP > used.sum():
        return None
    size = eta_squared(rankdata(score[used]), keys[used])
    return Association(name, "eta_squared", size, size >= _NOTABLE["eta_squared"], int(used.sum()))


def eta_squared(values: Values, groups: NDArray[np.int64]) -> float:
    """Share of the variance that lies between groups: the effect size of Kruskal and Wallis's test on ranks."""
    counts = np.bincount(groups)
    held = counts > 0
    means = np.bincount(groups, values)[held] / counts[held]
    return float(counts[held] @ (means - values.mean()) ** 2 / ((values - values.mean()) ** 2).sum())


def corrected(score: Values, columns: Sequence[Column]) -> Values:
    """A score without the part that some columns explain.

    Of each row, the median of its bin is taken off and the median of all rows put back. The bins of a number hold about
    as many rows each, and rows of one value share one; those of other values are the values. So the order within a bin
    stays, and medians of bins become alike. Several columns are taken in turn, again and again until that settles.
    A row without score or without value stays as it is.
    """
    bins = [_bins(column) if isinstance(column, np.ndarray) else column_keys(column) for column in columns]
    used = np.isfinite(score) & np.all([places >= 0 for places in bins], axis=0)
    left = score.copy()
    if not used.any():
        return left
    middle = float(np.median(score[used]))
    for _ in range(_ROUNDS if len(bins) > 1 else 1):
        for places in bins:
            left[used] -= _medians(left[used], places[used]) - middle
    return left


def column_keys(column: Column) -> NDArray[np.int64]:
    """A number for each distinct value; -1 where there is none."""
    if isinstance(column, np.ndarray):
        return np.where(np.isfinite(column), np.unique(column, return_inverse=True)[1], -1)
    numbers: dict[object, int] = {}
    return np.array([-1 if value is None else numbers.setdefault(value, len(numbers)) for value in column], np.int64)


def _bins(column: Values) -> NDArray[np.int64]:
    known = np.isfinite(column)
    count = int(np.clip(known.sum() // _ROWS_A_BIN, 1, _MOST_BINS))
    if not known.any():
        return np.full(len(column), -1)
    edges = np.unique(np.quantile(column[known], np.linspace(0, 1, count + 1)[1:-1]))
    return np.where(known, np.searchsorted(edges, column, side="right"), -1)


def _medians(values: Values, bins: NDArray[np.int64]) -> Values:
    """The median of each row's bin."""
    medians = np.zeros(len(values))
    for place in np.unique(bins):
        medians[bins == place] = np.median(values[bins == place])
    return medians
