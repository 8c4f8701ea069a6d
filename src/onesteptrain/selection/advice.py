"""Which share to train on: what each share keeps of the pool's utility, and what it costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection.certainty import (
    COLUMN,
    AnchorCount,
    anchor_curve,
    read_parts,
    stable_share,
    top_chances,
)
from onesteptrain.selection.trust import Trust, can_trust, measure_trust
from onesteptrain.storage.score_table import ScoreTable

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class ShareAdvice(NamedTuple):
    """One share of the pool."""

    share: float
    rows: int
    utility: float
    """Sum of utility of so many best rows, as a share of the highest sum that any number of them has."""

    tokens: float | None
    """Share of the pool's tokens in the same rows: what an epoch on them costs; None if no tokens are counted."""

    clean: float | None
    """Expected share of clean rows where the default rule keeps so many (with --fill beyond the gate); None without
    trust."""

    train_seconds: float | None
    """An epoch on the same rows, in proportion to their tokens where they are counted; None if a row's time is not
    known."""


class Advice(NamedTuple):
    """What a score table says about how much to keep."""

    shares: list[ShareAdvice]
    knee: float
    """Share at which more rows begin to add little utility."""

    recommended: float
    """Share that passes the trust gate, or the knee without one."""

    why: str
    clean_share: float | None
    """Of the scored rows, as the trust gate estimates it."""

    stable: float | None
    """Share of the recommended top rows that nine of ten draws of the anchors would keep; None without intervals."""

    anchors: list[AnchorCount]
    """What more or fewer anchors would be worth; empty without intervals."""

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        lists = {name: [one._asdict() for one in getattr(self, name)] for name in ("shares", "anchors")}
        return self._asdict() | lists


def advise(table: ScoreTable, *, seconds_per_row: float | None = None) -> Advice:
    """Weigh what a share keeps against what it costs.

    The knee is where the curve of utility over rows is farthest above the straight line between its ends (as in
    Satopaa et al., Finding a "Kneedle" in a Haystack, 2011, without its smoothing).

    Args:
        table: Scores of method one_step.
        seconds_per_row: What training on a row takes, in the mean over the pool.

    Raises:
        ScoreError: the table has no utility.
        ConfigError: the time of a row is no positive number.
    """
    if seconds_per_row is not None and not 0 < seconds_per_row < np.inf:
        raise ConfigError(f"train_seconds_per_row is {seconds_per_row}; it must be above 0")
    if "utility" not in table.names:
        raise ScoreError(f"{table.path} has no column 'utility'; advice rests on method one_step")
    utility = table.numbers("utility")
    order = np.argsort(-np.nan_to_num(utility, nan=-np.inf), kind="stable")[: int(np.isfinite(utility).sum())]
    if not len(order):
        raise ScoreError(f"{table.path} has no row with a score; nothing can be advised")
    kept = np.cumsum(utility[order])
    kept = kept / kept.max() if kept.max() > 0 else np.zeros(len(kept))
    tokens = _costs(table, order)
    trust = measure_trust(table) if can_trust(table) else None
    clean = _clean_curve(trust) if trust is not None else None
    shares = [_timed(_share(share, table.rows, kept, tokens, clean), table.rows, seconds_per_row) for share in SHARES]
    knee = find_knee(kept) / table.rows
    recommended, why = _recommended(trust, table.rows, knee)
    stable, curve = _certainty(table, recommended)
    return Advice(shares, knee, recommended, why, trust and trust.clean_share, stable, curve)


def find_knee(curve: NDArray[np.float64]) -> int:
    """Number of rows at which a curve is farthest above the chord between nothing and its end."""
    places = np.arange(1, len(curve) + 1)
    return int(places[np.argmax(curve - curve[-1] * places / len(curve))])


def _share(
    share: float,
    rows: int,
    kept: NDArray[np.float64],
    tokens: NDArray[np.float64] | None,
    clean: NDArray[np.float64] | None,
) -> ShareAdvice:
    count = max(1, round(share * rows))
    at = min(count, len(kept)) - 1
    return ShareAdvice(
        share,
        count,
        float(kept[at]),
        None if tokens is None else float(tokens[at]),
        None if clean is None else float(clean[min(count, len(clean)) - 1]),
        None,
    )


def _timed(one: ShareAdvice, rows: int, seconds_per_row: float | None) -> ShareAdvice:
    if seconds_per_row is None:
        return one
    return one._replace(train_seconds=seconds_per_row * (one.rows if one.tokens is None else one.tokens * rows))


def _costs(table: ScoreTable, order: NDArray[np.int64]) -> NDArray[np.float64] | None:
    if "tokens" not in table.names:
        return None
    tokens = np.nan_to_num(table.numbers("tokens")[order], nan=0.0)
    costs: NDArray[np.float64] = np.cumsum(tokens) / max(tokens.sum(), 1.0)
    return costs


def _clean_curve(trust: Trust) -> NDArray[np.float64]:
    """Expected clean share of what the default rule keeps, by number of rows: even behind the gate, then falling."""
    passing = trust.passing()
    order = np.argsort(np.nan_to_num(trust.suspicion, nan=np.inf), kind="stable")
    chances = trust.chance[order[: int(np.isfinite(trust.suspicion).sum())]]
    count = int(passing.sum())
    behind = np.full(count, trust.chance[passing].mean() if count else 0.0)
    curve: NDArray[np.float64] = np.cumsum(np.concatenate([behind, chances[count:]])) / np.arange(1, len(chances) + 1)
    return curve


def _recommended(trust: Trust | None, rows: int, knee: float) -> tuple[float, str]:
    if trust is None:
        return knee, "the knee of the utility curve; scores with a reference of the anchors would tell what is clean"
    return float(trust.passing().sum()) / rows, "the rows that look like the anchors; fewer make training cheaper"


def _certainty(table: ScoreTable, share: float) -> tuple[float | None, list[AnchorCount]]:
    reference = table.reference
    if COLUMN not in table.names or reference is None or not 0 < share < 1:
        return None, []
    parts = read_parts(table)
    return stable_share(top_chances(parts, share), share), anchor_curve(parts, reference.rows, share)
