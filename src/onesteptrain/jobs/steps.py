"""The steps of the main job that need no model, each from files to files: anchors, selection, and where scores are.

A step checks its inputs, owns its output, and calls one function of the library; commands, `ost run`, `ost compare`
and the functions of `onesteptrain` are made of the same steps. Those that run a model are in `jobs.scoring`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.data.anchors import draw_anchors, refuse_leaks, sort_leaks
from onesteptrain.data.exclusion import read_excluded
from onesteptrain.data.formats.places import PLACEHOLDER
from onesteptrain.data.formats.schemas import THE_TEXT, PictureReading, Reading
from onesteptrain.data.images import image_changes
from onesteptrain.data.pool import FormatName, ImageRef, Pool, Sample, Unreadable, open_pool, write_subset
from onesteptrain.errors import AnchorError, one_line
from onesteptrain.evaluation.benchmark import Question

_IS_ANCHOR = "the row was accepted as an anchor, and is neither scored nor selected"

Tell = Callable[[str], None]
"""Told in a line what a step has done."""


@dataclass(frozen=True)
class PoolOptions:
    """How the pool is read."""

    format: FormatName = "auto"
    """Which columns hold the conversation; auto reads each row by those that it has."""

    image_root: Path | None = None
    """Folder that relative image paths start from; by default the pool's own."""

    image_column: tuple[str, ...] = ()
    """Columns that hold pictures; rows in which none is filled are read by `images` or `image`."""

    allow_outside: bool = False
    """Open pictures outside of the image root too, wherever a row points to."""

    exclude: Path | None = None
    """File of rows that are left out, with this as their reason: the table of `ost guard` (leaks, and all but one of
    each cluster), or uids (txt, csv, jsonl, parquet)."""

    def for_others(self) -> PictureReading:
        """What holds of anchors and benchmarks of the pool as well."""
        return Reading(image_column=self.image_column, allow_outside=self.allow_outside).for_others()

    def open(self, path: Path) -> Pool:
        """Open a pool with these options."""
        options = dataclasses.asdict(self)
        exclude = options.pop("exclude")
        return leave_out(open_pool(path, **options), exclude)

    def open_checked(self, path: Path, tell: Tell) -> Pool:
        """Open a pool, and tell which pictures would not be read, or are not shown as they are stored."""
        pool = self.open(path)
        if self.exclude is not None:
            tell(f"{path}: {len(pool.left_out)} rows are left out, as {self.exclude} says")
        tell_pictures(pool.path, pool, tell)
        return pool


@dataclass(frozen=True)
class AnchorOptions:
    """How the anchors are read and checked."""

    anchor_image_root: Path | None = None
    """Folder that the anchors' relative image paths start from; by default the anchor file's own."""

    allow_leaks: bool = False
    """Score even though anchors stand in the pool: their utility is then too good to be true."""

    def open(self, path: Path, pool: Pool | None) -> Pool:
        """Open an anchor file with these options, and with the image columns of the pool.

        Anchors are trusted, and those that were accepted from a pool name pictures elsewhere: these may be anywhere.
        """
        columns = pool.reading.image_column if pool is not None else ()
        return open_pool(path, image_root=self.anchor_image_root, image_column=columns, allow_outside=True)


@dataclass(frozen=True)
class AnchorDraw:
    """How anchors are drawn from held-out rows."""

    count: int = 100
    """How many anchors."""

    by: tuple[str, ...] = ()
    """Columns to stratify by, such as topic and level."""

    seed: int = 0
    """Another seed, another draw."""

    skip_leaks: bool = False
    """Draw others in place of rows that stand in the pool."""


def leave_out(pool: Pool, exclude: Path | None) -> Pool:
    """The pool with a reason in place of the rows that a file names; see `read_excluded`."""
    if exclude is None:
        return pool
    rows = read_excluded(exclude, ((row.row, row.uid) for row in pool), pool.fingerprint)
    return pool.without(rows, f"excluded by {exclude}")


def tell_pictures(path: Path, rows: Iterable[Sample | Unreadable | Question], tell: Tell) -> None:
    """Tell how many rows without images have what looks like one, and how many pictures are changed to show them.

    Reads all rows, and the heads of their pictures.
    """
    unread, changes, seen = Counter[str](), Counter[str](), set[int]()
    for row in rows:
        if isinstance(row, Unreadable):
            continue
        unread[row.unread] += 1
        for image in (part for turn in row.turns for part in turn.parts if isinstance(part, ImageRef)):
            found = image_changes(image)
            if found and (known := hash(image.source if isinstance(image.source, Path | bytes) else image)) not in seen:
                seen.add(known)
                changes.update(found)
    for where, count in unread.most_common():
        if where:
            remedy = (
                f"put {PLACEHOLDER} there and the file into a column images"
                if where == THE_TEXT
                else "name it with --image-column"
            )
            tell(one_line(f"{path}: {count} rows have no picture, but {where} looks like one; if so, {remedy}"))
    for what, count in changes.most_common():
        tell(one_line(f"{path}: {count} pictures {what}; see to it that what trains on them does the same"))


def draw_anchor_file(
    heldout: Pool, pool: Pool | None, out: Path, draw: AnchorDraw | None = None, *, overwrite: bool = False
) -> int:
    """Draw anchors from held-out rows, refuse those that stand in the pool, and write them in their own format.

    Returns:
        Number of anchors.

    Raises:
        AnchorError: too few rows, no such column, or an anchor stands in the pool.
    """
    draw = draw or AnchorDraw()
    rows = draw_anchors(heldout, count=draw.count, by=draw.by, seed=draw.seed)
    while draw.skip_leaks and pool is not None:
        drawn = set(rows.tolist())
        leaks, _ = sort_leaks((row for row in heldout if row.row in drawn), pool)
        if not leaks:
            break
        heldout = heldout.without({leak.anchor_row for leak in leaks}, "stands in the pool")
        rows = draw_anchors(heldout, count=draw.count, by=draw.by, seed=draw.seed)
    if pool is not None:
        chosen = set(rows.tolist())
        refuse_leaks((row for row in heldout if row.row in chosen), pool)
    return write_subset(heldout, rows, out, overwrite=overwrite)


def provide_anchors(
    out: Path, pool: Pool, heldout: Path, draw: AnchorDraw, reading: AnchorOptions, tell: Tell
) -> AnchorOptions:
    """Draw anchors into a file, unless it is there.

    Args:
        out: The anchor file.
        pool: The pool that they must not stand in.
        heldout: The file that they are drawn from.
        draw: How.
        reading: How anchors are read and checked.
        tell: Told how many were drawn.

    Returns:
        How to read the file: drawn anchors keep the image paths of the rows that they were drawn from.
    """
    source = reading.open(heldout, pool)
    if not out.exists():
        drawn = draw_anchor_file(source, pool, out, draw)
        tell(f"drew {drawn} anchors: {out}")
    return dataclasses.replace(reading, anchor_image_root=source.image_root)


class Anchored(NamedTuple):
    """Anchors, and what is scored by them."""

    anchors: list[Sample]
    pool: Pool | None
    """Without the rows that were accepted as anchors."""


def read_anchors(anchors: Path | Pool | Sequence[Sample], pool: Pool | None, options: AnchorOptions) -> Anchored:
    """Read anchors and refuse them if one stands in the pool; rows that were accepted as anchors are left out of it.

    Raises:
        AnchorError: there are no anchors, one cannot be read, or one stands in the pool.
    """
    samples = list(readable(options.open(anchors, pool) if isinstance(anchors, Path) else anchors))
    if not samples:
        raise AnchorError(f"{anchors} holds no anchors; give at least one readable sample")
    if pool is not None and not options.allow_leaks:
        pool = pool.without(refuse_leaks(samples, pool), _IS_ANCHOR)
    return Anchored(samples, pool)


def readable(rows: Iterable[Sample | Unreadable]) -> Iterable[Sample]:
    """The samples of an anchor file, each of which must be readable.

    Raises:
        AnchorError: one is not.
    """
    for row in rows:
        if isinstance(row, Unreadable):
            raise AnchorError(f"an anchor cannot be read: {row.reason}")
        yield row


def plain(value: Any) -> Any:
    """Paths as absolute text, tuples as lists, NaN as null and nothing that is not set, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.path.abspath(value) if isinstance(value, Path) else value
