"""What is held of every row while near ones are searched: numbers, digests and questions; no images, no answers."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.data.deduplication.near_image import WORDS, Look, look_at
from onesteptrain.data.deduplication.near_text import plain
from onesteptrain.data.pool import Role, Sample, Unreadable
from onesteptrain.errors import SampleError

POOL = "pool"
"""Name of the file that is guarded; others are compared with it."""

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
        found: dict[int, list[int]] = {}
        for entry, unit in enumerate(self.unit_of.tolist()):
            found.setdefault(unit, []).append(entry)
        return found

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
    reading = _Reading()
    done = 0
    for name, rows in sources.items():
        for sample in rows:
            reading.add(Place(name, sample.row, sample.uid), sample)
            done += 1
            if progress is not None:
                progress(done)
    return reading.index()


def said(sample: Sample, role: Role) -> str:
    """The turns of one role, as they stand."""
    return "\n".join(turn.text for turn in sample.turns if turn.role == role)


class _Reading:
    """Gives every distinct thing the number of its first appearance."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._answers: list[bytes] = []
        self._unit_of = array.array("q")
        self._units: dict[Unit, int] = {}
        self._questions: dict[str, int] = {}
        self._pictures: dict[tuple[int, ...], int] = {}
        self._images: dict[bytes, int] = {}
        self._bits = array.array("Q")
        self._unused: list[Unused] = []

    def add(self, place: Place, sample: Sample | Unreadable) -> None:
        try:
            if isinstance(sample, Unreadable):
                raise SampleError(sample.reason)
            looks = [look_at(ref) for ref in sample.images]
        except SampleError as error:
            self._unused.append(Unused(place, str(error)))
            return
        images = tuple(self._image(look) for look in looks)
        question = self._questions.setdefault(plain(said(sample, "user")), len(self._questions))
        unit = Unit(question, self._pictures.setdefault(images, len(self._pictures)))
        answer = plain(said(sample, "assistant")).encode("utf-8", "surrogatepass")
        self._places.append(place)
        self._unit_of.append(self._units.setdefault(unit, len(self._units)))
        self._answers.append(hashlib.blake2b(answer, digest_size=8).digest())

    def index(self) -> Index:
        return Index(
            places=self._places,
            answers=self._answers,
            unit_of=np.array(self._unit_of, np.int64),
            units=list(self._units),
            questions=list(self._questions),
            pictures=list(self._pictures),
            bits=np.array(self._bits, np.uint64).reshape(-1, WORDS),
            unused=self._unused,
        )

    def _image(self, look: Look) -> int:
        if look.digest not in self._images:
            self._bits.extend(look.bits.tolist())
        return self._images.setdefault(look.digest, len(self._images))
