"""Score a pool: shard by shard, so that a killed run continues where it stopped and ends with the same bytes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow.parquet as pq

from onesteptrain.data.corruption import Corrupted
from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.methods import Referenced, Scorer
from onesteptrain.storage.fingerprints import short_hash
from onesteptrain.storage.intact import FILES, FIRST_ROW, POOL, RUN, digests, shard_problem
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import (
    CORRUPTED,
    CORRUPTION_COLUMNS,
    REFERENCE,
    SCORES,
    Record,
    ScoreTable,
    Value,
    merge,
    to_table,
    write_table,
)

T = TypeVar("T")

_REASONS_SAID = 3

Row = Sample | Unreadable

Progress = Callable[[int, int], None]
"""Called with the rows that are done and the rows in all."""

Expect = Callable[[Sequence[Sample]], None]
"""Says which samples will be scored next."""

Prefetch = Callable[[int | None], AbstractContextManager[Expect]]
"""Reads expected samples ahead, by as many processes as `readers` says."""


def no_prefetch(readers: int | None) -> AbstractContextManager[Expect]:
    """Every sample is read where it is scored."""
    return nullcontext(lambda samples: None)


@dataclass(frozen=True)
class ScoringOptions:
    """How a pool is worked through."""

    shard_rows: int = 256
    """Rows that are written together: what a kill can lose."""

    chunk_rows: int = 128
    """Rows that are held encoded in memory at a time; batches are put together from them by length, so that more rows
    mean less padding."""

    readers: int | None = None
    """Processes that read images and texts ahead of the model; by default none where it runs on the CPU, and up to 8
    beside a GPU."""

    max_failed_share: float = 0.5
    """Stop when, of at least 256 rows, more than this share cannot be scored."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.chunk_rows < 1:
            raise ConfigError("shard_rows and chunk_rows must be at least 1")
        if self.readers is not None and self.readers < 0:
            raise ConfigError(f"readers is {self.readers}; it must be at least 0")
        if not 0 <= self.max_failed_share <= 1:
            raise ConfigError(f"max_failed_share is {self.max_failed_share}; it is a share between 0 and 1")


class ScoringResult(NamedTuple):
    """What came out of scoring a pool."""

    table: ScoreTable
    rows: int
    failed: int
    """Rows with a reason in place of a score."""

    reasons: list[tuple[str, int]]
    """The first reasons, as they stand in the table, and how many rows share each."""

    scored_now: int
    """Rows that this call scored; the others were there already, or were taken over."""

    seconds: float
    """Time of this call, preparation included."""

    damaged: list[str] = []  # noqa: RUF012 - nobody changes it
    """Shards of an earlier call that were scored again, with what was wrong with them."""

    taken_over: int = 0
    """Rows whose scores this call has taken from an earlier state of the pool, as they and their pictures are the
    same."""


def score_pool(
    pool: Pool,
    prepare: Callable[[], Scorer],
    run: Run,
    options: ScoringOptions | None = None,
    progress: Progress | None = None,
    prefetch: Prefetch = no_prefetch,
) -> ScoringResult:
    """Score every row of a pool into RUN/scores.parquet; rows that are on disk are not scored again.

    The run's provenance keeps the `seconds` of all calls together. What a method says of its anchors goes to
    RUN/reference.parquet.

    Args:
        pool: The samples.
        prepare: Makes the scorer; called once, and only if there is something to score.
        run: Where the table goes.
        options: Sizes and limits.
        progress: Told after each chunk how far the work is.
        prefetch: Entered once the scorer is prepared; told of each chunk while the one before is scored.

    Raises:
        PoolError: the pool holds no rows.
        ScoreError: no row, or too few of them, can be scored; the table says why.
    """
    started = time.monotonic()
    if not len(pool):
        raise PoolError(f"{pool.path} holds no rows; give a pool with at least one")
    final = run.path / SCORES
    scored_now = 0
    shards = _Shards(run.path / "shards.part", len(pool), options or ScoringOptions(), belonging(run, pool.fingerprint))
    if not final.exists():
        shards.delete_damaged()
        before = run.provenance.get("seconds", 0.0)
        for rows in _score_missing(
            pool, lambda: _with_reference(prepare(), run.path, pool), shards, progress, prefetch
        ):
            scored_now += rows
            run.record(seconds=before + time.monotonic() - started)  # what a kill has cost is not forgotten
        merge(shards.paths, final, {"onesteptrain.schema": "1", POOL: pool.fingerprint})
        run.record(**{FILES: digests(run.path / name for name in (SCORES, REFERENCE, CORRUPTED))})
    shards.delete()
    table = ScoreTable(final)
    failed, reasons = _failures([final])
    if failed == table.rows:
        refuse_unscored(pool, reasons, len(pool), "; mend the pool or the options and score again, with --overwrite")
    return ScoringResult(table, table.rows, failed, reasons, scored_now, time.monotonic() - started, shards.damaged)


def _score_missing(
    pool: Pool, prepare: Callable[[], Scorer], shards: _Shards, progress: Progress | None, prefetch: Prefetch
) -> Iterator[int]:
    """Score the shards that are not on disk; yields the rows of each as soon as it is there."""
    shards.refuse_failures(len(pool.left_out))
    if not shards.missing():
        return
    scorer = prepare()
    records: list[Record] = []
    with prefetch(shards.options.readers) as expect:
        for chunk in _expected(shards.chunks(pool), expect):
            records += score_rows(scorer, chunk.rows)
            if progress is not None:
                progress(chunk.shard[0].row + len(records), shards.pool_rows)
            if len(records) == len(chunk.shard):
                shards.write(chunk.shard, records)
                yield len(records)
                shards.refuse_failures(len(pool.left_out))
                records = []


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> list[Record]:
    """Score some rows; one that cannot be read keeps its reason."""
    samples = [row for row in rows if isinstance(row, Sample)]
    records = scorer(samples)
    if len(records) != len(samples):
        raise ScoreError(f"the method gave {len(records)} records for {len(samples)} samples; it is broken")
    scored = iter(records)
    return [next(scored) if isinstance(row, Sample) else Record(reason=row.reason) for row in rows]


class _Chunk(NamedTuple):
    """Rows that are encoded together, and the shard that they are a part of."""

    shard: list[Row]
    rows: list[Row]


class _Shards:
    """Parts of a score table that are written one by one: a kill loses no more than one of them."""

    def __init__(self, folder: Path, pool_rows: int, options: ScoringOptions, belonging: Mapping[str, str]) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self._belonging = belonging
        self.pool_rows = pool_rows
        self.options = options
        self.paths = [self._path(row) for row in range(0, pool_rows, options.shard_rows)]
        self._seen = self._failed = 0

    def delete_damaged(self) -> None:
        """Delete the shards that are not as they were written, so that they are scored again; count the others."""
        for path in self.paths:
            if not path.exists():
                continue
            first = int(path.stem)
            rows = min(self.options.shard_rows, self.pool_rows - first)
            if (problem := shard_problem(path, self._metadata(first), rows)) is not None:
                self.damaged.append(f"{path.name}: {problem}")
                path.unlink()
                continue
            self._seen += rows
            self._failed += _failures([path])[0]

    def _metadata(self, first_row: int) -> dict[str, str]:
        return {**self._belonging, FIRST_ROW: str(first_row)}

    def missing(self) -> list[Path]:
        """Shards that are not on disk, in order."""
        return [path for path in self.paths if not path.exists()]

    def chunks(self, pool: Pool) -> Iterator[_Chunk]:
        """The rows of all missing shards."""
        first = int(self.missing()[0].stem)
        for shard in _in_groups(pool.rows(first), self.options.shard_rows):
            if not self._path(shard[0].row).exists():
                for rows in _in_groups(shard, self.options.chunk_rows):
                    yield _Chunk(shard, rows)

    def write(self, shard: Sequence[Row], records: Sequence[Record]) -> None:
        """Put a shard on disk."""
        self.folder.mkdir(exist_ok=True)
        placed = ((row.uid, row.row, record) for row, record in zip(shard, records, strict=True))
        write_table(to_table(placed), self._path(shard[0].row), self._metadata(shard[0].row))
        self._seen += len(shard)
        self._failed += sum(record.reason is not None for record in records)

    def delete(self) -> None:
        """Delete the shards, which the table holds by now."""
        for path in self.paths:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or somebody has put something into it
            self.folder.rmdir()

    def refuse_failures(self, left_out: int) -> None:
        """Stop where too many of the rows so far have no score, which nobody has left out.

        Raises:
            ScoreError: it is so.
        """
        if self._seen >= 256 and self._failed - left_out > self.options.max_failed_share * self._seen:
            _, reasons = _failures(path for path in self.paths if path.exists())
            raise ScoreError(
                f"{self._failed} of {self._seen} rows cannot be scored, such as: {reasons[0][0]}; "
                "mend the pool or raise max_failed_share, and add --overwrite"
            )

    def _path(self, first_row: int) -> Path:
        return self.folder / f"{first_row:012d}.parquet"


def _expected(chunks: Iterable[_Chunk], expect: Expect) -> Iterator[_Chunk]:
    """The chunks, each expected while the one before it is scored."""
    waiting: list[_Chunk] = []
    try:
        for chunk in chunks:
            expect([row for row in chunk.rows if isinstance(row, Sample)])
            yield from waiting
            waiting = [chunk]
    except PoolError:  # a file that breaks off costs no row before the break
        yield from waiting
        raise
    yield from waiting


def belonging(run: Run, pool: str) -> dict[str, str]:
    """What sets the shards of a request, and of a pool of this fingerprint, apart from those of others."""
    return {POOL: pool, RUN: short_hash(json.dumps(run.provenance.get("inputs"), sort_keys=True), 8)}


def _with_reference(scorer: Scorer, folder: Path, pool: Pool) -> Scorer:
    """Keep what a scorer says of its anchors, if it says anything: see `methods.Referenced`."""
    if isinstance(scorer, Referenced) and not _is_whole(folder / REFERENCE):
        belonging = {POOL: pool.fingerprint}
        reference = scorer.reference()
        if reference.corrupted:
            copies = ((copy.sample.uid, copy.sample.row, _placed(copy, record)) for copy, record in reference.corrupted)
            write_table(to_table(copies), folder / CORRUPTED, belonging)
        placed = ((anchor.uid, anchor.row, record) for anchor, record in reference.anchors)
        write_table(to_table(placed), folder / REFERENCE, belonging)
    return scorer


def _is_whole(path: Path) -> bool:
    with suppress(ScoreError):
        ScoreTable(path)
        return True
    return False


def _placed(copy: Corrupted, record: Record) -> Record:
    """A record that says what is wrong with the corrupted anchor that it is of."""
    values: tuple[Value, ...] = (copy.anchor, copy.kind, *(copy.span or (None, None)))
    where = dict(zip(CORRUPTION_COLUMNS, values, strict=True))
    return dataclasses.replace(record, columns={**where, **record.columns})


def refuse_unscored(pool: Pool, reasons: Sequence[tuple[str, int]], tried: int, remedy: str) -> None:
    """Refuse scores of which there is none.

    Raises:
        ScoreError: always, with the commonest reasons.
    """
    said = "; ".join(f"{count} x {reason}" for reason, count in reasons[:_REASONS_SAID])
    raise ScoreError(f"{pool.path}: none of {tried} rows has a score: {said}{remedy}")


def _failures(tables: Iterable[Path]) -> tuple[int, list[tuple[str, int]]]:
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
