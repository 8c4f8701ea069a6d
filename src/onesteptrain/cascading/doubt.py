"""How sure is it, from the first-order utility of a row, on which side of the cut its exact utility lies?

On rows drawn at random both are known. From them a line is fitted from the first-order columns to the exact utility,
and one to the size of what it misses; what is missed, in units of that size, follows Student's t, whose tails are those
of the drawn rows. So each row has a chance to lie on the other side of the cut, and the chances of all rows that were
not measured add up to twice the places in the top share that are expected to be wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import bisect
from scipy.stats import t as student

Values = NDArray[np.float64]
Features = NDArray[np.float64]

FEWEST = 30
"""Rows that the lines can be fitted to."""

_RIDGE = 1.0
"""Penalty on standardised slopes, in rows."""

_FOLDS = 10

_ROWS_A_COLUMN = 6
"""Drawn rows that there must be for each column, before squares are added."""


class Doubt(NamedTuple):
    """Exact utility as it is expected from the first-order columns, and how far off that may be."""

    expected: Values
    size: Values
    """Scale of the error of each row."""

    tails: Values
    """Degrees of freedom of Student's t for each row; few mean heavy tails."""

    def where(self, rows: NDArray[np.bool_], other: Doubt) -> Doubt:
        """This doubt, and another one of some rows."""
        return Doubt(*(np.where(rows, theirs, mine) for mine, theirs in zip(self, other, strict=True)))

    def cut(self, exact: Values, rows: NDArray[np.int64], top: int) -> float:
        """The value that as many rows are expected to exceed as the top share holds.

        Not the value that so many expectations exceed: they spread less than what they are the expectations of.

        Args:
            exact: Exact utility of all rows; NaN where it is not known.
            rows: Those that take part.
            top: How many are to exceed it.
        """
        known = exact[rows][np.isfinite(exact[rows])]
        others = rows[~np.isfinite(exact[rows])]
        expected, size, tails = self.expected[others], self.size[others], self.tails[others]

        def too_many(cut: float) -> float:
            return float((known > cut).sum() + student.sf((cut - expected) / size, tails).sum()) - top

        values = np.concatenate([known, expected])
        reach = 10 * float(size.max(initial=0.0)) + float(np.ptp(values)) + np.finfo(float).tiny
        return float(bisect(too_many, values.min() - reach, values.max() + reach, xtol=1e-6 * reach))

    def crossing(self, cut: float) -> Values:
        """Chance of each row that its exact utility lies on the other side of the cut."""
        chance: Values = student.sf(np.abs(self.expected - cut) / self.size, self.tails)
        return chance


def learn_doubt(features: Features, first_order: Values, drawn: NDArray[np.int64], exact: Values) -> Doubt:
    """Learn from drawn rows how far the exact utility of every row may be from its first-order columns.

    Args:
        features: First-order columns of all rows, "row column".
        first_order: First-order utility of all rows.
        drawn: Positions of rows whose exact utility is known, chosen without looking at it; at least 30.
        exact: Their exact utilities.

    Returns:
        Expectation and doubt for all rows.
    """
    columns = _standardised(features, drawn)
    missed = exact - first_order[drawn]
    expected = first_order + _line(columns[drawn], missed, columns)
    errors = missed - _held_out(columns[drawn], missed)
    worst = float(np.abs(errors).max())
    if worst <= np.finfo(float).eps * float(np.abs(exact).max()):  # nothing is missed
        return Doubt(expected, np.full(len(first_order), np.finfo(float).tiny), np.ones(len(first_order)))
    tiny = 1e-6 * worst
    logs = np.log(np.abs(errors) + tiny)
    tails, _, scale = student.fit(errors / np.exp(_held_out(columns[drawn], logs)), floc=0.0)
    size = np.maximum(scale * np.exp(_line(columns[drawn], logs, columns)), tiny)
    return Doubt(expected, size, np.full(len(first_order), float(tails)))


def _held_out(known: Features, values: Values) -> Values:
    """Each value as the others make one expect it: rows that a line was fitted to flatter it."""
    folds = np.arange(len(known)) % _FOLDS  # every tenth row: neighbours are often alike
    told = np.empty(len(known))
    for fold in range(_FOLDS):
        told[folds == fold] = _line(known[folds != fold], values[folds != fold], known[folds == fold])
    return told


def _standardised(features: Features, drawn: NDArray[np.int64]) -> Features:
    """Columns and their log sizes, in standard deviations of the drawn rows; extremes are cut off at ten.

    Where there are rows enough, the squares of the log sizes too: errors grow faster with the loss than by a power.
    """
    sizes = np.log(np.abs(features) + 1e-3 * np.nanmedian(np.abs(features), axis=0) + np.finfo(float).tiny)
    columns = np.concatenate([features, sizes], axis=1)
    spread = columns[drawn].std(axis=0)
    scaled = (columns - columns[drawn].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    limited: Features = np.clip(scaled, -10, 10)
    squares = np.minimum(limited[:, features.shape[1] :] ** 2, 10)
    enough = len(drawn) >= _ROWS_A_COLUMN * (limited.shape[1] + squares.shape[1])
    return np.hstack([limited, squares]) if enough else limited


def _line(known: Features, values: Values, at: Features) -> Values:
    """Ridge regression with an intercept."""
    middle, centre = values.mean(), known.mean(axis=0)
    inside = known - centre
    slopes = np.linalg.solve(inside.T @ inside + _RIDGE * np.eye(known.shape[1]), inside.T @ (values - middle))
    line: Values = middle + (at - centre) @ slopes
    return line
