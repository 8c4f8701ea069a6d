"""The likely cause of what is wrong with a row, and how sure that is.

Five signs are looked at in turn, each a probability; a cause takes its part of what those before it left over, and
"unknown" takes the rest, so that the probabilities of all causes add up to one:

1. off_topic: more than half of the answer is unexpected. With k of n tokens beyond what 99 of 100 anchor tokens show,
   that is the probability that a share with this evidence is above one half.
2. cut_off: the answer ends where no anchor's would. Unusual loss of the end-of-turn token, if it is bad at all.
3. format: the conclusion is missing or in another form than the anchors'.
4. image_mismatch: the row's own picture is worth no more than others. The share of the mean loss with an anchor's and
   with a grey picture that stays with its own, times the probability that this share is unusual.
5. wrong_step: some token before the end is worse than any of an anchor's, in an answer to which nothing of the above
   applies.

A cause is named if its probability is at least one half; the confidence is that probability. How often the named cause
is right, by confidence: see `experiments/token_harm`.

How likely a sign is to be unusual is told by the local false discovery rate, with the anchors as what is usual. The
p-value of a row is the share of anchors whose sign is at least as strong. Those of rows without the trouble are
uniform; so where p-values are more frequent than that, the rest of them have it. A share c of rows without the trouble,
which Storey's estimator reads off the large p-values, means a probability of c / g(p) to be without it, with g the
frequency of p-values near p, made to fall with p. The anchors are counted in as rows without the trouble, one of each
p-value, so that a row or two convince nobody.

Sources: Storey, A direct approach to false discovery rates (2002); Efron, Large-Scale Inference, chapter 5; the falling
density is Grenander's estimator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import beta

from onesteptrain.reporting.diagnosis.measured import Tokens, Values
from onesteptrain.reporting.diagnosis.spans import TokenScale, badness
from onesteptrain.selection.mixture import clean_share
from onesteptrain.selection.trust import p_values

Cause = Literal["off_topic", "cut_off", "format", "image_mismatch", "wrong_step", "unknown"]

CAUSES: tuple[Cause, ...] = get_args(Cause)

_NAMED = 0.5


class Signs(NamedTuple):
    """What the causes of some rows are read from."""

    tokens: Tokens
    forms: Sequence[str]
    """How each answer concludes."""

    kept_loss: Values
    """Loss over the mean loss with other pictures; NaN where there is none."""


class Causes(NamedTuple):
    """The causes of some rows."""

    named: Sequence[Cause]
    confidence: Values
    probabilities: NDArray[np.float64]
    """"row cause", in the order of `CAUSES`; each row adds up to one."""


def likely_causes(rows: Signs, anchors: Signs, scale: TokenScale) -> Causes:
    """Name the likely cause of each row."""
    bad, usually = badness(rows.tokens, scale), badness(anchors.tokens, scale)
    probabilities = _in_turn(
        [
            np.array([_mostly(tokens > scale.token_limit) for tokens in bad]),
            _ending(rows.tokens, anchors.tokens) * np.array([tokens[-1] > scale.token_limit for tokens in bad]),
            unusual(_rarity(rows.forms, anchors.forms), _rarity(anchors.forms, anchors.forms)),
            np.clip(np.nan_to_num(rows.kept_loss), 0, 1) * unusual(rows.kept_loss, anchors.kept_loss),
            unusual(_worst_inside(bad), _worst_inside(usually)),
        ]
    )
    best = probabilities[:, :-1].argmax(1)
    highest = probabilities[np.arange(len(best)), best]
    sure = highest >= _NAMED
    named: list[Cause] = [CAUSES[place] if known else "unknown" for place, known in zip(best, sure, strict=True)]
    return Causes(named, np.where(sure, highest, 1 - highest), probabilities)


def unusual(rows: Values, anchors: Values) -> Values:
    """Probability that each row's sign is not what anchors show.

    Args:
        rows: Strength of the sign, higher is more unusual; a row without the sign is NaN and gets 0.
        anchors: The same of the anchors.
    """
    probability = np.zeros(len(rows))
    known, usual = np.isfinite(rows), anchors[np.isfinite(anchors)]
    if not known.any() or not len(usual):
        return probability
    p_value = p_values(rows[known], usual)
    steps = len(usual) + 1
    step = np.rint(p_value * steps).astype(np.int64) - 1
    counts = np.bincount(step, minlength=steps) + 1.0
    frequency = counts / counts.mean()
    rising = isotonic_regression(1 / frequency, weights=counts, increasing=True).x
    without = clean_share(np.concatenate([p_value, np.arange(1, steps + 1) / steps]))
    probability[known] = 1 - np.clip(without * rising, 0.0, 1.0)[step]
    return probability


def _in_turn(signs: Sequence[Values]) -> NDArray[np.float64]:
    """Each sign takes its part of what is left over; the last column is what no sign takes."""
    left = np.ones_like(signs[0])
    taken = []
    for sign in signs:
        taken.append(left * sign)
        left = left * (1 - sign)
    return np.stack([*taken, left], axis=1)


def _mostly(beyond: NDArray[np.bool_]) -> float:
    """Probability that more than half of such tokens are beyond the limit, all shares being as likely at first."""
    return float(beta.sf(0.5, beyond.sum() + 1, (~beyond).sum() + 1))


def _ending(rows: Tokens, anchors: Tokens) -> Values:
    return unusual(*(np.array([loss[-1] for loss in tokens.loss]) for tokens in (rows, anchors)))


def _worst_inside(bad: Sequence[Values]) -> Values:
    """The worst token before the last; NaN in an answer of one."""
    return np.array([tokens[:-1].max() if len(tokens) > 1 else np.nan for tokens in bad])


def _rarity(forms: Sequence[str], anchors: Sequence[str]) -> Values:
    """How rare each form is among the anchors: minus the number of anchors with it."""
    counts = Counter(anchors)
    return -np.array([counts[form] for form in forms], np.float64)
