"""From scores to a subset: a gate drops rows, a preference orders the others, and the budget says where to stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool, write_subset
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.selection.budget import Budget, parse_floor, read_budget
from onesteptrain.selection.gating import Gated, Positions, pass_gate
from onesteptrain.selection.keeping import keep_rows
from onesteptrain.selection.options import SelectOptions
from onesteptrain.selection.ordering import preference
from onesteptrain.selection.quotas import Groups, read_groups
from onesteptrain.storage.score_table import ScoreTable


class Selection(NamedTuple):
    """Which rows were kept, and how much of the pool that is."""

    rows: NDArray[np.int64]
    """Kept positions in the pool, ascending."""

    pool_rows: int
    scored_rows: int
    threshold: float
    """Lowest value of the ranking column that was kept."""

    tokens: int | None
    """Tokens of the kept rows, image tokens included; None if the method counts no tokens."""

    tokens_share: float | None
    """Share of the scored rows' tokens that is kept; None if the method counts no tokens."""

    utility_share: float | None
    """Share of the pool's positive utility that is kept; None if the method has no utility."""

    harmful_kept: int | None
    """Kept rows with negative utility."""

    budget: int | None
    """Rows that were asked for; None if every row from some value up was, or tokens."""

    skipped_similar: int | None
    """Rows that were passed over because they resemble a kept one; None if they were not compared."""

    gate: str
    """What dropped rows: trust, a share, a lowest value, or none."""

    prefer: str
    dropped: int
    """Scored rows that the gate dropped."""

    clean_share: float | None
    """Share of the scored rows that are clean, as the trust gate estimates it; None without it."""

    expected_clean: float | None
    """Share of the kept rows that are clean, as the trust gate estimates it; None without it."""

    groups: Mapping[str, int] | None
    """Kept rows of each quota group; None without a quota."""

    def summary(self) -> dict[str, Any]:
        """The numbers without the rows, for JSON."""
        return {name: value for name, value in self._asdict().items() if name != "rows"} | {"rows": len(self.rows)}


def select_subset(
    table: ScoreTable,
    pool: Pool,
    out: Path,
    *,
    keep: str,
    options: SelectOptions | None = None,
    overwrite: bool = False,
) -> Selection:
    """Write the kept rows of a pool, in its own format, byte for byte and in its order.

    Args:
        table: Scores of this pool.
        pool: The pool itself.
        out: The file to write.
        keep: How much; see `read_budget` and `parse_floor`.
        options: What is dropped and what is preferred.
        overwrite: Replace an existing file.

    Raises:
        PoolError: the pool is not the one that was scored, or the file exists.
        ScoreError: no such column, or no row to keep.
        ConfigError: the budget cannot be used.
    """
    scored = table.metadata.get("pool")
    if scored is not None and scored != pool.fingerprint:
        raise PoolError(f"{pool.path} has changed since {table.path} was written; score it again")
    selection = select_rows(table, keep=keep, options=options, pool=pool)
    write_subset(pool, selection.rows, out, overwrite=overwrite)
    return selection


def select_rows(
    table: ScoreTable, *, keep: str, options: SelectOptions | None = None, pool: Pool | None = None
) -> Selection:
    """Choose rows of a score table; rows without a score are never chosen.

    Args:
        table: The scores.
        keep: How much; see `read_budget` and `parse_floor`.
        options: What is dropped and what is preferred.
        pool: The pool, for a quota by one of its columns.

    Raises:
        ScoreError: no such column, or no row to keep.
        ConfigError: the budget cannot be used.
    """
    options = options or SelectOptions()
    floor = parse_floor(keep)
    if floor is not None and options.quota is not None:
        raise ConfigError(f"keep is {keep!r}, which gives no number of rows to share out; leave quota out, or give 20%")
    budget = Budget(table.rows) if floor is not None else read_budget(keep, table.rows)
    gated = pass_gate(table, options, floor)
    groups = None if options.quota is None else read_groups(table, pool, options.quota)
    kept = keep_rows(table, gated, options, budget, groups)
    described = _describe(table, options, gated, np.sort(kept.rows))
    asked = None if floor is not None or budget.tokens is not None else budget.rows
    kept_groups = None if groups is None else _count(groups, kept.rows)
    return described._replace(budget=asked, skipped_similar=kept.skipped, groups=kept_groups)


def _describe(table: ScoreTable, options: SelectOptions, gated: Gated, chosen: Positions) -> Selection:
    """What some rows are of the pool."""
    names, values = table.names, table.numbers(options.by or "score")
    utility = table.numbers("utility") if "utility" in names else None
    tokens = table.numbers("tokens") if "tokens" in names else None
    trust = gated.trust
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
        gate=gated.gate,
        prefer=preference(options, gated),
        dropped=gated.dropped,
        clean_share=None if trust is None else trust.clean_share,
        expected_clean=None if trust is None else float(np.nanmean(trust.chance[chosen])),
        groups=None,
    )


def _count(groups: Groups, chosen: Positions) -> dict[str, int]:
    sizes = groups.sizes(chosen).tolist()
    return {name: count for name, count in zip(groups.names, sizes, strict=True) if count}


def _share(values: NDArray[np.float64], chosen: NDArray[np.int64]) -> float:
    total = float(np.nansum(values))
    return float(np.nansum(values[chosen])) / total if total else 0.0
