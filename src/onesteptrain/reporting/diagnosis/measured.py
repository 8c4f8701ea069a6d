"""What was measured of rows and anchors, and which rows it calls in no need of their picture.

The picture of a row helps by the loss with another row's picture less the loss with its own. Where it is not needed,
its own picture is just another picture, so the help is as often negative as positive: what lies below zero tells how
many of the rows above zero need none either. The limit makes the fewest mistakes of both sorts. (Knockoffs control
selections in the same way: Barber and Candes, Controlling the false discovery rate via knockoffs, 2015.) Grey pictures
tell less: the model stumbles over them even where it needs none.
"""

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

RULE = "the trust gate drops them"


class Tokens(NamedTuple):
    """Answer tokens of some rows, the end-of-turn token included."""

    utility: Sequence[Values]
    loss: Sequence[Values]
    """Nats."""


class Means(NamedTuple):
    """One number a row; NaN where the row has no score."""

    utility: Values
    loss: Values
    """Nats a token, as are the losses below."""

    swapped_loss: Values | None
    """With an anchor's picture in place of the row's own; NaN for rows without pictures, None if not measured."""

    blank_loss: Values | None = None
    """With a grey picture; the same."""

    def at(self, rows: NDArray[np.int64]) -> Means:
        """Of some rows."""
        swapped, blank = (None if loss is None else loss[rows] for loss in (self.swapped_loss, self.blank_loss))
        return Means(self.utility[rows], self.loss[rows], swapped, blank)


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
    swapped, blank = (table.numbers(name) if name in table.names else None for name in ("swapped_loss", "blank_loss"))
    return Means(table.numbers("utility"), table.numbers("loss"), swapped, blank)


def read_tokens(table: ScoreTable, rows: NDArray[np.int64]) -> Tokens:
    """The answer tokens of some rows, which must have a score."""
    columns = [table.read([name])[name].take(rows) for name in _TOKENS]
    return Tokens(*([np.asarray(row.values, np.float64) for row in column] for column in columns))


def blind_rows(rows: Means, harmful: NDArray[np.bool_]) -> Values | None:
    """Which rows do not need their picture: 1 or 0.

    NaN for harmful rows, whose picture may not help because the answer is wrong, and for rows without pictures; None if
    the score table does not say.
    """
    if rows.swapped_loss is None:
        return None
    helped = rows.swapped_loss - rows.loss
    judged = np.isfinite(helped) & ~harmful
    return np.where(judged, helped <= help_limit(helped[judged]), np.nan)


def help_limit(helped: Values) -> float:
    """Help up to which a row is more likely one that needs no picture than one that does.

    With n(a, b) for the number of rows with help between a and b, a limit t misses about n(-inf, -t) rows without need
    and names n(0, t) - n(-t, 0) rows with it; the sum is smallest at the limit.
    """
    below, above = np.sort(-helped[helped < 0]), np.sort(helped[helped > 0])
    limits = np.concatenate([[0.0], below])
    mirrored, named = (np.searchsorted(helps, limits, side="right") for helps in (below, above))
    mistakes = (len(below) - mirrored) + (named - mirrored)
    return float(limits[mistakes.argmin()])
