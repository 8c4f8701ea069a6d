"""Search a pool for near-duplicates, contradictions and leaks, in one reading and a second look at what is near."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.deduplication.duplicates import Clusters, Duplicate, find_clusters
from onesteptrain.data.deduplication.index import POOL, Index, Progress, Unused, read_index
from onesteptrain.data.deduplication.leaks import NearLeak, find_near_leaks
from onesteptrain.data.deduplication.options import GuardOptions
from onesteptrain.data.deduplication.pairs import near_units
from onesteptrain.data.deduplication.relating import CONTRADICTIONS, Relations
from onesteptrain.data.deduplication.verifying import confirmed, read_answers
from onesteptrain.data.pool import Pool, Sample, Unreadable


class Findings(NamedTuple):
    """What a guard found."""

    rows: int
    """Rows of the pool, readable or not."""

    clusters: Clusters
    leaks: list[NearLeak]
    unused: list[Unused]
    """Rows of any file that could not be compared."""

    @property
    def contradictions(self) -> list[Duplicate]:
        """Rows that answer a kept row's question about its picture otherwise."""
        return [one for one in self.clusters.duplicates if one.relation.kind in CONTRADICTIONS]

    @property
    def kinds(self) -> dict[str, int]:
        """How many rows duplicate another in each way, the most frequent first."""
        counts = Counter(one.relation.kind for one in self.clusters.duplicates)
        return {str(kind): count for kind, count in counts.most_common()}


def guard(
    pool: Pool,
    *,
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
    answers = read_answers(index, sources, _near_entries(index, pairs))
    relations = Relations(index, answers, pairs, options.text_similarity)
    unused = list(index.unused)
    rows = sum(place.source == POOL for place in (*index.places, *(one.place for one in unused)))
    return Findings(rows, find_clusters(relations, scores), find_near_leaks(relations), unused)


def _near_entries(index: Index, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Entries that are not alone in their unit, or whose unit is near another."""
    paired = {unit for pair in pairs for unit in pair}
    by_unit = index.entries_of_units()
    return [entry for unit, held in by_unit.items() if len(held) > 1 or unit in paired for entry in held]
