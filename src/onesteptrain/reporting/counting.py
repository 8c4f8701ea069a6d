"""The numbers of the report: of the score table, a column at a time, and of what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import spearmanr

from onesteptrain.errors import ConfigError
from onesteptrain.storage.score_table import ScoreTable

Column = NDArray[np.float64]

_CURVE_POINTS = 400
_MOST_BINS = 12
_ROWS_A_BIN = 20
_MOST_KINDS = 500
_CUT_REASON = 400

_PLACE = re.compile(r"^\S+?(?::\d+| row \d+|\[\d+\]): ")
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s();,]*[/\\][^\s();,]*|\b\d[\d.,]*(?:e[-+]?\d+)?\b")
"""What differs between two rows with one trouble: names, paths, numbers."""


class Summary(NamedTuple):
    """One column of the score table."""

    name: str
    rows: int
    """With a value."""

    negative: int
    """Of these, below 0."""

    median: float
    low: float
    """5 % of the rows lie below."""

    high: float
    """5 % of the rows lie above."""

    @property
    def negative_share(self) -> float:
        """Of the rows with a value."""
        return self.negative / self.rows


class UtilityCurve(NamedTuple):
    """Share of the pool's positive utility against share of its rows, best score first."""

    shares: Column
    utility: Column


class LengthBins(NamedTuple):
    """Utility against answer length, in groups of about as many rows."""

    tokens: Column
    """Median length of each group."""

    quartiles: Sequence[Column]
    """Lower quartile, median, upper quartile of the values of each group."""

    spearman: float
    """Rank correlation over all rows; NaN where it is not defined."""


class Trouble(NamedTuple):
    """Reasons of one kind."""

    kind: str
    rows: int
    first_row: int
    example: str
    """The reason of that row."""


def summarize(name: str, values: Column) -> Summary | None:
    """Describe a column; None if it holds no value."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return Summary(name, len(values), int((values < 0).sum()), float(median), float(low), float(high))


def utility_curve(score: Column, utility: Column) -> UtilityCurve | None:
    """Cumulate positive utility from the best score down; None if no row has any."""
    ranked = np.argsort(-score, kind="stable")[: int(np.isfinite(score).sum())]  # NaN sorts last
    total = float(np.nansum(np.maximum(utility, 0)))
    if not total:
        return None
    sums = np.concatenate([[0.0], np.nancumsum(np.maximum(utility[ranked], 0))]) / total
    points = np.unique(np.linspace(0, len(ranked), _CURVE_POINTS + 1).astype(np.int64))
    return UtilityCurve(points / len(score), sums[points])


def bin_by_length(tokens: Column, values: Column) -> LengthBins | None:
    """Group rows by answer length; None if there are not at least two groups to compare."""
    known = np.isfinite(tokens) & np.isfinite(values)
    tokens, values = tokens[known], values[known]
    if not len(tokens):
        return None
    groups = min(_MOST_BINS, max(2, len(tokens) // _ROWS_A_BIN))
    place = np.searchsorted(np.unique(np.quantile(tokens, np.linspace(0, 1, groups + 1)[1:-1])), tokens)
    filled = [place == number for number in np.unique(place)]
    if len(filled) < 2:
        return None
    quartiles = np.array([np.quantile(values[inside], [0.25, 0.5, 0.75]) for inside in filled]).T
    lengths = np.array([np.median(tokens[inside]) for inside in filled])
    spearman = float(spearmanr(tokens, values).statistic) if values.min() < values.max() else float("nan")
    return LengthBins(lengths, list(quartiles), spearman)


def count_reasons(table: ScoreTable) -> list[Trouble]:
    """Rows without a score by kind of reason, the most frequent first.

    Reasons name the row, the file and the number that is wrong; rows that differ in nothing else are one kind. Kinds
    beyond the first 500 are counted together, so that memory does not grow with the pool.
    """
    troubles: dict[str, Trouble] = {}
    with pq.ParquetFile(table.path) as file:
        for batch in file.iter_batches(columns=["row", "reason"]):
            for row, reason in zip(batch["row"].to_pylist(), batch["reason"].to_pylist(), strict=True):
                if reason is None:
                    continue
                kind = kind_of(reason)
                if kind not in troubles and len(troubles) >= _MOST_KINDS:
                    kind = "other reasons"
                before = troubles.get(kind, Trouble(kind, 0, row, cut(reason, _CUT_REASON)))
                troubles[kind] = before._replace(rows=before.rows + 1)
    return sorted(troubles.values(), key=lambda trouble: (-trouble.rows, trouble.first_row))


def kind_of(reason: str) -> str:
    """A reason without what belongs to one row alone."""
    return cut(_PARTICULARS.sub("…", _PLACE.sub("", reason)), _CUT_REASON)


def cut(text: str, most: int) -> str:
    """A text, with dots in place of what is too long."""
    return text if len(text) <= most else text[:most] + "…"


def read_audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of an audit; a step size at which nothing could be measured is left out.

    Raises:
        ConfigError: it is not what `ost audit` writes.
    """
    try:
        facts = {name: audit[name] for name in ("estimator", "rows", "failed", "top_share", "confidence")}
        sizes = [
            size
            for size in audit["sizes"]
            if None not in (*size["spearman"].values(), *size["top_overlap"].values(), size["relative_error"])
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the audit cannot be read ({error!r}); give what `ost audit` writes") from error
    return {**facts, "sizes": sizes}
