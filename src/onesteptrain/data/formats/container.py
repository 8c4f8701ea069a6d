"""What every container offers: raw rows to read, and a copy of chosen ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.errors import PoolError

RowNumbers = NDArray[np.int64]
"""Positions in the pool, from 0, strictly rising."""


class RawRow(NamedTuple):
    """One row as its container holds it."""

    where: str
    """How messages call the row: file and line, or file and position."""

    value: object
    """The parsed row; the raw bytes where they cannot be parsed."""

    problem: str | None = None
    """Why the row cannot be parsed."""


class Container(Protocol):
    """One pool, on disk or in memory."""

    @property
    def path(self) -> Path:
        """The file, folder or pattern, or how messages call what is in memory."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the rows start from."""

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of the content of each file, or of each row in memory, in order."""

    def raw_rows(self, start: int = 0, *, ids_until: int = 0) -> Iterator[RawRow]:
        """The rows from `start` on, in order; what lies before is passed over as cheaply as the format allows.

        Args:
            start: Position of the first.
            ids_until: Rows before this position may come as no more than the columns that make their uid.

        Raises:
            PoolError: the file breaks off, or is broken beyond one row.
        """

    def count(self) -> int:
        """Number of rows."""

    def copy_rows(self, rows: RowNumbers, out: Path, suffix: str = "") -> int:
        """Write the chosen rows as they stand to `out`, which does not exist yet.

        Args:
            rows: Which.
            out: Where, under a passing name.
            suffix: Suffix of the lasting name, by which rows in memory are written and texts are packed; files keep
                their own kind.

        Returns:
            How many there were.
        """


def file_digests(files: Iterable[Path]) -> Iterator[bytes]:
    """SHA-256 of the content of each file."""
    for path in files:
        with path.open("rb") as file:
            yield hashlib.file_digest(file, "sha256").digest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What is said of a broken file, as our own error."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise PoolError(f"{path}: cannot be read ({what}); write or download the file again") from error
