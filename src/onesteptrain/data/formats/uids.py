"""Names of rows that stay the same from run to run: their own id, or a hash of their content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
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
        return printable(str(value[name]))
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


def printable(text: str) -> str:
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
    """Makes uids unique in pool order: a repeated one gets "#2", "#3", ...; it holds about 100 bytes a row."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._repeats: Counter[str] = Counter()

    def assign(self, base: str) -> str:
        """The uid of the next row, given what it would like to be called."""
        uid = base
        while uid in self._seen:
            self._repeats[base] += 1
            uid = f"{base}#{self._repeats[base] + 1}"
        self._seen.add(uid)
        return uid
