"""Rows to look at, with their pictures and texts from the pool: around the decision, or the two ends of a ranking."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef, Pool, Sample, Unreadable, text_of
from onesteptrain.errors import SampleError
from onesteptrain.reporting.counting import Column
from onesteptrain.reporting.decision import Cut
from onesteptrain.reporting.diagnosis.texts import Quoter
from onesteptrain.reporting.heat import Word, heat_map, heat_scale, join_words
from onesteptrain.selection import top_rows
from onesteptrain.storage.score_table import ScoreTable

_CUT_TEXT = 1500
_MOST_TURNS = 6
_MOST_IMAGES = 4
_THUMBNAIL = 256
"""Pixels of the longer side."""

_PIXEL_ART = 96
"""Images up to this size are shown pixel by pixel, enlarged."""

_GROUPS = {
    "Dropped: furthest from your anchors": "These should be plainly wrong; where they are not, do not trust the gate.",
    "Just dropped": "The nearest rows on the far side of the cut. Many that are right say that the cut is too strict.",
    "Just kept": "The furthest rows on the near side of the cut. Many that are wrong say that it is too lenient.",
    "Drawn at random from the other dropped rows": "For an honest look: how many of them are right?",
    "Drawn at random from the other kept rows": "And how many of these are wrong?",
}

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

    heat: Markup = Markup()
    """The text with the colours of its words, where their utilities are known."""


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


class Group(NamedTuple):
    """Rows that are shown together, and why."""

    title: str
    why: str
    rows: Sequence[Example]


def read_groups(
    table: ScoreTable, pool: Pool, cut: Cut, columns: Sequence[str], most: int, quote: Quoter | None
) -> list[Group]:
    """Look up rows on both sides of the cut, in one pass over the pool; no row stands in two groups.

    Args:
        table: The scores.
        pool: What was scored.
        cut: Where each row lies.
        columns: Numbers to show.
        most: Rows of the first group; the others have a third of that.
        quote: Finds the words of answer tokens, where the table holds their utilities.
    """
    chosen = _around(cut, most)
    examples = dict(
        zip(
            (place for places in chosen.values() for place in places),
            _read(table, pool, np.concatenate([*chosen.values()]), columns, quote),
            strict=True,
        )
    )
    return [
        Group(title, why, [examples[place] for place in chosen[title].tolist()])
        for title, why in _GROUPS.items()
        if len(chosen[title])
    ]


def _around(cut: Cut, most: int) -> dict[str, NDArray[np.int64]]:
    """Positions in the table for each group."""
    order = np.argsort(cut.value, kind="stable")
    order = order[np.isfinite(cut.value[order])]
    kept, dropped = order[cut.passing[order]], order[~cut.passing[order]]
    few, generator = -(-most // 3), np.random.default_rng(0)  # the same page for the same run
    furthest = dropped[::-1][:most]
    dropped = dropped[: len(dropped) - len(furthest)]
    drawn = [generator.permutation(rows)[:few] for rows in (dropped[few:], kept[: max(0, len(kept) - few)])]
    return dict(zip(_GROUPS, [furthest, dropped[:few], kept[::-1][:few], *drawn], strict=True))


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
    examples = _read(table, pool, places, columns, None)
    return Ends(examples[: len(lowest)], examples[len(lowest) :])


def _read(
    table: ScoreTable, pool: Pool, places: NDArray[np.int64], columns: Sequence[str], quote: Quoter | None
) -> list[Example]:
    if not len(places):
        return []
    rows = table.numbers("row")[places].astype(np.int64).tolist()
    numbers = {name: table.numbers(name)[places].tolist() for name in columns}
    wanted = set(rows)
    samples = {sample.row: sample for sample in pool.rows(min(rows), max(rows) + 1) if sample.row in wanted}
    words = {} if quote is None else _words(table, places.tolist(), [samples[row] for row in rows], quote)
    scale = heat_scale([word for some in words.values() for word in some])
    return [
        _example(samples[row], {name: column[at] for name, column in numbers.items()}, words.get(place, []), scale)
        for at, (place, row) in enumerate(zip(places.tolist(), rows, strict=True))
    ]


def _words(
    table: ScoreTable, places: Sequence[int], samples: Sequence[Sample | Unreadable], quote: Quoter
) -> dict[int, list[Word]]:
    """The words of answers with their utilities, by position; rows of several answers are left out."""
    wanted, found, first = dict(zip(places, samples, strict=True)), dict[int, list[Word]](), 0
    with pq.ParquetFile(table.path) as file:
        for batch in file.iter_batches(columns=["token_utility"]):
            for place in wanted.keys() & set(range(first, first + batch.num_rows)):
                sample, utility = wanted[place], batch.column(0)[place - first].as_py()
                if not isinstance(sample, Sample) or utility is None or _answers(sample) != 1:
                    continue
                with suppress(SampleError, ValueError):  # the template rewrites the answer: it is shown without colours
                    found[place] = join_words(text_of(sample, "assistant"), quote(sample), utility)
            first += batch.num_rows
    return found


def _answers(sample: Sample) -> int:
    return sum(turn.role == "assistant" for turn in sample.turns)


def _sorted(places: NDArray[np.int64], by: Column) -> NDArray[np.int64]:
    return places[np.argsort(by[places], kind="stable")]


def _example(sample: Sample | Unreadable, numbers: Mapping[str, float], words: Sequence[Word], scale: float) -> Example:
    if isinstance(sample, Unreadable):
        return Example(sample.row, sample.uid, numbers, [], 0, [], 0, sample.reason)
    images = [thumbnail(ref) for ref in sample.images[:_MOST_IMAGES]]
    texts = [(_ROLES[turn.role], turn.text.strip()) for turn in sample.turns[:_MOST_TURNS]]
    passages = [Passage(role, text[:_CUT_TEXT], len(text)) for role, text in texts]
    if words:
        answer = text_of(sample, "assistant")
        colored = heat_map(answer, words, scale, _CUT_TEXT)
        passages = [one._replace(heat=colored) if one.role == _ROLES["assistant"] else one for one in passages]
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
