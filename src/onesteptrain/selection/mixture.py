"""How much of a pool is clean: a mixture of rows like anchors and rows like corrupted anchors.

The density g of the pool's nonconformity is taken for

    g(s) = c f(s) + (1 - c) h(s)

with the density f of the anchors and h of their corrupted copies, all kinds of error alike. The share c of clean rows
is the one of largest likelihood, for each kind of rows its own (`kinds`). Harm that looks like anchors is in h, so that
it is counted in though no row of it can be named.

Sources: McLachlan and Peel, Finite Mixture Models, chapter 2 (mixtures of known densities); Efron and Tibshirani, An
Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import isotonic_regression

from onesteptrain.data.corruption import STYLE
from onesteptrain.selection.power import FALSE_ALARMS, Errors, Interval, Values
from onesteptrain.selection.separation import Codes

_LEVELS = np.arange(0.30, 0.80, 0.05)

_NOTICED = 0.5
"""Power, at 5 % false alarms, from which on a kind of corruption counts as one that is noticed."""

_SHARED_ROWS = 20
"""Rows of the whole pool that are counted to each kind."""

_RESAMPLES = 200

_GRID = 1024

_HALVINGS = 30

_ELSEWHERE = 1e-3
"""Mass of a density that is spread over the whole grid, for what no example has shown."""


class Counted(NamedTuple):
    """Nonconformity of the pool, of anchors and of corrupted anchors, counted on a grid."""

    grid: Values
    width: float
    """Of the kernel that smooths all of them, in steps of the grid: Scott's rule for the anchors."""

    rows: Values
    """A line a kind of rows, which differ in how many are clean."""

    anchors: Values
    errors: Values
    """A line a kind of error."""

    noticed: NDArray[np.bool_]
    """Which kinds of error are noticed."""

    def probability(self, rows: Values, codes: Codes) -> Values:
        """Probability that rows of some nonconformity and kind are clean; it falls with the former."""
        probability = np.empty(len(rows))
        for kind, falling in enumerate(self._falling()):
            mine = codes == kind
            probability[mine] = np.interp(rows[mine], self.grid, falling)
        return probability

    def cuts(self, probability: float) -> Values:
        """Nonconformity of each kind from which on rows are less probably clean than that; infinite where none are."""
        return np.array([self._crossing(falling, probability) for falling in self._falling()])

    def clean_shares(self, *, noticed: bool = False) -> Values:
        """The share of clean rows of each kind, if harm is of all kinds of error alike, or of those that are noticed.

        To the rows of a kind are counted 20 of the whole pool, so that few rows alone do not make a share.
        """
        pool = self.rows.sum(axis=0)
        rows = self.rows if len(self.rows) == 1 else self.rows + _SHARED_ROWS * pool / pool.sum()
        harm = self._harm(self.errors[self.noticed] if noticed else self.errors)
        return _likeliest(self._smooth(rows), self._smooth(self.anchors), harm)

    def drawn_again(self, chance: np.random.Generator) -> Counted:
        """Other rows, anchors, kinds of error and copies of them: a draw of the bootstrap."""
        places = chance.integers(0, len(self.errors), len(self.errors))
        noticed = self.noticed[places]
        return self._replace(
            rows=_again(self.rows, chance),
            anchors=_again(self.anchors, chance),
            errors=_again(self.errors[places], chance),
            noticed=noticed if noticed.any() else np.ones_like(noticed),
        )

    def clean_rows(self, shares: Values, cuts: Values) -> tuple[float, float]:
        """Share of the pool that is clean, and of what passes.

        Args:
            shares: Of the rows of each kind that are clean.
            cuts: Nonconformity of each kind from which on rows are dropped.
        """
        sizes = self.rows.sum(axis=1)
        below = self.grid <= cuts[:, None]
        passing = (self.rows * below).sum(axis=1)
        clean = np.minimum(sizes * shares * (self.anchors * below).sum(axis=1) / self.anchors.sum(), passing)
        return float(sizes @ shares / sizes.sum()), float(clean.sum() / passing.sum()) if passing.any() else 1.0

    def _falling(self) -> Iterator[Values]:
        """Probability to be clean over the grid, kind by kind.

        Harm that is missed looks clean at every cut and must move none: rows are judged by the kinds that are noticed.
        """
        clean, harm = self._smooth(self.anchors), self._harm(self.errors[self.noticed])
        for share in self.clean_shares(noticed=True).tolist():
            both = share * clean + (1 - share) * harm
            yield isotonic_regression(share * clean / both, weights=both, increasing=False).x

    def _crossing(self, falling: Values, probability: float) -> float:
        if falling[-1] >= probability:
            return math.inf
        return float(np.interp(-probability, -falling, self.grid)) if falling[0] >= probability else -math.inf

    def _harm(self, errors: Values) -> Values:
        return self._smooth((errors / errors.sum(axis=1, keepdims=True)).mean(axis=0))

    def _smooth(self, counts: Values) -> Values:
        density: Values = gaussian_filter1d(counts / counts.sum(axis=-1, keepdims=True), self.width, mode="constant")
        density *= (1 - _ELSEWHERE) / density.sum(axis=-1, keepdims=True)
        density += _ELSEWHERE / density.shape[-1]
        return density


def kernel_width(anchors: Values) -> float:
    """Standard deviation of the Gaussian kernel that suits the density of the anchors: Scott's rule."""
    width: float = anchors.std(ddof=1) * len(anchors) ** -0.2
    return max(width, 1e-9)


def count(
    rows: Values, anchors: Values, corrupted: Values, errors: Errors, codes: Codes | None = None, kinds: int = 1
) -> Counted:
    """Put rows, anchors and corrupted anchors on one grid.

    Args:
        rows: Nonconformity of the rows.
        anchors: That of the anchors.
        corrupted: That of corrupted anchors.
        errors: What is wrong with each of these.
        codes: Kinds of the rows; by default all are of one.
        kinds: How many kinds there are.
    """
    of_errors = [corrupted[errors == error] for error in np.unique(errors[errors != STYLE])] or [corrupted]
    of_kinds = [rows] if codes is None else [rows[codes == kind] for kind in range(kinds)]
    width = kernel_width(anchors)
    values = np.concatenate([rows, anchors, corrupted])
    edges = np.linspace(values.min() - 4 * width, values.max() + 4 * width, _GRID + 1)
    usual = np.quantile(anchors, 1 - FALSE_ALARMS)
    noticed = np.array([(mine > usual).mean() >= _NOTICED for mine in of_errors])

    def counts(parts: Iterable[Values]) -> Values:
        return np.stack([np.histogram(part, edges)[0].astype(float) for part in parts])

    return Counted(
        (edges[1:] + edges[:-1]) / 2,
        width / (edges[1] - edges[0]),
        counts(of_kinds),
        counts([anchors])[0],
        counts(of_errors),
        noticed if noticed.any() else np.ones_like(noticed),
    )


def clean_intervals(counted: Counted, cuts: Values) -> tuple[Interval, Interval]:
    """Shares of clean rows in the pool and in what passes, with what chance could have made of them.

    Rows, anchors, kinds of corruption and copies within them are drawn again: the pool's errors need not be those that
    were tried. They may also all be of kinds that are noticed, which the upper ends take for granted.

    Args:
        counted: Rows, anchors and corrupted anchors.
        cuts: Nonconformity of each kind of rows from which on they are dropped.
    """
    chance = np.random.default_rng(0)
    ends = []
    for _ in range(_RESAMPLES):
        again = counted.drawn_again(chance)
        ends.append([again.clean_rows(again.clean_shares(noticed=noticed), cuts) for noticed in (False, True)])
    low, high = np.quantile(ends, 0.025, axis=0)[0], np.quantile(ends, 0.975, axis=0)[1]
    told = counted.clean_rows(counted.clean_shares(), cuts)
    pool, passing = (
        Interval(value, min(value, float(low[place])), max(value, float(high[place])))
        for place, value in enumerate(told)
    )
    return pool, passing


def clean_share(p_values: Values) -> float:
    """Share of the rows that are clean, by how many have large p-values: Storey's estimator, the median over cuts.

    It takes it that harm is always noticed, and serves where no corrupted anchors say otherwise.
    """
    ordered = np.sort(p_values)
    above = 1 - np.searchsorted(ordered, _LEVELS, side="right") / len(ordered)
    return float(min(1.0, np.median(above / (1 - _LEVELS))))


def _likeliest(rows: Values, clean: Values, harm: Values) -> Values:
    """The share of the first of two densities in each line of rows, by maximum likelihood.

    The likelihood is a concave function of it, so that its slope is halved down to where it changes its sign.
    """
    low, high = np.zeros(len(rows)), np.ones(len(rows))
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        slope = (rows * (clean - harm) / (share[:, None] * clean + (1 - share[:, None]) * harm)).sum(axis=1)
        low, high = np.where(slope > 0, share, low), np.where(slope > 0, high, share)
    return (low + high) / 2


def _again(counts: Values, chance: np.random.Generator) -> Values:
    totals = counts.sum(axis=-1)
    drawn: Values = chance.multinomial(totals.astype(int), counts / np.maximum(totals, 1)[..., None]).astype(float)
    return drawn
