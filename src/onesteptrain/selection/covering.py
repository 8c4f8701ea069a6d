"""Coverage: draw from all parts of the proxy's own space, so that chance leaves none of them out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesteptrain.errors import MissingExtraError

_MOST_CLUSTERS = 1000


def cover_order(vectors: NDArray[np.float32], keys: NDArray[np.uint64], *, seed: int) -> NDArray[np.int64]:
    """Positions in an order any beginning of which holds each cluster in proportion.

    Rows are clustered by k-means, in as many clusters as half the number of rows has for a root. Within a cluster the
    keys decide, which are random; between clusters, a row that stands as k-th of n comes at (k - 1/2) / n of the whole.

    Args:
        vectors: Where each row lies, "row dim".
        keys: Random numbers of the rows.
        seed: Of the clustering.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise MissingExtraError('coverage needs scikit-learn: pip install "onesteptrain[cover]"') from error
    count = max(1, min(_MOST_CLUSTERS, round((len(vectors) / 2) ** 0.5)))
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    model = MiniBatchKMeans(count, random_state=seed, batch_size=4096, n_init=1)
    clusters = model.fit_predict(np.ascontiguousarray(units, np.float32))
    order = np.lexsort([keys, clusters])
    sizes = np.bincount(clusters, minlength=count)
    starts = np.cumsum(sizes) - sizes
    mine = clusters[order]
    turn = (np.arange(len(order)) - starts[mine] + 0.5) / sizes[mine]
    result: NDArray[np.int64] = order[np.lexsort([keys[order], turn])].astype(np.int64)
    return result
