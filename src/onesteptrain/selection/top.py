"""Top share: keep the rows with the highest score."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import PoolError, ScoreError
from onesteptrain.pool import Pool, write_subset
from onesteptrain.scores import ScoreTable
from onesteptrain.selection.budget import parse_budget


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

    def summary(self) -> dict[str, Any]:
        """The numbers without the rows, for JSON."""
        return {name: value for name, value in self._asdict().items() if name != "rows"} | {"rows": len(self.rows)}


def select_subset(
    table: ScoreTable, pool: Pool, out: Path, *, keep: str, by: str = "score", overwrite: bool = False
) -> Selection:
    """Write the kept rows of a pool, in its own format, byte for byte and in its order.

    Args:
        table: Scores of this pool.
        pool: The pool itself.
        out: The file to write.
        keep: A share such as "20%" or a number of rows.
        by: Numeric column to rank by, highest first.
        overwrite: Replace an existing file.

    Raises:
        PoolError: the pool is not the one that was scored, or the file exists.
        ScoreError: no such column.
        ConfigError: the budget cannot be read.
    """
    scored = table.metadata.get("pool")
    if scored is not None and scored != pool.fingerprint:
        raise PoolError(f"{pool.path} has changed since {table.path} was written; score it again")
    selection = select_rows(table, keep=keep, by=by)
    write_subset(pool, selection.rows, out, overwrite=overwrite)
    return selection


def select_rows(table: ScoreTable, *, keep: str, by: str = "score") -> Selection:
    """Choose the rows with the highest values of a column; rows without a score are never chosen."""
    values = table.numbers(by)
    rows = table.numbers("row").astype(np.int64)
    budget = parse_budget(keep, len(values))
    chosen = top_rows(values, budget)
    if not len(chosen):
        raise ScoreError(f"{table.path} has no row with a value in column {by!r}; nothing can be selected")
    names = table.names
    utility = table.numbers("utility") if "utility" in names else None
    return Selection(
        rows=np.sort(rows[chosen]),
        pool_rows=len(values),
        scored_rows=int(np.isfinite(values).sum()),
        threshold=float(values[chosen].min()),
        tokens=int(np.nansum(table.numbers("tokens")[chosen])) if "tokens" in names else None,
        tokens_share=_share(table.numbers("tokens"), chosen) if "tokens" in names else None,
        utility_share=None if utility is None else _share(np.maximum(utility, 0), chosen),
        harmful_kept=None if utility is None else int((utility[chosen] < 0).sum()),
    )


def top_rows(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the highest values, in ascending order; NaN is never chosen, ties go to the earlier position."""
    finite = np.flatnonzero(np.isfinite(values))
    if count >= len(finite):
        return finite
    cut = np.partition(values[finite], len(finite) - count)[len(finite) - count]
    above = np.flatnonzero(values > cut)
    equal = np.flatnonzero(values == cut)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _share(values: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
    total = float(np.nansum(values))
    return float(np.nansum(values[chosen])) / total if total else 0.0
