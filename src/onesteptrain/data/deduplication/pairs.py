"""Pairs of units whose questions and images are both near, without comparing every unit with every other.

Near questions share a hash band and near images a chunk of the hash, so that only units that agree in one of each are
compared. Images are compared by all bits, then questions by their exact similarity, and at last the images spot by
spot, for which they are read again: no pair is there by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onesteptrain.data.deduplication.index import Index, Sources
from onesteptrain.data.deduplication.near_image import chunk_keys, distances, same_picture, thumbnail
from onesteptrain.data.deduplication.near_text import Hashes, band_keys, mix, near_texts
from onesteptrain.errors import ConfigError, SampleError

Ints = NDArray[np.int64]
Pair = tuple[int, int]

_FARTHEST = 48
_THUMBNAILS = 256
"""Images held at a time; each is at most 442 kB."""


@dataclass(frozen=True)
class GuardOptions:
    """From where on two rows are near-duplicates: their questions and their images must both be near."""

    text_similarity: float = 0.7
    """Lowest Jaccard similarity, from 0 to 1, of two near texts, over their runs of three characters."""

    image_distance: int = 24
    """Most bits, of 256, in which the perceptual hashes of two near images differ."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.text_similarity <= 1:  # below that, unrelated questions are near
            raise ConfigError(f"text_similarity is {self.text_similarity}; choose from 0.5 (loose) to 1 (same)")
        if not 0 <= self.image_distance <= _FARTHEST:  # beyond that, unrelated images are near
            raise ConfigError(f"image_distance is {self.image_distance} bits; choose from 0 (same) to {_FARTHEST}")


def near_units(index: Index, options: GuardOptions) -> Ints:
    """All pairs of different units with near questions and near images, `[pair, 2]`, the lower number first.

    Every pair has its images within the distance and its questions above the similarity. A pair of different
    questions just at the similarity is missed once in a thousand times; pairs of one question never are.
    """
    question = np.array([unit.question for unit in index.units], np.int64)
    pictures = _Pictures(index, options.image_distance)
    by_band = band_keys(index.questions, options.text_similarity)
    codes = np.zeros(0, np.int64)
    for band in range(-1, by_band.shape[1]):
        keys = question.astype(np.uint64) if band < 0 else by_band[question, band]
        members = _crowded(keys, question if band >= 0 else np.arange(len(question)))
        near = [_codes(*pair, len(question)) for pair in pictures.near(members, keys, question, same=band < 0)]
        codes = np.unique(np.concatenate([codes, *near]))
    pairs = np.stack(np.divmod(codes, max(1, len(question))), axis=1)
    return pairs[_near_questions(index, question[pairs], options.text_similarity)]


def confirmed(index: Index, sources: Sources, pairs: Ints) -> list[Pair]:
    """The pairs of units whose images are the same pictures, spot by spot; the files are read again for them."""
    images = {(first, second): _image_pairs(index, first, second) for first, second in pairs.tolist()}
    same = _same_pictures(index, sources, {pair for parts in images.values() for pair in parts})
    return [units for units, parts in images.items() if same.issuperset(parts)]


def image_distance(index: Index, first: int, second: int) -> int | None:
    """The largest distance between two pictures' images, one by one in order; None if they differ in number."""
    left, right = index.pictures[first], index.pictures[second]
    if len(left) != len(right):
        return None
    return int(distances(index.bits[list(left)], index.bits[list(right)]).max(initial=0))


class _Pictures:
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
        for chunk in range(self._chunks.shape[1] if len(shown) > 1 else 0):
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


def _image_pairs(index: Index, first: int, second: int) -> set[Pair]:
    pictures = [index.pictures[index.units[unit].picture] for unit in (first, second)]
    return {(min(a, b), max(a, b)) for a, b in zip(*pictures, strict=True) if a != b}


def _same_pictures(index: Index, sources: Sources, pairs: Iterable[Pair]) -> set[Pair]:
    same = set()
    where = _holders(index, {image for pair in pairs for image in pair})
    for batch in _batches(sorted(pairs)):
        thumbnails = _thumbnails(index, sources, where, {image for pair in batch for image in pair})
        for first, second in batch:
            if first in thumbnails and second in thumbnails and same_picture(thumbnails[first], thumbnails[second]):
                same.add((first, second))
    return same


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs in portions that name at most so many images."""
    batch: list[Pair] = []
    images: set[int] = set()
    for pair in pairs:
        if len(images | set(pair)) > _THUMBNAILS:
            yield batch
            batch, images = [], set()
        batch.append(pair)
        images.update(pair)
    if batch:
        yield batch


def _holders(index: Index, images: set[int]) -> Mapping[int, Pair]:
    """An entry that shows each image, and its place among the entry's images."""
    holders: dict[int, Pair] = {}
    for entry, unit in enumerate(index.unit_of.tolist()):
        for position, image in enumerate(index.pictures[index.units[unit].picture]):
            if image in images:
                holders.setdefault(image, (entry, position))
    return holders


def _thumbnails(index: Index, sources: Sources, where: Mapping[int, Pair], images: set[int]) -> dict[int, Image.Image]:
    """Thumbnails by image; an image that went away since the first reading has none."""
    asked: dict[int, list[Pair]] = {}
    for image in images:
        entry, position = where[image]
        asked.setdefault(entry, []).append((position, image))
    thumbnails = {}
    for entry, sample in index.revisit(sources, asked.keys()):
        for position, image in asked[entry]:
            try:
                thumbnails[image] = thumbnail(sample.images[position])
            except (SampleError, IndexError):
                continue
    return thumbnails
