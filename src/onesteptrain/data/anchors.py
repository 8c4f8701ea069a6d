"""The anchors: a small trusted set that every score is measured on.

Everything hangs on them, so they are drawn in proportion over strata, and they must not stand in the pool: a pool that
holds an anchor rewards the rows that repeat it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from onesteptrain.data.formats.container import RowNumbers
from onesteptrain.data.images import image_fingerprint, load_image
from onesteptrain.data.pool import Pool, Role, Sample, Unreadable, plain_text
from onesteptrain.errors import AnchorError, ConfigError, SampleError

_NAMED = 5
"""Leaks that an error spells out; it counts the others."""

ACCEPTED = "accepted_from"
"""Column of an anchor that was a row of a pool until somebody checked it: the pool's path."""

LeakKind = Literal["same sample", "same question and image, other answer"]


class Leak(NamedTuple):
    """A row of the pool that an anchor repeats."""

    anchor_row: int
    anchor_uid: str
    pool_row: int
    pool_uid: str
    kind: LeakKind


def draw_anchors(pool: Pool, *, count: int = 100, by: Sequence[str] = (), seed: int = 0) -> RowNumbers:
    """Draw rows in proportion over the strata that the columns `by` make, each stratum at least once if count allows.

    What is drawn depends on the seed and on the rows' uids, not on their order. Rows that cannot be read, or whose
    images cannot be loaded, are never drawn. Images are decoded of rows that may be drawn: in each stratum all of the
    first `count`, and ever fewer after them. Memory holds `count` row numbers a stratum.

    Args:
        pool: Where anchors come from: best a file of its own, held out from what is to be scored.
        count: How many to draw.
        by: Columns such as topic or level; a row without one of them is in a stratum of its own kind.
        seed: Another seed, another draw.

    Returns:
        Positions in the pool, rising.

    Raises:
        AnchorError: a column is in no row, or the pool has fewer usable rows than asked for.
    """
    if count < 1:
        raise ConfigError(f"count of anchors is {count}; it must be at least 1")
    strata: dict[tuple[str, ...], _Stratum] = {}
    columns: set[str] = set()
    for sample in pool:
        if isinstance(sample, Sample):
            columns.update(sample.fields)
            key = tuple(repr(sample.fields.get(column)) for column in by)
            strata.setdefault(key, _Stratum(count)).offer(_priority(sample.uid, seed), sample)
    _check_columns(pool, by, columns)
    ordered = [strata[key] for key in sorted(strata)]
    usable = sum(stratum.size for stratum in ordered)
    if usable < count:
        raise AnchorError(f"{pool.path}: {count} anchors are asked for, but {usable} rows can be used; ask for fewer")
    shares = allocate([stratum.size for stratum in ordered], count)
    drawn = [row for stratum, share in zip(ordered, shares, strict=True) for row in stratum.first(share)]
    return np.sort(np.array(drawn, np.int64))


def allocate(sizes: Sequence[int], count: int) -> list[int]:
    """Share `count` among strata in proportion to their sizes, by largest remainder, with at least one for each.

    With more strata than places, the shares are in proportion and no more. Ties go to the stratum that stands first.
    """
    at_least = [0 if len(sizes) > count else min(size, 1) for size in sizes]
    open_strata = set(range(len(sizes)))
    while True:
        places = count - sum(at_least[i] for i in range(len(sizes)) if i not in open_strata)
        total = sum(sizes[i] for i in open_strata)
        small = {i for i in open_strata if sizes[i] * places < at_least[i] * total}
        if not small:
            break
        open_strata -= small
    shares = [sizes[i] * places // total if i in open_strata else at_least[i] for i in range(len(sizes))]
    by_remainder = sorted(open_strata, key=lambda i: (-(sizes[i] * places % total), i))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def find_leaks(anchors: Iterable[Sample | Unreadable], pool: Iterable[Sample | Unreadable]) -> list[Leak]:
    """Rows of the pool that ask an anchor's question about the same images, whatever they answer.

    Texts are compared after NFKC, case folding and collapsing of white space; images by their pixels. The same image
    with another question is no leak. Only images of rows whose question is an anchor's are decoded, so that a large
    pool streams; a row whose image cannot be loaded cannot be scored either, and is passed over.

    Raises:
        AnchorError: the image of an anchor cannot be loaded.
    """
    known: dict[bytes, list[_Anchor]] = {}
    for sample in _samples(anchors):
        known.setdefault(_text_hash(sample, "user"), []).append(_Anchor(sample, f"anchor {sample.uid!r}"))
    return [leak for sample in _samples(pool) for leak in _leaks(known.get(_text_hash(sample, "user"), ()), sample)]


def refuse_leaks(anchors: Iterable[Sample | Unreadable], pool: Pool) -> list[int]:
    """Make sure that no anchor stands in the pool, but for those that were accepted from it.

    Returns:
        Rows of the pool that say what accepted anchors say: they must be left out of it.

    Raises:
        AnchorError: another anchor does; the text names the rows.
    """
    leaks, accepted = sort_leaks(anchors, pool)
    if leaks:
        raise AnchorError(f"{pool.path}: {describe_leaks(leaks)}, or draw anchors from rows that are held out")
    return accepted


def sort_leaks(
    anchors: Iterable[Sample | Unreadable], pool: Iterable[Sample | Unreadable]
) -> tuple[list[Leak], list[int]]:
    """Leaks of anchors that were never meant to be in the pool, and rows of the pool that are accepted anchors now."""
    known = list(_samples(anchors))
    accepted = {anchor.row for anchor in known if anchor.fields.get(ACCEPTED)}
    leaks = find_leaks(known, pool)
    rows = {leak.pool_row for leak in leaks if leak.anchor_row in accepted}
    return [leak for leak in leaks if leak.anchor_row not in accepted], sorted(rows)


def describe_leaks(leaks: Sequence[Leak]) -> str:
    """Which rows of a pool are anchors too, the first by name, and what to do."""
    named = "; ".join(f"row {leak.pool_row} is anchor {leak.anchor_uid!r} ({leak.kind})" for leak in leaks[:_NAMED])
    more = f"; and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
    rows = len({leak.pool_row for leak in leaks})
    return f"{rows} rows are anchors too: {named}{more}; take these rows out of the pool"


class _Stratum:
    """The rows of one stratum that come first; it holds no more than can be drawn."""

    def __init__(self, most: int) -> None:
        self._most, self._offered = most, 0
        self._heap: list[tuple[int, int]] = []  # negated, so that the last one is on top

    @property
    def size(self) -> int:
        """Rows of the stratum; without those that cannot be used, where few enough are there to know them all."""
        return self._offered if len(self._heap) == self._most else len(self._heap)

    def offer(self, priority: int, sample: Sample) -> None:
        self._offered += 1
        entry = (-priority, -sample.row)
        if len(self._heap) == self._most and entry < self._heap[0]:
            return
        if not _loads(sample):  # asked of the few rows that may be drawn
            return
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def first(self, share: int) -> list[int]:
        return [-row for _, row in sorted(self._heap, reverse=True)[:share]]


class _Anchor:
    """An anchor as rows are compared with it; its images are decoded when first needed."""

    def __init__(self, sample: Sample, where: str) -> None:
        self.sample, self.where = sample, where
        self.answer = _text_hash(sample, "assistant")

    @cached_property
    def images(self) -> list[str]:
        try:
            return [image_fingerprint(image) for image in self.sample.images]
        except SampleError as error:
            raise AnchorError(f"{self.where}: {error}") from error


def _leaks(anchors: Sequence[_Anchor], sample: Sample) -> Iterator[Leak]:
    candidates = [anchor for anchor in anchors if len(anchor.sample.images) == len(sample.images)]
    if not candidates:
        return
    try:
        images = [image_fingerprint(image) for image in sample.images]
    except SampleError:
        return
    for anchor in candidates:
        if anchor.images == images:
            same = anchor.answer == _text_hash(sample, "assistant")
            kind: LeakKind = "same sample" if same else "same question and image, other answer"
            yield Leak(anchor.sample.row, anchor.sample.uid, sample.row, sample.uid, kind)


def _text_hash(sample: Sample, role: Role) -> bytes:
    return hashlib.sha256(plain_text(sample, role).encode()).digest()


def _samples(pool: Iterable[Sample | Unreadable]) -> Iterator[Sample]:
    return (row for row in pool if isinstance(row, Sample))


def _loads(sample: Sample) -> bool:
    try:
        for image in sample.images:
            load_image(image)
    except SampleError:
        return False
    return True


def _priority(uid: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:8], "big")


def _check_columns(pool: Pool, by: Sequence[str], columns: set[str]) -> None:
    missing = [column for column in by if column not in columns]
    if missing:
        there = f"there are {', '.join(sorted(columns))}" if columns else "its rows have no other columns"
        raise AnchorError(f"{pool.path}: no row has the column {', '.join(missing)}; {there}: choose from these")
