"""Coverage: draw from all parts of the proxy's own space, so that chance leaves none of them out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import MissingExtraError
from onesteptrain.selection.distinct import unit_vectors

_MOST_CLUSTERS = 1000
_MOST_TO_FIT = 50_000
"""Rows that the clusters are made from: the first by their keys; the others are put into them."""

_BLOCK = 8192


def cover_order(
    vectors: NDArray[np.float32], passed: NDArray[np.int64], keys: NDArray[np.uint64], *, seed: int
) -> NDArray[np.int64]:
    """Rows in an order any beginning of which holds each cluster in proportion.

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


def _clusters(
    vectors: NDArray[np.float32], shuffled: NDArray[np.int64], passed: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """The cluster of each row."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise MissingExtraError('coverage needs scikit-learn: pip install "onesteptrain[cover]"') from error
    count = max(1, min(_MOST_CLUSTERS, round((len(passed) / 2) ** 0.5)))
    model = MiniBatchKMeans(count, random_state=seed, batch_size=4096, n_init=1)
    model.fit(unit_vectors(vectors[shuffled[:_MOST_TO_FIT]]).astype(np.float32))
    blocks = (passed[start : start + _BLOCK] for start in range(0, len(passed), _BLOCK))
    return np.concatenate([model.predict(unit_vectors(vectors[one]).astype(np.float32)) for one in blocks])
