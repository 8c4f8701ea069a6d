"""What is held of every row while near ones are searched: numbers, digests and questions; no images, no answers."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.deduplication.near_image import WORDS, ImageHash, hash_image
from onesteptrain.data.pool import Sample, Unreadable, plain_text
from onesteptrain.errors import SampleError

T = TypeVar("T")

POOL = "pool"
"""Name of the file that is searched; others are compared with it."""

Sources = Mapping[str, Iterable[Sample | Unreadable]]
"""Files by name; each is read more than once."""

Progress = Callable[[int], None]
"""Told how many rows were read."""


class Place(NamedTuple):
    """Where a row stands."""

    source: str
    row: int
    uid: str


class Unused(NamedTuple):
    """A row that could not be compared, and why."""

    place: Place
    reason: str


class Unit(NamedTuple):
    """All rows with one question about the same pixels, whatever they answer."""

    question: int
    picture: int


@dataclass(frozen=True)
class Index:
    """All rows that can be compared, by what they ask about which images."""

    places: Sequence[Place]
    """Readable rows in reading order; an *entry* is a position in it."""

    answers: Sequence[bytes]
    """Digest of each entry's plain answer."""

    unit_of: NDArray[np.int64]
    """Unit of each entry."""

    units: Sequence[Unit]
    questions: Sequence[str]
    """Distinct questions, as plain text."""

    pictures: Sequence[tuple[int, ...]]
    """Distinct lists of images, in reading order; each image by its number."""

    bits: NDArray[np.uint64]
    """Perceptual hash of each distinct image, `[image, word]`."""

    unused: Sequence[Unused]

    def entries_of_units(self) -> dict[int, list[int]]:
        """The entries of each unit, rising."""
        entries: dict[int, list[int]] = {}
        for entry, unit in enumerate(self.unit_of.tolist()):
            entries.setdefault(unit, []).append(entry)
        return entries

    def revisit(self, sources: Sources, entries: Collection[int]) -> Iterator[tuple[int, Sample]]:
        """Read the files again for some entries."""
        wanted = {self.places[entry][:2]: entry for entry in entries}
        for name in dict.fromkeys(source for source, _ in wanted):
            for sample in sources[name]:
                entry = wanted.get((name, sample.row))
                if entry is not None and isinstance(sample, Sample):
                    yield entry, sample


def read_index(sources: Sources, progress: Progress | None = None) -> Index:
    """Read all files once; images are decoded, hashed and dropped."""
    places: list[Place] = []
    answers: list[bytes] = []
    unused: list[Unused] = []
    unit_of, bits = array.array("q"), array.array("Q")
    units: dict[Unit, int] = {}
    questions: dict[str, int] = {}
    pictures: dict[tuple[int, ...], int] = {}
    images: dict[bytes, int] = {}
    for row in _hashed(sources, progress):
        if isinstance(row, Unused):
            unused.append(row)
            continue
        place, sample, hashes = row
        for image in hashes:
            bits.extend([] if image.digest in images else image.bits.tolist())
            _number(images, image.digest)
        picture = _number(pictures, tuple(images[image.digest] for image in hashes))
        unit = Unit(_number(questions, plain_text(sample, "user")), picture)
        answer = plain_text(sample, "assistant").encode("utf-8", "surrogatepass")
        places.append(place)
        unit_of.append(_number(units, unit))
        answers.append(hashlib.blake2b(answer, digest_size=8).digest())
    hashed = np.array(bits, np.uint64).reshape(-1, WORDS)
    numbered = np.array(unit_of, np.int64)
    return Index(places, answers, numbered, list(units), list(questions), list(pictures), hashed, unused)


def _hashed(sources: Sources, progress: Progress | None) -> Iterator[tuple[Place, Sample, list[ImageHash]] | Unused]:
    rows = ((name, sample) for name, samples in sources.items() for sample in samples)
    for done, (name, sample) in enumerate(rows, 1):
        place = Place(name, sample.row, sample.uid)
        try:
            if isinstance(sample, Unreadable):
                raise SampleError(sample.reason)
            yield place, sample, [hash_image(ref) for ref in sample.images]
        except SampleError as error:
            yield Unused(place, str(error))
        if progress is not None:
            progress(done)


def _number(known: dict[T, int], value: T) -> int:
    """The number of the value's first appearance."""
    return known.setdefault(value, len(known))
