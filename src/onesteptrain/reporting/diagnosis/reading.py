"""What a pool says of its rows: the form of their answers, their other columns, and the text of some spans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onesteptrain.data.pool import Sample, Turn, Unreadable
from onesteptrain.errors import PoolError, SampleError
from onesteptrain.reporting.diagnosis.bias import Column
from onesteptrain.reporting.diagnosis.forms import answer_form
from onesteptrain.reporting.diagnosis.spans import TokenSpan
from onesteptrain.storage.score_table import ScoreTable

Quoter = Callable[[Sample], Sequence["Place"]]
"""Gives the place of each answer token of a sample, the end-of-turn tokens included.

Raises SampleError where the answer cannot be found.
"""


class Place(NamedTuple):
    """Characters of the answer: the first, and the one after the last; equal where a token stands for none."""

    start: int
    end: int


class Quote(NamedTuple):
    """A part of an answer; no text where it cannot be found, or at the end of the answer."""

    start: int | None = None
    """Characters of the answer: the first, and the one after the last."""

    end: int | None = None
    text: str | None = None


class Read(NamedTuple):
    """What a pool says of its rows."""

    forms: Sequence[str | None]
    """None for a row that cannot be read."""

    columns: Mapping[str, Column]
    """Numbers where all values are numbers."""

    quotes: Mapping[int, Quote]
    """Of the rows asked for."""


def read_pool(
    rows: Iterable[Sample | Unreadable], uids: Sequence[str], spans: Mapping[int, TokenSpan], quote: Quoter
) -> Read:
    """Read a pool once.

    Args:
        rows: The pool.
        uids: Of the rows that were scored, in order.
        spans: Answer tokens to quote, by row.
        quote: Finds answer tokens in a text.

    Raises:
        PoolError: these are not the rows that were scored.
    """
    forms: list[str | None] = []
    fields: dict[str, dict[int, object]] = {}
    quotes: dict[int, Quote] = {}
    for row, one in enumerate(rows):
        if row >= len(uids) or one.uid != uids[row]:
            raise PoolError(f"row {row} of the pool is not the one that was scored; put that pool back, or score again")
        forms.append(None if isinstance(one, Unreadable) else answer_form(answer_text(one.turns)))
        for name, value in () if isinstance(one, Unreadable) else one.fields.items():
            if isinstance(value, (str, int, float)):
                fields.setdefault(name, {})[row] = value
        if row in spans and isinstance(one, Sample):
            quotes[row] = quoted(one, spans[row], quote)
    if len(forms) != len(uids):
        raise PoolError(
            f"the pool has {len(forms)} rows and {len(uids)} were scored; put that pool back, or score again"
        )
    return Read(forms, {name: _column(values, len(uids)) for name, values in fields.items()}, quotes)


def answer_text(turns: Sequence[Turn]) -> str:
    """The answer: what the assistant says, its turns joined by line breaks."""
    return "\n".join(turn.text for turn in turns if turn.role == "assistant")


def quoted(sample: Sample, span: TokenSpan, quote: Quoter) -> Quote:
    """The text of some answer tokens of a sample."""
    try:
        places = quote(sample)
    except SampleError:
        return Quote()
    if span.end > len(places):
        return Quote()
    start, end = places[span.start].start, places[span.end - 1].end
    text = answer_text(sample.turns)[start:end]
    space = len(text) - len(text.lstrip()) if text.strip() else 0  # many tokens begin with a space
    return Quote(start + space, end, text[space:])


def anchor_forms(reference: ScoreTable, anchors: Iterable[Sample | Unreadable]) -> list[str]:
    """The forms of the anchors' answers, of those that can be read."""
    known = set(reference.read(["uid"])["uid"].to_pylist())
    return [answer_form(answer_text(one.turns)) for one in anchors if isinstance(one, Sample) and one.uid in known]


def _column(values: Mapping[int, object], rows: int) -> Column:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()):
        numbers = np.full(rows, np.nan)
        numbers[list(values)] = list(values.values())
        return numbers
    return [values.get(row) for row in range(rows)]
