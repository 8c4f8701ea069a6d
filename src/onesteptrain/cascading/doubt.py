"""How sure is it, from the first-order utility of a row, on which side of the cut its exact utility lies?

On rows drawn at random both are known. From them a line is fitted from the first-order columns to the exact utility,
in which rows count by how well their kind is told (weighted least squares), and one to the size of what it misses.
What is missed, in units of that size, follows Student's t, with tails of its own above and below: a long step does harm
that the first order does not see, and seldom good. So each row has a chance to lie on the other side of the cut, and
the chances of all rows that were not measured add up to twice the places in the top share that are expected to be
wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t as student

from onesteptrain.cascading.ridge import Line

Values = NDArray[np.float64]
Features = NDArray[np.float64]

FEWEST = 30
"""Rows that the lines can be fitted to."""

_FEWEST_OF_A_SIDE = 40
"""Errors of one sign that tails of its own can be fitted to; with fewer, both signs share them."""

_RIDGE = 1.0
"""Penalty on standardised slopes, in rows."""

_FOLDS = 10

_ROWS_AT_ONCE = 65_536

_FITS = 2
"""Of the line to what is missed: in the second, rows count by how small the errors of their kind were in the first."""

_MOST_APART = 3.0
"""Times the usual size of an error, up and down, beyond which it changes nothing of what a row counts. Weights by the
square, or up to ten times, make lines that fit better and doubts that are too small, in pools made to be hard."""

_MOST_WIDENED = 100
"""Times that the range is widened in which the cut is looked for; beyond that it has no end."""

_ROWS_A_COLUMN = 6
"""Drawn rows that there must be for each column, before squares are added."""


class Side(NamedTuple):
    """Errors of one sign: half of Student's t."""

    share: Values
    """How many of the errors of a row's kind have this sign."""

    size: Values
    """Scale of the error of each row."""

    tails: Values
    """Degrees of freedom; few mean heavy tails."""

    def beyond(self, distance: Values) -> Values:
        """Chance of each row that its error has this sign and is larger than so much, which is at least zero."""
        chance: Values = 2 * self.share * student.sf(distance / self.size, self.tails)
        return chance


class Doubt(NamedTuple):
    """Exact utility as it is expected from the first-order columns, and how far off that may be."""

    expected: Values
    up: Side
    """Of rows whose exact utility is above what is expected."""

    down: Side

    def of(self, rows: NDArray[np.int64]) -> Doubt:
        """The doubt of some rows."""
        return Doubt(self.expected[rows], *(Side(*(one[rows] for one in side)) for side in self[1:]))

    def where(self, rows: NDArray[np.bool_], other: Doubt) -> Doubt:
        """This doubt, and another one of some rows."""
        sides = [
            Side(*(np.where(rows, theirs, mine) for mine, theirs in zip(*both, strict=True)))
            for both in zip(self[1:], other[1:], strict=True)
        ]
        return Doubt(np.where(rows, other.expected, self.expected), *sides)

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
        part = self.of(others)

        def too_many(cut: float) -> float:
            return float((known > cut).sum() + part._above(cut).sum()) - top

        values = np.concatenate([known, part.expected])
        spread = float(np.ptp(values)) + np.finfo(float).tiny  # not the sizes: one row may have any
        low, high = values.min() - spread, values.max() + spread
        for _ in range(_MOST_WIDENED):
            if too_many(low) >= 0 >= too_many(high):
                return float(brentq(too_many, low, high, xtol=1e-9 * spread))
            low, high = low - (high - low), high + (high - low)
        return float(low if too_many(low) < 0 else high)

    def crossing(self, cut: float) -> Values:
        """Chance of each row that its exact utility lies on the other side of the cut."""
        above = self._above(cut)
        return np.where(self.expected > cut, 1 - above, above)

    def _above(self, cut: float) -> Values:
        """Chance of each row that its exact utility lies above the cut."""
        distance = cut - self.expected
        up, down = self.up.beyond(np.maximum(distance, 0)), self.down.beyond(np.maximum(-distance, 0))
        return np.where(distance >= 0, up, 1 - down)


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
    scale = _Scale.of(features, drawn)
    known, missed = scale(features[drawn]), exact - first_order[drawn]
    everywhere, alike = np.ones(len(first_order)), np.ones(len(drawn))
    counts = alike
    for _ in range(_FITS):
        line, errors = _fit(known, missed, counts), missed - _held_out(known, missed, counts)
        worst = float(np.abs(errors).max())
        tiny = 1e-6 * worst
        logs = np.log(np.abs(errors) + max(tiny, np.finfo(float).tiny))
        usual = np.exp(_held_out(known, logs, alike))
        counts = np.clip(usual / np.median(usual), 1 / _MOST_APART, _MOST_APART) ** -1
    expected = first_order + _at_all(line, scale, features)
    if worst <= np.finfo(float).eps * float(np.abs(exact).max()):  # nothing is missed
        none = Side(0.5 * everywhere, np.finfo(float).tiny * everywhere, everywhere)
        return Doubt(expected, none, none)
    sizes = np.exp(_at_all(_fit(known, logs, alike), scale, features))

    def side(share: float, tails: float, scale: float) -> Side:
        return Side(share * everywhere, np.maximum(scale * sizes, tiny), tails * everywhere)

    return Doubt(expected, *(side(*found) for found in _sides(errors / usual)))


def _sides(errors: Values) -> list[tuple[float, float, float]]:
    """Share, degrees of freedom and scale of the errors above zero, and of those below."""
    signs = [errors[errors > 0], -errors[errors <= 0]]
    shares = [len(one) / len(errors) for one in signs]
    if min(map(len, signs)) < _FEWEST_OF_A_SIDE:
        signs, shares = [np.abs(errors)] * 2, [0.5] * 2
    fits = [student.fit(np.concatenate([one, -one]), floc=0.0) for one in signs]  # a half that is mirrored is whole
    return [(share, tails, scale) for share, (tails, _, scale) in zip(shares, fits, strict=True)]


class _Scale(NamedTuple):
    """Puts columns and their log sizes in standard deviations of the drawn rows; extremes are cut off at ten.

    Where there are rows enough, the squares of the log sizes too: errors grow faster with the loss than by a power.
    """

    floor: Values
    """Added to the size of each column before its logarithm is taken."""

    middle: Values
    spread: Values
    squared: bool

    @classmethod
    def of(cls, features: Features, drawn: NDArray[np.int64]) -> _Scale:
        usual = [float(np.nanmedian(np.abs(column))) for column in features.T]  # one at a time: pools are long
        floor = 1e-3 * np.array(usual) + np.finfo(float).tiny
        columns = _with_log_sizes(features[drawn], floor)
        spread = columns.std(axis=0)
        enough = len(drawn) >= _ROWS_A_COLUMN * (columns.shape[1] + features.shape[1])
        return cls(floor, columns.mean(axis=0), np.where(spread > 0, spread, 1.0), enough)

    def __call__(self, features: Features) -> Features:
        scaled = (_with_log_sizes(features, self.floor) - self.middle) / self.spread
        limited: Features = np.clip(scaled, -10, 10)
        if not self.squared:
            return limited
        return np.hstack([limited, np.minimum(limited[:, features.shape[1] :] ** 2, 10)])


def _with_log_sizes(features: Features, floor: Values) -> Features:
    return np.concatenate([features, np.log(np.abs(features) + floor)], axis=1)


def _at_all(line: Line, scale: _Scale, features: Features) -> Values:
    """A line at all rows, some at a time."""
    starts = range(0, len(features), _ROWS_AT_ONCE)
    return np.concatenate([line(scale(features[start : start + _ROWS_AT_ONCE])) for start in starts])


def _held_out(known: Features, values: Values, counts: Values) -> Values:
    """Each value as the others make one expect it: rows that a line was fitted to flatter it."""
    folds = np.arange(len(known)) % _FOLDS  # every tenth row: neighbours are often alike
    told = np.empty(len(known))
    for fold in range(_FOLDS):
        rest = folds != fold
        told[~rest] = _fit(known[rest], values[rest], counts[rest])(known[~rest])
    return told


def _fit(known: Features, values: Values, counts: Values) -> Line:
    """Ridge regression with an intercept, in which some rows count more than others."""
    share = counts / counts.sum()
    middle, centre = float(share @ values), share @ known
    inside = known - centre
    weighted = len(known) * share * inside.T
    slopes = np.linalg.solve(weighted @ inside + _RIDGE * np.eye(known.shape[1]), weighted @ (values - middle))
    return Line(slopes, middle, centre)
