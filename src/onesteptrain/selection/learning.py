"""Whether training on a pool is worth it, as far as the proxy can see: what its warm-up did to the loss of the anchors.

A warm-up is a short training on rows of the pool; where it was asked to, it measured the anchors before and after
(`storage.learning_record`). Training is not worth it where the proxy gave the anchors' answers already, or where their
loss did not fall by a noticeable part, though that of the rows trained on did. The warm-up of a second pass was on rows
that pass the gate; any other was on rows as they are, and speaks of the whole pool alone.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.stats import binomtest

from onesteptrain.selection.power import Interval
from onesteptrain.selection.trust import FEWEST_ANCHORS, SECOND_SIGNALS
from onesteptrain.storage.learning_record import LearningRecord, Losses, read_learning_record
from onesteptrain.storage.score_table import ScoreTable

_NOTICEABLE = 0.05
"""Part of its loss by which training must lower it to be worth a word."""

_KNOWN = 0.9
"""Share of the anchors' answers that a proxy gives already where there is little left to learn."""

_FEWEST_ROWS = 100
"""A warm-up on fewer rows learns them by heart, and says little of what many would teach."""

_RESAMPLES = 2000


class Learning(NamedTuple):
    """What a warm-up did to the loss of the anchors, with 95 % intervals over the draw of the anchors."""

    rows: int
    """Different rows that the warm-up was on."""

    passing: bool
    """Whether these passed the trust gate."""

    anchors: int

    known: Interval
    """Probability that the proxy gives an anchor's answer word by word, before the warm-up."""

    fall: Interval
    """Part by which the warm-up lowered the loss of the anchors; negative where it rose."""

    own_fall: Interval
    """The same of rows that the warm-up was on."""

    @property
    def verdict(self) -> Literal["worth it", "not worth it", "cannot tell"]:
        """Whether training is worth it; cannot tell where the warm-up was too short, or the interval is too wide."""
        if self.known.low >= _KNOWN:
            return "not worth it"
        if self.rows < _FEWEST_ROWS or self.own_fall.value < _NOTICEABLE:
            return "cannot tell"
        if self.fall.high < _NOTICEABLE:
            return "not worth it"
        return "worth it" if self.fall.low > 0 else "cannot tell"

    def sentences(self) -> list[str]:
        """What there is to say in words: nothing unless training is not worth it."""
        if self.verdict != "not worth it":
            return []
        if self.known.low >= _KNOWN:
            given = f"{self.known.value:.0%}{self.known.reach()}"
            return [
                "training on this pool is not worth it, as far as the proxy can see: before its warm-up it gave "
                f"{given} of the anchors' answers word by word"
            ]
        change = f"{-self.fall.value:+.0%} ({-self.fall.high:+.0%} to {-self.fall.low:+.0%})"
        what = "this pool" if self.passing else "the whole pool"
        which = "rows that pass the gate" if self.passing else "rows as they are"
        more = "" if self.passing else "; `ost run` tells of the rows that pass the gate, by a second pass"
        return [
            f"training on {what} is not worth it, as far as the proxy can see: a warm-up on {self.rows:,} {which} "
            f"changed the loss of {self.anchors} anchors by {change}{more}"
        ]

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        intervals = {name: getattr(self, name).facts() for name in ("known", "fall", "own_fall")}
        return {**self._asdict(), **intervals, "verdict": self.verdict}


def measure_learning(table: ScoreTable) -> Learning | None:
    """What the warm-up of the proxy that scored a pool did to the loss of the anchors.

    Returns:
        None where it was not measured, or on fewer than 20 anchors.

    Raises:
        RunError: what is on record is broken.
    """
    record = read_learning_record(table.path.parent)
    if record is None or len(record.anchors.before) < FEWEST_ANCHORS:
        return None
    return learning_of(record, passing=set(SECOND_SIGNALS) <= set(table.names))


def learning_of(record: LearningRecord, *, passing: bool) -> Learning:
    """The same of what is on record of a warm-up, and whether its rows passed the gate."""
    known, (fall, own) = _known(record.anchors), map(_fall, (record.anchors, record.own))
    return Learning(record.rows, passing, len(record.anchors.before), known, fall, own)


def _known(losses: Losses) -> Interval:
    """Expected share of answers given word by word; Wilson's interval, which is wide enough for any of that mean."""
    each = np.exp(-np.array(losses.before) * np.array(losses.tokens))
    low, high = binomtest(int(each.sum()), len(each)).proportion_ci(method="wilson")
    return Interval(float(each.mean()), float(low), float(high))


def _fall(losses: Losses) -> Interval:
    """1 - mean loss after / mean loss before, by a bootstrap over samples, each with both its losses."""
    before, after = np.array(losses.before), np.array(losses.after)
    if not before.sum() > 0:
        return Interval(0.0, 0.0, 0.0)
    again = np.random.default_rng(0).multinomial(len(before), np.full(len(before), 1 / len(before)), _RESAMPLES)
    falls = 1 - (again @ after) / np.maximum(again @ before, np.finfo(float).tiny)
    low, high = np.quantile(falls, [0.025, 0.975])
    return Interval(1 - float(after.sum() / before.sum()), float(low), float(high))
