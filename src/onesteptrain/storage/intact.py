"""Whether a table is as it was written: by its digest on record, else by the checksums of its pages and its rows."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.errors import ScoreError
from onesteptrain.storage.fingerprints import fingerprint

FILES = "files"
"""Key of provenance.json under which the digests of tables stand, by their names."""

POOL = "pool"
"""Key of a table's metadata: fingerprint of the pool that its rows are of."""

FIRST_ROW, RUN = "first_row", "run"
"""Keys of a shard's metadata: position of its first row in the pool, and what sets its request apart."""


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """What goes on record for the tables that are there."""
    return {path.name: fingerprint(path) for path in paths if path.is_file()}


def refuse_damaged(path: Path, *, whole_pool: bool) -> None:
    """Refuse a table that is not as it was written.

    Args:
        path: A Parquet file.
        whole_pool: It has one row for each row of a pool, which must then stand in it once each.

    Raises:
        ScoreError: it is another, cut, or changed.
    """
    stat = path.stat()
    _refuse_once(path, whole_pool, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _refuse_once(path: Path, whole_pool: bool, stamp: tuple[int, int]) -> None:
    recorded = _recorded(path)
    problem = _changed(path, recorded) if recorded is not None else _unreadable(path)
    if problem is None and whole_pool and recorded is None:
        problem = _misplaced(path, 0)
    if problem is not None:
        raise ScoreError(f"{path} is damaged ({problem}); score the pool again, with --overwrite")


def shard_problem(path: Path, metadata: Mapping[str, str], rows: int) -> str | None:
    """Why a shard is not the one that was written here, in words; None if it is.

    Args:
        path: The shard.
        metadata: What its own must be.
        rows: How many it must have.
    """
    if (problem := _unreadable(path)) is not None:
        return problem
    found = {key.decode(): value.decode() for key, value in (pq.read_schema(path).metadata or {}).items()}
    if any(found.get(key) != value for key, value in metadata.items()):
        return "it belongs to other scores"
    if pq.read_metadata(path).num_rows != rows:
        return "it has another number of rows"
    return _misplaced(path, int(metadata[FIRST_ROW]))


def _recorded(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        facts: Any = json.loads(path.with_name("provenance.json").read_text(encoding="utf-8"))
        return str(facts[FILES][path.name]) if path.name in facts.get(FILES, {}) else None
    return None


def _changed(path: Path, recorded: str) -> str | None:
    return None if fingerprint(path) == recorded else "it is not the file that was written here"


def _unreadable(path: Path) -> str | None:
    """What is wrong with the pages of a file."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches())
            return None if rows == file.metadata.num_rows else "rows are missing"
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        return str(error).partition("\n")[0]


def _misplaced(path: Path, first_row: int) -> str | None:
    """What is wrong with the positions of the rows, which count from the first, in any order."""
    schema = pq.read_schema(path)
    if "row" not in schema.names:
        return None
    if not pa.types.is_integer(schema.field("row").type):
        return "its rows are no positions"
    rows = pq.read_table(path, columns=["row"])["row"]
    expected = np.arange(first_row, first_row + len(rows))
    same = rows.null_count == 0 and bool((np.sort(rows.to_numpy()) == expected).all())
    return None if same else f"its rows are not {first_row} to {first_row + len(rows) - 1}, once each"
