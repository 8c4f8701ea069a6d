"""In which order the rows behind a gate are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from onesteptrain.selection.covering import cover_order
from onesteptrain.selection.gating import Gated, Positions
from onesteptrain.selection.maxmin import maxmin_order, read_group_utilities
from onesteptrain.selection.options import Preference, SelectOptions
from onesteptrain.selection.quotas import Wanted
from onesteptrain.selection.setwise import setwise_order
from onesteptrain.selection.vectors import REPRESENTATION, read_vectors
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.storage.seeds import seeded_bits

_HASHED_AT_A_TIME = 65_536


def preference(options: SelectOptions, gated: Gated) -> Preference:
    """What auto stands for: to draw behind the trust gate, and to rank elsewhere or where a column is named."""
    if options.prefer != "auto":
        return options.prefer
    return "draw" if gated.gate == "trust" and options.by is None else "top"


def order_rows(table: ScoreTable, gated: Gated, options: SelectOptions, wanted: Wanted) -> Positions:
    """The rows behind a gate, the first to keep first.

    Args:
        table: The scores.
        gated: What the gate lets pass.
        options: What is preferred.
        wanted: How many rows of each group will be kept; setwise puts no more than these into order, nor does maxmin
            where there is one group, others all.
    """
    return _ORDERS[preference(options, gated)](table, gated.passed, options, wanted)


def top(table: ScoreTable, passed: Positions, options: SelectOptions, wanted: Wanted) -> Positions:
    """Highest values first; ties go to the earlier row."""
    values = table.numbers(options.by or "score")[passed]
    return passed[np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]


def draw(table: ScoreTable, passed: Positions, options: SelectOptions, wanted: Wanted) -> Positions:
    """At random; a row's place depends on the seed and its uid alone, so neither order nor shards matter."""
    return passed[np.argsort(random_keys(table, passed, options.draw_seed), kind="stable")]


def random_keys(table: ScoreTable, positions: Positions, seed: int) -> NDArray[np.uint64]:
    """A number for each row that is a function of the seed and its uid."""
    uids = table.read(["uid"])["uid"].take(positions)
    starts = range(0, len(uids), _HASHED_AT_A_TIME)
    named = (uid for start in starts for uid in uids.slice(start, _HASHED_AT_A_TIME).to_pylist())
    return np.fromiter((seeded_bits("draw", seed, uid) for uid in named), np.uint64, len(uids))


def top_rows(values: NDArray[np.float64], count: int) -> Positions:
    """Positions of the highest values, ascending; NaN and infinity are never chosen, ties go to the earlier one."""
    finite = np.flatnonzero(np.isfinite(values))
    if count >= len(finite):
        return finite
    known = values[finite]
    cut = np.partition(known, len(known) - count)[len(known) - count]
    above = finite[known > cut]
    equal = finite[known == cut][: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def cover(table: ScoreTable, passed: Positions, options: SelectOptions, wanted: Wanted) -> Positions:
    """At random, from all clusters of the representations in proportion."""
    vectors, keys = read_vectors(table, REPRESENTATION, passed), random_keys(table, passed, options.draw_seed)
    return cover_order(vectors, passed, keys, seed=options.draw_seed)


def setwise(table: ScoreTable, passed: Positions, options: SelectOptions, wanted: Wanted) -> Positions:
    """By what each row adds to those before it."""
    return setwise_order(table, passed, table.numbers("utility")[passed], wanted, options.draw_seed)


def maxmin(table: ScoreTable, passed: Positions, options: SelectOptions, wanted: Wanted) -> Positions:
    """By what each row brings the group of anchors that is worst off."""
    count = int(wanted.counts[0]) if len(wanted.counts) == 1 else len(passed)
    return passed[maxmin_order(read_group_utilities(table)[passed], count)]


_ORDERS: Mapping[Preference, Callable[[ScoreTable, Positions, SelectOptions, Wanted], Positions]] = {
    "top": top,
    "draw": draw,
    "cover": cover,
    "setwise": setwise,
    "maxmin": maxmin,
}
