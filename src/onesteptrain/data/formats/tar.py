"""WebDataset shards: tar files in which the members KEY.json, KEY.jpg, KEY.1.png, KEY.txt are one row.

Members are read where they stand: nothing is extracted, and links are not followed.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from onesteptrain.data.formats.compression import codec_of, open_packed, open_unpacked
from onesteptrain.data.formats.container import RawRow, RowNumbers, file_digests
from onesteptrain.data.formats.uids import id_column
from onesteptrain.errors import PoolError, SampleError

_LARGEST_MEMBER = 128 * 2**20
"""Bytes above which a member is taken for no picture and no text."""

_PICTURES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "ico")
_TEXTS = ("txt", "text", "cls", "caption")
_MEDIA = {
    **dict.fromkeys(("mp4", "mkv", "avi", "mov", "webm"), "videos"),
    **dict.fromkeys(("wav", "mp3", "flac", "ogg", "m4a"), "audios"),
}


class _Member(NamedTuple):
    info: tarfile.TarInfo
    content: bytes | None
    """None where it was not asked for."""

    @property
    def kind(self) -> str:
        """The last part of its name: `png` of `a.1.png`."""
        return self.info.name.rpartition(".")[2].lower()


@dataclass(frozen=True)
class TarRows:
    """A container: one tar file, plain or packed; members of one key stand side by side."""

    path: Path

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def digests(self) -> Iterator[bytes]:
        """Hash of the file."""
        return file_digests([self.path])

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order; of those before, names alone are read."""
        with self._open() as tar:
            for row, (key, infos) in enumerate(_samples(tar)):
                wanted = () if row < start else ("json",) if row < ids_until else None
                members = [_read(tar, info, wanted) for info in infos]
                if row >= start:
                    yield _row(f"{self.path.name}:{key}", PurePosixPath(key).name, members)

    def count(self) -> int:
        """Number of rows; passes over the file, once, and reads no content."""
        return self._count

    @cached_property
    def _count(self) -> int:
        with self._open() as tar:
            return sum(1 for _, infos in _samples(tar) for _ in itertools.islice(infos, 1))

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the members of the chosen rows, their content byte for byte."""
        copied = 0
        with (
            self._open() as tar,
            open_packed(out, suffix, self.path) as file,
            tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as target,
        ):
            for row, (_, infos) in enumerate(_samples(tar)):
                if copied == len(rows):
                    break
                if rows[copied] == row:
                    for info in infos:
                        target.addfile(info, tar.extractfile(info) if info.isreg() else None)
                        _forget(target)
                    copied += 1
        return copied

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            mode = "r:" if codec_of(self.path) is None else "r|"
            with (
                open_unpacked(self.path) as file,
                tarfile.open(fileobj=file, mode=mode, tarinfo=_Header, ignore_zeros=True) as tar,  # type: ignore[call-overload]
            ):
                yield tar
        except (tarfile.TarError, OSError) as error:
            raise PoolError(f"{self.path}: broken or cut off ({error}); write or download the file again") from error


class _Header(tarfile.TarInfo):
    """A header whose faults are faults: tarfile takes a broken one for the end of the file."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.has_ended = True  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if getattr(tar, "has_ended", False):
                raise
            raise tarfile.ReadError("it has no mark at its end") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        tar.has_ended = False  # type: ignore[attr-defined]
        return header


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, Iterator[tarfile.TarInfo]]]:
    """Keys, and the members of each; hidden files and folders are none."""
    return itertools.groupby(_infos(tar), lambda info: _key(info.name))


def _infos(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        _forget(tar)
        if not info.isdir() and not PurePosixPath(info.name).name.startswith("."):
            yield info


def _forget(tar: tarfile.TarFile) -> None:
    """Drop the headers that tarfile keeps: of a file of a million rows these are a gigabyte."""
    tar.members.clear()  # type: ignore[attr-defined]


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo, kinds: Sequence[str] | None) -> _Member:
    member = _Member(info, None)
    known = member.kind == "json" or member.kind in _PICTURES or member.kind in _TEXTS
    if not known or not _is_plain(info) or info.size > _LARGEST_MEMBER:
        return member
    if kinds is not None and member.kind not in kinds:
        return member
    file = tar.extractfile(info)
    content = b"" if file is None else file.read()
    if len(content) < info.size:
        raise tarfile.ReadError(f"{info.name} has {len(content)} of {info.size} bytes")
    return _Member(info, content)


def _is_plain(info: tarfile.TarInfo) -> bool:
    return info.isreg() and not info.issparse()


def _row(where: str, key: str, members: Sequence[_Member]) -> RawRow:
    try:
        for member in members:
            if not _is_plain(member.info):
                raise SampleError(
                    f"the member {member.info.name} is a link or no plain file; put the file itself there"
                )
            if member.info.size > _LARGEST_MEMBER:
                raise SampleError(f"the member {member.info.name} has {member.info.size:,} bytes; make it smaller")
        return RawRow(where, _value(key, members))
    except SampleError as error:
        return RawRow(where, {"id": key}, str(error))


def _value(key: str, members: Sequence[_Member]) -> Mapping[str, object]:
    """The row: what KEY.json says, with its pictures in the places that name them, else in `images`."""
    given = next((_parsed(member) for member in members if member.kind == "json" and member.content is not None), {})
    row = {**given} if id_column(given) else {"id": key, **given}
    pictures = {PurePosixPath(member.info.name).name: member.content for member in members if member.kind in _PICTURES}
    texts = {
        member.kind: (member.content or b"").decode("utf-8", "surrogateescape")
        for member in members
        if member.kind in _TEXTS
    }
    media = {_MEDIA[member.kind]: member.info.name for member in members if member.kind in _MEDIA}
    placed, named = _placed(row, pictures)
    if pictures and not named:
        placed = {name: value for name, value in placed.items() if name != "image"} | {"images": [*pictures.values()]}
    if set(placed) <= {"id", "images"} and len(texts) == 1:  # a picture and its caption
        return placed | {"prompt": "<image>" * len(pictures), "completion": next(iter(texts.values()))} | media
    return texts | placed | media


def _placed(row: Mapping[str, object], pictures: Mapping[str, bytes | None]) -> tuple[dict[str, object], bool]:
    """A row with bytes in place of the names of its pictures, and whether there was one."""
    named = False

    def place(value: object) -> object:
        nonlocal named
        if isinstance(value, dict):
            return {name: place(item) for name, item in value.items()}
        if isinstance(value, list):
            return [place(item) for item in value]
        if isinstance(value, str) and len(value) < 4096 and (name := PurePosixPath(value).name) in pictures:
            named = True
            return pictures[name]
        return value

    return {name: place(value) for name, value in row.items()}, named


def _parsed(member: _Member) -> Mapping[str, object]:
    try:
        value = json.load(io.BytesIO(member.content or b""))
    except (ValueError, RecursionError) as error:
        raise SampleError(f"the member {member.info.name} is no JSON ({error}); mend it") from error
    if not isinstance(value, dict):
        raise SampleError(f"the member {member.info.name} is a {type(value).__name__}, not an object; mend it")
    return value
