"""From an order of rows to those that are kept: repeats are passed over, quotas met, and the budget is not exceeded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.selection.budget import Budget
from onesteptrain.selection.distinct import distinct_rows
from onesteptrain.selection.gating import Gated, Positions
from onesteptrain.selection.options import QuotaShares, SelectOptions
from onesteptrain.selection.ordering import order_rows
from onesteptrain.selection.quotas import Groups, Wanted, keep_quotas, share_out, share_tokens
from onesteptrain.selection.vectors import REPRESENTATION, read_vectors
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
    costs: NDArray[np.float64] | None
    """Tokens of each row of the table; None where they do not count."""

    groups: Groups | None
    shares: QuotaShares
    threshold: float | None
    vectors: NDArray[np.float32] | None
    """Representations of the rows of the table; None where they are not compared."""


def keep_rows(table: ScoreTable, gated: Gated, options: SelectOptions, budget: Budget, groups: Groups | None) -> Kept:
    """Keep rows behind a gate, as they are preferred, until the budget is spent.

    Args:
        table: The scores.
        gated: What the gate lets pass.
        options: What is preferred, and what else a selection must hold to.
        budget: How much.
        groups: The groups that have quotas.

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
    rows, costs, vectors = budget.rows, None, None
    whole = np.concatenate([gated.passed, gated.others]) if options.fill else gated.passed
    if budget.tokens is not None:
        costs = np.nan_to_num(table.numbers("tokens"), nan=0.0)
        cheapest = np.cumsum(np.sort(costs[whole]))
        rows = max(1, int(np.searchsorted(cheapest, budget.tokens, side="right")))  # no more can fit
    if options.distinct is not None:
        vectors = read_vectors(table, REPRESENTATION, whole)
    return _Limits(rows, budget.tokens, costs, groups, options.quota_shares, options.distinct, vectors)


def _preferred(table: ScoreTable, gated: Gated, options: SelectOptions, limits: _Limits) -> Kept:
    """Rows that pass the gate; where repeats are passed over, a preference may have to order more than are kept."""
    passed, repeats = gated.passed, limits.threshold is not None
    asked = len(passed) if repeats and limits.groups is not None else min(limits.rows, len(passed))
    while True:
        ordered = order_rows(table, gated, options, _wanted(limits, passed, asked))
        kept = _stop(ordered, limits)
        if kept.full or not repeats or len(ordered) < asked or len(ordered) == len(passed):
            return kept
        asked = min(2 * asked, len(passed))


def _wanted(limits: _Limits, passed: Positions, count: int) -> Wanted:
    if limits.groups is None:
        return Wanted(np.zeros(len(passed), np.int64), np.array([count]))
    return Wanted(limits.groups.codes[passed], share_out(limits.groups, passed, count, shares=limits.shares))


def _stop(ordered: Positions, limits: _Limits) -> Kept:
    """Go down an order until the budget is spent."""
    rows, skipped, groups = ordered, None, limits.groups
    if limits.vectors is not None and limits.threshold is not None:
        most = limits.rows if groups is None else len(ordered)
        rows, skipped = distinct_rows(limits.vectors, ordered, count=most, threshold=limits.threshold)
    if groups is None:
        rows, full = _within(rows, limits)
        return Kept(rows, skipped, full)
    if limits.costs is None or limits.tokens is None:
        given = share_out(groups, rows, limits.rows, shares=limits.shares)
        full = int(given.sum()) == limits.rows
    else:
        given = share_tokens(groups, rows, limits.costs[rows], limits.tokens, shares=limits.shares)
        full = int(given.sum()) < len(rows)
    return Kept(keep_quotas(rows, groups, given), skipped, full)


def _within(rows: Positions, limits: _Limits) -> tuple[Positions, bool]:
    """Stop before the tokens are spent: a row too long for what is left ends it, so that being short is no merit."""
    first = rows[: limits.rows]
    if limits.costs is None or limits.tokens is None:
        return first, len(first) == limits.rows
    fitting = int(np.searchsorted(np.cumsum(limits.costs[first]), limits.tokens, side="right"))
    return first[:fitting], fitting < len(first) or len(first) == limits.rows
