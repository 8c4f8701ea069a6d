"""From the rows behind a gate to those that are kept: in the order of a preference, until the budget is spent.

Repeats are passed over, quotas met, and the budget is not exceeded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.selection.gating import Gated, Positions
from onesteptrain.selection.options import Budget, Preference, QuotaShares, SelectOptions
from onesteptrain.selection.orders import cover_order, maxmin_order, random_keys, read_group_utilities, top_order
from onesteptrain.selection.quotas import Groups, Wanted, keep_quotas, share_out, share_tokens
from onesteptrain.selection.setwise import setwise_order
from onesteptrain.selection.vectors import REPRESENTATION, distinct_rows, read_vectors
from onesteptrain.storage.score_table import ScoreTable


class Kept(NamedTuple):
    """What is kept, the first first."""

    rows: Positions
    skipped: int | None
    """Rows that were passed over because they resemble a kept one; None if they were not compared."""

    full: bool
    """Whether the budget ended it, and not the rows."""


class _Limits(NamedTuple):
    """What stops a selection."""

    rows: int
    tokens: int | None
    costs: NDArray[np.float64]
    """Tokens of each row of the table; of no meaning where tokens do not count."""

    groups: Groups | None
    shares: QuotaShares
    threshold: float | None
    vectors: NDArray[np.float32] | None
    """Representations of the rows of the table; None where they are not compared."""


def preference(options: SelectOptions, gated: Gated) -> Preference:
    """What auto stands for: to draw behind the trust gate, even a blind one; to rank elsewhere, and by a column."""
    if options.prefer != "auto":
        return options.prefer
    return "draw" if gated.gate in ("trust", "blind") and options.by is None else "top"


def ranking_column(options: SelectOptions, gated: Gated) -> str | None:
    """The column that the preference rests on; None if it draws. Of all groups' utilities, that of all anchors."""
    match preference(options, gated):
        case "top":
            return options.by or "score"
        case "setwise" | "maxmin":
            return "utility"
        case _:
            return None


def keep_rows(table: ScoreTable, gated: Gated, options: SelectOptions, budget: Budget, groups: Groups | None) -> Kept:
    """Keep rows behind a gate, as they are preferred, until the budget is spent.

    Raises:
        ScoreError: a column is missing, or no row fits into the budget.
    """
    limits = _limits(table, gated, options, budget, groups)
    kept = _preferred(table, gated, options, limits)
    if options.fill and not kept.full and len(gated.passed) < limits.rows:
        filled = _stop(np.concatenate([kept.rows, gated.others]), limits._replace(groups=None))
        skipped = None if kept.skipped is None else kept.skipped + (filled.skipped or 0)
        kept = filled._replace(skipped=skipped)
    if not len(kept.rows):
        raise ScoreError(f"the first row to keep of {table.path} has more than {limits.tokens} tokens; give more")
    return kept


def _limits(table: ScoreTable, gated: Gated, options: SelectOptions, budget: Budget, groups: Groups | None) -> _Limits:
    rows, costs, vectors = budget.rows, np.empty(0), None
    whole = np.concatenate([gated.passed, gated.others]) if options.fill else gated.passed
    if budget.tokens is not None:
        costs = np.nan_to_num(table.numbers("tokens"), nan=0.0)
        cheapest = np.cumsum(np.sort(costs[whole]))
        rows = max(1, int(np.searchsorted(cheapest, budget.tokens, side="right")))  # no more can fit
    if options.distinct is not None:
        vectors = read_vectors(table, REPRESENTATION, whole)
    shares: QuotaShares = (
        "clean" if options.quota is None else options.quota_shares
    )  # of kinds, that nobody asked shares for
    return _Limits(rows, budget.tokens, costs, groups, shares, options.distinct, vectors)


def _preferred(table: ScoreTable, gated: Gated, options: SelectOptions, limits: _Limits) -> Kept:
    """Rows that pass the gate; where repeats are passed over, a preference may have to order more than are kept."""
    passed, repeats, groups = gated.passed, limits.threshold is not None, limits.groups
    asked = len(passed) if repeats and groups is not None else min(limits.rows, len(passed))
    while True:
        wanted = Wanted(np.zeros(len(passed), np.int64), np.array([asked]))
        if groups is not None:
            wanted = Wanted(groups.codes[passed], share_out(groups, passed, asked, shares=limits.shares))
        ordered = _order(table, gated, options, wanted)
        kept = _stop(ordered, limits)
        if kept.full or not repeats or len(ordered) < asked or len(ordered) == len(passed):
            return kept
        asked = min(2 * asked, len(passed))


def _order(table: ScoreTable, gated: Gated, options: SelectOptions, wanted: Wanted) -> Positions:
    """The rows behind a gate, the first to keep first.

    Setwise puts no more of each group into order than are wanted, nor does maxmin where there is one group; others all.
    """
    passed, seed = gated.passed, options.draw_seed
    match preference(options, gated):
        case "draw":
            return passed[np.argsort(random_keys(table, passed, seed), kind="stable")]
        case "cover":
            vectors = read_vectors(table, REPRESENTATION, passed)
            return cover_order(vectors, passed, random_keys(table, passed, seed), seed=seed)
        case "setwise":
            return setwise_order(table, passed, table.numbers("utility")[passed], wanted, seed)
        case "maxmin":
            count = int(wanted.counts[0]) if len(wanted.counts) == 1 else len(passed)
            return passed[maxmin_order(read_group_utilities(table)[passed], count)]
        case _:
            return top_order(table.numbers(options.by or "score"), passed)


def _stop(ordered: Positions, limits: _Limits) -> Kept:
    """Go down an order until the budget is spent."""
    rows, skipped, groups = ordered, None, limits.groups
    if limits.vectors is not None and limits.threshold is not None:
        most = limits.rows if groups is None else len(ordered)
        rows, skipped = distinct_rows(limits.vectors, ordered, count=most, threshold=limits.threshold)
    if groups is None:
        first = rows[: limits.rows]
        if limits.tokens is None:
            return Kept(first, skipped, len(first) == limits.rows)
        # a row too long for what is left ends it, so that being short is no merit
        fitting = int(np.searchsorted(np.cumsum(limits.costs[first]), limits.tokens, side="right"))
        return Kept(first[:fitting], skipped, fitting < len(first) or len(first) == limits.rows)
    if limits.tokens is None:
        given = share_out(groups, rows, limits.rows, shares=limits.shares)
        full = int(given.sum()) == limits.rows
    else:
        given = share_tokens(groups, rows, limits.costs[rows], limits.tokens, shares=limits.shares)
        full = int(given.sum()) < len(rows)
    return Kept(keep_quotas(rows, groups, given), skipped, full)
