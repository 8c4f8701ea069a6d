"""How likely a sign of trouble is one: the local false discovery rate, with the anchors as what is usual.

The p-value of a row is the share of anchors whose sign is at least as strong. Those of rows without the trouble are
uniform; so where p-values are more frequent than that, the rest of them have it. A share c of rows without the trouble,
which Storey's estimator reads off the large p-values, means a chance of c / g(p) to be without it, with g the frequency
of p-values near p, made to fall with p. The anchors are counted in as rows without the trouble, one of each p-value, so
that a row or two convince nobody.

Sources: Storey, A direct approach to false discovery rates (2002); Efron, Large-Scale Inference, chapter 5; the falling
density is Grenander's estimator.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression

from onesteptrain.reporting.diagnosis.measured import Values
from onesteptrain.selection.trust import clean_share, p_values


def chance_unusual(rows: Values, anchors: Values) -> Values:
    """Chance that each row's sign is not what anchors show.

    Args:
        rows: Strength of the sign, higher is more unusual; a row without the sign is NaN and gets 0.
        anchors: The same of the anchors.
    """
    chance = np.zeros(len(rows))
    known, usual = np.isfinite(rows), anchors[np.isfinite(anchors)]
    if not known.any() or not len(usual):
        return chance
    p_value = p_values(rows[known], usual)
    steps = len(usual) + 1
    step = np.rint(p_value * steps).astype(np.int64) - 1
    counts = np.bincount(step, minlength=steps) + 1.0
    frequency = counts / counts.mean()
    rising = isotonic_regression(1 / frequency, weights=counts, increasing=True).x
    without = clean_share(np.concatenate([p_value, np.arange(1, steps + 1) / steps]))
    chance[known] = 1 - np.clip(without * rising, 0.0, 1.0)[step]
    return chance
