"""Near-duplicates in a pool: clusters of rows that say the same, and which row of each to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onesteptrain.data.deduplication.index import POOL, Place
from onesteptrain.data.deduplication.relating import LOOK_ALIKE, Relation, Relations


class Duplicate(NamedTuple):
    """A row that says again what another one says."""

    place: Place
    duplicate_of: Place
    """The row of its cluster that is kept; of a look-alike, the row that it resembles."""

    cluster: int | None
    """Clusters are counted from 0 in pool order; a look-alike is in none, and is not to be passed over."""

    relation: Relation


class Clusters(NamedTuple):
    """The near-duplicates of a pool."""

    kept: Sequence[Place]
    """The row to keep of each cluster."""

    duplicates: Sequence[Duplicate]
    """The other rows of the clusters, in pool order."""

    look_alikes: Sequence[Duplicate]
    """Rows in no cluster whose question is near an earlier row's but answered otherwise."""


def find_clusters(relations: Relations, scores: NDArray[np.float64] | None = None) -> Clusters:
    """Join units that are near, and choose the row to keep of each cluster.

    Units with different questions are joined only if some of their answers agree: near questions with other answers
    are most often two questions about one picture.

    Args:
        relations: Of all rows.
        scores: A score for each row of the pool; the best row of a cluster is kept, in place of the first.
    """
    entries = _pool_entries(relations)
    joined = [pair for pair in sorted(relations.pairs) if _joins(relations, entries, pair)]
    members = _members(relations, entries, joined)
    kept = [_best(relations, cluster, scores) for cluster in members]
    duplicates = [
        _duplicate(relations, entry, best, number)
        for number, (best, cluster) in enumerate(zip(kept, members, strict=True))
        for entry in cluster
        if entry != best
    ]
    clustered = {entry for cluster in members for entry in cluster}
    places = [relations.index.places[entry] for entry in kept]
    alike = _look_alikes(relations, entries, clustered)
    return Clusters(places, sorted(duplicates, key=lambda one: one.place.row), alike)


def _pool_entries(relations: Relations) -> Mapping[int, list[int]]:
    """Entries of the pool by unit."""
    places = relations.index.places
    by_unit = relations.index.entries_of_units()
    pool = {unit: [entry for entry in held if places[entry].source == POOL] for unit, held in by_unit.items()}
    return {unit: held for unit, held in pool.items() if held}


def _joins(relations: Relations, entries: Mapping[int, list[int]], pair: tuple[int, int]) -> bool:
    first, second = pair
    if first not in entries or second not in entries:
        return False
    units = relations.index.units
    if units[first].question == units[second].question:
        return True
    answers = relations.index.answers
    left, right = ({answers[entry]: entry for entry in entries[unit]}.values() for unit in pair)
    return any(relations.answer(one, other) != "other" for one in left for other in right)


def _members(
    relations: Relations, entries: Mapping[int, list[int]], joined: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """The entries of each cluster of at least two, in pool order."""
    count = len(relations.index.units)
    ends = np.array(joined, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(joined)), (ends[0], ends[1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1] if count else []
    found: dict[int, list[int]] = {}
    for unit, held in entries.items():
        found.setdefault(int(labels[unit]), []).extend(held)
    return sorted(sorted(held) for held in found.values() if len(held) > 1)


def _best(relations: Relations, cluster: Sequence[int], scores: NDArray[np.float64] | None) -> int:
    if scores is None:
        return cluster[0]
    rows = [relations.index.places[entry].row for entry in cluster]
    return cluster[int(np.argmax(np.nan_to_num(scores[rows], nan=-np.inf)))]


def _duplicate(relations: Relations, entry: int, of: int, cluster: int | None) -> Duplicate:
    places = relations.index.places
    return Duplicate(places[entry], places[of], cluster, relations.between(entry, of))


def _look_alikes(relations: Relations, entries: Mapping[int, list[int]], clustered: set[int]) -> list[Duplicate]:
    found: dict[int, Duplicate] = {}
    for first, second in sorted(relations.pairs):
        for entry in entries.get(second, []):
            if first in entries and entry not in clustered and entry not in found:
                alike = _duplicate(relations, entry, entries[first][0], None)
                if alike.relation.kind == LOOK_ALIKE:
                    found[entry] = alike
    return [found[entry] for entry in sorted(found)]
