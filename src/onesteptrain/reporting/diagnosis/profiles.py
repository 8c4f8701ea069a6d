"""What an answer's tokens look like as a whole: numbers that rows, anchors and corrupted anchors are compared by.

They say how much of the answer is bad, how bad, and where: at one place, from some place on, everywhere, or at the end
alone; how long the answer is; and whether its own picture is worth more to it than another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from onesteptrain.reporting.diagnosis.measured import Means, Tokens, Values
from onesteptrain.reporting.diagnosis.spans import TokenScale, badness

NAMES = (
    *("loss", "worst_loss", "second_worst_loss", "harm", "median_loss", "worst_share"),
    *("bad_tokens", "bad_share", "first_bad", "worst", "end_loss", "length"),
    *("quarter_1", "quarter_2", "quarter_3", "quarter_4"),
    *("swapped_picture", "blank_picture", "no_picture"),
)
"""What the numbers are of. Losses and counts are logarithms, places lie between 0 and 1, the length is relative to the
anchors' median, and pictures are log ratios of the loss with the row's own to that with another, 0 without one."""

_FLOOR = 1e-3
"""Nats, or the anchors' standard deviations, below which differences do not count."""

_PICTURE_FLOOR = 1e-2
"""The same of ratios, in nats."""

_QUARTERS = 4


class Measured(NamedTuple):
    """What was measured of some rows, all with a score."""

    tokens: Tokens
    means: Means


def profiles(rows: Measured, scale: TokenScale, usual_length: float) -> Values:
    """The numbers of each row, "row number", in the order of NAMES.

    Args:
        rows: What was measured.
        scale: What is usual of the anchors' tokens.
        usual_length: Median of the anchors' answer tokens.
    """
    bad = badness(rows.tokens, scale)
    every = zip(rows.tokens.loss, rows.tokens.utility, bad, strict=True)
    answers = [_answer(loss, utility, badly, scale, usual_length) for loss, utility, badly in every]
    told = np.array(answers, np.float64).reshape(len(answers), len(NAMES) - 3)
    return np.concatenate([told, _pictures(rows.means)], axis=1)


def _answer(loss: Values, utility: Values, bad: Values, scale: TokenScale, usual_length: float) -> list[float]:
    """The numbers of one answer; its end, which says whether it may stop there, stands for itself."""
    inside, badly = (loss[:-1], bad[:-1]) if len(loss) > 1 else (loss, bad)
    beyond = badly > scale.token_limit
    first = beyond.argmax() if beyond.any() else badly.argmax()
    sizes = np.sort(inside)
    return [
        *_log([loss.mean(), loss.max(), sizes[-2] if len(sizes) > 1 else 0.0]),
        *_log([np.maximum(-utility, 0).mean() / scale.harm, np.median(inside) / scale.loss]),
        float(sizes[-1] / max(inside.sum(), 1e-9)),
        float(np.log1p(beyond.sum())),
        float(beyond.mean()),
        float(first / len(inside)),
        float(badly.argmax() / len(inside)),
        *_log([loss[-1]]),
        float(np.log(len(loss) / usual_length)),
        *_log([part.mean() if len(part) else 0.0 for part in np.array_split(inside, _QUARTERS)]),
    ]


def _pictures(means: Means) -> Values:
    """Whether the own picture is worth more than an anchor's, or a grey one; and whether there is one."""
    ratios = [
        np.full(len(means.loss), np.nan)
        if other is None
        else np.log((means.loss + _PICTURE_FLOOR) / (other + _PICTURE_FLOOR))
        for other in (means.swapped_loss, means.blank_loss)
    ]
    return np.stack([*np.nan_to_num(ratios), np.isnan(ratios[0]).astype(np.float64)], axis=1)


def _log(sizes: list[float]) -> list[float]:
    logs: list[float] = np.log(np.maximum(sizes, 0) + _FLOOR).tolist()
    return logs
