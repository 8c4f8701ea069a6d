"""From scores to a subset: a gate drops rows, a preference orders the others, and the budget says where to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool, write_subset
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection.figures import Figures, read_measures
from onesteptrain.selection.gating import Gated, pass_gate, without_excluded
from onesteptrain.selection.guidance import Guidance, guidances
from onesteptrain.selection.keeping import keep_rows, preference, ranking_column
from onesteptrain.selection.learning import Learning, measure_learning
from onesteptrain.selection.options import Budget, SelectOptions, parse_floor, read_budget
from onesteptrain.selection.quotas import Groups, read_groups
from onesteptrain.selection.recorded import scored_pool
from onesteptrain.selection.verdict import Verdict
from onesteptrain.storage.display import html_table
from onesteptrain.storage.score_table import ScoreTable


class KindShare(NamedTuple):
    """What becomes of a kind of rows."""

    before: float
    """Share of the scored rows."""

    after: float
    """Share of the kept rows."""


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Which rows of a scored pool were kept, and how much of it that is."""

    table: ScoreTable
    """The scores."""

    rows: NDArray[np.int64]
    """Kept positions in the pool, ascending."""

    pool_rows: int
    scored_rows: int
    threshold: float
    """Lowest value of the ranking column that was kept."""

    kept: Figures
    """What the kept rows hold."""

    expected: Figures | None
    """The same in the mean over all draws; None unless rows are drawn as they come."""

    budget: int | None
    """Rows that were asked for; None if every row from some value up was, or tokens."""

    skipped_similar: int | None
    """Rows that were passed over because they resemble a kept one; None if they were not compared."""

    gate: str
    """What dropped rows: trust, a share, a lowest value, or none; blind where the scores could not tell."""

    prefer: str
    dropped: int
    """Scored rows that the gate dropped."""

    verdict: Verdict | None
    """What the trust gate says of the pool and of itself; None without it."""

    guidance: tuple[Guidance, ...]
    """What anchors and their corrupted copies say of the columns that it rests on, or would not rest on; nothing where
    the method measured none."""

    learning: Learning | None
    """Whether training is worth it, as far as the proxy can see; None where its warm-up measured no anchors."""

    groups: Mapping[str, int] | None
    """Kept rows of each quota group; None without a quota."""

    kinds: Mapping[str, KindShare] | None = None
    """Of each kind of rows that the trust gate went by; None where all rows are of one."""

    given_pool: Pool | None = None
    """The pool, if the caller had it open."""

    excluded: int = 0
    """Rows that a file names, and that are not kept whatever they look like."""

    @property
    def clean_share(self) -> float | None:
        """Share of the scored rows that is clean, as the trust gate estimates it; None where it cannot tell."""
        return self.verdict and self.verdict.clean_share

    @property
    def pool(self) -> Pool:
        """The pool that the rows are of.

        Raises:
            PoolError: it is not there, or has changed since it was scored.
        """
        return scored_pool(self.table, self.given_pool)

    def write(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write the kept rows in the pool's own format, byte for byte and in its order.

        Raises:
            PoolError: the pool is not there or has changed since it was scored, or the file exists.
        """
        write_subset(self.pool, self.rows, out, overwrite=overwrite)
        return Path(out)

    def to_dataset(self) -> Any:
        """The kept rows as a `datasets.Dataset`."""
        return self.pool.to_dataset(self.rows)

    def to_pandas(self) -> Any:
        """The kept rows as a pandas frame; images are what they are in the pool."""
        import pandas as pd

        rows = self.pool.subset(self.rows).source
        return rows.to_pandas() if hasattr(rows, "to_pandas") else pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """The numbers without the rows, for JSON."""
        names = (
            "pool_rows",
            "scored_rows",
            "threshold",
            "budget",
            "skipped_similar",
            "gate",
            "prefer",
            "dropped",
            "excluded",
        )
        facts = {name: getattr(self, name) for name in (*names, "clean_share", "groups")}
        facts["verdict"] = self.verdict and self.verdict.facts()
        facts["kinds"] = self.kinds and {name: share._asdict() for name, share in self.kinds.items()}
        facts["guidance"] = [guidance.facts() for guidance in self.guidance]
        facts["learning"] = self.learning and self.learning.facts()
        expected = None if self.expected is None else self.expected._asdict()
        return {"rows": len(self), **facts, "kept": self.kept._asdict(), "expected": expected}

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Selection({len(self)} of {self.pool_rows} rows, gate={self.gate!r}, prefer={self.prefer!r})"

    def _repr_html_(self) -> str:
        kept = self.kept
        facts = {
            "rows": f"{len(self):,} of {self.pool_rows:,}",
            "tokens": kept.tokens_share,
            "positive utility": kept.utility_share,
            "clean, expected": kept.clean_share,
        }
        shown = {name: f"{fact:.1%}" if isinstance(fact, float) else fact for name, fact in facts.items()}
        return html_table(repr(self), list(shown), [list(shown.values())])


def select_rows(
    table: ScoreTable, *, keep: str, options: SelectOptions | None = None, pool: Pool | None = None
) -> Selection:
    """Choose rows of a score table; rows without a score are never chosen.

    Args:
        table: The scores.
        keep: How much; see `read_budget` and `parse_floor`.
        options: What is dropped and what is preferred.
        pool: What was scored; by default what its run has read, opened when it is needed.

    Raises:
        ScoreError: no such column, or no row to keep.
        ConfigError: the budget cannot be used.
        PoolError: a quota is by a column of the pool, which is not there or has changed.
    """
    options = options or SelectOptions()
    floor = parse_floor(keep)
    if floor is not None and options.quota is not None:
        raise ConfigError(f"keep is {keep!r}, which gives no number of rows to share out; leave quota out, or give 20%")
    budget = Budget(table.rows) if floor is not None else read_budget(keep, table.rows)
    gated, excluded = without_excluded(pass_gate(table, options, floor, pool), table, options.exclude)
    groups = _groups(table, gated, options, pool)
    kept, prefer = keep_rows(table, gated, options, budget, groups), preference(options, gated)
    ranked = ranking_column(options, gated)
    chosen, values = np.sort(kept.rows), table.numbers(options.by or "score")
    measures = read_measures(table, gated.trust)
    drawn = prefer == "draw" and groups is None and kept.skipped is None and budget.tokens is None
    return Selection(
        table=table,
        rows=np.sort(table.numbers("row")[chosen].astype(np.int64)),
        pool_rows=len(values),
        scored_rows=int(np.isfinite(values).sum()),
        threshold=float(values[chosen].min()),
        kept=measures.figures(chosen),
        expected=measures.figures(gated.passed, len(chosen)) if drawn and len(chosen) <= len(gated.passed) else None,
        budget=None if floor is not None or budget.tokens is not None else budget.rows,
        skipped_similar=kept.skipped,
        gate=gated.gate,
        prefer=prefer,
        dropped=gated.dropped,
        verdict=gated.trust and gated.trust.verdict,
        guidance=tuple(dict.fromkeys([*gated.guidance, *guidances(table, [ranked] if ranked else [])])),
        learning=measure_learning(table),
        groups=None if groups is None or options.quota is None else _count(groups, chosen),
        kinds=_kind_shares(gated, values, chosen),
        given_pool=pool,
        excluded=excluded,
    )


def _groups(table: ScoreTable, gated: Gated, options: SelectOptions, pool: Pool | None) -> Groups | None:
    """Groups that have their shares of the budget: by the column asked for, else kinds where some are not judged.

    Of these none is dropped, and drawn with the others they would have more than their share of the pool.
    """
    trust = gated.trust if gated.gate == "trust" else None
    if options.quota is not None:
        groups = read_groups(table, options.quota, lambda: scored_pool(table, pool))
        if options.quota_shares != "clean":
            return groups
        if trust is None:
            raise ScoreError(f"{table.path} does not say what is clean; leave quota_shares clean out")
        return groups._replace(expected=trust.expected_clean())
    if trust is None or gated.kinds is None or not trust.unjudged.any():
        return None
    return Groups([*gated.kinds.names], gated.kinds.rows, trust.expected_clean())


def _kind_shares(gated: Gated, values: NDArray[np.float64], chosen: NDArray[np.int64]) -> dict[str, KindShare] | None:
    kinds = gated.kinds
    if kinds is None or not kinds.by:
        return None
    many = len(kinds.names)
    before, after = (np.bincount(kinds.rows[rows], minlength=many) for rows in (np.isfinite(values), chosen))
    there = np.flatnonzero(before).tolist()
    return {
        kinds.names[kind]: KindShare(float(before[kind] / before.sum()), float(after[kind] / after.sum()))
        for kind in there
    }


def _count(groups: Groups, chosen: NDArray[np.int64]) -> dict[str, int]:
    sizes = groups.sizes(chosen).tolist()
    return {name: count for name, count in zip(groups.names, sizes, strict=True) if count}
