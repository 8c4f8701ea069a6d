"""Explain a scored pool: what is wrong with which rows, where, and what the score goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool
from onesteptrain.errors import ConfigError
from onesteptrain.reporting.diagnosis.bias import Association, Column, associations, corrected
from onesteptrain.reporting.diagnosis.causes import CAUSES, Causes, Examples, likely_causes
from onesteptrain.reporting.diagnosis.measured import Values, blind_rows, check_tables, read_means, read_tokens
from onesteptrain.reporting.diagnosis.profiles import Measured, profiles
from onesteptrain.reporting.diagnosis.spans import TokenScale, badness, first_span, token_scale
from onesteptrain.reporting.diagnosis.texts import Quote, Quoter, Read, read_pool, recorded_quoter
from onesteptrain.selection import scored_pool
from onesteptrain.selection.kinds import find_kinds
from onesteptrain.selection.separation import separate
from onesteptrain.selection.trust import Trust, measure_trust, read_examples
from onesteptrain.selection.verdict import Verdict
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

    verdict: Verdict
    """What the trust gate says of the pool; where it is blind no row is called harmful."""

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
            "confidence": spread(
                [None if np.isnan(value) else value for value in self.causes.confidence.tolist()], pa.float64()
            ),
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
    quote: Quoter | None = None,
) -> Explanation:
    """Explain the rows of a scored pool; what is not given is what the table's run has on record.

    Args:
        table: Scores of method one_step with --store-tokens; with --ablate, pictures are judged too.
        options: What is looked at beside causes.
        pool: What was scored; no image is read.
        quote: Finds answer tokens in a text, as `texts.load_quoter` does.

    Raises:
        ScoreError: columns or anchors are missing, or a column to look at is.
        PoolError: the pool is not there, or not that of the scores.
        ConfigError: there is no such column to correct for.
    """
    options = options or ExplainOptions()
    usual = read_usual(check_tables(table))
    score, means, trust = table.numbers(options.by), read_means(table), measure_trust(table)
    harmful = harmful_rows(trust)
    rows = np.flatnonzero(harmful)
    rows = rows[np.argsort(means.utility[rows], kind="stable")]
    measured, uids = read_measured(table, rows), table.read(["uid"])["uid"].to_pylist()
    spans = [first_span(bad, usual.scale.row_limit) for bad in badness(measured.tokens, usual.scale)]
    quote = quote or recorded_quoter(table)
    read = read_pool(scored_pool(table, pool), uids, dict(zip(rows.tolist(), spans, strict=True)), quote)
    return Explanation(
        uids,
        harmful,
        rows,
        means.utility[rows],
        [read.quotes.get(row, Quote()) for row in rows.tolist()],
        likely_causes(usual.profiles(measured), read_cause_examples(table, trust, usual)),
        trust.verdict,
        blind_rows(means, harmful),
        *_bias(score, bias_columns(table, read), options.correct),
    )


def harmful_rows(trust: Trust) -> NDArray[np.bool_]:
    """Which rows the trust gate drops; none where it is blind."""
    dropped: NDArray[np.bool_] = np.isfinite(trust.probability) & ~trust.passing()
    return dropped & (not trust.verdict.blind)


class Usual(NamedTuple):
    """What the anchors show."""

    uids: Sequence[str]
    """Of those that have a score, as is the next."""

    measured: Measured
    scale: TokenScale
    length: float
    """Median number of answer tokens."""

    def profiles(self, rows: Measured) -> Values:
        """What answers look like beside the anchors'."""
        return profiles(rows, self.scale, self.length)


def read_usual(reference: ScoreTable) -> Usual:
    """Learn from the anchors what is usual."""
    rows = np.flatnonzero(np.isfinite(reference.numbers("score")))
    measured = read_measured(reference, rows)
    length = float(np.median([len(loss) for loss in measured.tokens.loss]))
    uids = reference.read(["uid"])["uid"].take(rows).to_pylist()
    return Usual(uids, measured, token_scale(measured.tokens), length)


def read_measured(table: ScoreTable, rows: NDArray[np.int64]) -> Measured:
    """What was measured of some rows, which must have a score."""
    return Measured(read_tokens(table, rows), read_means(table).at(rows))


def read_cause_examples(table: ScoreTable, trust: Trust, usual: Usual) -> Examples:
    """What causes are learned from: the anchors, and those of their corrupted copies that the trust gate drops."""
    anchors = usual.profiles(usual.measured)
    nothing = np.full(len(anchors), "", np.str_)
    corrupted = table.corrupted
    if corrupted is None or not {"token_loss", "token_utility"} <= set(corrupted.names):
        return Examples(anchors, nothing, usual.uids)
    rows = np.flatnonzero(_noticed(table, corrupted, trust))
    copies = usual.profiles(read_measured(corrupted, rows))
    kinds, owners = (corrupted.read([name])[name].take(rows).to_pylist() for name in ("kind", "anchor"))
    labels = np.array([*nothing, *kinds], np.str_)
    return Examples(np.concatenate([anchors, copies]), labels, [*usual.uids, *owners])


def _noticed(table: ScoreTable, corrupted: ScoreTable, trust: Trust) -> NDArray[np.bool_]:
    """Which corrupted anchors stand out more than any row of their kind that passes."""
    kinds = find_kinds(table)
    separation = separate(read_examples(table, kinds), len(kinds.names))
    signals = np.stack([corrupted.numbers(name) for name in separation.signals], axis=1)
    codes = kinds.of_anchors(table, corrupted.read(["anchor"])["anchor"].to_pylist())
    scored = np.isfinite(signals).all(1) & np.isfinite(corrupted.numbers("score"))
    cuts = np.full(len(kinds.names), -np.inf)
    passing = trust.passing() & np.isfinite(trust.nonconformity)
    np.maximum.at(cuts, kinds.rows[passing], trust.nonconformity[passing])
    noticed: NDArray[np.bool_] = scored & (separation.nonconformity(signals, codes) > cuts[codes])
    return noticed


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
