"""The trust gate: which rows look like the anchors, and which do not, without knowing how much noise there is.

A score is a good reason to drop a row and a poor reason to prefer one. The gate drops by signals of the scoring passes:
harm, mean loss and the loss of the worst answer token. What clean rows look like is told by the anchors, each measured
as if it were none (RUN/reference.parquet); what harm looks like, by corrupted copies of them (RUN/corrupted.parquet).

1. A row's nonconformity is that of its signals together, against what is usual of its kind (`kinds`), with weights
   learned from anchors and corrupted anchors (`separation`). The losses are those of a second pass where these tell the
   two apart better.
2. The p-value of a row is the share of anchors with at least its nonconformity. Those of clean rows are uniform,
   whatever the signals' distribution (conformal prediction).
3. The rows of a kind are a mixture of rows like anchors and rows like corrupted anchors, which says how probable it is
   that a row is clean (`mixture`). Rows with a probability of at least one half pass. Without corrupted
   anchors the probability is c f(s) / g(s), with the densities f of the anchors and g of the pool at nonconformity s,
   made to fall with it, and the clean share c by the rows with large p-values: (1 - t) c of them are above t.

Where corrupted anchors look like anchors, the scores cannot tell harm from help: the gate is blind, and says so. A kind
of rows without anchors is not judged, and none of its rows is dropped.

Sources: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, chapter 2 (conformal p-values); Storey, A
direct approach to false discovery rates (2002); Efron, Large-Scale Inference, chapter 5 (local false discovery rate).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import gaussian_kde

from onesteptrain.errors import ScoreError
from onesteptrain.selection.kinds import RowKinds, find_kinds
from onesteptrain.selection.likeness import find_unlike
from onesteptrain.selection.mixture import clean_intervals, clean_share, count, kernel_width
from onesteptrain.selection.power import Interval, Power, measure_power
from onesteptrain.selection.separation import Codes, Examples, Separation, distinctness, separate
from onesteptrain.selection.verdict import KindVerdict, Verdict
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

    unjudged: NDArray[np.bool_]
    """Rows that have a score and are of a kind without anchors."""

    verdict: Verdict
    """What the gate says of the pool, and of itself."""

    def passing(self) -> NDArray[np.bool_]:
        """The rows that pass the gate, those among them that it cannot judge."""
        return (np.nan_to_num(self.probability, nan=-1.0) >= PASSING_PROBABILITY) | self.unjudged

    def expected_clean(self) -> Values:
        """Probability to be clean: of rows that are not judged, that of the others in the mean; 0 without a score."""
        judged = np.isfinite(self.probability)
        usual = float(self.probability[judged].mean()) if judged.any() else 1.0
        return np.where(self.unjudged, usual, np.nan_to_num(self.probability))


def can_trust(table: ScoreTable) -> bool:
    """Whether a table has what the gate needs: the signals, for rows and for enough anchors."""
    reference = table.reference
    return reference is not None and reference.rows >= FEWEST_ANCHORS and _has_signals(table, reference)


def measure_trust(table: ScoreTable, kinds: RowKinds | None = None) -> Trust:
    """Compare the rows of a score table with its anchors.

    Args:
        table: The scores.
        kinds: Of which kind rows and anchors are; by default what shows in the anchors (`find_kinds`).

    Raises:
        ScoreError: the signals or the reference are missing, there are fewer than 20 anchors, or no anchors of a kind
            that the pool has.
    """
    kinds = kinds or find_kinds(table)
    examples = read_examples(table, kinds)
    separation = separate(examples, len(kinds.names))
    ours = _nonconformity(table, separation, kinds)
    scored = np.isfinite(ours)
    if not scored.any():
        raise ScoreError(f"{table.path} has no row with all of {', '.join(SIGNALS)}; nothing can be selected")
    judged = scored & kinds.judged()[kinds.rows]
    if not judged.any():
        raise ScoreError(
            f"{table.path} has no anchors of a kind of its rows, by {kinds.by}; give anchors like the rows"
        )
    anchors = separation.nonconformity(examples.anchors, examples.anchor_codes)
    wrong = separation.nonconformity(examples.corrupted, examples.corrupted_codes)
    compared = _Compared(ours[judged], kinds.rows[judged], anchors, wrong, examples, len(kinds.names))
    p_value = p_values(compared.rows, anchors)
    found = _judge(compared) if len(wrong) else _judge_alone(compared, p_value)
    values = [_spread(part, judged) for part in (compared.rows, p_value, found.probability)]
    weights = dict(zip(separation.signals, separation.weights.tolist(), strict=True))
    verdict = Verdict(len(anchors), weights, found.clean, found.passing_clean, found.power, find_unlike(table))
    trust = Trust(values[0], values[1], values[2], scored & ~judged, verdict)
    if not kinds.by:
        return trust
    each = _kind_verdicts(kinds, scored, trust.passing(), found.clean_shares)
    return trust._replace(verdict=verdict._replace(kinds_by=kinds.by, kinds=each))


class _Compared(NamedTuple):
    """Nonconformity of rows with a score, of anchors and of corrupted ones."""

    rows: Values
    codes: Codes
    anchors: Values
    corrupted: Values
    examples: Examples
    kinds: int


class _Judged(NamedTuple):
    """What is said of rows, all with a score; see `Trust` and `Verdict`."""

    probability: Values
    clean: Interval | None
    passing_clean: Interval | None
    power: Power | None
    clean_shares: Values | None
    """Of each kind; None where it cannot be told."""


def _nonconformity(table: ScoreTable, separation: Separation, kinds: RowKinds) -> Values:
    """Of all rows; NaN of those without a score."""
    rows = np.stack([table.numbers(name) for name in separation.signals], axis=1)
    starts = range(0, len(rows), _AT_ONCE)
    parts = (slice(start, start + _AT_ONCE) for start in starts)
    values = np.concatenate([separation.nonconformity(rows[part], kinds.rows[part]) for part in parts])
    return np.where(np.isfinite(rows).all(1), values, np.nan)


def _judge(compared: _Compared) -> _Judged:
    """Judge rows by what anchors and corrupted anchors look like."""
    rows, codes, anchors, wrong, examples, kinds = compared
    counted = count(rows, anchors, wrong, examples.errors, codes, kinds)
    farthest = np.full(kinds, -math.inf)
    np.maximum.at(farthest, codes, rows)
    cuts = counted.cuts(PASSING_PROBABILITY)
    cuts = np.where(
        np.isfinite(farthest), np.minimum(cuts, farthest), cuts
    )  # what stands out more than any row is noticed
    power = measure_power(anchors, wrong, examples.errors, cuts[examples.corrupted_codes])
    pool, passed = (None, None) if power.blind else clean_intervals(counted, cuts)
    shares = None if power.blind else counted.clean_shares()
    return _Judged(counted.probability(rows, codes), pool, passed, power, shares)


def _judge_alone(compared: _Compared, p_value: Values) -> _Judged:
    """The same where no corrupted anchors say what harm looks like: all that is unlike the anchors is taken for it."""
    share = clean_share(p_value)
    probability = np.clip(share * density_ratio(compared.rows, compared.anchors), 0.0, 1.0)
    passing = probability >= PASSING_PROBABILITY
    expected = float(probability[passing].mean()) if passing.any() else math.nan
    pool, passed = (Interval(value, math.nan, math.nan) for value in (share, expected))
    return _Judged(probability, pool, passed, None, None)


def _kind_verdicts(
    kinds: RowKinds, scored: NDArray[np.bool_], passing: NDArray[np.bool_], shares: Values | None
) -> tuple[KindVerdict, ...]:
    """What is said of each kind that the pool has."""
    many = len(kinds.names)
    rows, passed = (np.bincount(kinds.rows[part], minlength=many) for part in (scored, passing))
    anchors = np.bincount(kinds.anchors, minlength=many)
    return tuple(
        KindVerdict(
            kinds.names[kind],
            int(rows[kind]),
            int(anchors[kind]),
            int(passed[kind]),
            float(shares[kind]) if shares is not None and anchors[kind] else None,
        )
        for kind in np.flatnonzero(rows).tolist()
    )


def read_examples(table: ScoreTable, kinds: RowKinds) -> Examples:
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
    second = set(SECOND_SIGNALS) <= set(table.names)
    sets = [_read(names, table, reference, kinds) for names in ((SIGNALS, SECOND_SIGNALS) if second else (SIGNALS,))]
    if len(sets[0].anchors) < FEWEST_ANCHORS:
        raise ScoreError(
            f"the trust gate of {table.path} rests on {len(sets[0].anchors)} anchors and needs {FEWEST_ANCHORS}; "
            "score with more, or select with gate none"
        )
    if second and len(sets[0].corrupted):
        many = len(kinds.names)
        return max(sets, key=lambda each: distinctness(separate(each, many), each.without_style()))
    return sets[-1]


def _read(names: tuple[str, ...], table: ScoreTable, reference: ScoreTable, kinds: RowKinds) -> Examples:
    anchors = np.stack([reference.numbers(name) for name in names], axis=1)
    usable = np.isfinite(anchors).all(1)
    corrupted = table.corrupted
    if corrupted is None:
        none, nothing = np.empty((0, len(names))), np.zeros(0, np.int64)
        return Examples(names, anchors[usable], kinds.anchors[usable], none, nothing, np.empty(0, np.str_))
    copies = np.stack([corrupted.numbers(name) for name in names], axis=1)
    known = np.isfinite(copies).all(1)
    facts = corrupted.read(["kind", "anchor"]).filter(known)
    codes = kinds.of_anchors(table, facts["anchor"].to_pylist())
    errors = np.array(facts["kind"].to_pylist(), np.str_)
    return Examples(names, anchors[usable], kinds.anchors[usable], copies[known], codes, errors)


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
