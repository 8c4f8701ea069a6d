"""What the trust gate would notice, and what it can therefore say: power, and the share of clean rows.

Corrupted anchors are scored like rows. The power for a kind of corruption is the share of its copies that the gate
drops. What is said of the pool rests on it: the density g of the pool's nonconformity is taken for a mixture

    g(s) = c f(s) + (1 - c) h(s)

of the density f of the anchors and h of their corrupted copies, all kinds of error alike, and the share c of clean rows
is the one of largest likelihood. Harm that looks like anchors is in h, so that it is counted in though no row of it
can be named. Where all of h looks like f nothing can be said of the pool, and nothing is.

Sources: McLachlan and Peel, Finite Mixture Models, chapter 2 (mixtures of known densities); Efron and Tibshirani, An
Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import brentq, isotonic_regression
from scipy.stats import binomtest

from onesteptrain.data.corruption import KINDS, STYLE

Values = NDArray[np.float64]
Kinds = NDArray[np.str_]

FALSE_ALARMS = 0.05

_LEVELS = np.arange(0.30, 0.80, 0.05)

_LEAST_POWER = 0.25
"""Least mean power at 5 % false alarms for anything to be said of the pool: five times what chance would notice."""

_NOTICED = 0.5
"""Power, at 5 % false alarms, from which on a kind of corruption counts as one that is noticed."""

_RESAMPLES = 200
_GRID = 1024
_ELSEWHERE = 1e-3
"""Mass of a density that is spread over the whole grid, for what no example has shown."""


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def facts(self) -> dict[str, float | None]:
        """Plain values, for JSON, which has no NaN."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}

    def reach(self) -> str:
        """The interval in words, for behind the number; nothing where it is not known."""
        return "" if math.isnan(self.low) else f" ({self.low:.0%} to {self.high:.0%})"


class KindPower(NamedTuple):
    """How well a kind of corruption is noticed."""

    kind: str
    copies: int
    at_cut: Interval
    """Share of the copies that the gate drops."""

    at_false_alarms: Interval
    """Share of the copies that a cut would drop that drops 5 % of the anchors."""


class Power(NamedTuple):
    """How well harm is noticed, by kind."""

    kinds: list[KindPower]
    at_cut: float
    """Mean over the kinds of error."""

    at_false_alarms: float

    @property
    def blind(self) -> bool:
        """Whether too little is noticed for anything to be said of a pool."""
        return self.at_false_alarms < _LEAST_POWER

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kinds = [
            {"kind": kind.kind, "copies": kind.copies}
            | {name: getattr(kind, name).facts() for name in ("at_cut", "at_false_alarms")}
            for kind in self.kinds
        ]
        return {**self._asdict(), "kinds": kinds}

    def describe(self) -> str:
        """In one line: what is noticed, and what is not."""
        unseen = [kind.kind for kind in self.kinds if kind.at_cut.value < 0.5 and kind.kind != STYLE]
        line = f"of corrupted anchors the gate would drop {self.at_cut:.0%}"
        return line + (f"; mostly missed: {', '.join(unseen)}" if unseen else "")


def measure_power(anchors: Values, corrupted: Values, kinds: Kinds, cut: float) -> Power:
    """Power by kind of corruption.

    Args:
        anchors: Nonconformity of the anchors.
        corrupted: That of corrupted anchors.
        kinds: Kind of each.
        cut: Nonconformity from which on rows are dropped.
    """
    usual = float(np.quantile(anchors, 1 - FALSE_ALARMS))
    there = [kind for kind in KINDS if (kinds == kind).any()]
    measured = []
    for kind in there:
        mine = corrupted[kinds == kind]
        shares = (_share(int((mine > limit).sum()), len(mine)) for limit in (cut, usual))
        measured.append(KindPower(kind, len(mine), *shares))
    errors = [kind for kind in measured if kind.kind != STYLE] or measured
    return Power(
        measured, *(float(np.mean([getattr(kind, name).value for kind in errors])) for name in KindPower._fields[2:])
    )


class Counted(NamedTuple):
    """Nonconformity of the pool, of anchors and of corrupted anchors, counted on a grid."""

    grid: Values
    width: float
    """Of the kernel that smooths all of them, in steps of the grid: Scott's rule for the anchors."""

    rows: Values
    anchors: Values
    kinds: Values
    """A line a kind of error."""

    noticed: NDArray[np.bool_]
    """Which of the kinds are noticed."""

    def probability(self, rows: Values) -> Values:
        """Probability that rows of some nonconformity are clean; it falls with it.

        Harm that is missed looks clean at every cut and must move none: a row is judged by the kinds that are noticed.
        """
        clean, harm = self._smooth(self.anchors), self._harm(self.kinds[self.noticed])
        share = self.clean_share(noticed=True)
        both = share * clean + (1 - share) * harm
        falling = isotonic_regression(share * clean / both, weights=both, increasing=False).x
        probability: Values = np.interp(rows, self.grid, falling)
        return probability

    def clean_share(self, *, noticed: bool = False) -> float:
        """The share of clean rows, if harm is of all kinds alike, or of those that are noticed."""
        harm = self._harm(self.kinds[self.noticed] if noticed else self.kinds)
        return _likeliest(self._smooth(self.rows), self._smooth(self.anchors), harm)

    def drawn_again(self, chance: np.random.Generator) -> Counted:
        """Other rows, anchors, kinds and copies of them: a draw of the bootstrap."""
        places = chance.integers(0, len(self.kinds), len(self.kinds))
        kinds = np.stack([_again(self.kinds[place], chance) for place in places])
        noticed = self.noticed[places]
        return self._replace(
            rows=_again(self.rows, chance),
            anchors=_again(self.anchors, chance),
            kinds=kinds,
            noticed=noticed if noticed.any() else np.ones_like(noticed),
        )

    def clean_below(self, share: float, cut: float) -> float:
        """Share of clean rows among those up to a cut, where the pool has such a share of them."""
        below = self.grid <= cut
        passing = self.rows[below].sum() / self.rows.sum()
        return min(1.0, share * self.anchors[below].sum() / self.anchors.sum() / passing) if passing else 1.0

    def _harm(self, kinds: Values) -> Values:
        return self._smooth((kinds / kinds.sum(axis=1, keepdims=True)).mean(axis=0))

    def _smooth(self, counts: Values) -> Values:
        density: Values = gaussian_filter1d(counts / counts.sum(), self.width, mode="constant")
        density *= (1 - _ELSEWHERE) / density.sum()
        return density + _ELSEWHERE / len(density)


def kernel_width(anchors: Values) -> float:
    """Standard deviation of the Gaussian kernel that suits the density of the anchors: Scott's rule."""
    width: float = anchors.std(ddof=1) * len(anchors) ** -0.2
    return max(width, 1e-9)


def count(rows: Values, anchors: Values, corrupted: Values, kinds: Kinds) -> Counted:
    """Put rows, anchors and corrupted anchors on one grid."""
    errors = [corrupted[kinds == kind] for kind in np.unique(kinds[kinds != STYLE])] or [corrupted]
    width = kernel_width(anchors)
    values = np.concatenate([rows, anchors, corrupted])
    edges = np.linspace(values.min() - 4 * width, values.max() + 4 * width, _GRID + 1)
    usual = np.quantile(anchors, 1 - FALSE_ALARMS)
    noticed = np.array([(mine > usual).mean() >= _NOTICED for mine in errors])
    hists = [np.histogram(part, edges)[0].astype(float) for part in (rows, anchors, *errors)]
    return Counted(
        (edges[1:] + edges[:-1]) / 2,
        width / (edges[1] - edges[0]),
        hists[0],
        hists[1],
        np.stack(hists[2:]),
        noticed if noticed.any() else np.ones_like(noticed),
    )


def clean_intervals(counted: Counted, cut: float) -> tuple[Interval, Interval]:
    """Shares of clean rows in the pool and in what passes, with what chance could have made of them.

    Rows, anchors, kinds of corruption and copies within them are drawn again: the pool's errors need not be those that
    were tried. They may also all be of kinds that are noticed, which the upper ends take for granted.

    Args:
        counted: Rows, anchors and corrupted anchors.
        cut: Nonconformity from which on rows are dropped.
    """
    chance = np.random.default_rng(0)
    ends = []
    for _ in range(_RESAMPLES):
        again = counted.drawn_again(chance)
        shares = again.clean_share(), again.clean_share(noticed=True)
        ends.append([(share, again.clean_below(share, cut)) for share in shares])
    low, high = np.quantile(ends, 0.025, axis=0)[0], np.quantile(ends, 0.975, axis=0)[1]
    share = counted.clean_share()
    told = (share, counted.clean_below(share, cut))
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


def _share(count: int, of: int) -> Interval:
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Interval(count / of, float(interval.low), float(interval.high))


def _likeliest(rows: Values, clean: Values, harm: Values) -> float:
    """The share of the first of two densities in a mixture, by maximum likelihood: a concave function of it."""

    def slope(share: float) -> float:
        return float(rows @ ((clean - harm) / (share * clean + (1 - share) * harm)))

    if slope(0.0) <= 0:
        return 0.0
    return 1.0 if slope(1.0) >= 0 else float(brentq(slope, 0.0, 1.0))


def _again(counts: Values, chance: np.random.Generator) -> Values:
    drawn: Values = chance.multinomial(int(counts.sum()), counts / counts.sum()).astype(float)
    return drawn
