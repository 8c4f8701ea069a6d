"""Each group its share of the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool, Sample
from onesteptrain.errors import ScoreError
from onesteptrain.selection.options import QuotaShares
from onesteptrain.storage.score_table import ScoreTable

Counts = NDArray[np.int64]
"""A number for each group."""

Positions = NDArray[np.int64]


class Groups(NamedTuple):
    """Which group each row of a score table is in."""

    names: list[str]
    codes: NDArray[np.int64]
    """Place of the group's name, row by row."""

    expected: NDArray[np.float64] | None = None
    """Probability of each row to be clean; None where it is not known."""

    def sizes(self, rows: Positions) -> Counts:
        """How many of some rows each group has."""
        return np.bincount(self.codes[rows], minlength=len(self.names))

    def clean(self) -> Counts:
        """How many clean rows each group is expected to have."""
        expected = np.zeros(len(self.codes)) if self.expected is None else self.expected
        counts = np.rint(np.bincount(self.codes, expected, len(self.names))).astype(np.int64)
        return np.maximum(counts, 1)  # so that what the others cannot fill goes to it


class Wanted(NamedTuple):
    """How many rows are wanted of each group."""

    codes: NDArray[np.int64]
    """Group of each row that may be chosen."""

    counts: Counts


def read_groups(table: ScoreTable, column: str, find_pool: Callable[[], Pool]) -> Groups:
    """The group of each row: a column of the score table if it has one of this name, else of the pool, opened for it.

    A row that has no value, or cannot be read, is in the group "".

    Raises:
        ScoreError: no row has such a column.
    """
    if column in table.names:
        return to_groups([_text(value) for value in table.read([column])[column].to_pylist()])
    pool = find_pool()
    groups = to_groups([_text(row.fields.get(column)) if isinstance(row, Sample) else "" for row in pool])
    if groups.names == [""]:
        raise ScoreError(f"no row of {pool.path} has the column {column!r}; give one that its rows have as quota")
    return groups


def to_groups(names: list[str]) -> Groups:
    """Groups by name, in the order of the names."""
    distinct, codes = np.unique(np.array(names), return_inverse=True)
    return Groups(distinct.tolist(), codes.astype(np.int64))


def share_out(groups: Groups, passed: Positions, count: int, *, shares: QuotaShares) -> Counts:
    """How many rows each group is to have: exact shares by largest remainder.

    What a group has too few rows for goes to the others, in proportion to their shares, until all is given out.

    Args:
        groups: The groups of the pool.
        passed: Rows that may be kept.
        count: Rows to give out; fewer if fewer may be kept.
        shares: In proportion to what.
    """
    there = groups.sizes(passed)
    whole = np.bincount(groups.codes, minlength=len(there))
    weights = {"pool": whole, "equal": np.ones_like(there), "eligible": there, "clean": groups.clean()}[shares]
    given = np.zeros_like(there)
    left = min(count, len(passed))
    while left:
        unfilled = np.flatnonzero(given < there)
        parts = _largest_remainder(weights[unfilled], left)
        given[unfilled] = np.minimum(given[unfilled] + parts, there[unfilled])
        left = min(count, len(passed)) - int(given.sum())
    return given


def share_tokens(
    groups: Groups, ordered: Positions, tokens: NDArray[np.float64], limit: int, *, shares: QuotaShares
) -> Counts:
    """How many rows each group is to have so that, shared out, as many are kept as the tokens allow.

    Args:
        groups: The groups of the pool.
        ordered: Rows that may be kept; those of a group are kept in this order.
        tokens: Tokens of each of these rows.
        limit: Tokens that may be spent.
        shares: In proportion to what.
    """
    order = np.argsort(groups.codes[ordered], kind="stable")
    spent = np.concatenate([[0.0], np.cumsum(tokens[order])])
    sizes = groups.sizes(ordered)
    starts = np.cumsum(sizes) - sizes
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        given = share_out(groups, ordered, middle, shares=shares)
        fits = (spent[starts + given] - spent[starts]).sum() <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return share_out(groups, ordered, low, shares=shares)


def keep_quotas(ordered: Positions, groups: Groups, given: Counts) -> Positions:
    """The first rows of each group, as many as it is given, in their order."""
    mine = groups.codes[ordered]
    order = np.argsort(mine, kind="stable")
    sizes = groups.sizes(ordered)
    turn = np.empty_like(mine)
    turn[order] = np.arange(len(mine)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ordered[turn < given[mine]]


def _largest_remainder(weights: Counts, count: int) -> Counts:
    """Whole shares in proportion; ties go to the group that stands first."""
    total = int(weights.sum())
    parts, remainders = np.divmod(weights * count, total)
    parts[np.argsort(-remainders, kind="stable")[: count - int(parts.sum())]] += 1
    return parts


def _text(value: object) -> str:
    return "" if value is None else str(value)
