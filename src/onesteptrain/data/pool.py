"""The pool: the samples that are chosen from.

A `Sample` is one conversation with its images, whatever file format it came from. Images stay references until they
are asked for, so that a pool streams in bounded memory. A row that cannot be read becomes `Unreadable` with a reason,
and the rows after it go on.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import heapq
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from markupsafe import Markup

from onesteptrain.data.formats.compression import plain_name
from onesteptrain.data.formats.container import Container, RawRow, RowNumbers
from onesteptrain.data.formats.loss_weights import in_loss
from onesteptrain.data.formats.many import ManyFiles
from onesteptrain.data.formats.memory import MemoryRows, open_memory, to_dataset
from onesteptrain.data.formats.opening import open_container
from onesteptrain.data.formats.schemas import (
    COLUMNS,
    FormatName,
    Reading,
    has_conversation,
    read_fields,
    read_turns,
    unread_pictures,
)
from onesteptrain.data.formats.turns import ImageRef, Role, Turn
from onesteptrain.data.formats.uids import UidCounter, base_uid
from onesteptrain.data.images import thumbnail_html
from onesteptrain.errors import PoolError, SampleError, one_line
from onesteptrain.storage.atomic import refuse_taken, whole
from onesteptrain.storage.display import html_table
from onesteptrain.storage.ownership import passing
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

_ROWS = "rows of a pool"
"""What a folder of rows says of itself."""

_FIRST_ROWS = 32
"""Rows of which one must hold a conversation, for a file to be taken for a pool."""

_ROWS_SHOWN, _IMAGES_SHOWN = 5, 3
_SHOWN_COLUMNS = ("row", "uid", "images", "question", "answer")


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

    unread: str = field(default="", repr=False, compare=False)
    """Of a row without images, where something stands that looks like one: "column image_path"; else nothing."""

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
    """A pool on disk or in memory; iterating reads it from the first row, one row at a time."""

    container: Container

    reading: Reading
    """How its rows are read."""

    @property
    def image_root(self) -> Path:
        """The folder that relative image paths start from."""
        return self.reading.image_root

    left_out: Mapping[int, str] = field(default_factory=dict, compare=False)
    """Rows that come as ones that cannot be used, and why."""

    @property
    def path(self) -> Path:
        """The file or folder; of a pool in memory, how messages call it."""
        return self.container.path

    @property
    def suffix(self) -> str:
        """How the name of a subset may end: ".jsonl.gz" where the pool is a file of that name, "" where it is many."""
        path, plain = self.path, plain_name(self.path)
        if isinstance(self.container, ManyFiles) or self.container.folder == path:
            return ""
        return path.suffix if path == plain else plain.suffix + path.suffix

    @property
    def source(self) -> Any:
        """What a pool in memory was opened from: a Dataset, a frame or a list; None of a pool on disk."""
        return self.container.source if isinstance(self.container, MemoryRows) else None

    def __iter__(self) -> Iterator[Sample | Unreadable]:
        return self.rows()

    def __len__(self) -> int:
        """Number of rows, readable or not. JSON is read through for it, once; the others know it."""
        return self._length

    @overload
    def __getitem__(self, which: int) -> Sample | Unreadable: ...

    @overload
    def __getitem__(self, which: slice) -> list[Sample | Unreadable]: ...

    def __getitem__(self, which: int | slice) -> Sample | Unreadable | list[Sample | Unreadable]:
        chosen = range(len(self))[which]
        if isinstance(chosen, int):
            return next(self.rows(chosen))
        rows = {row.row: row for row in self.rows(min(chosen), max(chosen) + 1)} if chosen else {}
        return [rows[row] for row in chosen]

    def __repr__(self) -> str:
        return f"Pool({self.path})"

    def _repr_html_(self) -> str:
        first = [_shown(row) for row in itertools.islice(self, _ROWS_SHOWN)]
        return html_table(f"{self.path}: {len(self)} rows", _SHOWN_COLUMNS, first)

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

    def subset(self, rows: Iterable[int]) -> Pool:
        """Some rows as a pool in memory: of the same kind of object, or a list of dicts where the pool is on disk.

        Args:
            rows: Positions in the pool, strictly rising.

        Raises:
            PoolError: the rows do not rise, are not in the pool, or one cannot be parsed.
        """
        chosen = _rising(rows)
        if len(chosen) and chosen[-1] >= len(self):
            raise _missing_row(self, int(chosen[-1]))
        if isinstance(self.container, MemoryRows):
            return dataclasses.replace(self, container=self.container.take(chosen), left_out={})
        wanted = set(chosen.tolist())
        values = [_parsed(raw) for row, raw in enumerate(self.container.raw_rows()) if row in wanted]
        return dataclasses.replace(self, container=MemoryRows(values, "list"), left_out={})

    def without(self, rows: Iterable[int], reason: str) -> Pool:
        """The same pool, with a reason in place of some rows; positions, uids and fingerprint stay as they are."""
        return dataclasses.replace(self, left_out={**self.left_out, **dict.fromkeys(rows, reason)})

    def to_dataset(self, rows: Iterable[int] | None = None) -> Any:
        """The rows, or some of them, as a `datasets.Dataset`; images of other sources become a column of images.

        Raises:
            PoolError: the rows do not rise, are not in the pool, or do not fit into columns of one type each.
        """
        some = self.subset(range(len(self)) if rows is None else rows)
        if isinstance(self.container, MemoryRows) and self.container.kind == "dataset":
            return some.source
        return to_dataset([raw.value for raw in some.container.raw_rows()], self.image_root)

    @cached_property
    def _length(self) -> int:
        return self.container.count()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content of the pool's files or rows, in order; of neither their names nor the image files."""
        return hashlib.sha256(b"".join(self.container.digests())).hexdigest()

    def _read(self, uid: str, row: int, raw: RawRow) -> Sample | Unreadable:
        if row in self.left_out:
            return Unreadable(uid, row, self.left_out[row])
        try:
            if raw.problem is not None:
                raise SampleError(raw.problem)
            if not isinstance(raw.value, Mapping):
                raise SampleError(f"the row is a {type(raw.value).__name__}, not an object; mend or delete it")
            turns = in_loss(read_turns(raw.value, self.reading), raw.value)
            sample = Sample(uid, row, turns, read_fields(raw.value, self.reading))
            unread = "" if sample.images else unread_pictures(raw.value, self.reading)
        except SampleError as error:
            return Unreadable(uid, row, f"{one_line(raw.where)}: {error}")
        except RecursionError:
            return Unreadable(uid, row, f"{one_line(raw.where)}: the row is nested too deeply; mend or delete it")
        return dataclasses.replace(sample, unread=unread) if unread else sample


def open_pool(
    source: object,
    *,
    format: FormatName = "auto",  # noqa: A002
    image_root: str | Path | None = None,
    image_column: str | Sequence[str] = (),
    allow_outside: bool = False,
) -> Pool:
    """Open a pool on disk or in memory; nothing but the first rows is read.

    Args:
        source: The path of a JSON array, JSONL (either may be packed with gzip or zstandard) or a Parquet file, a
            folder of such files, a pattern such as "data/*.parquet", or a folder made by `save_to_disk`; or a
            `datasets.Dataset`, a pandas frame or a list of dicts.
        format: Which columns hold the conversation; "auto" reads each row by those that it has.
        image_root: The folder that relative image paths start from; by default, the folder of the pool, or the
            working directory for rows in memory.
        image_column: Columns that hold pictures; a row in which none is filled is read by `images` or `image`.
        allow_outside: Open pictures outside of the image root too, wherever a row points to; rows in memory may unless
            an image root is given.

    Raises:
        PoolError: there is no such file, it is in no known container, or its rows hold no conversations.
    """
    if format not in COLUMNS:
        raise PoolError(f"format {format!r} is not known; choose {', '.join(COLUMNS)}")
    container = open_container(Path(source)) if isinstance(source, str | Path) else open_memory(source)
    root = Path(image_root) if image_root is not None else container.folder
    if not root.is_dir():
        raise PoolError(f"image root {root}: no such folder; give the folder that relative image paths start from")
    if format == "auto":
        _refuse_foreign(container)
    columns = (image_column,) if isinstance(image_column, str) else tuple(image_column)
    anywhere = allow_outside or (image_root is None and isinstance(container, MemoryRows))  # these have no folder
    return Pool(container, Reading(format, root, columns, anywhere))


def draw_rows(pool: Iterable[Sample | Unreadable], count: int, seed: int) -> list[Sample]:
    """Draw readable rows at random, whatever their order; memory holds only the drawn ones."""
    keyed = ((uniform(seed, "audit", row.uid), row.row, row) for row in pool if isinstance(row, Sample))
    drawn = heapq.nsmallest(count, keyed, key=lambda entry: entry[:2])
    return sorted((row for _, _, row in drawn), key=lambda row: row.row)


def write_subset(pool: Pool, rows: Iterable[int], out: str | Path, *, overwrite: bool = False) -> int:
    """Write some rows of a pool as a pool of the same kind, each as it stands and in the pool's order.

    Rows in memory are written as JSON, JSONL or Parquet by the suffix of `out`; without one, as a dataset folder.

    Args:
        pool: Where the rows come from.
        rows: Positions in the pool, strictly rising.
        out: A new file, or a new folder where the pool is a folder. It appears whole or not at all.
        overwrite: Replace the file, or the folder that an earlier call made, that is there.

    Returns:
        Number of rows written.

    Raises:
        PoolError: the rows do not rise or are not in the pool, or `out` is taken or is part of the pool.
        RunError: `out` is a folder that is not ours, or may not be replaced.
    """
    out = Path(out)
    chosen = _rising(rows)
    _refuse_target(pool, out, overwrite=overwrite)
    with whole(out, kind=_ROWS) as part:
        copied = pool.container.copy_rows(chosen, part, out.suffix)
        if copied != len(chosen):
            raise _missing_row(pool, int(chosen[copied]))
    return copied


def _refuse_foreign(container: Container) -> None:
    """Refuse a file in which none of the first rows holds a conversation."""
    first = list(itertools.islice(container.raw_rows(), _FIRST_ROWS))
    rows = [raw.value for raw in first if raw.problem is None and isinstance(raw.value, Mapping)]
    if any(map(has_conversation, rows)):
        return
    if rows:
        what = f"its rows hold no conversation; they have the columns {', '.join(map(str, rows[0]))}"
    else:
        what = f"no row can be read; {first[0].where}: {first[0].problem}" if first else "holds no rows"
    known = " or ".join("+".join(columns) for columns in COLUMNS["auto"])
    raise PoolError(f"{container.path}: {what}; needed are the columns {known}")


def _shown(row: Sample | Unreadable) -> list[object]:
    if isinstance(row, Unreadable):
        return [row.row, row.uid, "", row.reason, ""]
    images = Markup(" ").join(map(thumbnail_html, row.images[:_IMAGES_SHOWN]))
    return [row.row, row.uid, images, text_of(row, "user"), text_of(row, "assistant")]


def _parsed(raw: RawRow) -> object:
    if raw.problem is not None:
        raise PoolError(f"{raw.where}: {raw.problem}")
    return raw.value


def _missing_row(pool: Pool, row: int) -> PoolError:
    return PoolError(f"{pool.path}: row {row} is asked for, but the last row is {len(pool) - 1}")


def _rising(rows: Iterable[int]) -> RowNumbers:
    chosen = np.fromiter(rows, np.int64)
    if len(chosen) and (chosen[0] < 0 or (np.diff(chosen) <= 0).any()):
        raise PoolError("rows to write must be positions from 0 that rise, each once; sort them and take repeats out")
    return chosen


def _refuse_target(pool: Pool, out: Path, *, overwrite: bool) -> None:
    place, target = pool.path.resolve(), out.resolve()
    taken = place in (target, passing(target)) or place in target.parents or target in place.parents
    if taken or fnmatch.fnmatchcase(str(target), str(place).replace("**/", "*")):  # where a pattern would find it
        raise PoolError(f"{out}: is the pool itself or holds it; give another path for the subset")
    if out.is_dir():
        refuse_taken(out, _ROWS, overwrite=overwrite)
    elif out.exists() and not overwrite:
        raise PoolError(f"{out}: exists; give another path, or ask to overwrite it")
