"""Rows that are not to be used, as a file names them: the table of `ost guard`, or a list of uids."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.data.deduplication.table import is_guard_table, read_duplicates, read_leaks
from onesteptrain.data.formats.uids import ID_COLUMNS, storable
from onesteptrain.errors import PoolError

_COLUMNS = ("uid", *(name for name in ID_COLUMNS if name != "uid"))
_NEEDED = f"give the table of `ost guard`, or a list of uids: a text with one a line, or a column {', '.join(_COLUMNS)}"


def read_excluded(path: Path, uids: Iterable[tuple[int, str]], fingerprint: str) -> list[int]:
    """Rows of a pool that a file names, rising.

    Of a table of `ost guard` these are the leaks and all rows of each cluster but the one to keep. Uids that are in no
    row are passed over, as long as one is.

    Args:
        path: Parquet, JSONL, JSON, CSV, or a text with a uid on each line.
        uids: Row and uid of each row of the pool.
        fingerprint: Of the pool; a table of `ost guard` must be of the same.

    Raises:
        PoolError: the file cannot be read, is of another pool, or names no row of this one.
    """
    if not path.is_file():
        raise PoolError(f"{path}: no such file; {_NEEDED}")
    if is_guard_table(path):
        return sorted({*read_duplicates(path, fingerprint).tolist(), *read_leaks(path, fingerprint).tolist()})
    named = set(_uids(path))
    rows = [row for row, uid in uids if uid in named]
    if named and not rows:
        raise PoolError(f"{path}: none of its {len(named)} uids, such as {min(named)!r}, is in the pool; {_NEEDED}")
    return sorted(rows)


def _uids(path: Path) -> Iterator[str]:
    try:
        yield from (storable(str(value)) for value in _values(path))
    except (OSError, ValueError, csv.Error, RecursionError, pa.ArrowException) as error:
        raise PoolError(f"{path}: cannot be read ({error}); {_NEEDED}") from error


def _values(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return iter(table[_column(path, table.column_names)].to_pylist())
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        return (_value(path, item) for item in json.loads(text))
    lines = (line.strip() for line in text.splitlines() if line.strip())
    if path.suffix in (".jsonl", ".ndjson"):
        return (_value(path, json.loads(line)) for line in lines)
    if path.suffix in (".csv", ".tsv"):
        rows = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
        head = next(rows, [])
        place = head.index(_column(path, head))
        return (row[place] for row in rows if len(row) > place)
    return lines


def _value(path: Path, item: object) -> object:
    if isinstance(item, Mapping):
        return item[_column(path, [*map(str, item)])]
    return item


def _column(path: Path, names: Iterable[str]) -> str:
    there = [*names]
    for name in _COLUMNS:
        if name in there:
            return name
    raise PoolError(f"{path}: has the columns {', '.join(there)}; {_NEEDED}")
