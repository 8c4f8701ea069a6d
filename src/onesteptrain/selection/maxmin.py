"""Max-min over groups of anchors: serve the group that is worst off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import ScoreError
from onesteptrain.storage.score_table import ScoreTable

_PREFIX = "utility."


def read_group_utilities(table: ScoreTable) -> NDArray[np.float64]:
    """Utility of each row for each group of anchors, "row group".

    Raises:
        ScoreError: there are not at least two groups.
    """
    names = [name for name in table.names if name.startswith(_PREFIX)]
    if len(names) < 2:
        raise ScoreError(
            f"{table.path} has {len(names)} columns utility.GROUP; score with --group-by to choose max-min"
        )
    return np.stack([table.numbers(name) for name in names], axis=1)


def maxmin_order(utilities: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions in the order of choice: each time the best remaining row for the group that has got least so far.

    Utilities are measured in the mean size that each group's have, so that no group counts for more by its scale. What
    a row does to every group is counted, not only to the one that it is chosen for; ties go to the first.

    Args:
        utilities: "row group", all finite.
        count: Rows to choose.
    """
    sizes = np.maximum(np.abs(utilities).mean(0), np.finfo(float).tiny)
    scaled = utilities / sizes
    groups = range(scaled.shape[1])
    # the loop sees plain numbers: of arrays, each look at one would cost more than all that it does
    rankings = [np.argsort(-scaled[:, group], kind="stable").data for group in groups]
    does, taken = scaled.ravel().data, bytearray(len(scaled))
    places, got = [0] * len(groups), [0.0] * len(groups)
    chosen = np.empty(min(count, len(scaled)), np.int64)
    for turn in range(len(chosen)):
        worst_off = got.index(min(got))
        ranking, place = rankings[worst_off], places[worst_off]
        while taken[ranking[place]]:
            place += 1
        row, places[worst_off] = ranking[place], place + 1
        taken[row], chosen[turn] = 1, row
        start = row * len(groups)
        for group in groups:
            got[group] += does[start + group]
    return chosen
