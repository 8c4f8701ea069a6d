"""How often a decision is right, as far as rows drawn at random and marked by a person can tell."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import hypergeom

from onesteptrain.errors import ConfigError

CONFIDENCE = 0.95


class Precision(NamedTuple):
    """Share of a decision's rows for which it is right, with an interval that holds the truth at `CONFIDENCE`."""

    rows: int
    """On which it was decided so."""

    marked: int
    """Of a random draw of these."""

    unsure: int
    """Of the marked, those on which the person could not decide."""

    value: float | None
    """Share of right ones among those with a clear mark; None where there is none."""

    low: float
    """Unsure rows are taken for wrong."""

    high: float
    """Unsure rows are taken for right."""


def estimate_precision(rows: int, right: int, wrong: int, unsure: int = 0) -> Precision:
    """Estimate from a draw without replacement how often a decision is right.

    The number of right rows in a draw from a finite population is hypergeometric; the interval holds each population
    that neither tail test at half the error rejects. It narrows to a point where all rows are marked. It is for a
    number of rows that was settled beforehand: who stops when the figure pleases has no such interval.

    Args:
        rows: Rows that were decided on so.
        right: Drawn rows that bear the decision out.
        wrong: Drawn rows that speak against it.
        unsure: Drawn rows of which the person is not sure.

    Raises:
        ConfigError: a number is negative, or more rows are marked than there are.

    Source: Clopper and Pearson's argument with hypergeometric tails (Buonaccorsi, The American Statistician 41, 1987).
    """
    marked = right + wrong + unsure
    if min(rows, right, wrong, unsure) < 0 or marked > rows:
        raise ConfigError(f"{marked} of {rows} rows are marked; give numbers from 0, and at most all rows")
    if not marked:
        return Precision(rows, 0, 0, None, 0.0, 1.0)
    low = _lowest(rows, marked, right)
    high = rows - _lowest(rows, marked, wrong)  # the highest number of right ones leaves the fewest wrong ones
    value = right / (right + wrong) if right + wrong else None
    return Precision(rows, marked, unsure, value, low / rows, high / rows)


def _lowest(rows: int, drawn: int, hits: int) -> int:
    """The fewest hits in all rows at which as many in the draw are not too improbable."""
    low, high = hits, rows - (drawn - hits)
    while low < high:
        middle = (low + high) // 2
        if hypergeom.sf(hits - 1, rows, middle, drawn) > (1 - CONFIDENCE) / 2:
            high = middle
        else:
            low = middle + 1
    return low
