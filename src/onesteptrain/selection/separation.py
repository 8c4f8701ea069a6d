"""How far a row stands out from the anchors: signals together, each with the weight that it has earned.

What is wrong with a corrupted anchor is known, so anchors and their corrupted copies tell which signals separate the
two on these data, for this proxy. A logistic regression learns the weights:

    nonconformity(row) = sum over signals of w (log(|signal| + floor) - middle) / scale,   w >= 0

in standard deviations of the anchors, from their median. The classes, and the kinds of corruption within theirs, count
alike. Weights are shrunk towards equal ones, by as much as anchors are few; without corrupted anchors they are equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

Values = NDArray[np.float64]

_FLOOR = 1e-2
"""Of the median size of a signal where it is not zero: what is added before the logarithm, so that a signal that is
zero for most rows, as harm is for short answers, is a number among others."""

_SAME = 1e-12
"""Relative differences that are round-off."""

_RIDGE = 1e-4
"""Keeps weights finite where corrupted anchors are told apart without fail."""


class Separation(NamedTuple):
    """How signals are put together."""

    signals: tuple[str, ...]
    floor: Values
    middle: Values
    scale: Values
    weights: Values
    """How much each signal counts; they add up to 1."""

    unit: float
    """Standard deviation of the anchors' weighted sum."""

    def nonconformity(self, rows: Values) -> Values:
        """How far rows stand out, in standard deviations of the anchors.

        Args:
            rows: Signals, "row signal"; harm is negative, losses are positive, and only their size counts.
        """
        standard = (np.log(np.abs(rows) + self.floor) - self.middle) / self.scale
        distance: Values = standard @ self.weights / self.unit
        return distance


def separate(signals: tuple[str, ...], anchors: Values, corrupted: Values, kinds: NDArray[np.str_]) -> Separation:
    """Learn to tell corrupted anchors from anchors.

    Args:
        signals: What the columns are.
        anchors: Signals of the anchors, "anchor signal", all finite.
        corrupted: Those of corrupted anchors; may be empty.
        kinds: Kind of each corruption.
    """
    known = np.abs(np.concatenate([anchors, corrupted]))
    floor = _FLOOR * np.array([np.median(sizes[sizes > 0]) if (sizes > 0).any() else 1.0 for sizes in known.T])
    logs = np.log(known + floor)
    theirs = logs[: len(anchors)]
    middle = np.median(theirs, axis=0)
    scale = _spread(logs)
    weights = np.ones(len(signals))
    if len(corrupted):
        weights = _regress((logs - middle) / scale, _balanced(len(anchors), kinds), len(anchors))
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(signals), 1 / len(signals))
    unit = float(_spread(((theirs - middle) / scale) @ weights))
    return Separation(signals, floor, middle, scale, weights, unit)


def _spread(values: Values) -> Values:
    """Standard deviation of each column; 1 of what is the same for all, so that it is no switch for the others."""
    deviation = values.std(axis=0)
    return np.where(deviation > _SAME, deviation, 1.0)


def equal_weights(signals: tuple[str, ...], anchors: Values) -> Separation:
    """All signals count alike, where nothing is known of what harm looks like."""
    return separate(signals, anchors, np.empty((0, len(signals))), np.empty(0, np.str_))


def distinctness(separation: Separation, anchors: Values, corrupted: Values, kinds: NDArray[np.str_]) -> float:
    """Area under the ROC curve of corrupted anchors against anchors, in the mean over the kinds; 0.5 is chance."""
    usual, wrong = separation.nonconformity(anchors), separation.nonconformity(corrupted)
    return float(np.mean([_auroc(usual, wrong[kinds == kind]) for kind in np.unique(kinds)]))


def _auroc(usual: Values, wrong: Values) -> float:
    ranks = rankdata(np.concatenate([usual, wrong]))[len(usual) :]
    return float((ranks.mean() - (len(wrong) + 1) / 2) / len(usual))


def _balanced(anchors: int, kinds: NDArray[np.str_]) -> Values:
    """Weights of all examples, anchors first: both classes, and all kinds of corruption, count alike."""
    _, codes, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    shares = 1 / (counts[codes] * len(counts))
    return np.concatenate([np.full(anchors, 0.5 / anchors), 0.5 * shares])


def _regress(standard: Values, shares: Values, anchors: int) -> Values:
    """Weights of a logistic regression, none negative, shrunk towards their mean by one over the anchors."""
    wrong = np.arange(len(standard)) >= anchors

    def loss(unknown: Values) -> tuple[float, Values]:
        weights, bias = unknown[:-1], unknown[-1]
        logits = standard @ weights - bias
        apart = weights - weights.mean()
        pull = shares * (expit(logits) - wrong)
        value = shares @ (np.logaddexp(0, logits) - wrong * logits) + apart @ apart / anchors
        slope = standard.T @ pull + 2 * apart / anchors + 2 * _RIDGE * weights
        return float(value + _RIDGE * weights @ weights), np.append(slope, -pull.sum())

    signals = standard.shape[1]
    bounds = [(0.0, None)] * signals + [(None, None)]
    weights: Values = minimize(loss, np.ones(signals + 1), jac=True, bounds=bounds).x[:-1]
    return weights
