"""JSON: an array of objects, or one object a line (JSONL).

An array is read in pieces: memory holds one row and one chunk, however long the file is. A broken line of JSONL is a
row that cannot be read; the lines after it go on. Either may be packed.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from onesteptrain.data.formats.compression import open_packed, open_unpacked
from onesteptrain.data.formats.container import RawRow, RowNumbers, file_digests, readable
from onesteptrain.errors import PoolError

_LARGEST_ROW = 128 * 2**20
"""Characters of one row of JSON; more means that the file is broken, and would fill the memory."""

_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\n\r"

_CUT_TOKEN = 16
"""An error this near to the end of what was read may be a token cut in two, such as `-Infinit` or `\\ud83d\\u`."""


class Element(NamedTuple):
    """One element of the array."""

    gap: str
    """What stands between it and the element before: bracket or comma, and white space."""

    text: str
    value: object


@dataclass(frozen=True)
class JsonArray:
    """A container: one JSON file that holds a list."""

    path: Path
    chunk: int = 2**18
    """Characters that are read at a time."""

    largest_row: int = _LARGEST_ROW

    def digests(self) -> Iterator[bytes]:
        """Hash of the file."""
        return file_digests([self.path])

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order; those before are parsed too."""
        with self._text(open_unpacked(self.path)) as stream:
            for row, element in enumerate(_Reader(self, stream).elements()):
                if row >= start:
                    yield RawRow(f"{self.path.name}[{row}]", element.value)

    def count(self) -> int:
        """Number of rows; reads the whole file, once."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self.raw_rows())

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen elements as an array; all of them give the whole file again, byte for byte."""
        copied, head = 0, "["
        target = open_packed(out, suffix, self.path)
        with self._text(open_unpacked(self.path)) as stream, self._text(target) as file:
            reader = _Reader(self, stream)
            for row, element in enumerate(reader.elements()):
                head = element.gap if row == 0 else head
                if copied < len(rows) and rows[copied] == row:
                    file.write((element.gap if copied else head) + element.text)
                    copied += 1
            file.write(reader.tail if copied else "[]\n")
        return copied

    @staticmethod
    def _text(file: BinaryIO) -> IO[str]:
        """Text that gives its bytes back exactly: broken UTF-8 and line ends included."""
        return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")


@dataclass(frozen=True)
class JsonLines:
    """A container: one file with a JSON object a line; blank lines are no rows."""

    path: Path
    largest_row: int = _LARGEST_ROW

    def digests(self) -> Iterator[bytes]:
        """Hash of the file."""
        return file_digests([self.path])

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self.path.parent

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order; the lines before are not parsed."""
        for number, line in itertools.islice(self._lines(), start, None):
            yield _parse(f"{self.path.name}:{number}", line)

    def count(self) -> int:
        """Number of rows; reads the whole file, once, and parses nothing."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self._lines())

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen lines, their line ends included."""
        copied = 0
        with open_packed(out, suffix, self.path) as target:
            for row, (_, line) in enumerate(self._lines()):
                if copied == len(rows):
                    break
                if rows[copied] == row:
                    target.write(line)
                    copied += 1
        return copied

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Line numbers, from 1, and lines with their ends; without blank ones."""
        number = 0
        with readable(self.path), open_unpacked(self.path) as file:
            while line := file.readline(self.largest_row + 1):
                number += 1
                if len(line) > self.largest_row:
                    raise PoolError(
                        f"{self.path}:{number}: a line is longer than {self.largest_row:,} bytes; "
                        "JSONL needs one object a line: mend the file, or keep big images beside it"
                    )
                if line.removeprefix(_BOM).strip():
                    yield number, line


class _Reader:
    """Walks over the array; `_text` is the part in memory, which begins with the gap before the next element."""

    def __init__(self, array: JsonArray, stream: IO[str]) -> None:
        self._array, self._stream = array, stream
        self._decoder = json.JSONDecoder()
        self._text, self._mark, self._position = "", 0, 0
        self._line = 1  # of the first character in memory

    def elements(self) -> Iterator[Element]:
        """The elements in order.

        Raises:
            PoolError: the array is broken, or a row is too long.
        """
        with readable(self._array.path):
            if self._next() == "\ufeff":
                self._position += 1
            self._expect("[", "'[' at the start of an array")
            more = self._next() != "]"
            while more:
                self._next()
                value, end = self._decode()
                yield Element(self._text[self._mark : self._position], self._text[self._position : end], value)
                self._mark = self._position = end
                if more := self._next() != "]":
                    self._expect(",", "',' or ']' after an element")
            self._position += 1
            if self._next():
                raise self._broken("there is text after the end of the array")

    @property
    def tail(self) -> str:
        """What stands after the last element, once all have been read."""
        return self._text[self._mark :]

    def _next(self) -> str:
        """Move to the next character that is no white space; empty at the end of the file."""
        while True:
            while (char := self._text[self._position : self._position + 1]) and char in _SPACE:
                self._position += 1
            if char or not self._read_on():
                return char

    def _expect(self, char: str, what: str) -> None:
        if self._next() != char:
            there = self._text[self._position : self._position + 20]
            raise self._broken(f"{what} is needed, found {there!r}" if there else f"the file ends without {what}")
        self._position += 1

    def _decode(self) -> tuple[object, int]:
        """The value at the position and where it ends; reads on while it may be cut off."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
                if end <= len(self._text) - _CUT_TOKEN or not self._read_on():
                    return value, end
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT_TOKEN
                if not (cut_off and self._read_on()):
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
                raise self._broken(str(error)) from error

    def _read_on(self) -> bool:
        """Read a chunk, or as much again as is pending, so that a long row is not parsed often; False at the end."""
        pending = len(self._text) - self._mark
        if pending > self._array.largest_row:
            raise self._broken(f"a row is longer than {self._array.largest_row:,} characters")
        more = self._stream.read(max(self._array.chunk, pending))
        if not more:
            return False
        self._line += self._text.count("\n", 0, self._mark)
        self._text = self._text[self._mark :] + more
        self._position, self._mark = self._position - self._mark, 0
        return True

    def _broken(self, what: str, at: int | None = None) -> PoolError:
        line = self._line + self._text.count("\n", 0, self._position if at is None else at)
        return PoolError(
            f"{self._array.path}: line {line}: invalid JSON array ({what}); mend the file there, "
            "or convert it to JSONL, where a broken row does not stop the rows after it"
        )


def _parse(where: str, line: bytes) -> RawRow:
    try:
        return RawRow(where, json.loads(line.removeprefix(_BOM).decode()))
    except json.JSONDecodeError as error:
        what = f"invalid JSON ({error.msg} at column {error.colno})"
    except UnicodeDecodeError as error:
        what = f"not UTF-8 (byte {error.start + 1} of the line)"
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        what = f"JSON that cannot be read ({error})"
    return RawRow(where, line, f"{what}; mend or delete this line")
