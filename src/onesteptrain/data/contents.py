"""What rows and picture files hold, as digests: whether they are as they were when they were scored.

A run directory keeps two tables: `contents.parquet`, a digest for each row of the pool, and `pictures.parquet`, size,
time and digest of each picture file beside it. While size and time of a file stay, it is not read again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.data.formats.turns import ImageRef
from onesteptrain.data.image_files import image_file
from onesteptrain.data.pool import Pool, Sample
from onesteptrain.errors import SampleError
from onesteptrain.storage.intact import POOL
from onesteptrain.storage.run_directory import NOTED
from onesteptrain.storage.score_table import write_table

CONTENTS, PICTURES = NOTED
_LEFT_OUT = "left_out"
_SIZE = 16
_TOGETHER = 2**14
_ROWS = pa.schema([("content", pa.binary(_SIZE))])
_FILES = pa.schema(
    [("path", pa.binary()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("content", pa.binary(_SIZE))]
)

Stamp = tuple[int, int]
"""Size and time of a file."""


class Picture(NamedTuple):
    """A picture file as it was; one that could not be read has the size -1."""

    stamp: Stamp
    content: bytes | None


_GONE = Picture((-1, -1), None)


class Contents(NamedTuple):
    """What a pool holds, row by row."""

    mark: Mapping[str, str]
    """Of the pool: its fingerprint, and which of its rows are left out."""

    rows: pa.Array
    """A digest for each row; null for one that cannot be read, or of which a picture cannot."""

    pictures: Mapping[str, Picture]
    """The picture files by their path from the image root."""

    def write(self, folder: Path) -> None:
        """Keep it in a run directory."""
        files = [(_packed(path), *one.stamp, one.content) for path, one in self.pictures.items()]
        columns = [pa.array([file[place] for file in files], part.type) for place, part in enumerate(_FILES)]
        write_table(pa.Table.from_arrays(columns, schema=_FILES), folder / PICTURES, self.mark)
        write_table(pa.Table.from_arrays([self.rows], schema=_ROWS), folder / CONTENTS, self.mark)


def pool_mark(pool: Pool) -> dict[str, str]:
    """What sets a pool apart, by its files and the rows that are left out."""
    left_out = hashlib.sha256(repr(sorted(pool.left_out)).encode()).hexdigest()
    return {POOL: pool.fingerprint, _LEFT_OUT: left_out}


def read_contents(folder: Path) -> Contents | None:
    """What a run directory keeps; None where it keeps nothing, or nothing that can be read."""
    with suppress(OSError, pa.ArrowException, ValueError, KeyError):
        rows = pq.read_table(folder / CONTENTS, schema=_ROWS, page_checksum_verification=True)
        raw = pq.read_schema(folder / CONTENTS).metadata
        mark = {key: raw[key.encode()].decode() for key in (POOL, _LEFT_OUT)}
        return Contents(mark, rows["content"].combine_chunks(), _read_pictures(folder))
    return None


def _read_pictures(folder: Path) -> dict[str, Picture]:
    columns = pq.read_table(folder / PICTURES, schema=_FILES, page_checksum_verification=True).to_pydict()
    lines = zip(*columns.values(), strict=True)
    return {path.decode("utf-8", "surrogatepass"): Picture((size, time), made) for path, size, time, made in lines}


def _packed(path: str) -> bytes:
    """A path that may have no UTF-8."""
    return path.encode("utf-8", "surrogatepass")


def changed_pictures(folder: Path, image_root: Path) -> list[str]:
    """Picture files of a scored pool that hold something else now; none where nothing is on record.

    Files that are not there do not count, as the scores are right without them.
    """
    with suppress(OSError, pa.ArrowException, ValueError):
        return [path for path, before in _read_pictures(folder).items() if _is_other(image_root / path, before)]
    return []


def stamps_differ(contents: Contents, image_root: Path) -> bool:
    """Whether a picture file has another size or time, has come, or has gone."""
    return any(_stamp(image_root / path) != one.stamp for path, one in contents.pictures.items())


def _is_other(path: Path, before: Picture) -> bool:
    stamp = _stamp(path)
    return stamp not in (before.stamp, _GONE.stamp) and _file_digest(path) != before.content


def take_contents(pool: Pool, before: Mapping[str, Picture] | None = None) -> Contents:
    """Read a pool, and those of its pictures whose size or time is another than before."""
    files = _Files(pool.image_root, before or {})
    digests = (files.row_digest(row) if isinstance(row, Sample) else None for row in pool)
    parts = [pa.array(part, pa.binary(_SIZE)) for part in iter(lambda: list(itertools.islice(digests, _TOGETHER)), [])]
    return Contents(pool_mark(pool), pa.concat_arrays(parts), files.seen)


def content_of(samples: Iterable[Sample]) -> str:
    """A digest of some samples, pictures included."""
    files, total = _Files(Path(), {}), hashlib.sha256()
    for sample in samples:
        total.update(files.row_digest(sample) or b"-")
    return total.hexdigest()


class _Files:
    """Digests of the picture files that rows name."""

    def __init__(self, root: Path, before: Mapping[str, Picture]) -> None:
        self._root = Path(os.path.abspath(root))
        self._before = before
        self.seen: dict[str, Picture] = {}

    def row_digest(self, sample: Sample) -> bytes | None:
        """Of what a score depends on: the uid, and the turns with their pictures."""
        turns = []
        for turn in sample.turns:
            parts = [part if isinstance(part, str) else self._picture(part) for part in turn.parts]
            if None in parts:
                return None
            shown = [part if isinstance(part, str) else [part.hex()] for part in parts if part is not None]
            turns.append([turn.role, turn.weight, turn.unlearned, shown])
        return _digest(json.dumps([sample.uid, turns]).encode())

    def _picture(self, image: ImageRef) -> bytes | None:
        source = image.source
        if isinstance(source, Path):
            return self._file(source, image)
        if isinstance(source, bytes):
            return _digest(source)
        with suppress(Exception):  # a decoder may raise anything
            return _digest(f"{source.mode} {source.size}".encode() + source.tobytes())
        return None

    def _file(self, source: Path, image: ImageRef) -> bytes | None:
        try:
            place = image_file(source, image.name, image.root)
        except SampleError:
            place = source
        name = os.path.relpath(place, self._root)
        name = name if not name.startswith("..") else os.path.abspath(place)
        if name not in self.seen:
            stamp, before = _stamp(place), self._before.get(name)
            same = before is not None and before.stamp == stamp
            self.seen[name] = before if before and same else Picture(stamp, _file_digest(place))
        return self.seen[name].content


def _stamp(path: Path) -> Stamp:
    with suppress(OSError, ValueError):
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    return _GONE.stamp


def _file_digest(path: Path) -> bytes | None:
    with suppress(OSError, ValueError), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_SIZE)).digest()
    return None


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_SIZE).digest()
