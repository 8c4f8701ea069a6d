"""From the top: keep the rows with the highest score, all alike or only those that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import PoolError, ScoreError
from onesteptrain.pool import Pool, write_subset
from onesteptrain.scores import ScoreTable
from onesteptrain.selection.budget import parse_budget, parse_floor
from onesteptrain.selection.distinct import check_threshold, distinct_rows, read_representations


class Selection(NamedTuple):
    """Which rows were kept, and how much of the pool that is."""

    rows: NDArray[np.int64]
    """Kept positions in the pool, ascending."""

    pool_rows: int
    scored_rows: int
    threshold: float
    """Lowest score that was kept."""

    tokens: int | None
    """Tokens of the kept rows, image tokens included; None if the method counts no tokens."""

    tokens_share: float | None
    """Share of the scored rows' tokens that is kept; None if the method counts no tokens."""

    utility_share: float | None
    """Share of the pool's positive utility that is kept; None if the method has no utility."""

    harmful_kept: int | None
    """Kept rows with negative utility."""

    budget: int | None
    """Rows that were asked for; None if every row from some value up was."""

    skipped_similar: int | None
    """Rows that were passed over because they resemble a kept one; None if they were not compared."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the rows, for JSON."""
        return {name: value for name, value in self._asdict().items() if name != "rows"} | {"rows": len(self.rows)}


def select_subset(  # noqa: PLR0913  the parts of one request
    table: ScoreTable,
    pool: Pool,
    out: Path,
    *,
    keep: str,
    by: str = "score",
    distinct: float | None = None,
    overwrite: bool = False,
) -> Selection:
    """Write the kept rows of a pool, in its own format, byte for byte and in its order.

    Args:
        table: Scores of this pool.
        pool: The pool itself.
        out: The file to write.
        keep: A share such as "20%", a number of rows, or the lowest value to keep such as ">=0.5".
        by: Numeric column to rank by, highest first.
        distinct: Pass over rows whose cosine similarity to a kept row reaches this.
        overwrite: Replace an existing file.

    Raises:
        PoolError: the pool is not the one that was scored, or the file exists.
        ScoreError: no such column, or no row to keep.
        ConfigError: the budget or the threshold cannot be used.
    """
    scored = table.metadata.get("pool")
    if scored is not None and scored != pool.fingerprint:
        raise PoolError(f"{pool.path} has changed since {table.path} was written; score it again")
    selection = select_rows(table, keep=keep, by=by, distinct=distinct)
    write_subset(pool, selection.rows, out, overwrite=overwrite)
    return selection


def select_rows(table: ScoreTable, *, keep: str, by: str = "score", distinct: float | None = None) -> Selection:
    """Choose the rows with the highest values of a column; rows without a score are never chosen."""
    values = table.numbers(by)
    floor = parse_floor(keep)
    budget = parse_budget(keep, len(values)) if floor is None else None
    if distinct is not None:
        check_threshold(distinct)
    allowed = _allowed(table, values, by, floor)
    count = len(allowed) if budget is None else budget
    if distinct is None:
        chosen, skipped = allowed[top_rows(values[allowed], count)], None
    else:
        ranking = allowed[np.argsort(-values[allowed], kind="stable")]
        chosen, skipped = distinct_rows(read_representations(table, ranking), ranking, count=count, threshold=distinct)
    return _describe(table, values, np.sort(chosen))._replace(budget=budget, skipped_similar=skipped)


def _allowed(table: ScoreTable, values: NDArray[np.float64], by: str, floor: float | None) -> NDArray[np.int64]:
    """Positions that may be chosen, ascending: those with a value, from the floor up if there is one."""
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        raise ScoreError(f"{table.path} has no row with a value in column {by!r}; nothing can be selected")
    if floor is None:
        return finite
    allowed = finite[values[finite] >= floor]
    if not len(allowed):
        raise ScoreError(
            f"no row of {table.path} has at least {floor:g} in column {by!r}, whose highest value is "
            f"{values[finite].max():g}; lower the value after >="
        )
    return allowed


def _describe(table: ScoreTable, values: NDArray[np.float64], chosen: NDArray[np.int64]) -> Selection:
    """What some rows are of the pool."""
    names = table.names
    utility = table.numbers("utility") if "utility" in names else None
    tokens = table.numbers("tokens") if "tokens" in names else None
    return Selection(
        rows=np.sort(table.numbers("row")[chosen].astype(np.int64)),
        pool_rows=len(values),
        scored_rows=int(np.isfinite(values).sum()),
        threshold=float(values[chosen].min()),
        tokens=None if tokens is None else int(np.nansum(tokens[chosen])),
        tokens_share=None if tokens is None else _share(tokens, chosen),
        utility_share=None if utility is None else _share(np.maximum(utility, 0), chosen),
        harmful_kept=None if utility is None else int((utility[chosen] < 0).sum()),
        budget=None,
        skipped_similar=None,
    )


def top_rows(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the highest values, ascending; NaN and infinity are never chosen, ties go to the earlier one."""
    finite = np.flatnonzero(np.isfinite(values))
    if count >= len(finite):
        return finite
    known = values[finite]
    cut = np.partition(known, len(known) - count)[len(known) - count]
    above = finite[known > cut]
    equal = finite[known == cut][: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _share(values: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
    total = float(np.nansum(values))
    return float(np.nansum(values[chosen])) / total if total else 0.0
