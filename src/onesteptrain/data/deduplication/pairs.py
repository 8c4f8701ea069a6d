"""Pairs of units whose questions and images are both near, without comparing every unit with every other.

Near questions share a hash band and near images a chunk of the hash, so that only units that agree in one of each are
compared. Images are compared by all bits, then questions by their exact similarity: no pair is there by chance.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.deduplication.index import Index
from onesteptrain.data.deduplication.near_image import chunk_keys, distances
from onesteptrain.data.deduplication.near_text import Hashes, band_keys, mix, near_texts
from onesteptrain.data.deduplication.options import GuardOptions

Ints = NDArray[np.int64]


def near_units(index: Index, options: GuardOptions) -> Ints:
    """All pairs of different units with near questions and near images, `[pair, 2]`, the lower number first.

    Every pair has its images within the distance and its questions above the similarity. A pair of different
    questions just at the similarity is missed once in a thousand times; pairs of one question never are.
    """
    question = np.array([unit.question for unit in index.units], np.int64)
    looks = _Looks(index, options.image_distance)
    by_band = band_keys(index.questions, options.text_similarity)
    codes = np.zeros(0, np.int64)
    for band in range(-1, by_band.shape[1]):
        keys = (
            (question.astype(np.uint64) if band < 0 else by_band[question, band])
            if len(question)
            else np.zeros(0, np.uint64)
        )
        members = _crowded(keys, question if band >= 0 else np.arange(len(question)))
        found = [_codes(*pair, len(question)) for pair in looks.near(members, keys, question, same=band < 0)]
        codes = np.unique(np.concatenate([codes, *found]))
    pairs = np.stack(np.divmod(codes, max(1, len(question))), axis=1)
    return pairs[_near_questions(index, question[pairs], options.text_similarity)]


def image_distance(index: Index, first: int, second: int) -> int | None:
    """The largest distance between two pictures' images, one by one in order; None if they differ in number."""
    left, right = index.pictures[first], index.pictures[second]
    if len(left) != len(right):
        return None
    return int(distances(index.bits[list(left)], index.bits[list(right)]).max(initial=0))


class _Looks:
    """The units' pictures: units are compared where the first images share a chunk."""

    def __init__(self, index: Index, distance: int) -> None:
        self._index, self._distance = index, distance
        self._picture = np.array([unit.picture for unit in index.units], np.int64)
        counts = np.array([len(images) for images in index.pictures], np.int64)
        first = np.array([images[0] if images else -1 for images in index.pictures], np.int64)
        self._count, self._first = counts[self._picture], first[self._picture]
        self._chunks = chunk_keys(index.bits, distance)

    def near(self, members: Ints, keys: Hashes, question: Ints, *, same: bool) -> Iterator[tuple[Ints, Ints]]:
        """Pairs among the members that agree in their key and have near pictures; of one question, or of two."""
        without = members[self._count[members] == 0]
        if not same:  # without images, units of one question are one
            yield from self._chosen(without, keys[without], question, same=same)
        shown = members[self._count[members] > 0]
        for chunk in range(self._chunks.shape[1]):
            seen = self._chunks[self._first[shown], chunk]
            joint = mix(np.stack([keys[shown], seen, self._count[shown].astype(np.uint64)], axis=1))
            yield from self._chosen(shown, joint, question, same=same)

    def _chosen(self, members: Ints, keys: Hashes, question: Ints, *, same: bool) -> Iterator[tuple[Ints, Ints]]:
        for left, right in agreeing(keys):
            first, second = members[left], members[right]
            wanted = (question[first] == question[second]) == same
            first, second = first[wanted], second[wanted]
            kept = self._within(first, second)
            yield first[kept], second[kept]

    def _within(self, first: Ints, second: Ints) -> NDArray[np.bool_]:
        near = np.equal(self._count[first], self._count[second])
        shown = near & (self._count[first] > 0)
        apart = distances(*(self._index.bits[self._first[side[shown]]] for side in (first, second)))
        near[shown] = apart <= self._distance
        for place in np.flatnonzero(near & (self._count[first] > 1)):
            all_apart = image_distance(self._index, self._picture[first[place]], self._picture[second[place]])
            near[place] = all_apart is not None and all_apart <= self._distance
        return near


def agreeing(keys: Hashes) -> Iterator[tuple[Ints, Ints]]:
    """All pairs of positions with the same key, in blocks of at most as many as there are keys."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    left = np.arange(len(keys))
    for step in range(1, len(keys)):
        left = left[: np.searchsorted(left, len(keys) - step)]
        left = left[ordered[left] == ordered[left + step]]
        if not len(left):
            return
        yield order[left], order[left + step]


def _crowded(keys: Hashes, values: Ints) -> Ints:
    """Positions whose key stands with more than one value."""
    order = np.lexsort((values, keys))
    same_key = keys[order][1:] == keys[order][:-1]
    change = same_key & (values[order][1:] != values[order][:-1])
    starts = np.flatnonzero(np.concatenate([[True], ~same_key])) if len(keys) else np.zeros(0, np.int64)
    if not len(starts):
        return np.zeros(0, np.int64)
    crowded = np.add.reduceat(np.concatenate([[False], change]).astype(np.int64), starts) > 0
    return np.sort(order[np.repeat(crowded, np.diff([*starts, len(keys)]))])


def _codes(first: Ints, second: Ints, count: int) -> Ints:
    return np.minimum(first, second) * count + np.maximum(first, second)


def _near_questions(index: Index, questions: Ints, threshold: float) -> NDArray[np.bool_]:
    distinct, back = np.unique(np.sort(questions, axis=1), axis=0, return_inverse=True)
    near = [near_texts(index.questions[first], index.questions[second], threshold) for first, second in distinct]
    return np.array(near, np.bool_)[back.reshape(-1)]
