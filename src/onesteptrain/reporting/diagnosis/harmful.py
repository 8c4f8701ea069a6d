"""Which rows are explained: those that look unlike the anchors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.reporting.diagnosis.measured import Means
from onesteptrain.selection.trust import nonconformity

LEVEL = 0.99
"""Share of the anchors that are called harmless."""

RULE = "utility below 0 and below that of 99 % of the anchors, or less like the anchors than 99 % of them"


def harmful_rows(rows: Means, anchors: Means) -> NDArray[np.bool_]:
    """Which rows harm, or look unlike the anchors in harm, loss and worst loss together.

    Negative utility alone would name every fifth clean row of the digits data: see `experiments/token_harm`.
    """
    theirs = anchors.signals[np.isfinite(anchors.signals).all(1)]
    scored = np.asarray(np.isfinite(rows.signals).all(1))
    lowest = min(0.0, float(np.nanquantile(anchors.utility, 1 - LEVEL)))
    harmful = np.zeros(len(scored), np.bool_)
    ours, usual = nonconformity(rows.signals[scored], theirs)
    harmful[scored] = (ours > np.quantile(usual, LEVEL)) | (rows.utility[scored] < lowest)
    return harmful
