"""The second look: what is held of every row is too little to decide, so near rows are read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onesteptrain.data.deduplication.index import Index, Sources, said
from onesteptrain.data.deduplication.near_image import same_picture, thumbnail
from onesteptrain.data.deduplication.near_text import near_texts, plain
from onesteptrain.data.pool import Sample
from onesteptrain.errors import SampleError
from onesteptrain.evaluation.answers import extract_answer, same_answer

Pair = tuple[int, int]
AnswerRelation = Literal["same", "near", "other"]

_THUMBNAILS = 256
"""Images held at a time; each is at most 442 kB."""


class Answer(NamedTuple):
    """What a row answers."""

    text: str
    """Plain text."""

    final: str | None
    """The final answer that it states."""


def confirmed(index: Index, sources: Sources, pairs: NDArray[np.int64]) -> list[Pair]:
    """The pairs of units whose images are the same pictures, spot by spot; the files are read again for them."""
    parts = {(first, second): _image_pairs(index, first, second) for first, second in pairs.tolist()}
    wanted = {pair for images in parts.values() for pair in images}
    same = _same_pictures(index, sources, wanted)
    return [units for units, images in parts.items() if same.issuperset(images)]


def read_answers(index: Index, sources: Sources, entries: Iterable[int]) -> dict[int, Answer]:
    """What some entries answer; rows that answer alike share one text."""
    first = {index.answers[entry]: entry for entry in entries}
    read = {index.answers[entry]: _answer(sample) for entry, sample in index.revisit(sources, set(first.values()))}
    return {entry: read[index.answers[entry]] for entry in entries}


def compare_answers(first: Answer, second: Answer, threshold: float) -> AnswerRelation:
    """Where both state a final answer, that decides: two ways to it are near, two results are not."""
    if first.text == second.text:
        return "same"
    if first.final is not None and second.final is not None:
        near = first.final == second.final or same_answer(first.final, second.final)
    else:
        near = near_texts(first.text, second.text, threshold)
    return "near" if near else "other"


def _answer(sample: Sample) -> Answer:
    text = said(sample, "assistant")
    return Answer(plain(text), extract_answer(text))


def _image_pairs(index: Index, first: int, second: int) -> set[Pair]:
    pictures = [index.pictures[index.units[unit].picture] for unit in (first, second)]
    return {(min(a, b), max(a, b)) for a, b in zip(*pictures, strict=True) if a != b}


def _same_pictures(index: Index, sources: Sources, pairs: Iterable[Pair]) -> set[Pair]:
    found = set()
    where = _holders(index, {image for pair in pairs for image in pair})
    for batch in _batches(sorted(pairs)):
        thumbnails = _thumbnails(index, sources, where, {image for pair in batch for image in pair})
        for first, second in batch:
            if first in thumbnails and second in thumbnails and same_picture(thumbnails[first], thumbnails[second]):
                found.add((first, second))
    return found


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
    found: dict[int, Pair] = {}
    for entry, unit in enumerate(index.unit_of.tolist()):
        for position, image in enumerate(index.pictures[index.units[unit].picture]):
            if image in images:
                found.setdefault(image, (entry, position))
    return found


def _thumbnails(index: Index, sources: Sources, where: Mapping[int, Pair], images: set[int]) -> dict[int, Image.Image]:
    """Thumbnails by image; an image that went away since the first reading has none."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for image in images:
        entry, position = where[image]
        asked.setdefault(entry, []).append((position, image))
    found = {}
    for entry, sample in index.revisit(sources, asked.keys()):
        for position, image in asked[entry]:
            try:
                found[image] = thumbnail(sample.images[position])
            except (SampleError, IndexError):
                continue
    return found
