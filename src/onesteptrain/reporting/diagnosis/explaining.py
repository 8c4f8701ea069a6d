"""Explain a scored pool: what is wrong with which rows, where, and what the score goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.data.score_record import read_score_record
from onesteptrain.errors import ConfigError
from onesteptrain.reporting.diagnosis.bias import Association, Column, associations, corrected
from onesteptrain.reporting.diagnosis.causes import CAUSES, Causes, Signs, likely_causes
from onesteptrain.reporting.diagnosis.measured import (
    Means,
    Values,
    blind_rows,
    check_tables,
    harmful_rows,
    read_means,
    read_tokens,
)
from onesteptrain.reporting.diagnosis.spans import TokenScale, badness, first_span, token_scale
from onesteptrain.reporting.diagnosis.texts import Quote, Quoter, Read, anchor_forms, load_quoter, read_pool
from onesteptrain.selection import scored_pool
from onesteptrain.storage.score_table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What is looked at beside causes."""

    by: str = "score"
    """Column of the score table that the bias panel is about."""

    correct: tuple[str, ...] = ()
    """Columns whose part is taken out of it, such as answer_tokens, prompt_tokens, form or a column of the pool: gives
    a column `corrected`, also in the score table, for `ost select --by corrected`."""


class Explanation(NamedTuple):
    """What was found."""

    uids: Sequence[str]
    """Of all rows."""

    harmful: NDArray[np.bool_]
    """Of all rows."""

    rows: NDArray[np.int64]
    """The harmful rows, the most negative utility first; the next three go along with them."""

    utility: Values
    quotes: Sequence[Quote]
    causes: Causes

    blind: Values | None
    """Of all rows: 1 or 0; NaN where it cannot be said, None if the score table does not say."""

    bias: Sequence[Association]
    corrected: Values | None
    """Of all rows."""

    @property
    def blind_share(self) -> float | None:
        """Of the rows for which it can be said; None if there are none."""
        known = None if self.blind is None else self.blind[np.isfinite(self.blind)]
        return None if known is None or not len(known) else float(known.mean())

    def cause_counts(self) -> dict[str, int]:
        """Harmful rows of each cause."""
        counts = Counter(self.causes.named)
        return {cause: counts[cause] for cause in CAUSES}

    def table(self) -> pa.Table:
        """One line a row of the pool."""
        places = {int(row): place for place, row in enumerate(self.rows)}
        order = [places.get(row) for row in range(len(self.uids))]

        def spread(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
            return pa.array([None if place is None else values[place] for place in order], kind)

        columns = {
            "row": pa.array(range(len(self.uids)), pa.int64()),
            "uid": pa.array(self.uids, pa.string()),
            "harmful": pa.array(self.harmful),
            "span_start": spread([quote.start for quote in self.quotes], pa.int64()),
            "span_end": spread([quote.end for quote in self.quotes], pa.int64()),
            "span_text": spread([quote.text for quote in self.quotes], pa.string()),
            "cause": spread(self.causes.named, pa.string()),
            "confidence": spread(self.causes.confidence.tolist(), pa.float64()),
        }
        blind = np.full(len(self.uids), np.nan) if self.blind is None else self.blind
        columns["blind"] = pa.array([None if np.isnan(value) else bool(value) for value in blind], pa.bool_())
        if self.corrected is not None:
            columns["corrected"] = pa.array(self.corrected, from_pandas=True)
        return pa.table(columns)


def explain(
    table: ScoreTable,
    *,
    options: ExplainOptions | None = None,
    pool: Pool | None = None,
    anchors: Iterable[Sample | Unreadable] | None = None,
    quote: Quoter | None = None,
) -> Explanation:
    """Explain the rows of a scored pool; what is not given is what the table's run has on record.

    Args:
        table: Scores of method one_step with --store-tokens; with --ablate, pictures are judged too.
        options: What is looked at beside causes.
        pool: What was scored; no image is read.
        anchors: What it was scored with.
        quote: Finds answer tokens in a text, as `texts.load_quoter` does.

    Raises:
        ScoreError: columns or anchors are missing, or a column to look at is.
        PoolError: the pool or the anchors are not there, or not those of the scores.
        ConfigError: there is no such column to correct for.
    """
    options = options or ExplainOptions()
    reference = check_tables(table)
    usual = read_usual(reference, read_score_record(table.path.parent).open_anchors() if anchors is None else anchors)
    score, means = table.numbers(options.by), read_means(table)
    harmful = harmful_rows(means, usual.means)
    rows = np.flatnonzero(harmful)
    rows = rows[np.argsort(means.utility[rows], kind="stable")]
    tokens, uids = read_tokens(table, rows), table.read(["uid"])["uid"].to_pylist()
    spans = [first_span(bad, usual.scale.row_limit) for bad in badness(tokens, usual.scale)]
    quote = quote or _recorded_quoter(table)
    read = read_pool(scored_pool(table, pool), uids, dict(zip(rows.tolist(), spans, strict=True)), quote)
    signs = Signs(tokens, [read.forms[row] or "" for row in rows.tolist()], _kept_loss(means, rows))
    return Explanation(
        uids,
        harmful,
        rows,
        means.utility[rows],
        [read.quotes.get(row, Quote()) for row in rows.tolist()],
        likely_causes(signs, usual.signs, usual.scale),
        blind_rows(means, harmful),
        *_bias(score, bias_columns(table, read), options.correct),
    )


def _recorded_quoter(table: ScoreTable) -> Quoter:
    """Through the tokenizer of the proxy that scored a table."""
    asked = read_score_record(table.path.parent).asked
    return load_quoter(asked["proxy"], trust_remote_code=asked["loading"]["trust_remote_code"])


class Usual(NamedTuple):
    """What the anchors show."""

    means: Means
    signs: Signs
    """Of those that have a score."""

    scale: TokenScale


def read_usual(reference: ScoreTable, anchors: Iterable[Sample | Unreadable]) -> Usual:
    """Learn from the anchors what is usual."""
    means = read_means(reference)
    rows = np.flatnonzero(np.isfinite(means.loss))
    tokens = read_tokens(reference, rows)
    return Usual(means, Signs(tokens, anchor_forms(reference, anchors), _kept_loss(means, rows)), token_scale(tokens))


def bias_columns(table: ScoreTable, read: Read) -> dict[str, Column]:
    """What a score may go by: lengths, the form of the answer, and the columns of the pool."""
    columns: dict[str, Column] = {}
    if {"answer_tokens", "tokens"} <= set(table.names):
        answer = table.numbers("answer_tokens")
        columns = {"answer_tokens": answer, "prompt_tokens": table.numbers("tokens") - answer}
    return {**read.columns, **columns, "form": list(read.forms)}


def _bias(
    score: Values, columns: Mapping[str, Column], correct: Sequence[str]
) -> tuple[list[Association], Values | None]:
    for name in correct:
        if name not in columns:
            raise ConfigError(f"there is no column {name!r} to correct for; choose among {', '.join(columns)}")
    return associations(score, columns), corrected(score, [columns[name] for name in correct]) if correct else None


def _kept_loss(means: Means, rows: NDArray[np.int64]) -> Values:
    """Share of the loss with other pictures that stays with the row's own; NaN where there is no picture."""
    if means.swapped_loss is None or means.blank_loss is None:
        return np.full(len(rows), np.nan)
    others = (means.swapped_loss[rows] + means.blank_loss[rows]) / 2
    kept: Values = means.loss[rows] / np.maximum(others, np.finfo(float).tiny)
    return kept
