"""Rows that do not need their picture.

The picture of a row helps by the loss with another row's picture less the loss with its own. Where it is not needed,
its own picture is just another picture, so the help is as often negative as positive: what lies below zero tells how
many of the rows above zero need none either. The limit makes the fewest mistakes of both sorts. (Knockoffs control
selections in the same way: Barber and Candes, Controlling the false discovery rate via knockoffs, 2015.) Grey pictures
tell less: the model stumbles over them even where it needs none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.reporting.diagnosis.measured import Means, Values


def picture_help(rows: Means) -> Values | None:
    """Nats a token by which a row's own picture beats another; NaN where there is none, None if not measured."""
    return None if rows.swapped_loss is None else rows.swapped_loss - rows.loss


def blind_rows(rows: Means, harmful: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Which rows do not need their picture: 1 or 0.

    NaN for harmful rows, whose picture may not help because the answer is wrong, and for rows without pictures; None if
    the score table does not say.
    """
    helped = picture_help(rows)
    if helped is None:
        return None
    judged = np.isfinite(helped) & ~harmful
    return np.where(judged, helped <= help_limit(helped[judged]), np.nan)


def help_limit(helped: Values) -> float:
    """Help up to which a row is more likely one that needs no picture than one that does.

    With n(a, b) for the number of rows with help between a and b, a limit t misses about n(-inf, -t) rows without need
    and names n(0, t) - n(-t, 0) rows with it; the sum is smallest at the limit.
    """
    below, above = np.sort(-helped[helped < 0]), np.sort(helped[helped > 0])
    limits = np.concatenate([[0.0], below])
    mirrored, named = (np.searchsorted(one, limits, side="right") for one in (below, above))
    mistakes = (len(below) - mirrored) + (named - mirrored)
    return float(limits[mistakes.argmin()])
