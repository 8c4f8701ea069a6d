"""Where in an answer the harm sits.

A token is as bad as its loss and its harm together, `loss / sd(loss) + max(-utility, 0) / sd(harm)`, each in the
standard deviations that it has among the anchors' tokens. The limit is what nine of ten anchors stay below with every
token, so that a clean row rarely passes it, however long anchors' answers are. The span starts at the first token
beyond the limit, because what follows an error is surprising too; from there it is the segment with the largest sum of
what lies beyond.

This was chosen among some twenty definitions: see `experiments/token_harm`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onesteptrain.reporting.diagnosis.measured import Tokens, Values

_WITHIN = 0.9
"""Share of the anchors with no token beyond the limit."""

_COMMON = 0.99
"""Share of the anchors' tokens that are common."""


class TokenScale(NamedTuple):
    """What the anchors' answer tokens look like."""

    loss: float
    """Standard deviation, as is the next."""

    harm: float
    row_limit: float = 0.0
    """Badness that nine of ten anchors never reach."""

    token_limit: float = 0.0
    """Badness that 99 of 100 of their tokens do not reach."""


class TokenSpan(NamedTuple):
    """Answer tokens: the first, and the one after the last."""

    start: int
    end: int


def token_scale(anchors: Tokens) -> TokenScale:
    """Learn from the anchors what is usual."""
    loss, utility = np.concatenate(anchors.loss), np.concatenate(anchors.utility)
    tiny = float(np.finfo(float).tiny)
    scale = TokenScale(max(float(loss.std()), tiny), max(float(np.maximum(-utility, 0).std()), tiny))
    bad = badness(anchors, scale)
    row_limit = float(np.quantile([row.max() for row in bad], _WITHIN))
    return scale._replace(row_limit=row_limit, token_limit=float(np.quantile(np.concatenate(bad), _COMMON)))


def badness(tokens: Tokens, scale: TokenScale) -> list[Values]:
    """How bad each token of each row is, in the anchors' standard deviations."""
    pairs = zip(tokens.loss, tokens.utility, strict=True)
    return [loss / scale.loss + np.maximum(-utility, 0) / scale.harm for loss, utility in pairs]


def first_span(bad: Values, limit: float) -> TokenSpan:
    """The first tokens beyond the limit; the worst token where none is."""
    beyond = bad > limit
    if not beyond.any():
        worst = int(bad.argmax())
        return TokenSpan(worst, worst + 1)
    start = int(beyond.argmax())
    return TokenSpan(start, start + 1 + int(np.cumsum(bad[start:] - limit).argmax()))
