"""In which order the rows behind a gate are kept: the highest first, at random, by coverage, by the worst-off group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import MissingExtraError, ScoreError
from onesteptrain.selection.gating import Positions
from onesteptrain.selection.vectors import unit_vectors
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.storage.seeds import seeded_bits

_HASHED_AT_A_TIME = 65_536
_MOST_CLUSTERS = 1000
_MOST_TO_FIT = 50_000
"""Rows that the clusters are made from: the first by their keys; the others are put into them."""

_BLOCK = 8192
_GROUP_PREFIX = "utility."


def top_order(values: NDArray[np.float64], passed: Positions) -> Positions:
    """Highest values first; ties go to the earlier row."""
    return passed[np.argsort(-np.nan_to_num(values[passed], nan=-np.inf), kind="stable")]


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


def random_keys(table: ScoreTable, positions: Positions, seed: int) -> NDArray[np.uint64]:
    """A number for each row, of the seed and its uid alone, so that neither order nor shards matter."""
    uids = table.read(["uid"])["uid"].take(positions)
    starts = range(0, len(uids), _HASHED_AT_A_TIME)
    named = (uid for start in starts for uid in uids.slice(start, _HASHED_AT_A_TIME).to_pylist())
    return np.fromiter((seeded_bits("draw", seed, uid) for uid in named), np.uint64, len(uids))


def cover_order(vectors: NDArray[np.float32], passed: Positions, keys: NDArray[np.uint64], *, seed: int) -> Positions:
    """Rows in an order any beginning of which holds each cluster of vectors in proportion.

    Rows are clustered by k-means, in as many clusters as half the number of rows has for a root. Within a cluster the
    keys decide, which are random; between clusters, a row that stands as k-th of n comes at (k - 1/2) / n of the whole.
    Vectors are read block by block, so that memory does not grow with the pool.

    Args:
        vectors: Where each row lies, "row dim"; may be mapped from a file.
        passed: Rows to put into order.
        keys: Random numbers of these rows.
        seed: Of the clustering.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    clusters = _clusters(vectors, passed[np.argsort(keys, kind="stable")], passed, seed)
    order = np.lexsort([keys, clusters])
    sizes = np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    mine = clusters[order]
    turn = (np.arange(len(order)) - starts[mine] + 0.5) / sizes[mine]
    return passed[order[np.lexsort([keys[order], turn])]]


def _clusters(vectors: NDArray[np.float32], shuffled: Positions, passed: Positions, seed: int) -> Positions:
    """The cluster of each row."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise MissingExtraError('coverage needs scikit-learn: pip install "onesteptrain[cover]"') from error
    count = max(1, min(_MOST_CLUSTERS, round((len(passed) / 2) ** 0.5)))
    model = MiniBatchKMeans(count, random_state=seed, batch_size=4096, n_init=1)
    model.fit(unit_vectors(vectors[shuffled[:_MOST_TO_FIT]]).astype(np.float32))
    blocks = (passed[start : start + _BLOCK] for start in range(0, len(passed), _BLOCK))
    return np.concatenate([model.predict(unit_vectors(vectors[block]).astype(np.float32)) for block in blocks])


def read_group_utilities(table: ScoreTable) -> NDArray[np.float64]:
    """Utility of each row for each group of anchors, "row group".

    Raises:
        ScoreError: there are not at least two groups.
    """
    names = [name for name in table.names if name.startswith(_GROUP_PREFIX)]
    if len(names) < 2:
        raise ScoreError(
            f"{table.path} has {len(names)} columns utility.GROUP; score with --group-by to choose max-min"
        )
    return np.stack([table.numbers(name) for name in names], axis=1)


def maxmin_order(utilities: NDArray[np.float64], count: int) -> Positions:
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
