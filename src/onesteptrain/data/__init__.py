"""What is read and chosen from: pools in many formats, images, anchors, near-duplicates.

>>> from onesteptrain.data import open_pool, write_subset
>>> pool = open_pool("pool.json")  # or a datasets.Dataset, a pandas frame, a list of dicts
>>> pool[0].turns
>>> write_subset(pool, [0, 2, 5], "subset.json")
"""

from onesteptrain.data.anchors import draw_anchors, find_leaks, refuse_leaks
from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Pool, Sample, Turn, Unreadable, open_pool, write_subset

__all__ = [
    "ImageRef",
    "Pool",
    "Sample",
    "Turn",
    "Unreadable",
    "draw_anchors",
    "find_leaks",
    "load_image",
    "open_pool",
    "refuse_leaks",
    "write_subset",
]
