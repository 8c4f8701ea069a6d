"""The trust gate: which rows look like the anchors, and which do not, without knowing how much noise there is.

A score is a good reason to drop a row and a poor reason to prefer one. The gate drops by signals of the scoring passes:
harm, mean loss and the loss of the worst answer token. What clean rows look like is told by the anchors, each measured
as if it were none (RUN/reference.parquet); what harm looks like, by corrupted copies of them (RUN/corrupted.parquet).

1. A row's nonconformity is that of its signals together, with weights learned from anchors and corrupted anchors
   (`separation`). The losses are those of a second pass where these tell the two apart better.
2. The p-value of a row is the share of anchors with at least its nonconformity. Those of clean rows are uniform,
   whatever the signals' distribution (conformal prediction).
3. The pool is a mixture of rows like anchors and rows like corrupted anchors, which says how probable it is that a row
   is clean (`power`). Rows with a probability of at least one half pass. Without corrupted anchors the probability is
   c f(s) / g(s), with the densities f of the anchors and g of the pool at nonconformity s, made to fall with it, and
   the clean share c by the rows with large p-values: (1 - t) c of them are above t.

Where corrupted anchors look like anchors, the scores cannot tell harm from help: the gate is blind, and says so.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, chapter 2 (conformal p-values); Storey, A
direct approach to false discovery rates (2002); Efron, Large-Scale Inference, chapter 5 (local false discovery rate).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import gaussian_kde

from onesteptrain.data.corruption import STYLE
from onesteptrain.errors import ScoreError
from onesteptrain.selection.likeness import find_unlike
from onesteptrain.selection.power import (
    Interval,
    Power,
    clean_intervals,
    clean_share,
    count,
    kernel_width,
    measure_power,
)
from onesteptrain.selection.separation import Separation, distinctness, separate
from onesteptrain.storage.score_table import ScoreTable

SIGNALS = ("harm", "loss", "worst_loss")

SECOND_SIGNALS = ("harm", "second_loss", "second_worst_loss")
"""In their place where a second pass has measured the pool again."""

PASSING_PROBABILITY = 0.5

FEWEST_ANCHORS = 20
"""With fewer, what clean rows look like is not known."""

_AT_ONCE = 65_536
"""Rows whose signals are put together at once, so that steps between take no memory that grows with the pool."""

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
    """That the row is as good as an anchor, or harmful in a way that is missed."""

    verdict: Verdict
    """What the gate says of the pool, and of itself."""

    def passing(self) -> NDArray[np.bool_]:
        """The rows that pass the gate."""
        return np.nan_to_num(self.probability, nan=-1.0) >= PASSING_PROBABILITY


class Verdict(NamedTuple):
    """What the trust gate says of a pool, and of itself."""

    anchors: int

    weights: dict[str, float]
    """How much each signal counts, in shares of one."""

    clean: Interval | None
    """Share of the scored rows that is clean; None where it cannot be told. Without corrupted anchors it takes it that
    all harm is noticed, and has no interval."""

    passing_clean: Interval | None
    """The same of the rows that pass."""

    power: Power | None
    """What the gate would notice; None without corrupted anchors."""

    unlike: list[str]
    """What sets the pool apart from the anchors, in words: see `likeness`."""

    @property
    def blind(self) -> bool:
        """Whether corrupted anchors look like anchors, so that the gate says nothing."""
        return self.power is not None and self.power.blind

    @property
    def clean_share(self) -> float | None:
        """The share of the scored rows that is clean; None where it cannot be told."""
        return None if self.clean is None else self.clean.value

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shares = {name: getattr(self, name) and getattr(self, name).facts() for name in ("clean", "passing_clean")}
        return {**self._asdict(), **shares, "power": self.power and self.power.facts(), "blind": self.blind}

    def sentences(self) -> list[str]:
        """The same in words, a sentence an entry."""
        return [*self._on_the_pool(), *self.unlike]

    def _on_the_pool(self) -> list[str]:
        if self.blind:
            return [
                "the gate is blind: corrupted anchors look like anchors to this proxy, so nothing can be said of the "
                "pool; warm the proxy up on more rows, take a larger one, or give more anchors",
                *([self.power.describe()] if self.power else []),
            ]
        told = [("of the pool", self.clean), ("of the rows that pass", self.passing_clean)]
        clean = [f"{share.value:.0%} {of}{share.reach()}" for of, share in told if share is not None]
        sentences = [f"clean, as {self.anchors} anchors tell it: about {', '.join(clean)}"] if clean else []
        if self.power is None:
            return [*sentences, "how much harm the gate misses is not known: no corrupted anchors were scored"]
        weights = ", ".join(f"{name} {weight:.0%}" for name, weight in self.weights.items())
        return [*sentences, self.power.describe(), f"signals by weight: {weights}"]


class Examples(NamedTuple):
    """Signals of anchors, right and corrupted."""

    signals: tuple[str, ...]
    anchors: Values
    """Finite ones, "anchor signal"."""

    corrupted: Values
    kinds: NDArray[np.str_]

    def separate(self) -> Separation:
        """Learn to tell the two apart, by their errors: a mere change of style is none."""
        errors = self.kinds != STYLE
        return separate(self.signals, self.anchors, self.corrupted[errors], self.kinds[errors])


def can_trust(table: ScoreTable) -> bool:
    """Whether a table has what the gate needs: the signals, for rows and for enough anchors."""
    reference = table.reference
    return reference is not None and reference.rows >= FEWEST_ANCHORS and _has_signals(table, reference)


def measure_trust(table: ScoreTable) -> Trust:
    """Compare the rows of a score table with its anchors.

    Raises:
        ScoreError: the signals or the reference are missing, or there are fewer than 20 anchors.
    """
    examples = read_examples(table)
    separation = examples.separate()
    rows = np.stack([table.numbers(name) for name in examples.signals], axis=1)
    scored = np.isfinite(rows).all(1)
    if not scored.any():
        raise ScoreError(f"{table.path} has no row with all of {', '.join(SIGNALS)}; nothing can be selected")
    starts = range(0, len(rows), _AT_ONCE)
    ours = np.concatenate([separation.nonconformity(rows[start : start + _AT_ONCE]) for start in starts])[scored]
    anchors, wrong = (separation.nonconformity(part) for part in (examples.anchors, examples.corrupted))
    p_value = p_values(ours, anchors)
    judged = _judge(ours, anchors, wrong, examples.kinds) if len(wrong) else _judge_alone(ours, anchors, p_value)
    weights = dict(zip(separation.signals, separation.weights.tolist(), strict=True))
    verdict = Verdict(len(anchors), weights, judged.clean, judged.passing_clean, judged.power, find_unlike(table))
    whole = [_spread(values, scored) for values in (ours, p_value, judged.probability)]
    return Trust(whole[0], whole[1], whole[2], verdict)


class _Judged(NamedTuple):
    """What is said of rows, all with a score; see `Trust` and `Verdict`."""

    probability: Values
    clean: Interval | None
    passing_clean: Interval | None
    power: Power | None


def _judge(rows: Values, anchors: Values, wrong: Values, kinds: NDArray[np.str_]) -> _Judged:
    """Judge rows by what anchors and corrupted anchors look like."""
    counted = count(rows, anchors, wrong, kinds)
    probability = counted.probability(rows)
    passing = probability >= PASSING_PROBABILITY
    cut = float(rows[passing].max()) if passing.any() else -math.inf
    power = measure_power(anchors, wrong, kinds, cut)
    pool, passed = (None, None) if power.blind else clean_intervals(counted, cut)
    return _Judged(probability, pool, passed, power)


def _judge_alone(rows: Values, anchors: Values, p_value: Values) -> _Judged:
    """The same where no corrupted anchors say what harm looks like: all that is unlike the anchors is taken for it."""
    share = clean_share(p_value)
    probability = np.clip(share * density_ratio(rows, anchors), 0.0, 1.0)
    passing = probability >= PASSING_PROBABILITY
    expected = float(probability[passing].mean()) if passing.any() else math.nan
    pool, passed = (Interval(value, math.nan, math.nan) for value in (share, expected))
    return _Judged(probability, pool, passed, None)


def read_examples(table: ScoreTable) -> Examples:
    """The anchors of a score table and their corrupted copies, by the signals that tell them apart better.

    Raises:
        ScoreError: the signals or the reference are missing, or there are fewer than 20 anchors.
    """
    reference = table.reference
    if reference is None or not _has_signals(table, reference):
        raise ScoreError(
            f"{table.path} has not all of {', '.join(SIGNALS)}, for rows and for anchors (reference.parquet); "
            "score again with method one_step and estimator fd or jvp, or select with gate none"
        )
    corrupted = table.corrupted
    second = set(SECOND_SIGNALS) <= set(table.names)
    sets = [_read(names, reference, corrupted) for names in ((SIGNALS, SECOND_SIGNALS) if second else (SIGNALS,))]
    if len(sets[0].anchors) < FEWEST_ANCHORS:
        raise ScoreError(
            f"the trust gate of {table.path} rests on {len(sets[0].anchors)} anchors and needs {FEWEST_ANCHORS}; "
            "score with more, or select with gate none"
        )
    if second and len(sets[0].corrupted):
        return max(sets, key=lambda each: distinctness(each.separate(), *each[1:]))
    return sets[-1]


def _read(names: tuple[str, ...], reference: ScoreTable, corrupted: ScoreTable | None) -> Examples:
    anchors = np.stack([reference.numbers(name) for name in names], axis=1)
    anchors = anchors[np.isfinite(anchors).all(1)]
    if corrupted is None:
        return Examples(names, anchors, np.empty((0, len(names))), np.empty(0, np.str_))
    copies = np.stack([corrupted.numbers(name) for name in names], axis=1)
    kinds = np.array(corrupted.read(["kind"])["kind"].to_pylist(), np.str_)
    known = np.isfinite(copies).all(1)
    return Examples(names, anchors, copies[known], kinds[known])


def _has_signals(table: ScoreTable, reference: ScoreTable) -> bool:
    return all(name in table.names and name in reference.names for name in SIGNALS)


def p_values(rows: Values, anchors: Values) -> Values:
    """Share of the anchors with at least the nonconformity of each row, the row counted in: conformal p-values."""
    ordered = np.sort(anchors)
    values: Values = (1 + len(ordered) - np.searchsorted(ordered, rows, side="left")) / (1 + len(ordered))
    return values


def density_ratio(rows: Values, anchors: Values) -> Values:
    """Density of the anchors over that of the rows, at each row's nonconformity; it falls with it.

    Both densities are smoothed with the same Gaussian kernel, wide enough for the anchors (Scott's rule), so that the
    ratio of a set to itself is one.
    """
    step = max(1, len(rows) // _MOST_FOR_DENSITY)
    some = np.sort(rows)[step // 2 :: step]
    width = kernel_width(anchors)
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
