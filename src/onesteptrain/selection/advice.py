"""Which share to train on: what `ost select` keeps at each, and what that costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection.certainty import COLUMN, AnchorCount, anchor_curve, read_parts, stable_share, top_frequency
from onesteptrain.selection.figures import DefaultRule, Figures, default_rule
from onesteptrain.selection.guidance import Guidance, measure_guidance
from onesteptrain.selection.learning import Learning, measure_learning
from onesteptrain.selection.verdict import Verdict
from onesteptrain.storage.score_table import ScoreTable

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class ShareAdvice(NamedTuple):
    """What the default rule of `ost select` keeps at one share of the pool."""

    share: float
    kept: Figures
    """The mean over draws, where it draws."""

    train_seconds: float | None
    """An epoch on these rows, in proportion to their tokens where these are counted; None where none was asked for."""


class Advice(NamedTuple):
    """What a score table says about how much to keep."""

    shares: list[ShareAdvice]
    knee: float
    """Share at which more rows begin to add little utility, the best first."""

    recommended: float
    """Share that passes the trust gate, or the knee without one; all that is scored where nothing can be told."""

    why: str
    verdict: Verdict | None
    """What the trust gate says of the pool and of itself; None without it."""

    guidance: Guidance | None
    """What anchors and their corrupted copies say of the utility; None where the method measured none."""

    learning: Learning | None
    """Whether training is worth it, as far as the proxy can see; None where its warm-up measured no anchors."""

    stable: float | None
    """Share of the recommended top rows that nine of ten draws of the anchors would keep; None without intervals."""

    anchors: list[AnchorCount]
    """What more or fewer anchors would be worth; empty without intervals."""

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        shares = [{**line._asdict(), "kept": line.kept._asdict()} for line in self.shares]
        anchors = [line._asdict() for line in self.anchors]
        return {
            **self._asdict(),
            "shares": shares,
            "verdict": self.verdict and self.verdict.facts(),
            "guidance": self.guidance and self.guidance.facts(),
            "learning": self.learning and self.learning.facts(),
            "anchors": anchors,
        }


def advise(table: ScoreTable, *, seconds_per_row: float | None = None, kind: tuple[str, ...] = ()) -> Advice:
    """Weigh what a share keeps against what it costs.

    The knee is where the curve of summed utility over rows, the best first, is farthest above the straight line between
    its ends (as in Satopaa et al., Finding a "Kneedle" in a Haystack, 2011, without its smoothing).

    Args:
        table: Scores of method one_step.
        seconds_per_row: What training on a row takes, in the mean over the pool.
        kind: Columns of pool and anchors that say of which kind a row is; see `SelectOptions`.

    Raises:
        ScoreError: the table has no utility, no row has a score, or none passes the trust gate.
        ConfigError: the time of a row is no positive number.
    """
    if seconds_per_row is not None and not 0 < seconds_per_row < np.inf:
        raise ConfigError(f"train_seconds_per_row is {seconds_per_row}; it must be above 0")
    if "utility" not in table.names:
        raise ScoreError(f"{table.path} has no column 'utility'; advice rests on method one_step")
    utility = table.numbers("utility")
    order = np.argsort(-np.nan_to_num(utility, nan=-np.inf), kind="stable")[: int(np.isfinite(utility).sum())]
    rule = default_rule(table, kind)
    summed = np.cumsum(utility[order])
    knee = find_knee(summed / summed.max() if summed.max() > 0 else np.zeros(len(summed))) / table.rows
    shares = [_advice(rule, share, seconds_per_row) for share in SHARES]
    trust = rule.gated.trust
    recommended, why = _recommended(rule, knee)
    stable, curve = _certainty(table, recommended)
    guidance = measure_guidance(table, "utility")
    learning = measure_learning(table)
    return Advice(shares, knee, recommended, why, trust and trust.verdict, guidance, learning, stable, curve)


def find_knee(curve: NDArray[np.float64]) -> int:
    """Number of rows at which a curve is farthest above the chord between nothing and its end."""
    places = np.arange(1, len(curve) + 1)
    return int(places[np.argmax(curve - curve[-1] * places / len(curve))])


def _advice(rule: DefaultRule, share: float, seconds_per_row: float | None) -> ShareAdvice:
    kept = rule.figures(share)
    if seconds_per_row is None:
        return ShareAdvice(share, kept, None)
    rows = kept.rows if kept.tokens_share is None else kept.tokens_share * rule.table.rows
    return ShareAdvice(share, kept, seconds_per_row * rows)


def _recommended(rule: DefaultRule, knee: float) -> tuple[float, str]:
    share = len(rule.gated.passed) / rule.table.rows
    if rule.gated.gate == "blind":
        return share, "nothing can be told from these scores, so that no row is named"
    if rule.gated.trust is None:
        return knee, "the knee of the utility curve; scores with a reference of the anchors would tell what is clean"
    return share, "the rows that look like the anchors; fewer make training cheaper"


def _certainty(table: ScoreTable, share: float) -> tuple[float | None, list[AnchorCount]]:
    reference = table.reference
    if COLUMN not in table.names or reference is None or not 0 < share < 1:
        return None, []
    parts = read_parts(table)
    return stable_share(top_frequency(parts, share), share), anchor_curve(parts, reference.rows, share)
