"""Names of rows that stay the same from run to run: their own id, or a hash of their content."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping

from PIL import Image

ID_COLUMNS = ("id", "uid", "sample_id", "question_id")
"""Columns that may hold a row's id; the first that is filled counts."""


def id_column(row: Mapping[str, object]) -> str | None:
    """The column that holds this row's id: text or a number, not empty."""
    for name in ID_COLUMNS:
        value = row.get(name)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
            return name
    return None


def base_uid(value: object) -> str:
    """A row's own id, else 16 hex digits of the SHA-256 of its content, bytes of images included."""
    if isinstance(value, Mapping) and (name := id_column(value)) is not None:
        return storable(str(value[name]))
    return content_hash(value)


def content_hash(value: object) -> str:
    """16 hex digits that do not depend on the order of keys, on empty columns or on the layout of the file."""
    return content_digest(value).hex()[:16]


def content_digest(value: object) -> bytes:
    """SHA-256 of a value, in the sense of `content_hash`."""
    if isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if item is not None}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_hashable)
    return hashlib.sha256(text.encode()).digest()


def storable(text: str) -> str:
    """The text itself, with lone surrogates escaped: no UTF-8 file can hold those."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _hashable(value: object) -> str:
    if isinstance(value, Image.Image):
        value = f"{value.mode} {value.size}".encode() + _pixels(value)
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _pixels(image: Image.Image) -> bytes:
    try:
        return image.tobytes()
    except OSError:  # broken: its row gets a reason once the image is asked for
        return b""


class UidCounter:
    """Makes uids unique in pool order: a repeated one gets "#2", "#3", ...

    An open-addressing hash table of 64-bit hashes and repeat counts in two flat arrays: 16 to 24 bytes a row, where a
    dict of strings takes about 150. Two uids with one hash (chance 3e-8 in a million rows) would cost the second one
    a "#2" that it does not need; uids stay unique all the same.
    """

    def __init__(self) -> None:
        self._hashes = array("Q", bytes(8 * 1024))  # 0 is a free slot
        self._repeats = array("I", bytes(4 * 1024))
        self._used = 0

    def assign(self, base: str) -> str:
        """The uid of the next row, given what it would like to be called."""
        uid = base
        while not self._add(_hash64(uid)):
            uid = f"{base}#{self._count_repeat(_hash64(base))}"
        return uid

    def _add(self, value: int) -> bool:
        slot = self._slot(value)
        if self._hashes[slot]:
            return False
        self._hashes[slot] = value
        self._used += 1
        if self._used * 4 > len(self._hashes) * 3:
            self._grow()
        return True

    def _count_repeat(self, value: int) -> int:
        slot = self._slot(value)
        self._repeats[slot] += 1
        return self._repeats[slot] + 1

    def _slot(self, value: int) -> int:
        hashes, slot = self._hashes, value % len(self._hashes)
        while hashes[slot] and hashes[slot] != value:
            slot = slot + 1 if slot + 1 < len(hashes) else 0
        return slot

    def _grow(self) -> None:
        hashes, repeats = self._hashes, self._repeats
        size = len(hashes) * 3 // 2
        self._hashes, self._repeats = array("Q", bytes(8 * size)), array("I", bytes(4 * size))
        for value, count in zip(hashes, repeats, strict=True):
            if value:
                slot = self._slot(value)
                self._hashes[slot], self._repeats[slot] = value, count


def _hash64(uid: str) -> int:
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "little") or 1
