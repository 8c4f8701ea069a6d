"""What a subset holds of its pool: figures that `ost select` states, `ost advise` tabulates, the report shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.selection.gating import Gated, Positions, pass_gate
from onesteptrain.selection.options import SelectOptions
from onesteptrain.selection.orders import top_order
from onesteptrain.selection.trust import Trust
from onesteptrain.storage.score_table import ScoreTable

Column = NDArray[np.float64]


class Figures(NamedTuple):
    """What a subset holds; where it is drawn at random, the mean over all draws."""

    rows: int
    tokens: int | None
    """Image tokens included; None if the method counts no tokens, as is the next."""

    tokens_share: float | None
    """Share of the scored rows' tokens."""

    utility_share: float | None
    """Share of the pool's positive utility; None if the method has no utility, as is the next."""

    harmful: float | None
    """Rows with negative utility."""

    clean_share: float | None
    """Share of the rows that are clean, of those that the trust gate can judge, as it estimates it; None without it."""


class Measures(NamedTuple):
    """What the figures of a pool's subsets are sums of."""

    utility: Column | None
    tokens: Column | None
    trust: Trust | None

    def figures(self, rows: Positions, drawn: int | None = None) -> Figures:
        """What some rows hold; or so many of them, in the mean over all draws of so many.

        Args:
            rows: Positions in the score table.
            drawn: How many of them; by default all.
        """
        rows = np.sort(rows)  # so that a sum does not depend on the order of the rows
        part = 1.0 if drawn is None else drawn / len(rows)
        utility, tokens, trust = self.utility, self.tokens, self.trust
        return Figures(
            rows=len(rows) if drawn is None else drawn,
            tokens=None if tokens is None else round(part * float(np.nansum(tokens[rows]))),
            tokens_share=None if tokens is None else part * _share(tokens, rows),
            utility_share=None if utility is None else part * _share(np.maximum(utility, 0), rows),
            harmful=None if utility is None else part * float((utility[rows] < 0).sum()),
            clean_share=None if trust is None else _clean(trust, rows),
        )


def read_measures(table: ScoreTable, trust: Trust | None) -> Measures:
    """Read what figures are sums of."""
    utility, tokens = (table.numbers(name) if name in table.names else None for name in ("utility", "tokens"))
    return Measures(utility, tokens, trust)


class DefaultRule(NamedTuple):
    """What `ost select` does with a score table where nothing but a budget is given."""

    table: ScoreTable
    gated: Gated
    measures: Measures

    def figures(self, keep_share: float) -> Figures:
        """What it keeps of a share: the mean over draws behind the trust gate, even a blind one; elsewhere the best.

        Where fewer rows pass the gate than are asked for, these are all of them.
        """
        passed = self.gated.passed
        rows = min(max(1, round(keep_share * self.table.rows)), len(passed))
        if self.gated.gate in ("trust", "blind"):
            return self.measures.figures(passed, rows)
        return self.measures.figures(top_order(self.table.numbers("score"), passed)[:rows])


def default_rule(table: ScoreTable, kind: tuple[str, ...] = ()) -> DefaultRule:
    """The default rule on a score table.

    Args:
        table: The scores.
        kind: Columns of pool and anchors that say of which kind a row is; see `SelectOptions`.

    Raises:
        ScoreError: no row has a score, or none passes the trust gate.
    """
    gated = pass_gate(table, SelectOptions(kind=kind))
    return DefaultRule(table, gated, read_measures(table, gated.trust))


def _clean(trust: Trust, rows: Positions) -> float | None:
    """Share of the judged ones of some rows that is clean: of rows that pass, as the gate estimates it for all."""
    told, judged = trust.verdict.passing_clean, rows[~trust.unjudged[rows]]
    if told is None or not len(judged):
        return None
    passing = trust.passing()[judged]
    others = np.nan_to_num(trust.probability[judged][~passing])
    return float((told.value * passing.sum() + others.sum()) / len(judged))


def _share(values: Column, rows: Positions) -> float:
    total = float(np.nansum(values))
    return float(np.nansum(values[rows])) / total if total else 0.0
