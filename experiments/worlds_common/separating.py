"""How well a score tells good rows from bad ones."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auroc(good: np.ndarray, bad: np.ndarray) -> float:
    """Chance that a good row has the higher value, ties counted half."""
    ranks = rankdata(np.concatenate([good, bad]))[: len(good)]
    return float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))
