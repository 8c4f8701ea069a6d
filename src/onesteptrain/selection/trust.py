"""The trust gate: which rows look like the anchors, and which do not, without knowing how much noise there is.

A score is a good reason to drop a row and a poor reason to prefer one. The gate drops by three signals of the scoring
passes: harm, mean loss and the loss of the worst answer token; the losses are those of the second pass, if there was
one. What clean rows look like is told by the anchors, each measured as if it were none (RUN/reference.parquet):

1. Each signal is put on a log scale and measured in the anchors' standard deviations from their median. A row's
   nonconformity is that of its signals together, log(mean(exp(z))): about that of its worst signal, since a row that is
   wrong in one way need not be in another.
2. The p-value of a row is the share of anchors with at least its nonconformity. Those of clean rows are uniform,
   whatever the signals' distribution (conformal prediction), so the rows with large p-values tell how many are clean:
   with a share c of clean rows, (1 - t) c of the pool has a p-value above t (Storey's estimator).
3. The probability that a row is clean is c f(s) / g(s), with the densities f of the anchors and g of the pool at its
   nonconformity s, made to fall with it. Rows with a probability of at least one half pass.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, chapter 2 (conformal p-values); Storey, A
direct approach to false discovery rates (2002); Efron, Large-Scale Inference, chapter 5 (local false discovery rate).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import logsumexp
from scipy.stats import gaussian_kde

from onesteptrain.errors import ScoreError
from onesteptrain.storage.score_table import ScoreTable

SIGNALS = ("harm", "loss", "worst_loss")

SECOND_SIGNALS = ("harm", "second_loss", "second_worst_loss")
"""In their place where a second pass has measured the pool again."""

PASSING_PROBABILITY = 0.5

FEWEST_ANCHORS = 20
"""With fewer, what clean rows look like is not known."""

_FLOOR = 1e-3
"""Of the anchors' median: what a signal of exactly zero counts as on the log scale."""

_AT_ONCE = 65_536
"""Rows whose signals are put together at once, so that steps between take no memory that grows with the pool."""

_LEVELS = np.arange(0.30, 0.80, 0.05)
_GRID = 512
_MOST_FOR_DENSITY = 20_000
"""Rows that the pool's density is estimated from; more make it no better."""

Values = NDArray[np.float64]


class Trust(NamedTuple):
    """What the anchors say of each row of a score table; NaN where a row has no score."""

    nonconformity: Values
    """Standard deviations of the anchors, beyond their median."""

    p_value: Values
    """Share of the anchors that are with at least this nonconformity."""

    probability: Values
    """That the row is as good as an anchor."""

    clean_share: float
    """Of the scored rows."""

    anchors: int

    def passing(self) -> NDArray[np.bool_]:
        """The rows that pass the gate."""
        return np.nan_to_num(self.probability, nan=-1.0) >= PASSING_PROBABILITY


def can_trust(table: ScoreTable) -> bool:
    """Whether a table has what the gate needs: the signals, for rows and for enough anchors."""
    reference = table.reference
    return reference is not None and reference.rows >= FEWEST_ANCHORS and _has_signals(table, reference)


def measure_trust(table: ScoreTable) -> Trust:
    """Compare the rows of a score table with its anchors.

    Raises:
        ScoreError: the signals or the reference are missing, or there are fewer than 20 anchors.
    """
    reference = table.reference
    if reference is None or not _has_signals(table, reference):
        raise ScoreError(
            f"{table.path} has not all of {', '.join(SIGNALS)}, for rows and for anchors (reference.parquet); "
            "score again with method one_step and estimator fd or jvp, or select with gate none"
        )
    signals = signals_of(table)
    rows, anchors = (np.stack([part.numbers(name) for name in signals], axis=1) for part in (table, reference))
    anchors = anchors[np.isfinite(anchors).all(1)]
    if len(anchors) < FEWEST_ANCHORS:
        raise ScoreError(
            f"the trust gate of {table.path} rests on {len(anchors)} anchors and needs {FEWEST_ANCHORS}; "
            "score with more, or select with gate none"
        )
    scored = np.isfinite(rows).all(1)
    if not scored.any():
        raise ScoreError(f"{table.path} has no row with all of {', '.join(SIGNALS)}; nothing can be selected")
    ours, theirs = nonconformity(rows[scored], anchors)
    p_value = p_values(ours, theirs)
    share = clean_share(p_value)
    probability = np.clip(share * density_ratio(ours, theirs), 0.0, 1.0)
    return Trust(_spread(ours, scored), _spread(p_value, scored), _spread(probability, scored), share, len(anchors))


def signals_of(table: ScoreTable) -> tuple[str, ...]:
    """The signals that the gate goes by."""
    return SECOND_SIGNALS if set(SECOND_SIGNALS) <= set(table.names) else SIGNALS


def _has_signals(table: ScoreTable, reference: ScoreTable) -> bool:
    return all(name in table.names and name in reference.names for name in signals_of(table))


def nonconformity(rows: Values, anchors: Values) -> tuple[Values, Values]:
    """How far rows and anchors stand out from the anchors, by their signals together.

    Args:
        rows: Signals of the rows, "row signal"; harm is negative, losses are positive, and only their size counts.
        anchors: Signals of the anchors.
    """
    floor = _FLOOR * np.maximum(np.median(np.abs(anchors), axis=0), np.finfo(float).tiny)
    theirs = np.log(np.maximum(np.abs(anchors), floor))
    middle = np.median(theirs, axis=0)
    spread = np.maximum(theirs.std(axis=0), 1e-9)  # anchors that are all alike

    def together(signals: Values) -> Values:
        z = (np.log(np.maximum(np.abs(signals), floor)) - middle) / spread
        result: Values = logsumexp(z, axis=1) - np.log(z.shape[1])
        return result

    ours = np.empty(len(rows))
    for start in range(0, len(rows), _AT_ONCE):
        ours[start : start + _AT_ONCE] = together(rows[start : start + _AT_ONCE])
    return ours, together(anchors)


def p_values(rows: Values, anchors: Values) -> Values:
    """Share of the anchors with at least the nonconformity of each row, the row counted in: conformal p-values."""
    ordered = np.sort(anchors)
    return (1 + len(ordered) - np.searchsorted(ordered, rows, side="left")) / (1 + len(ordered))


def clean_share(p_value: Values) -> float:
    """Share of rows whose p-values are uniform, by Storey's estimator: the median over several cuts."""
    ordered = np.sort(p_value)
    above = 1 - np.searchsorted(ordered, _LEVELS, side="right") / len(ordered)
    return float(min(1.0, np.median(above / (1 - _LEVELS))))


def density_ratio(rows: Values, anchors: Values) -> Values:
    """Density of the anchors over that of the rows, at each row's nonconformity; it falls with it.

    Both densities are smoothed with the same Gaussian kernel, wide enough for the anchors (Scott's rule), so that the
    ratio of a set to itself is one.
    """
    step = max(1, len(rows) // _MOST_FOR_DENSITY)
    some = np.sort(rows)[step // 2 :: step]
    width = max(anchors.std(ddof=1) * len(anchors) ** -0.2, 1e-9)
    grid = np.linspace(min(anchors.min(), some[0]), max(anchors.max(), some[-1]), _GRID)
    theirs, ours = (_density(values, width, grid) for values in (anchors, some))
    ours = np.maximum(ours, np.finfo(float).tiny)
    falling = isotonic_regression(theirs / ours, weights=ours, increasing=False).x
    ratio: Values = np.interp(rows, grid, falling)
    return ratio


def _spread(values: Values, scored: NDArray[np.bool_]) -> Values:
    """Values of the scored rows in the places of all rows."""
    whole = np.full(len(scored), np.nan)
    whole[scored] = values
    return whole


def _density(values: Values, width: float, grid: Values) -> Values:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    if not spread:  # one value, or all the same
        density: Values = np.exp(-0.5 * ((grid - values[0]) / width) ** 2) / width
        return density
    density = gaussian_kde(values, bw_method=width / spread)(grid)
    return density
