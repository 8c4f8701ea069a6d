"""Text files packed with gzip or zstandard: unpacked as they are read, told by their first bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Literal, cast

import pyarrow as pa

from onesteptrain.data.formats.container import readable

Codec = Literal["gzip", "zstd"]

_MARKS: dict[bytes, Codec] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES: dict[str, Codec] = {".gz": "gzip", ".zst": "zstd"}
_PLAIN = (".json", ".jsonl", ".ndjson", ".tar")


def plain_name(path: Path) -> Path:
    """A name without the suffix that says how it is packed."""
    return path.with_suffix("") if path.suffix in _SUFFIXES else path


def codec_of(path: Path) -> Codec | None:
    """How a file is packed.

    Raises:
        PoolError: it cannot be read.
    """
    with readable(path), path.open("rb") as file:
        return _told(file)


def open_unpacked(path: Path) -> BinaryIO:
    """A file to read, unpacked where it is packed; one that is cut off ends in an OSError.

    Raises:
        PoolError: it cannot be opened.
    """
    with readable(path):
        file = path.open("rb")
        codec = _told(file)
        return file if codec is None else _buffered(io.BufferedReader, pa.CompressedInputStream(file, codec))


def open_packed(path: Path, suffix: str, source: Path) -> BinaryIO:
    """A file to write, packed as the suffix of its lasting name says; as its source is, where that says nothing."""
    codec = _SUFFIXES.get(suffix) or (None if suffix in _PLAIN else codec_of(source))
    file = path.open("wb")
    return file if codec is None else _buffered(io.BufferedWriter, pa.CompressedOutputStream(file, codec))


def _told(file: BinaryIO) -> Codec | None:
    start = file.read(4)
    file.seek(0)
    return next((codec for mark, codec in _MARKS.items() if start.startswith(mark)), None)


def _buffered(kind: type[io.BufferedReader] | type[io.BufferedWriter], stream: pa.NativeFile) -> BinaryIO:
    return cast(BinaryIO, kind(stream, 2**18))
