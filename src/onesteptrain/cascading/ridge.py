"""Lines through vectors, and ridge regression with a penalty that is chosen by leaving out one row at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Vectors = NDArray[np.float64]

_PENALTIES = np.logspace(-7, 1, 17)
"""As shares of the largest squared singular value."""


class Line(NamedTuple):
    """A line through vectors."""

    slopes: Values
    middle: float
    """Value of a vector at the centre of those that were fitted to."""

    centre: Values

    def __call__(self, vectors: Vectors) -> Values:
        """What each vector makes one expect."""
        expected: Values = self.middle + (vectors - self.centre) @ self.slopes
        return expected


def fit_ridge(vectors: Vectors, values: Values) -> tuple[Line, Values]:
    """Fit a line with intercept; of several penalties, the one whose left-out rows are told best.

    With the hat matrix h of a penalty, the error of a row that is left out is (y - h y) / (1 - h_ii), without another
    fit.

    Args:
        vectors: One a row, "row dimension"; coordinates are taken as they are, since their sizes mean something.
        values: What is to be told; at least two.

    Returns:
        The line, and each value that it was fitted to, as all others make one expect it.

    Source: Allen's PRESS statistic; Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 7.10.
    """
    middle, centre = float(values.mean()), vectors.mean(axis=0)
    left, sizes, right = np.linalg.svd(vectors - centre, full_matrices=False)
    told, squares = left.T @ (values - middle), sizes**2
    best = np.inf
    for penalty in _PENALTIES * max(float(squares[0]), np.finfo(float).tiny):
        kept = squares / (squares + penalty)
        leverage = (left**2 * kept).sum(1) + 1 / len(values)  # the intercept is fitted too
        errors = (values - middle - left @ (kept * told)) / np.maximum(1 - leverage, 1e-9)
        if (found := float(np.square(errors).sum())) < best:
            best, slopes, held_out = found, right.T @ (sizes / (squares + penalty) * told), values - errors
    return Line(slopes, middle, centre), held_out
