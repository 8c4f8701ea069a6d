"""Whether a ranking column is a guide: what anchors and their corrupted copies say of it.

Anchors are right, their corrupted copies are wrong, and both are measured as rows are. So the area under the ROC curve
by which a column tells the two apart says what there is in ranking by it, on these data, for this proxy: 1 where each
anchor ranks above each copy, 0.5 by chance, and less where what is wrong ranks first.

    area = mean over kinds of error of P(anchor above copy) + P(tie) / 2

Its interval is a bootstrap over anchors, each with its copies, which are not independent of it, and over kinds of
error, as those of the pool need not be those that were tried.

Sources: Hanley and McNeil, The meaning and use of the area under a ROC curve (1982); Davison and Hinkley, Bootstrap
Methods and their Application, section 3.8 (clustered data).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from onesteptrain.data.corruption import STYLE
from onesteptrain.selection.power import Interval
from onesteptrain.storage.score_table import ScoreTable

_CHANCE = 0.5
_RESAMPLES = 500

Values = NDArray[np.float64]


class Guidance(NamedTuple):
    """What anchors and their corrupted copies say of ranking by a column, highest first."""

    column: str

    anchors: int

    area: Interval
    """Area under the ROC curve of anchors against copies, in the mean over kinds of error."""

    @property
    def verdict(self) -> Literal["guide", "no guide", "inverted"]:
        """On which side of chance the interval lies; no guide where chance is in it."""
        if self.area.low > _CHANCE:
            return "guide"
        return "inverted" if self.area.high < _CHANCE else "no guide"

    def sentences(self) -> list[str]:
        """What there is to say in words: nothing of a guide."""
        if self.verdict == "guide":
            return []
        value, high, low = (1 - share for share in self.area)
        wrong = f"{value:.0%}{Interval(value, low, high).reach()}"
        said = "as chance would" if self.verdict == "no guide" else "so that what is wrong comes first"
        return [
            f"{self.column} is {self.verdict} here: in {wrong} of all pairs it ranks a corrupted anchor above a right "
            f"one, {said}; the default rule does not rest on it"
        ]

    def facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self._asdict(), "area": self.area.facts(), "verdict": self.verdict}


def measure_guidance(table: ScoreTable, column: str) -> Guidance | None:
    """Ask anchors and corrupted anchors whether a column ranks what is right above what is wrong.

    Of a group's utility, which anchors are not measured by, the utility of all anchors together is asked about.

    Returns:
        None where the method measured no corrupted anchors, or not by this column.
    """
    reference, corrupted = table.reference, table.corrupted
    if reference is None or corrupted is None:
        return None
    measured = {*reference.names} & {*corrupted.names}
    if "utility" in measured and (column == "score" or (column.startswith("utility.") and column not in measured)):
        column = "utility"  # which is the score of the method that measures it
    if column not in measured:
        return None
    anchors, copies = reference.numbers(column), corrupted.numbers(column)
    facts = corrupted.read(["anchor", "kind"])
    known = np.flatnonzero(np.isfinite(anchors))
    source = pc.index_in(facts["anchor"], value_set=reference.read(["uid"])["uid"].take(known))
    source = source.fill_null(-1).to_numpy()
    kinds = np.array(facts["kind"].to_pylist(), np.str_)
    usable = np.isfinite(copies) & (source >= 0) & (kinds != STYLE)
    if not usable.any():
        return None
    area = copy_area(anchors[known], copies[usable], source[usable], kinds[usable])
    return Guidance(column, len(known), area)


def guidances(table: ScoreTable, columns: Iterable[str]) -> tuple[Guidance, ...]:
    """What is said of some columns, each once; nothing of one that anchors say nothing of."""
    measured = {column: measure_guidance(table, column) for column in dict.fromkeys(columns)}
    return tuple(dict.fromkeys(guidance for guidance in measured.values() if guidance is not None))


def copy_area(anchors: Values, copies: Values, source: NDArray[np.int64], kinds: NDArray[np.str_]) -> Interval:
    """Area under the ROC curve of anchors against copies of them, in the mean over kinds of error, with its interval.

    Args:
        anchors: Value of each anchor.
        copies: Value of each copy.
        source: Which anchor each copy is of.
        kinds: What is wrong with it.
    """
    names, codes = np.unique(kinds, return_inverse=True)
    kind = np.eye(len(names))[codes]
    above = (anchors[:, None] > copies) + 0.5 * (anchors[:, None] == copies)

    def areas(often: Values) -> Values:
        """By kind, where each anchor counts so often; NaN where no copy of a kind counts."""
        count = often[:, source]
        pairs = often.sum(axis=1, keepdims=True) * (count @ kind)
        found: Values = ((often @ above) * count) @ kind
        np.divide(found, pairs, out=found, where=pairs > 0)
        found[pairs == 0] = np.nan
        return found

    chance = np.random.default_rng(0)
    again = chance.multinomial(len(anchors), np.full(len(anchors), 1 / len(anchors)), _RESAMPLES).astype(float)
    other = chance.integers(0, len(names), (_RESAMPLES, len(names)))
    drawn = np.take_along_axis(areas(again), other, axis=1)
    drawn = drawn[np.isfinite(drawn).any(axis=1)]
    low, high = np.quantile(np.nanmean(drawn, axis=1), [0.025, 0.975])
    value = float(areas(np.ones((1, len(anchors)))).mean())
    return Interval(value, min(value, float(low)), max(value, float(high)))
