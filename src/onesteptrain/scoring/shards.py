"""Parts of a score table, written one by one: what is on disk is the only word on what is done.

A shard holds the scores of `shard_rows` consecutive rows and is there whole or not at all, under the number of its
first row. Whoever scores looks for the shards that are missing, so that any number of workers, and any of their
restarts, end with the same table.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow.parquet as pq

from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.storage.fingerprints import short_hash
from onesteptrain.storage.intact import FIRST_ROW, POOL, RUN, shard_problem
from onesteptrain.storage.ownership import PASSING
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import Record, to_table, write_table

T = TypeVar("T")
Row = Sample | Unreadable

_SUFFIX = ".parquet"


class Chunk(NamedTuple):
    """Rows that are encoded together, and the shard that they are a part of."""

    shard: list[Row]
    rows: list[Row]


@dataclass(frozen=True)
class Shards:
    """The shards of one pool's scores."""

    folder: Path
    pool_rows: int
    shard_rows: int
    belonging: Mapping[str, str]
    """What sets the shards of a request apart from those of others."""

    @property
    def first_rows(self) -> range:
        """First row of each shard."""
        return range(0, self.pool_rows, self.shard_rows)

    @property
    def paths(self) -> Iterator[Path]:
        """Where each shard is or will be, in order."""
        return map(self.path, self.first_rows)

    def path(self, first_row: int) -> Path:
        """Where a shard is or will be."""
        return self.folder / f"{first_row:012d}{_SUFFIX}"

    def rows_of(self, first_row: int) -> int:
        """How many rows a shard has."""
        return min(self.shard_rows, self.pool_rows - first_row)

    def there(self) -> set[int]:
        """First rows of the shards that are on disk."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            stems = (entry.name.removesuffix(_SUFFIX) for entry in entries if entry.name.endswith(_SUFFIX))
            return {int(stem) for stem in stems if stem.isdecimal()}
        return set()

    def missing(self) -> list[int]:
        """First rows of the shards that are not, in order."""
        there = self.there()
        return [row for row in self.first_rows if row not in there]

    def delete_damaged(self) -> list[str]:
        """Delete what is not as it was written, so that it is scored again; says what was wrong."""
        self._delete_unfinished()
        damaged = []
        for first in sorted(self.there()):
            path = self.path(first)
            if first not in self.first_rows:
                problem: str | None = "it belongs to shards of other sizes"
            else:
                problem = shard_problem(path, self._metadata(first), self.rows_of(first))
            if problem is not None:
                damaged.append(f"{path.name}: {problem}")
                path.unlink()
        return damaged

    def chunks(self, pool: Pool, wanted: Sequence[int], chunk_rows: int) -> Iterator[Chunk]:
        """The rows of some shards, without those that are there by the time that their turn comes.

        Args:
            pool: The pool.
            wanted: First rows of the shards, rising.
            chunk_rows: Rows of a chunk.
        """
        chosen = set(wanted)
        rows = pool.rows(wanted[0], wanted[-1] + self.shard_rows)
        for shard in _in_groups(rows, self.shard_rows):
            if shard[0].row in chosen and not self.path(shard[0].row).exists():
                for some in _in_groups(shard, chunk_rows):
                    yield Chunk(shard, some)

    def write(self, shard: Sequence[Row], records: Sequence[Record], writer: int) -> Path:
        """Put a shard on disk; another writer may put the same one there at the same time."""
        placed = ((row.uid, row.row, record) for row, record in zip(shard, records, strict=True))
        path = self.path(shard[0].row)
        write_table(to_table(placed), path, self._metadata(shard[0].row), writer=writer)
        return path

    def delete(self) -> None:
        """Delete the shards, which the table holds by now."""
        for first in self.there():
            self.path(first).unlink(missing_ok=True)
        self._delete_unfinished()
        with suppress(OSError):  # it is not there, or somebody has put something into it
            self.folder.rmdir()

    def _delete_unfinished(self) -> None:
        for part in self.folder.glob(f".*{_SUFFIX}*{PASSING}"):
            part.unlink(missing_ok=True)

    def _metadata(self, first_row: int) -> dict[str, str]:
        return {**self.belonging, FIRST_ROW: str(first_row)}


def belonging(run: Run, pool: str) -> dict[str, str]:
    """What sets the shards of a request, and of a pool of this fingerprint, apart from those of others."""
    return {POOL: pool, RUN: short_hash(json.dumps(run.provenance.get("inputs"), sort_keys=True), 8)}


def failures(tables: Iterable[Path]) -> tuple[int, list[tuple[str, int]]]:
    """Rows with a reason in place of a score, and the commonest reasons."""
    reasons: Counter[str] = Counter()
    for path in tables:
        with pq.ParquetFile(path) as file:
            for group in file.iter_batches(columns=["reason"]):
                reasons.update(reason for reason in group.column(0).to_pylist() if reason is not None)
    return reasons.total(), reasons.most_common(5)


def _in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
