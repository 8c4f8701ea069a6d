"""How far a row stands out from the anchors: signals together, each with the weight that it has earned.

What is wrong with a corrupted anchor is known, so anchors and their corrupted copies tell which signals separate the
two on these data, for this proxy. A logistic regression learns the weights:

    nonconformity(row) = sum over signals of w (log(|signal| + floor) - middle) / scale,   w >= 0

in standard deviations of the anchors, from their median. The middle is that of the row's kind (`kinds`), as what is
usual of short answers is not of long ones: the median of the anchors of the kind, pulled towards that of all of them by
as much as they are few. The classes, and the kinds of corruption within theirs, count alike. Weights are shrunk towards
equal ones, by as much as anchors are few; without corrupted anchors they are equal.

Source of the pull: Efron and Morris, Data analysis using Stein's estimator and its generalizations (1975).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from onesteptrain.data.corruption import STYLE

Values = NDArray[np.float64]
Codes = NDArray[np.int64]
"""The kind of each row, by its number."""

_FLOOR = 1e-2
"""Of the median size of a signal where it is not zero: what is added before the logarithm, so that a signal that is
zero for most rows, as harm is for short answers, is a number among others."""

_SAME = 1e-12
"""Relative differences that are round-off."""

_RIDGE = 1e-4
"""Keeps weights finite where corrupted anchors are told apart without fail."""

_MEDIAN_VARIANCE = np.pi / 2
"""Of the median of a normal sample, in variances of its mean."""


class Examples(NamedTuple):
    """Signals of anchors, right and corrupted."""

    signals: tuple[str, ...]
    anchors: Values
    """Finite ones, "anchor signal"."""

    anchor_codes: Codes
    """Their kinds, as rows have them."""

    corrupted: Values
    corrupted_codes: Codes
    errors: NDArray[np.str_]
    """What is wrong with each corrupted anchor."""

    def without_style(self) -> Examples:
        """Without copies that differ in their style alone, which is no error."""
        wrong = self.errors != STYLE
        return self._replace(
            corrupted=self.corrupted[wrong], corrupted_codes=self.corrupted_codes[wrong], errors=self.errors[wrong]
        )


class Separation(NamedTuple):
    """How signals are put together."""

    signals: tuple[str, ...]
    floor: Values
    middle: Values
    """What is usual, "kind signal"."""

    scale: Values
    weights: Values
    """How much each signal counts; they add up to 1."""

    unit: float
    """Standard deviation of the anchors' weighted sum."""

    def nonconformity(self, rows: Values, codes: Codes | None = None) -> Values:
        """How far rows stand out, in standard deviations of the anchors.

        Args:
            rows: Signals, "row signal"; harm is negative, losses are positive, and only their size counts.
            codes: Kinds of the rows; not needed where there is one.
        """
        middle = self.middle[0 if codes is None else codes]
        standard = (np.log(np.abs(rows) + self.floor) - middle) / self.scale
        distance: Values = standard @ self.weights / self.unit
        return distance


def separate(examples: Examples, kinds: int = 1) -> Separation:
    """Learn to tell corrupted anchors from anchors, by their errors: a mere change of style is none.

    Args:
        examples: Anchors and their corrupted copies, of which there may be none.
        kinds: Of how many kinds rows are.
    """
    signals, anchors, anchor_codes, corrupted, corrupted_codes, errors = examples.without_style()
    known = np.abs(np.concatenate([anchors, corrupted]))
    floor = _FLOOR * np.array([np.median(sizes[sizes > 0]) if (sizes > 0).any() else 1.0 for sizes in known.T])
    logs = np.log(known + floor)
    middle = usual_levels(logs[: len(anchors)], anchor_codes, kinds)
    centred = logs - middle[np.concatenate([anchor_codes, corrupted_codes])]
    scale = _spread(centred)
    weights = np.ones(len(signals))
    if len(corrupted):
        weights = _regress(centred / scale, _balanced(len(anchors), errors), len(anchors))
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(signals), 1 / len(signals))
    unit = float(_spread((centred[: len(anchors)] / scale) @ weights))
    return Separation(signals, floor, middle, scale, weights, unit)


def usual_levels(values: Values, codes: Codes, kinds: int) -> Values:
    """What is usual of each kind: its median, pulled towards that of all kinds by as much as it is uncertain.

    Kinds differ by a variance that is estimated from their medians. Of a kind without values that of all is returned.

    Args:
        values: "anchor signal".
        codes: Kinds of the anchors.
        kinds: How many there are.

    Returns:
        "kind signal".
    """
    overall = np.median(values, axis=0)
    counts = np.bincount(codes, minlength=kinds)
    there = np.flatnonzero(counts)
    medians = np.tile(overall, (kinds, 1))
    medians[there] = [np.median(values[codes == kind], axis=0) for kind in there]
    within = ((values - medians[codes]) ** 2).sum(axis=0) / max(1, len(values) - len(there))
    error = _MEDIAN_VARIANCE * within / np.maximum(counts, 1)[:, None]
    between = np.maximum(0.0, ((medians - overall) ** 2 - error)[there].mean(axis=0))
    total = between + error
    pull = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    levels: Values = overall + pull * (medians - overall)
    return levels


def _spread(values: Values) -> Values:
    """Standard deviation of each column; 1 of what is the same for all, so that it is no switch for the others."""
    deviation = values.std(axis=0)
    return np.where(deviation > _SAME, deviation, 1.0)


def equal_weights(signals: tuple[str, ...], anchors: Values) -> Separation:
    """All signals count alike, where nothing is known of what harm looks like."""
    none = np.zeros(0, np.int64)
    codes = np.zeros(len(anchors), np.int64)
    return separate(Examples(signals, anchors, codes, np.empty((0, len(signals))), none, np.empty(0, np.str_)))


def distinctness(separation: Separation, examples: Examples) -> float:
    """Area under the ROC curve of corrupted anchors against anchors, in the mean over the kinds; 0.5 is chance."""
    usual = separation.nonconformity(examples.anchors, examples.anchor_codes)
    wrong = separation.nonconformity(examples.corrupted, examples.corrupted_codes)
    return float(np.mean([_auroc(usual, wrong[examples.errors == error]) for error in np.unique(examples.errors)]))


def _auroc(usual: Values, wrong: Values) -> float:
    ranks = rankdata(np.concatenate([usual, wrong]))[len(usual) :]
    return float((ranks.mean() - (len(wrong) + 1) / 2) / len(usual))


def _balanced(anchors: int, errors: NDArray[np.str_]) -> Values:
    """Weights of all examples, anchors first: both classes, and all kinds of corruption, count alike."""
    _, codes, counts = np.unique(errors, return_inverse=True, return_counts=True)
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
