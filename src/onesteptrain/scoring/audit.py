"""Audit: is the first-order score right on this pool, and up to which step size?

The exact step is taken on a random part of the pool, for several step sizes, and compared with the first-order utility
of the same rows. First-order utility is proportional to the step size, so its ranking is one and the same; what changes
is the truth it is compared with, where second-order terms enter as the step grows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from onesteptrain.data.pool import Sample, Unreadable, draw_rows
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.storage.score_table import Record

_RESAMPLES = 2000

_FEWEST_ROWS = 8


@dataclass(frozen=True)
class AuditOptions:
    """What is compared."""

    rows: int = 100
    """Rows drawn at random for the exact step."""

    step_sizes: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Learning rates of the exact step."""

    top_share: float = 0.2
    """Share of the drawn rows whose overlap is measured."""

    confidence: float = 0.95
    """Of the bootstrap intervals."""

    def __post_init__(self) -> None:
        if self.rows < _FEWEST_ROWS:
            raise ConfigError(f"rows is {self.rows}; an audit needs at least {_FEWEST_ROWS}")
        if not 0 < self.top_share < 1 or not 0 < self.confidence < 1:
            raise ConfigError("top_share and confidence are shares between 0 and 1")
        if not self.step_sizes or not all(0 < size < math.inf for size in self.step_sizes):
            raise ConfigError(f"step_sizes is {self.step_sizes}; give positive learning rates")


class Estimate(NamedTuple):
    """A number with its bootstrap interval over the audited rows; NaN where the rows do not define it."""

    value: float
    low: float
    high: float


class AuditRow(NamedTuple):
    """First-order against exact utility at one step size."""

    step_size: float
    spearman: Estimate
    """Rank correlation."""

    top_overlap: Estimate
    """Share of the exact top rows that the first-order top rows contain."""

    relative_error: float
    """Norm of the difference over the norm of the exact utilities."""


class Audit(NamedTuple):
    """The result of an audit."""

    estimator: str
    rows: int
    failed: int
    """Drawn rows that could not be scored."""

    sizes: list[AuditRow]


def audit(
    pool: Iterable[Sample | Unreadable],
    method: OneStep,
    setting: Setting,
    options: AuditOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Compare a first-order estimator with the exact step on a random part of a pool.

    Args:
        pool: The samples; they stream.
        method: Its estimator is the one that is compared with exact.
        setting: Proxy, anchors, seed of the draw.
        options: How many rows and which step sizes.
        progress: Told how many of all exact steps are done.

    Raises:
        ConfigError: the method's estimator is exact already.
        ScoreError: fewer than 8 of the drawn rows can be scored.
    """
    options = options or AuditOptions()
    if method.estimator == "exact":
        raise ConfigError("estimator exact is what an audit compares with; choose auto, fd or jvp")
    drawn = draw_rows(pool, options.rows, setting.seed)
    first = _scores(replace(method, step_size=1.0).prepare(setting)(drawn))
    usable = np.flatnonzero(np.isfinite(first))
    if len(usable) < _FEWEST_ROWS:
        raise ScoreError(
            f"{len(usable)} of {len(drawn)} drawn rows can be scored; an audit needs at least {_FEWEST_ROWS}"
        )
    done, steps = itertools.count(1), len(options.step_sizes) * len(usable)
    sizes = []
    for size in options.step_sizes:
        exact = replace(method, estimator="exact", step_size=size, store_tokens=False).prepare(setting)
        records: list[Record] = []
        for place in usable.tolist():
            records += exact([drawn[place]])
            if progress is not None:
                progress(next(done), steps)
        sizes.append(compare(size * first[usable], _scores(records), size, options))
    return Audit(method.estimator, len(usable), len(drawn) - len(usable), sizes)


def _scores(records: Sequence[Record]) -> NDArray[np.float64]:
    """Scores of some records; NaN where there is none."""
    return np.array([record.score for record in records], dtype=np.float64)


def compare(
    estimate: NDArray[np.float64], truth: NDArray[np.float64], step_size: float, options: AuditOptions
) -> AuditRow:
    """Agreement of two scores of the same rows; rows whose exact step left the finite numbers are left out.

    NaN where all true values are the same, such as 0 after a step too small for the type of the weights.
    """
    finite = np.isfinite(truth)
    estimate, truth = estimate[finite], truth[finite]
    if len(set(truth.tolist())) < 2:
        undefined = Estimate(math.nan, math.nan, math.nan)
        return AuditRow(step_size, undefined, undefined, math.nan)
    error = float(np.linalg.norm(estimate - truth) / np.linalg.norm(truth))
    spearman = _bootstrapped(spearman_correlation, estimate, truth, options)
    overlap = _bootstrapped(lambda a, b: top_overlap(a, b, options.top_share), estimate, truth, options)
    return AuditRow(step_size, spearman, overlap, error)


def spearman_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Correlation of the ranks, ties sharing their mean rank."""
    ranks = np.stack([rankdata(a), rankdata(b)])
    ranks -= ranks.mean(1, keepdims=True)
    scale = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else math.nan


def top_overlap(a: NDArray[np.float64], b: NDArray[np.float64], share: float) -> float:
    """Share of the top rows of b that are among as many top rows of a; 1 is perfect, `share` is chance."""
    count = max(1, round(share * len(a)))
    return len(set(np.argsort(-a, kind="stable")[:count]) & set(np.argsort(-b, kind="stable")[:count])) / count


def _bootstrapped(
    statistic: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    options: AuditOptions,
) -> Estimate:
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(a), (_RESAMPLES, len(a)))
    values = np.array([statistic(a[draw], b[draw]) for draw in draws])
    tail = (1 - options.confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Estimate(statistic(a, b), float(low), float(high))


def trusted_step_size(sizes: Sequence[AuditRow], *, at_least: float) -> float | None:
    """The largest step size up to which the rank correlation stays at or above a value; None if there is none."""
    rising = sorted(sizes, key=lambda row: row.step_size)
    trusted = list(itertools.takewhile(lambda row: row.spearman.value >= at_least, rising))  # NaN is no agreement
    return trusted[-1].step_size if trusted else None
