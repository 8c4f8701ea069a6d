"""JSONL: one object a line. A broken line is a row that cannot be read; the lines after it go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onesteptrain.data.formats.container import LARGEST_ROW, RawRow, RowNumbers, file_digests
from onesteptrain.errors import PoolError

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class JsonLines:
    """A container: one file with a JSON object a line; blank lines are no rows."""

    path: Path
    largest_row: int = LARGEST_ROW

    def digests(self) -> Iterator[bytes]:
        """Hash of the file."""
        return file_digests([self.path])

    def raw_rows(self, ids_until: int = 0) -> Iterator[RawRow]:
        """All rows in order."""
        with self.path.open("rb") as file:
            for number, line in self._lines(file):
                yield _parse(f"{self.path.name}:{number}", line)

    def count(self) -> int:
        """Number of rows; reads the whole file, parses nothing."""
        with self.path.open("rb") as file:
            return sum(1 for _ in self._lines(file))

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen lines, their line ends included."""
        copied = 0
        with self.path.open("rb") as file, out.open("wb") as target:
            for row, (_, line) in enumerate(self._lines(file)):
                if copied == len(rows):
                    break
                if rows[copied] == row:
                    target.write(line)
                    copied += 1
        return copied

    def _lines(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Line numbers, from 1, and lines with their ends; without blank ones."""
        number = 0
        while line := file.readline(self.largest_row + 1):
            number += 1
            if len(line) > self.largest_row:
                raise PoolError(
                    f"{self.path}:{number}: a line is longer than {self.largest_row:,} bytes; "
                    "JSONL needs one object a line: mend the file, or keep big images beside it"
                )
            if line.removeprefix(_BOM).strip():
                yield number, line


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
