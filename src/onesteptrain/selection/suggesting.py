"""Rows of a scored pool whose checking by a person would help most: they become anchors if they are right.

Kinds of rows get places by what their anchors lack to their share of the pool. Of a kind that has few anchors rows are
drawn at random, as what is right among them is not known; of the others the rows around the cut come first, where the
gate is least sure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection.trust import can_trust, measure_trust
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.storage.seeds import uniform

FEW_ANCHORS = 10
"""Anchors of a kind from which on the gate is asked which of its rows are near the cut."""


class Suggestion(NamedTuple):
    """A row to be checked."""

    row: int
    """Position in the pool."""

    kind: str
    why: str


class Kinds(NamedTuple):
    """Of which kind rows are, as text; empty where there are no kinds."""

    rows: Sequence[str]
    """Of the score table."""

    anchors: Sequence[str]


def suggest_rows(
    table: ScoreTable, kinds: Kinds, *, count: int, without: Collection[int] = (), seed: int = 0
) -> list[Suggestion]:
    """Choose rows to be checked, by kind and then by how much they would tell.

    Args:
        table: Scores of the pool.
        kinds: Of its rows and of the anchors.
        count: How many.
        without: Positions of rows that must not be suggested, such as repeats of anchors.
        seed: Another seed, another draw of what is drawn.

    Raises:
        ConfigError: count is not positive, or more than rows can be suggested.
        ScoreError: no row has a score.
    """
    columns = table.read(["uid", "row", "score"]).to_pydict()
    places = [
        place
        for place, (row, score) in enumerate(zip(columns["row"], columns["score"], strict=True))
        if score is not None and row not in without
    ]
    if not places:
        raise ScoreError(f"{table.path} has no row with a score that could be checked")
    if not 1 <= count <= len(places):
        raise ConfigError(f"suggest is {count}; it must be a number of rows from 1 to {len(places)}")
    probability = measure_trust(table).probability if can_trust(table) else np.full(table.rows, np.nan)
    by_kind: dict[str, list[int]] = {}
    for place in sorted(places, key=lambda place: uniform(seed, "suggest", columns["uid"][place])):
        by_kind.setdefault(kinds.rows[place], []).append(place)
    have = Counter(kinds.anchors)
    chosen = []
    for kind, share in _share_out({kind: len(mine) for kind, mine in by_kind.items()}, have, count).items():
        mine, why = by_kind[kind], f"{have[kind] or 'no'} anchors are of its kind"
        if have[kind] >= FEW_ANCHORS and np.isfinite(probability[mine]).any():
            mine = sorted(mine, key=lambda place: abs(np.nan_to_num(probability[place], nan=9.0) - 0.5))
            why = ""
        chosen += [
            Suggestion(columns["row"][place], kind, why or f"the gate gives it {probability[place]:.0%} to be clean")
            for place in mine[:share]
        ]
    return sorted(chosen)


def _share_out(sizes: dict[str, int], have: Counter[str], count: int) -> dict[str, int]:
    """How many of each kind are checked: one by one to the kind whose anchors lack most to its share of the pool."""
    after = (count + sum(have[kind] for kind in sizes)) / sum(sizes.values())
    given = dict.fromkeys(sizes, 0)
    for _ in range(count):
        left = [kind for kind in sizes if given[kind] < sizes[kind]]
        given[max(left, key=lambda kind: sizes[kind] * after - have[kind] - given[kind])] += 1
    return given
