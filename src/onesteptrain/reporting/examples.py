"""Rows to look at: the two ends of the ranking, with their pictures and texts from the pool."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Pool, Sample, Unreadable
from onesteptrain.errors import SampleError
from onesteptrain.reporting.counting import Column
from onesteptrain.selection import top_rows
from onesteptrain.storage.score_table import ScoreTable

_CUT_TEXT = 1500
_MOST_TURNS = 6
_MOST_IMAGES = 4
_THUMBNAIL = 256
"""Pixels of the longer side."""

_PIXEL_ART = 96
"""Images up to this size are shown pixel by pixel, enlarged."""

_ROLES = {"user": "Question", "assistant": "Answer", "system": "System"}


class Thumbnail(NamedTuple):
    """A picture that stands in the page, or why there is none."""

    uri: str = ""
    width: int = 0
    height: int = 0
    pixelated: bool = False
    problem: str = ""


class Passage(NamedTuple):
    """One turn."""

    role: str
    text: str
    characters: int
    """Of the whole text, of which `text` may be the beginning."""


class Example(NamedTuple):
    """One row."""

    row: int
    uid: str
    numbers: Mapping[str, float]
    """NaN where the table has none."""

    images: Sequence[Thumbnail]
    more_images: int
    passages: Sequence[Passage]
    more_turns: int
    problem: str
    """Why there are no texts, where there are none."""


class Ends(NamedTuple):
    """The lowest and the highest rows of a column, the most extreme first; no row stands in both."""

    lowest: Sequence[Example]
    highest: Sequence[Example]


def read_ends(table: ScoreTable, pool: Pool, values: Column, columns: Sequence[str], most: int) -> Ends:
    """Look up both ends of a ranking in the pool, in one pass that stops after the last row it needs."""
    most = min(most, -(-int(np.isfinite(values).sum()) // 2))
    highest = _sorted(top_rows(values, most), -values)
    rest = -values
    rest[highest] = np.nan
    lowest = _sorted(top_rows(rest, most), values)
    places = np.concatenate([lowest, highest])
    if not len(places):
        return Ends([], [])
    rows = table.numbers("row")[places].astype(np.int64).tolist()
    numbers = {name: table.numbers(name)[places].tolist() for name in columns}
    wanted = set(rows)
    samples = {sample.row: sample for sample in pool.rows(min(rows), max(rows) + 1) if sample.row in wanted}
    examples = [
        _example(samples[row], {name: column[place] for name, column in numbers.items()})
        for place, row in enumerate(rows)
    ]
    return Ends(examples[: len(lowest)], examples[len(lowest) :])


def _sorted(places: NDArray[np.int64], by: Column) -> NDArray[np.int64]:
    return places[np.argsort(by[places], kind="stable")]


def _example(sample: Sample | Unreadable, numbers: Mapping[str, float]) -> Example:
    if isinstance(sample, Unreadable):
        return Example(sample.row, sample.uid, numbers, [], 0, [], 0, sample.reason)
    images = [thumbnail(ref) for ref in sample.images[:_MOST_IMAGES]]
    texts = [(_ROLES[turn.role], turn.text.strip()) for turn in sample.turns[:_MOST_TURNS]]
    passages = [Passage(role, text[:_CUT_TEXT], len(text)) for role, text in texts]
    more_images, more_turns = len(sample.images) - len(images), len(sample.turns) - len(passages)
    return Example(sample.row, sample.uid, numbers, images, more_images, passages, more_turns, "")


def thumbnail(ref: ImageRef) -> Thumbnail:
    """An image small enough for the page, as a data URI; the shorter of PNG and JPEG, pixel art always as PNG."""
    try:
        image = load_image(ref)
    except SampleError as error:
        return Thumbnail(problem=str(error))
    longest = max(image.size)
    if longest <= _PIXEL_ART:
        times = max(1, 192 // longest)
        return Thumbnail(_uri(image, ("PNG",)), times * image.width, times * image.height, pixelated=True)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return Thumbnail(_uri(image, ("PNG", "JPEG")), image.width, image.height)


def _uri(image: Image.Image, kinds: Iterable[str]) -> str:
    encoded = {}
    for kind in kinds:
        stream = io.BytesIO()
        image.save(stream, kind, optimize=True)
        encoded[kind] = base64.b64encode(stream.getvalue()).decode()
    kind = min(encoded, key=lambda kind: len(encoded[kind]))
    return f"data:image/{kind.lower()};base64,{encoded[kind]}"
