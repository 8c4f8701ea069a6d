"""Near-duplicates, contradictions and leaks of a pool: clusters of rows that say the same, and which row to keep."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onesteptrain.data.deduplication.index import POOL, Index, Place, Progress, Unused, read_index
from onesteptrain.data.deduplication.pairs import GuardOptions, confirmed, near_units
from onesteptrain.data.deduplication.relations import (
    CONTRADICTIONS,
    LOOK_ALIKE,
    FinalAnswers,
    Relation,
    Relations,
    read_answers,
)
from onesteptrain.data.pool import Pool, Sample, Unreadable


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


class NearLeak(NamedTuple):
    """A row of the pool that says what a row of another file says."""

    place: Place
    """In the pool."""

    leak_of: Place
    """In the other file."""

    relation: Relation


class Findings(NamedTuple):
    """What a search found."""

    rows: int
    """Rows of the pool, readable or not."""

    clusters: Clusters
    leaks: list[NearLeak]
    unused: list[Unused]
    """Rows of any file that could not be compared."""

    @property
    def contradictions(self) -> list[Duplicate]:
        """Rows that answer a kept row's question about its picture otherwise."""
        return [row for row in self.clusters.duplicates if row.relation.kind in CONTRADICTIONS]

    @property
    def kinds(self) -> dict[str, int]:
        """How many rows duplicate another in each way, the most frequent first."""
        counts = Counter(row.relation.kind for row in self.clusters.duplicates)
        return {str(kind): count for kind, count in counts.most_common()}


def guard(
    pool: Pool,
    *,
    finals: FinalAnswers,
    against: Mapping[str, Iterable[Sample | Unreadable]] | None = None,
    options: GuardOptions | None = None,
    scores: NDArray[np.float64] | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Find what a pool says twice, and what it says that other files say.

    Memory holds digests, hashes and questions of all rows (not their images or answers), the answers of the rows that
    are near another, and 256 thumbnails.

    Args:
        pool: The pool; it is read two or more times.
        finals: How final answers are read and compared, which decides what contradicts.
        against: Files that must not leak into it, by name, such as anchors or a benchmark; each can be read again.
        options: What counts as near.
        scores: A score for each row of the pool; the best row of a cluster is kept, in place of the first.
        progress: Told how many rows were read for the first time.

    Raises:
        MissingExtraError: rensa or imagehash is not installed.
    """
    options = options or GuardOptions()
    sources = {POOL: pool, **(against or {})}
    index = read_index(sources, progress)
    pairs = frozenset(confirmed(index, sources, near_units(index, options)))
    answers = read_answers(index, sources, _near_entries(index, pairs), finals)
    relations = Relations(index, answers, pairs, options.text_similarity, finals)
    unused = list(index.unused)
    rows = sum(place.source == POOL for place in (*index.places, *(row.place for row in unused)))
    return Findings(rows, find_clusters(relations, scores), find_near_leaks(relations), unused)


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
    return Clusters(places, sorted(duplicates, key=lambda row: row.place.row), alike)


def find_near_leaks(relations: Relations) -> list[NearLeak]:
    """All pairs of a pool row and a row of another file with near questions about near images, whatever they answer.

    This goes beyond `onesteptrain.data.anchors.find_leaks`, which knows the same question about the same pixels.
    """
    places, by_unit = relations.index.places, relations.index.entries_of_units()
    inside = _pool_entries(relations)
    same = ((unit, unit) for unit in by_unit)
    near = (ends for first, second in relations.pairs for ends in ((first, second), (second, first)))
    leaks = [
        NearLeak(places[entry], places[leaked], relations.between(entry, leaked))
        for inner, outer in (*same, *near)
        for entry in inside.get(inner, ())
        for leaked in by_unit[outer]
        if places[leaked].source != POOL
    ]
    return sorted(leaks, key=lambda leak: (leak.leak_of.source, leak.place.row, leak.leak_of.row))


def _near_entries(index: Index, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Entries that are not alone in their unit, or whose unit is near another."""
    paired = {unit for pair in pairs for unit in pair}
    by_unit = index.entries_of_units()
    return [entry for unit, held in by_unit.items() if len(held) > 1 or unit in paired for entry in held]


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
    return any(relations.answer(*ends) != "other" for ends in itertools.product(left, right))


def _members(
    relations: Relations, entries: Mapping[int, list[int]], joined: Sequence[tuple[int, int]]
) -> list[list[int]]:
    """The entries of each cluster of at least two, in pool order."""
    count = len(relations.index.units)
    ends = np.array(joined, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(joined)), (ends[0], ends[1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1] if count else []
    clusters: dict[int, list[int]] = {}
    for unit, held in entries.items():
        clusters.setdefault(int(labels[unit]), []).extend(held)
    return sorted(sorted(held) for held in clusters.values() if len(held) > 1)


def _best(relations: Relations, cluster: Sequence[int], scores: NDArray[np.float64] | None) -> int:
    if scores is None:
        return cluster[0]
    rows = [relations.index.places[entry].row for entry in cluster]
    return cluster[int(np.argmax(np.nan_to_num(scores[rows], nan=-np.inf)))]


def _duplicate(relations: Relations, entry: int, of: int, cluster: int | None) -> Duplicate:
    places = relations.index.places
    return Duplicate(places[entry], places[of], cluster, relations.between(entry, of))


def _look_alikes(relations: Relations, entries: Mapping[int, list[int]], clustered: set[int]) -> list[Duplicate]:
    alike: dict[int, Duplicate] = {}
    for first, second in sorted(relations.pairs):
        for entry in entries.get(second, []):
            if first in entries and entry not in clustered and entry not in alike:
                duplicate = _duplicate(relations, entry, entries[first][0], None)
                if duplicate.relation.kind == LOOK_ALIKE:
                    alike[entry] = duplicate
    return [alike[entry] for entry in sorted(alike)]
