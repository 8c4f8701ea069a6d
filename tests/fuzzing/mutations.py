"""Edits of bytes and of plain values: what they do follows from a few drawn numbers alone."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Edit(NamedTuple):
    """One change: where, what, and with what, each taken modulo what there is."""

    place: int
    kind: int
    value: int


EDITS = st.lists(st.builds(Edit, *[st.integers(0, 2**31 - 1)] * 3), min_size=1, max_size=5)

_INTEGERS = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b"[",
    b'"',
    b"\xed\xa0\x80",
    b"{}",
    b",",
    b"1e999",
    b"PAR1",
    b"\0" * 64,
    b"[" * 5000,
)


def changed_bytes(content: bytes, edits: Sequence[Edit], others: Sequence[bytes] = (b"",)) -> bytes:
    """A content with edits; pieces of `others` get into it."""
    made = bytearray(content)
    for edit in edits:
        _change(made, edit, others)
    return bytes(made)


def _change(made: bytearray, edit: Edit, others: Sequence[bytes]) -> None:
    at, length = edit.place % (len(made) + 1), 1 + edit.value % 40
    other = others[edit.value % len(others)]
    match edit.kind % 9:
        case 0:
            made[at : at + 1] = bytes(byte ^ (1 << edit.value % 8) for byte in made[at : at + 1])
        case 1:
            made[at : at + 1] = bytes([edit.value % 256])
        case 2:
            del made[at : at + length]
        case 3:
            made[at:at] = made[at : at + length]
        case 4:
            del made[at:]
        case 5:
            made[at:at] = _BYTES[edit.value % len(_BYTES)]
        case 6:
            made[at : at + 4] = struct.pack(">I" if edit.value % 2 else "<I", _INTEGERS[edit.value % len(_INTEGERS)])
        case 7:
            made[at : at + length] = other[at : at + length]
        case 8:
            made[at:] = other[at:]


def mended_png(content: bytes) -> bytes:
    """A PNG with the checksums of its chunks, so that changes get behind them."""
    made, at = bytearray(content), 8
    while at + 12 <= len(made):
        (length,) = struct.unpack(">I", made[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)


_SPELLED = {
    "@deep@": "[" * 20_000 + "]" * 20_000,
    "@nested@": '{"a":' * 300 + "1" + "}" * 300,
    "@long@": '"' + "ab \\n<" * 200_000 + '"',
    "@digits@": "9" * 5000,
    "@infinite@": "1e999",
    "@nan@": "NaN",
    "@twice@": '{"role": "user", "role": "assistant"}',
}
"""Values that no Python value is dumped as."""

_ODD = json.loads(Path(__file__).with_name("odd.json").read_text(encoding="utf-8"))
WORDS, VALUES, KEYS = (*_ODD["words"], *_SPELLED), (*_ODD["values"], 10**400, ["a.png"] * 300), tuple(_ODD["keys"])
"""What gets into places where it may or may not be meant."""


def changed_value(value: Any, edits: Sequence[Edit]) -> Any:
    """A copy of a plain value with edits."""
    holder = [copy.deepcopy(value)]
    for edit in edits:
        places = list(_places(holder)) or [([None], 0)]
        _edit(*places[edit.place % len(places)], edit, places)
    return holder[0] if holder else None


def _places(holder: Any) -> Any:
    """Each container below a value with each key of it, from the outside in."""
    for key in range(len(holder)) if isinstance(holder, list) else list(holder):
        yield holder, key
        if isinstance(holder[key], list | dict):
            yield from _places(holder[key])


def _edit(holder: Any, key: Any, edit: Edit, places: Sequence[tuple[Any, Any]]) -> None:
    there, pick = holder[key], edit.value
    match edit.kind % 9:
        case 0 | 1:
            holder[key] = copy.deepcopy(VALUES[pick % len(VALUES)])
        case 2:
            holder[key] = WORDS[pick % len(WORDS)]
        case 3:
            holder[key] = _with_word(there, pick)
        case 4:
            holder[key] = [there] if pick % 2 else {KEYS[pick % len(KEYS)]: there}
        case 5 if len(places) > 1:
            del holder[key]
        case 6 if isinstance(holder, dict):
            holder[KEYS[pick % len(KEYS)]] = copy.deepcopy(there)
        case 7 if isinstance(holder, dict):
            holder[KEYS[pick % len(KEYS)]] = holder.pop(key)
        case _:
            other, name = places[pick % len(places)]
            holder[key] = copy.deepcopy(other[name])


def _with_word(there: Any, pick: int) -> Any:
    word = WORDS[pick % len(WORDS)]
    if not isinstance(there, str):
        return json.dumps(there) if pick % 2 else [there, word]
    at = pick % (len(there) + 1)
    return there[:at] + word + there[at:]


def dumped(value: Any) -> str:
    """JSON, with what no value is dumped as spelled out."""
    text = json.dumps(value)
    for word, spelled in _SPELLED.items():
        text = text.replace(f'"{word}"', spelled)
    return text
