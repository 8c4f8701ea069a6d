"""Each group its share of the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.pool import Pool, Sample
from onesteptrain.scores import ScoreTable
from onesteptrain.selection.options import QuotaShares

Groups = NDArray[np.str_]
"""The group of each row of a score table."""


def read_groups(table: ScoreTable, pool: Pool | None, column: str) -> Groups:
    """The group of each row: a column of the score table if it has one of this name, else of the pool.

    A row that has no value, or cannot be read, is in the group "".

    Raises:
        ConfigError: the pool is needed and not given.
        ScoreError: no row has such a column.
    """
    if column in table.names:
        return np.array([_text(value) for value in table.read([column])[column].to_pylist()])
    if pool is None:
        raise ConfigError(f"quota {column!r} is a column of the pool; give the pool too")
    groups = np.array([_text(row.fields.get(column)) if isinstance(row, Sample) else "" for row in pool])
    if not (groups != "").any():
        raise ScoreError(f"no row of {pool.path} has the column {column!r}; give one that its rows have as quota")
    return groups


def share_out(groups: Groups, passed: NDArray[np.int64], count: int, *, shares: QuotaShares) -> Mapping[str, int]:
    """How many rows each group is to have: exact shares by largest remainder.

    What a group has too few rows for goes to the others, in proportion to their shares, until all is given out.

    Args:
        groups: The group of each row of the pool.
        passed: Rows that may be kept.
        count: Rows to give out; fewer if fewer may be kept.
        shares: In proportion to what.
    """
    names = sorted(set(groups[passed].tolist()))
    there = dict(zip(*np.unique(groups[passed], return_counts=True), strict=True))
    weights = {name: _weight(name, groups, there, shares) for name in names}
    given = dict.fromkeys(names, 0)
    left = min(count, len(passed))
    while left:
        open_groups = [name for name in names if given[name] < there[name]]
        parts = _largest_remainder([weights[name] for name in open_groups], left)
        for name, part in zip(open_groups, parts, strict=True):
            more = min(part, int(there[name]) - given[name])
            given[name] += more
            left -= more
    return given


def _weight(name: str, groups: Groups, there: Mapping[str, int], shares: QuotaShares) -> int:
    if shares == "equal":
        return 1
    return int(there[name]) if shares == "eligible" else int((groups == name).sum())


def _largest_remainder(weights: Sequence[int], count: int) -> list[int]:
    """Whole shares in proportion; ties go to the group that stands first."""
    total = sum(weights)
    floors = [weight * count // total for weight in weights]
    order = sorted(range(len(weights)), key=lambda place: (-(weights[place] * count % total), place))
    for place in order[: count - sum(floors)]:
        floors[place] += 1
    return floors


def keep_quotas(ordered: NDArray[np.int64], groups: Groups, given: Mapping[str, int]) -> NDArray[np.int64]:
    """The first rows of each group, as many as it is given, in their order."""
    kept = np.zeros(len(ordered), np.bool_)
    mine = groups[ordered]
    for name, count in given.items():
        kept[np.flatnonzero(mine == name)[:count]] = True
    return ordered[kept]


def _text(value: object) -> str:
    return "" if value is None else str(value)
