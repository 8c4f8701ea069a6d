"""The pool: the samples that are chosen from.

A `Sample` is one conversation with its images, whatever file format it came from. Images stay references until they
are asked for, so that a pool streams in bounded memory. A row that cannot be read becomes `Unreadable` with a reason,
and the rows after it go on.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from onesteptrain.data.formats.container import Container, RawRow, RowNumbers
from onesteptrain.data.formats.opening import open_container
from onesteptrain.data.formats.schemas import COLUMNS, FormatName, detect_format, read_fields, read_turns
from onesteptrain.data.formats.turns import ImageRef, Role, Turn
from onesteptrain.data.formats.uids import UidCounter, base_uid
from onesteptrain.errors import PoolError, SampleError
from onesteptrain.storage.atomic import whole
from onesteptrain.storage.seeds import uniform

__all__ = [
    "FormatName",
    "ImageRef",
    "Pool",
    "Role",
    "Sample",
    "Turn",
    "Unreadable",
    "draw_rows",
    "open_pool",
    "plain_text",
    "text_of",
    "write_subset",
]

_ROWS_TO_DETECT = 32
"""Rows that are looked at to tell the format."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a pool that can be read."""

    uid: str
    """The row's id, or the hash of its content; a repeated one gets "#2", "#3", ... in pool order."""

    row: int
    """Position in the pool, from 0."""

    turns: tuple[Turn, ...]

    fields: Mapping[str, object] = field(default_factory=dict)
    """The row's other columns (topic, level, ...): groups, strata and reports use them, scores do not."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in reading order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))


def text_of(sample: Sample, role: Role) -> str:
    """The turns of one role, as they stand, without their images."""
    return "\n".join(turn.text for turn in sample.turns if turn.role == role)


def plain_text(sample: Sample, role: Role) -> str:
    """The turns of one role as texts are compared: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text_of(sample, role)).casefold().split())


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One row of a pool that cannot be read, and why."""

    uid: str
    row: int
    reason: str


@dataclass(frozen=True)
class Pool:
    """A pool on disk; iterating reads it from the first row, one row at a time."""

    container: Container

    format: FormatName
    """How a row becomes a conversation; never "auto"."""

    image_root: Path
    """The folder that relative image paths start from."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.container.path

    def __iter__(self) -> Iterator[Sample | Unreadable]:
        return self.rows()

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Sample | Unreadable]:
        """The rows from `start` up to `stop`, which is left out.

        Whether a uid is a repeat depends on all rows before it, so the skipped ones are read for their ids alone: no
        conversation, no image; of a Parquet file or dataset folder in which every row has an id, just that column.
        What has been seen takes 16 to 24 bytes a row; nothing else grows with the pool.

        Raises:
            PoolError: the file is broken beyond one row.
        """
        uids = UidCounter()
        for row, raw in enumerate(self.container.raw_rows(ids_until=start)):
            if stop is not None and row >= stop:
                return
            uid = uids.assign(base_uid(raw.value))
            if row >= start:
                yield self._read(uid, row, raw)

    def count(self) -> int:
        """Number of rows, readable or not. JSON is read through for it; the other files know it."""
        return self.container.count()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of the pool's files, in order; of neither their names nor the image files."""
        digest = hashlib.sha256()
        for path in self.container.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _read(self, uid: str, row: int, raw: RawRow) -> Sample | Unreadable:
        if raw.problem is not None:
            return Unreadable(uid, row, f"{raw.where}: {raw.problem}")
        if not isinstance(raw.value, Mapping):
            what = type(raw.value).__name__
            return Unreadable(uid, row, f"{raw.where}: the row is a {what}, not an object; mend or delete it")
        try:
            turns = read_turns(raw.value, self.format, self.image_root)
        except SampleError as error:
            return Unreadable(uid, row, f"{raw.where}: {error}")
        return Sample(uid, row, turns, read_fields(raw.value))


def open_pool(path: str | Path, *, format: FormatName = "auto", image_root: str | Path | None = None) -> Pool:  # noqa: A002
    """Open a pool file or folder; nothing but the first rows is read.

    Args:
        path: A JSON array, JSONL, a Parquet file or a folder of them, or a folder made by `save_to_disk`.
        format: How rows are read; "auto" tells it from the first rows.
        image_root: The folder that relative image paths start from; by default, the folder of the pool.

    Raises:
        PoolError: there is no such file, it is in no known container, or its rows are in no known format.
    """
    if format not in ("auto", *COLUMNS):
        raise PoolError(f"format {format!r} is not known; choose auto, {', '.join(COLUMNS)}")
    path = Path(path)
    container = open_container(path)
    root = Path(image_root) if image_root is not None else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise PoolError(f"image root {root}: no such folder; give the folder that relative image paths start from")
    return Pool(container, _detect(container) if format == "auto" else format, root)


def draw_rows(pool: Iterable[Sample | Unreadable], count: int, seed: int) -> list[Sample]:
    """Draw readable rows at random, whatever their order; memory holds only the drawn ones."""
    keyed = ((uniform(seed, "audit", row.uid), row.row, row) for row in pool if isinstance(row, Sample))
    drawn = heapq.nsmallest(count, keyed, key=lambda entry: entry[:2])
    return sorted((row for _, _, row in drawn), key=lambda row: row.row)


def write_subset(pool: Pool, rows: Iterable[int], out: str | Path, *, overwrite: bool = False) -> int:
    """Write some rows of a pool as a pool of the same kind, each as it stands and in the pool's order.

    Args:
        pool: Where the rows come from.
        rows: Positions in the pool, strictly rising.
        out: A new file, or a new folder where the pool is a folder. It appears whole or not at all.
        overwrite: Replace what is there.

    Returns:
        Number of rows written.

    Raises:
        PoolError: the rows do not rise or are not in the pool, or `out` is taken or is part of the pool.
    """
    out = Path(out)
    chosen = _rising(rows)
    _refuse_target(pool.path.resolve(), out.resolve(), overwrite)
    with whole(out) as part:
        copied = pool.container.copy_rows(chosen, part)
        if copied != len(chosen):
            raise PoolError(f"{pool.path}: row {chosen[copied]} is asked for, but the last row is {pool.count() - 1}")
    return copied


def _detect(container: Container) -> FormatName:
    first = list(itertools.islice(container.raw_rows(), _ROWS_TO_DETECT))
    rows = [raw.value for raw in first if raw.problem is None and isinstance(raw.value, Mapping)]
    found = detect_format(rows)
    if found is not None:
        return found
    known = "; ".join(f"{name}: {' or '.join('+'.join(c) for c in choices)}" for name, choices in COLUMNS.items())
    if rows:
        what = f"no known format; its rows have the columns {', '.join(map(str, rows[0]))}"
    else:
        what = f"no row can be read; {first[0].where}: {first[0].problem}" if first else "holds no rows"
    raise PoolError(f"{container.path}: {what}; needed are the columns of a format ({known})")


def _rising(rows: Iterable[int]) -> RowNumbers:
    chosen = np.fromiter(rows, np.int64)
    if len(chosen) and (chosen[0] < 0 or (np.diff(chosen) <= 0).any()):
        raise PoolError("rows to write must be positions from 0 that rise, each once; sort them and take repeats out")
    return chosen


def _refuse_target(pool: Path, out: Path, overwrite: bool) -> None:
    if pool in (out, out.with_name(out.name + ".part")) or pool in out.parents or out in pool.parents:
        raise PoolError(f"{out}: is the pool itself or holds it; give another path for the subset")
    if out.exists() and not overwrite:
        raise PoolError(f"{out}: exists; give another path, or ask to overwrite it")
