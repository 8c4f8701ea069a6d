"""The decision: what to do with the pool, in a sentence or two, and what the gate cannot see."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.reporting.counting import Column
from onesteptrain.reporting.typeset import count, percent
from onesteptrain.selection.figures import DefaultRule
from onesteptrain.selection.power import Interval
from onesteptrain.selection.separation import separate
from onesteptrain.selection.trust import Trust, read_examples

_SEEN = 0.5
"""A kind of error is called unseen where the gate drops less than this share of its copies."""


class Decision(NamedTuple):
    """What the default rule of `ost select` does with a pool."""

    headline: str
    reasons: list[str]
    """Sentences: what is kept, what the gate cannot see, what is saved."""

    keep: str
    """For `--keep`; empty where the gate drops nothing."""


class Cut(NamedTuple):
    """Nonconformity of rows and anchors: standard deviations of the anchors, beyond their median."""

    value: Column
    """Of each row of the table; NaN where there is none."""

    passing: NDArray[np.bool_]
    """Which rows are kept."""

    anchors: Column

    @property
    def kept(self) -> Column:
        """Of the rows that are kept."""
        return self.value[np.isfinite(self.value) & self.passing]

    @property
    def dropped(self) -> Column:
        """Of the rows that are dropped."""
        return self.value[np.isfinite(self.value) & ~self.passing]


def decide(rule: DefaultRule) -> Decision:
    """Say what the default rule does with a pool."""
    gated, rows = rule.gated, rule.table.scored
    trust = gated.trust
    if gated.gate != "trust" or trust is None:
        why = (
            "the gate is blind: copies of the anchors with errors put in look like anchors to this proxy"
            if gated.gate == "blind"
            else "the table does not say what good rows look like (that needs 20 anchors, scored by fd or jvp)"
        )
        return Decision(f"Drop nothing on the strength of these scores: {why}.", [], "")
    passed, dropped = len(gated.passed), rows - len(gated.passed)
    headline = f"Drop {count(dropped)} of {count(rows)} scored rows ({percent(dropped / rows)}) and train on the rest."
    tokens = rule.measures.figures(gated.passed).tokens_share
    saved = "" if tokens is None else f" An epoch on them takes {percent(tokens)} of the pool's tokens."
    unlike = "unlike the anchors" if trust.verdict.power is None else "more like anchors with errors than like anchors"
    reasons = [
        f"The dropped rows are {unlike}. {count(passed)} are kept.{saved}",
        *_clean(trust),
        *_unseen(trust),
    ]
    return Decision(headline, reasons, str(passed))


def find_cut(rule: DefaultRule) -> Cut | None:
    """Where rows and anchors lie, and which rows are dropped; None without the trust gate, or where it is blind."""
    gated = rule.gated
    if gated.gate != "trust" or gated.trust is None or gated.kinds is None:
        return None
    value, passing = gated.trust.nonconformity, gated.trust.passing()
    examples = read_examples(rule.table, gated.kinds)
    separation = separate(examples, len(gated.kinds.names))
    anchors = separation.nonconformity(examples.anchors, examples.anchor_codes)
    return Cut(value, passing, anchors)


def _clean(trust: Trust) -> list[str]:
    pool, passing = trust.verdict.clean, trust.verdict.passing_clean
    if pool is None or passing is None:
        return []
    return [f"Expected clean: about {_told(passing)} of the kept rows; of the whole pool {_told(pool)}."]


def _told(share: Interval) -> str:
    return f"{share.value:.0%}{share.reach()}"


def _unseen(trust: Trust) -> list[str]:
    power = trust.verdict.power
    unjudged = int(trust.unjudged.sum())
    judged = [f"{count(unjudged)} rows are of a kind without anchors and are not judged."] if unjudged else []
    if power is None:
        return ["How much harm is missed is not known: no anchors with errors were scored.", *judged]
    unseen = [
        f"{kind.kind.replace('_', ' ')} ({kind.at_cut.value:.0%})" for kind in power.kinds if kind.at_cut.value < _SEEN
    ]
    if not unseen:
        return [
            f"Of the errors that were tried on anchors, {power.at_cut:.0%} are noticed; others may be missed.",
            *judged,
        ]
    return [f"What the gate cannot see well, with the share that it notices: {', '.join(unseen)}.", *judged]
