"""How sure a ranking is of the anchors that it hangs on.

A score table with intervals has a column `part_utility`: what each of K random parts of the anchors says of a row. The
utility is linear in the anchors, so the parts are independent draws of one quantity, and resampling them is resampling
anchors, without a pass of any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.storage.score_table import ScoreTable

COLUMN = "part_utility"

_RESAMPLES = 200

Parts = NDArray[np.float64]
"""Utility by each part of the anchors, "row part"."""


class AnchorCount(NamedTuple):
    """What a number of anchors is good for."""

    anchors: int
    reliability: float
    """Squared correlation of the utility with what infinitely many anchors of the same kind would say."""

    top_overlap: float
    """Share of the top rows that two draws of so many anchors would have in common."""


def read_parts(table: ScoreTable) -> Parts:
    """What each part of the anchors says of the rows that have a score.

    Raises:
        ScoreError: the table has no intervals.
    """
    if COLUMN not in table.names:
        raise ScoreError(f"{table.path} has no column {COLUMN!r}; score with --intervals 8")
    column = table.read([COLUMN])[COLUMN].combine_chunks()
    kept = column.drop_null()
    if not len(kept):
        raise ScoreError(f"{table.path} has no row with a score; nothing can be said")
    flat: Parts = kept.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return flat.reshape(len(kept), -1)


def top_frequency(parts: Parts, share: float, *, seed: int = 0) -> NDArray[np.float64]:
    """How often each row is in the top share when the anchors are drawn again, by bootstrap over parts.

    Resampling K parts with replacement understates the variance of their mean by (K - 1) / K, so deviations are widened
    by the root of K / (K - 1).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 6 and 10.
    """
    rows, count = parts.shape
    top = max(1, round(share * rows))
    widen = (count / (count - 1)) ** 0.5
    mean = parts.mean(1)
    generator = np.random.default_rng(seed)
    hits = np.zeros(rows)
    for _ in range(_RESAMPLES):
        weights = np.bincount(generator.integers(0, count, count), minlength=count) / count
        drawn = mean + widen * (parts @ weights - mean)
        hits[np.argpartition(-drawn, top - 1)[:top]] += 1
    return hits / _RESAMPLES


def stable_share(frequency: NDArray[np.float64], share: float, *, at_least: float = 0.9) -> float:
    """Share of the top rows that stay in the top in at least so many draws of the anchors."""
    top = max(1, round(share * len(frequency)))
    return float((frequency >= at_least).sum() / top)


def anchor_curve(
    parts: Parts,
    anchors: int,
    share: float,
    counts: Sequence[int] = (10, 20, 50, 100, 200, 500, 1000),
    *,
    seed: int = 0,
) -> list[AnchorCount]:
    """How many anchors are enough: what the ranking would be worth with more or fewer of the same kind.

    With V the variance over rows of the utility by infinitely many anchors, and N the mean variance over draws of the
    utility by one anchor, the utility by n anchors has reliability V / (V + N / n). Both are estimated from the parts
    by analysis of variance. The overlap is that of two rankings with this reliability each, simulated from normal
    variables; heavy tails make the true one larger.

    Args:
        parts: What each part says.
        anchors: Anchors in all parts together.
        share: Of the rows that count as the top.
        counts: Numbers of anchors to ask about.
        seed: Of the simulation.

    Source: Spearman and Brown's formula for the length of a test.
    """
    count = parts.shape[1]
    within = float(parts.var(1, ddof=1).mean())
    between = max(float(parts.mean(1).var(ddof=1)) - within / count, 0.0)
    per_anchor = within * anchors / count
    return [
        AnchorCount(number, worth := _reliability(between, per_anchor / number), _overlap(worth, share, seed))
        for number in counts
    ]


def _reliability(signal: float, noise: float) -> float:
    return signal / (signal + noise) if signal + noise else 0.0


def _overlap(reliability: float, share: float, seed: int, rows: int = 20_000) -> float:
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal(rows) * reliability**0.5
    noise = (1 - reliability) ** 0.5
    top = max(1, round(share * rows))
    first, second = (
        np.argpartition(-(truth + noise * generator.standard_normal(rows)), top - 1)[:top] for _ in range(2)
    )
    return len(np.intersect1d(first, second)) / top
