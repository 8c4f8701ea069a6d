"""What the trust gate would notice: power, by kind of error.

Corrupted anchors are scored like rows. The power for a kind of corruption is the share of its copies that the gate
drops, with Wilson's interval.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from onesteptrain.data.corruption import KINDS, STYLE

Values = NDArray[np.float64]
Errors = NDArray[np.str_]

FALSE_ALARMS = 0.05

_LEAST_POWER = 0.25
"""Least mean power at 5 % false alarms for anything to be said of the pool: five times what chance would notice."""


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def facts(self) -> dict[str, float | None]:
        """Plain values, for JSON, which has no NaN."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}

    def reach(self) -> str:
        """The interval in words, for behind the number; nothing where it is not known."""
        return "" if math.isnan(self.low) else f" ({self.low:.0%} to {self.high:.0%})"


class KindPower(NamedTuple):
    """How well a kind of corruption is noticed."""

    kind: str
    copies: int
    at_cut: Interval
    """Share of the copies that the gate drops."""

    at_false_alarms: Interval
    """Share of the copies that a cut would drop that drops 5 % of the anchors."""


class Power(NamedTuple):
    """How well harm is noticed, by kind."""

    kinds: list[KindPower]
    at_cut: float
    """Mean over the kinds of error."""

    at_false_alarms: float

    @property
    def blind(self) -> bool:
        """Whether too little is noticed for anything to be said of a pool."""
        return self.at_false_alarms < _LEAST_POWER

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kinds = [
            {"kind": kind.kind, "copies": kind.copies}
            | {name: getattr(kind, name).facts() for name in ("at_cut", "at_false_alarms")}
            for kind in self.kinds
        ]
        return {**self._asdict(), "kinds": kinds}

    def describe(self) -> str:
        """In one line: what is noticed, and what is not."""
        unseen = [kind.kind for kind in self.kinds if kind.at_cut.value < 0.5 and kind.kind != STYLE]
        line = f"of corrupted anchors the gate would drop {self.at_cut:.0%}"
        return line + (f"; mostly missed: {', '.join(unseen)}" if unseen else "")


def measure_power(anchors: Values, corrupted: Values, errors: Errors, cuts: Values | float) -> Power:
    """Power by kind of corruption.

    Args:
        anchors: Nonconformity of the anchors.
        corrupted: That of corrupted anchors.
        errors: What is wrong with each.
        cuts: Nonconformity of each corrupted anchor's kind from which on rows are dropped.
    """
    usual = float(np.quantile(anchors, 1 - FALSE_ALARMS))
    dropped, unusual = corrupted > cuts, corrupted > usual
    measured = []
    for kind in [kind for kind in KINDS if (errors == kind).any()]:
        mine = errors == kind
        shares = (_share(int(beyond[mine].sum()), int(mine.sum())) for beyond in (dropped, unusual))
        measured.append(KindPower(kind, int(mine.sum()), *shares))
    wrong = [kind for kind in measured if kind.kind != STYLE] or measured
    return Power(
        measured, *(float(np.mean([getattr(kind, name).value for kind in wrong])) for name in KindPower._fields[2:])
    )


def _share(count: int, of: int) -> Interval:
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Interval(count / of, float(interval.low), float(interval.high))
