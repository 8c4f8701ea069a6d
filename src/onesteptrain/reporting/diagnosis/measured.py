"""What was measured of rows and anchors, read from the tables of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.selection.trust import FEWEST_ANCHORS, SIGNALS
from onesteptrain.storage.score_table import ScoreTable

Values = NDArray[np.float64]

_TOKENS = ("token_utility", "token_loss")


class Tokens(NamedTuple):
    """Answer tokens of some rows, the end-of-turn token included."""

    utility: Sequence[Values]
    loss: Sequence[Values]
    """Nats."""


class Means(NamedTuple):
    """One number a row; NaN where the row has no score."""

    utility: Values
    signals: Values
    """What the trust gate looks at, "row signal"."""

    loss: Values
    """Nats a token, as are the losses below."""

    swapped_loss: Values | None
    """With an anchor's picture in place of the row's own; NaN for rows without pictures, None if not measured."""

    blank_loss: Values | None = None
    """With a grey picture; the same."""


def check_tables(table: ScoreTable) -> ScoreTable:
    """Refuse a run that cannot be explained.

    Returns:
        The anchors' table.

    Raises:
        ScoreError: token columns or anchors are missing.
    """
    reference = table.reference
    needed = ("utility", *SIGNALS, *_TOKENS)
    missing = [name for name in needed if name not in table.names]
    if missing or reference is None or any(name not in reference.names for name in needed):
        what = f"has no {', '.join(missing)}" if missing else "says nothing of its anchors"
        raise ScoreError(f"{table.path} {what}; score again with --store-tokens (method one_step, estimator fd or jvp)")
    if (count := int(np.isfinite(reference.numbers("score")).sum())) < FEWEST_ANCHORS:
        raise ScoreError(f"{table.path} rests on {count} anchors; score with at least {FEWEST_ANCHORS} to explain rows")
    return reference


def read_means(table: ScoreTable) -> Means:
    """The numbers of all rows."""
    signals = np.stack([table.numbers(name) for name in SIGNALS], axis=1)
    swapped, blank = (table.numbers(one) if one in table.names else None for one in ("swapped_loss", "blank_loss"))
    return Means(table.numbers("utility"), signals, table.numbers("loss"), swapped, blank)


def read_tokens(table: ScoreTable, rows: NDArray[np.int64]) -> Tokens:
    """The answer tokens of some rows, which must have a score."""
    columns = [table.read([name])[name].take(rows) for name in _TOKENS]
    return Tokens(*([np.asarray(one.values, np.float64) for one in column] for column in columns))
