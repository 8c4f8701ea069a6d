"""A JSON array of objects, read in pieces: memory holds one element and one chunk, however long the file is."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from onesteptrain.errors import PoolError
from onesteptrain.formats.container import RawRow, RowNumbers

LARGEST_ROW = 64 * 2**20
"""Characters of one row; more means that the file is broken, and would fill the memory."""

_SPACE = " \t\n\r"
_OPEN_END = 16
"""An error this near to the end of what was read may be a token cut in two, such as `-Infinit` or `\\ud83d\\u`."""


class Element(NamedTuple):
    """One element of the array, and the text between it and the element before."""

    gap: str
    text: str
    value: object


@dataclass(frozen=True)
class JsonArray:
    """A container: one JSON file that holds a list."""

    path: Path
    chunk: int = 2**18
    """Characters that are read at a time."""

    largest_row: int = LARGEST_ROW

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def raw_rows(self, ids_until: int = 0) -> Iterator[RawRow]:
        """All rows in order."""
        for row, element in enumerate(self._elements()):
            yield RawRow(f"{self.path.name}[{row}]", element.value)

    def count(self) -> int:
        """Number of rows; reads the whole file."""
        return sum(1 for _ in self._elements())

    def copy_rows(self, rows: RowNumbers, out: Path) -> int:
        """Write the chosen elements as an array; all of them give the whole file again, byte for byte."""
        copied = 0
        with out.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            elements = self._elements()
            row, head = 0, "["
            while True:
                try:
                    element = next(elements)
                except StopIteration as end:
                    tail: str = end.value
                    break
                head = element.gap if row == 0 else head
                if copied < len(rows) and rows[copied] == row:
                    file.write((element.gap if copied else head) + element.text)
                    copied += 1
                row += 1
            file.write(tail if copied and row else "[]\n")
        return copied

    def _elements(self) -> Generator[Element, None, str]:
        """The elements; returns the text after the last one."""
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            window = _Window(self, stream)
            window.expect("[", "an array that starts with '['")
            while True:
                start = window.skip_space()
                if window.at("]"):
                    return window.rest()
                value, end = window.decode(start)
                yield Element(window.text[:start], window.text[start:end], value)
                window.drop(end)
                window.skip_space()
                if not window.at("]"):
                    window.expect(",", "',' or ']' after an element")


class _Window:
    """The part of the file that is in memory: from the end of the last element on."""

    def __init__(self, array: JsonArray, stream: TextIO) -> None:
        self._array, self._stream = array, stream
        self._decoder = json.JSONDecoder()
        self._line = 1
        self._ended = False
        self._position = 0
        self.text = ""

    def at(self, char: str) -> bool:
        return self.text[self._position : self._position + 1] == char

    def skip_space(self) -> int:
        """Move to the next character that is no white space (or the end of the file), and return where that is."""
        while True:
            while self._position < len(self.text) and self.text[self._position] in _SPACE:
                self._position += 1
            if self._position < len(self.text) or not self._grow():
                return self._position

    def expect(self, char: str, what: str) -> None:
        self.skip_space()
        if self._line == 1 and self.at("\ufeff"):
            self._position += 1
            self.skip_space()
        if not self.at(char):
            found = self.text[self._position : self._position + 20]
            raise self._broken(f"{what} is needed, found {found!r}" if found else f"the file ends where {what} is due")
        self._position += 1

    def decode(self, start: int) -> tuple[object, int]:
        """The value that starts here and where it ends; reads on while it may be cut off."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, start)
                if end < len(self.text) or not self._grow():
                    return value, end
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _OPEN_END
                if not (unfinished and self._grow()):
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error), start) from error

    def drop(self, end: int) -> None:
        """Forget what was read up to here."""
        self._line += self.text.count("\n", 0, end)
        self.text, self._position = self.text[end:], 0

    def rest(self) -> str:
        """The closing bracket with all that is around it."""
        self._position += 1
        self.skip_space()
        if self._position < len(self.text):
            raise self._broken("text after the end of the array")
        return self.text

    def _grow(self) -> bool:
        """Read on, as much again as there is, so that a long element is not parsed too often; False at the end."""
        if len(self.text) > self._array.largest_row:
            largest = self._array.largest_row
            raise self._broken(f"a row is longer than {largest:,} characters", 0)
        more = "" if self._ended else self._stream.read(max(self._array.chunk, len(self.text)))
        self._ended = not more
        self.text += more
        return bool(more)

    def _broken(self, what: str, at: int | None = None) -> PoolError:
        line = self._line + self.text.count("\n", 0, self._position if at is None else at)
        return PoolError(
            f"{self._array.path}: line {line}: invalid JSON array ({what}); mend the file there, "
            "or convert it to JSONL, where a broken row does not stop the rows after it"
        )
