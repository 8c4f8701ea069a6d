"""The likely cause of what is wrong with a row, and how sure that is.

Five signs are looked at in turn, each a chance between 0 and 1; a cause takes its chance of what those before it left
over, and "unknown" takes the rest, so that the chances of all causes add up to one:

1. off_topic: more than half of the answer is unexpected. With k of n tokens beyond what 99 of 100 anchor tokens show,
   that is the chance that a share with this evidence is above one half.
2. cut_off: the answer ends where no anchor's would. Unusual loss of the end-of-turn token, if it is bad at all.
3. format: the conclusion is missing or in another form than the anchors'.
4. image_mismatch: the row's own picture is worth no more than others. The share of the mean loss with an anchor's and
   with a grey picture that stays with its own, times the chance that this share is unusual.
5. wrong_step: some token before the end is worse than any of an anchor's, in an answer to which nothing of the above
   applies.

"Unusual" is the local false discovery rate of `chances`. A cause is named if its chance is at least one half; the
confidence is that chance. How often the named cause is right, by confidence: see `experiments/token_harm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from onesteptrain.reporting.diagnosis.chances import chance_unusual
from onesteptrain.reporting.diagnosis.forms import rarity
from onesteptrain.reporting.diagnosis.measured import Tokens, Values
from onesteptrain.reporting.diagnosis.spans import TokenScale, badness

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
    chances: NDArray[np.float64]
    """"row cause", in the order of `CAUSES`; each row adds up to one."""


def likely_causes(rows: Signs, anchors: Signs, scale: TokenScale) -> Causes:
    """Name the likely cause of each row."""
    bad, usual = badness(rows.tokens, scale), badness(anchors.tokens, scale)
    chances = _in_turn(
        [
            np.array([_mostly(one > scale.token_limit) for one in bad]),
            _ending(rows.tokens, anchors.tokens) * np.array([one[-1] > scale.token_limit for one in bad]),
            chance_unusual(rarity(rows.forms, anchors.forms), rarity(anchors.forms, anchors.forms)),
            np.clip(np.nan_to_num(rows.kept_loss), 0, 1) * chance_unusual(rows.kept_loss, anchors.kept_loss),
            chance_unusual(_worst_inside(bad), _worst_inside(usual)),
        ]
    )
    best = chances[:, :-1].argmax(1)
    chance = chances[np.arange(len(best)), best]
    named = chance >= _NAMED
    causes: list[Cause] = [CAUSES[one] if sure else "unknown" for one, sure in zip(best.tolist(), named, strict=True)]
    return Causes(causes, np.where(named, chance, 1 - chance), chances)


def _in_turn(signs: Sequence[Values]) -> NDArray[np.float64]:
    """Each sign takes its chance of what is left over; the last column is what no sign takes."""
    left = np.ones_like(signs[0])
    taken = []
    for sign in signs:
        taken.append(left * sign)
        left = left * (1 - sign)
    return np.stack([*taken, left], axis=1)


def _mostly(beyond: NDArray[np.bool_]) -> float:
    """Chance that more than half of such tokens are beyond the limit, all shares being as likely at first."""
    return float(beta.sf(0.5, beyond.sum() + 1, (~beyond).sum() + 1))


def _ending(rows: Tokens, anchors: Tokens) -> Values:
    ends, usual = (np.array([one[-1] for one in tokens.loss]) for tokens in (rows, anchors))
    return chance_unusual(ends, usual)


def _worst_inside(bad: Sequence[Values]) -> Values:
    """The worst token before the last; NaN in an answer of one."""
    return np.array([one[:-1].max() if len(one) > 1 else np.nan for one in bad])
