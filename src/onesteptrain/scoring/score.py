"""Score a pool: shard by shard, so that a killed run continues where it stopped and ends with the same bytes."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import pyarrow.parquet as pq

from onesteptrain.data.pool import Sample, Unreadable
from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.methods import Referenced, Scorer
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import REFERENCE, Record, ScoreTable, merge, to_table, write_table

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the rows that are done and the rows in all."""

Expect = Callable[[Sequence[Sample]], None]
"""Says which samples will be scored next."""

Ahead = Callable[[int | None], AbstractContextManager[Expect]]
"""Reads samples ahead, by as many processes as `readers` says."""


def nothing_ahead(asked: int | None) -> AbstractContextManager[Expect]:
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


class Rows(Protocol):
    """What can be scored: a pool, or a part of one whose rows are numbered from 0."""

    @property
    def path(self) -> Path:
        """Where it comes from."""

    @property
    def fingerprint(self) -> str:
        """Of its content."""

    def count(self) -> int:
        """Number of rows."""

    def rows(self, start: int = 0) -> Iterator[Sample | Unreadable]:
        """The rows from `start` on."""


class ScoringResult(NamedTuple):
    """What came out of scoring a pool."""

    table: ScoreTable
    rows: int
    failed: int
    """Rows with a reason in place of a score."""

    reasons: list[tuple[str, int]]
    """The first reasons, as they stand in the table, and how many rows share each."""

    scored_now: int
    """Rows that this call scored; the others were there already."""

    seconds: float
    """Time of this call, preparation included."""


def score_pool(
    pool: Rows,
    prepare: Callable[[], Scorer],
    run: Run,
    options: ScoringOptions | None = None,
    progress: Progress | None = None,
    ahead: Ahead = nothing_ahead,
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
        ahead: Entered once the scorer is prepared; told of each chunk while the one before is scored.

    Raises:
        PoolError: the pool holds no rows.
        ScoreError: too many rows cannot be scored.
    """
    options = options or ScoringOptions()
    started = time.monotonic()
    final = run.path / "scores.parquet"
    total = pool.count()
    if not total:
        raise PoolError(f"{pool.path} holds no rows; give a pool with at least one")
    scored_now = 0
    folder = run.path / "shards.part"
    if not final.exists():
        before = run.provenance.get("seconds", 0.0)

        def shard_done() -> None:  # what a kill has cost is not forgotten
            run.record(seconds=before + time.monotonic() - started)

        def prepared() -> Scorer:
            return _with_reference(prepare(), run.path)

        scored_now = _score_shards(pool, prepared, folder, total, options, progress, shard_done, ahead)
        merge(_shards(folder, total, options), final, {"onesteptrain.schema": "1", "pool": pool.fingerprint})
    shutil.rmtree(folder, ignore_errors=True)
    table = ScoreTable(final)
    failed, reasons = failures(table)
    return ScoringResult(table, table.rows, failed, reasons, scored_now, time.monotonic() - started)


def _score_shards(  # noqa: PLR0913  the parts of one request
    pool: Rows,
    prepare: Callable[[], Scorer],
    folder: Path,
    total: int,
    options: ScoringOptions,
    progress: Progress | None,
    shard_done: Callable[[], None],
    ahead: Ahead,
) -> int:
    shards = _shards(folder, total, options)
    missing = [path for path in shards if not path.exists()]
    seen, failed = _counts(path for path in shards if path.exists())
    _refuse_too_many(seen, failed, options, shards)
    if not missing:
        return 0
    first = int(missing[0].stem)
    scorer = prepare()
    folder.mkdir(exist_ok=True)
    scored = 0
    records: list[Record] = []
    shards_left = (shard for shard in _in_groups(pool.rows(first), options.shard_rows) if _is_missing(folder, shard))
    chunks = ((shard, chunk) for shard in shards_left for chunk in _in_groups(shard, options.chunk_rows))
    with ahead(options.readers) as expect:
        for shard, chunk in _expected(chunks, expect):
            records += score_rows(scorer, chunk)
            if progress is not None:
                progress(shard[0].row + len(records), total)
            if len(records) < len(shard):
                continue
            placed = ((one.uid, one.row, record) for one, record in zip(shard, records, strict=True))
            write_table(to_table(placed), _shard(folder, shard[0].row))
            shard_done()
            scored += len(shard)
            seen += len(shard)
            failed += sum(record.reason is not None for record in records)
            _refuse_too_many(seen, failed, options, shards)
            records = []
    return scored


Chunk = tuple[list[Sample | Unreadable], list[Sample | Unreadable]]
"""A shard, and a part of it."""


def _expected(chunks: Iterable[Chunk], expect: Expect) -> Iterator[Chunk]:
    """The chunks, each expected while the one before it is scored."""
    waiting: list[Chunk] = []
    try:
        for chunk in chunks:
            expect([row for row in chunk[1] if isinstance(row, Sample)])
            yield from waiting
            waiting = [chunk]
    except PoolError:  # a file that breaks off costs no row before the break
        yield from waiting
        raise
    yield from waiting


def _is_missing(folder: Path, shard: Sequence[Sample | Unreadable]) -> bool:
    """Whether a shard is still to be scored."""
    return not _shard(folder, shard[0].row).exists()


def _with_reference(scorer: Scorer, folder: Path) -> Scorer:
    """Keep what a scorer says of its anchors, if it says anything: see `methods.Referenced`."""
    if isinstance(scorer, Referenced) and not (folder / REFERENCE).exists():
        found = scorer.reference()
        write_table(to_table((one.uid, one.row, record) for one, record in found), folder / REFERENCE)
    return scorer


def score_rows(scorer: Scorer, rows: Sequence[Sample | Unreadable]) -> list[Record]:
    """Score some rows; one that cannot be read keeps its reason."""
    samples = [row for row in rows if isinstance(row, Sample)]
    records = scorer(samples)
    if len(records) != len(samples):
        raise ScoreError(f"the method gave {len(records)} records for {len(samples)} samples; it is broken")
    scored = iter(records)
    return [next(scored) if isinstance(row, Sample) else Record(reason=row.reason) for row in rows]


def _counts(shards: Iterable[Path]) -> tuple[int, int]:
    """Rows of some shards, and how many of them have a reason in place of a score."""
    reasons = [pq.read_table(path, columns=["reason"])["reason"] for path in shards]
    return sum(map(len, reasons)), sum(len(column) - column.null_count for column in reasons)


def _refuse_too_many(seen: int, failed: int, options: ScoringOptions, shards: Sequence[Path]) -> None:
    if seen >= 256 and failed > options.max_failed_share * seen:
        columns = (pq.read_table(path, columns=["reason"])["reason"] for path in shards if path.exists())
        example = next(reason for column in columns for reason in column.to_pylist() if reason is not None)
        raise ScoreError(
            f"{failed} of {seen} rows cannot be scored, such as: {example}; "
            "mend the pool or raise --max-failed-share, and add --overwrite"
        )


def failures(table: ScoreTable) -> tuple[int, list[tuple[str, int]]]:
    """Rows with a reason in place of a score, and the commonest reasons."""
    reasons: Counter[str] = Counter()
    with pq.ParquetFile(table.path) as file:
        for group in file.iter_batches(columns=["reason"]):
            reasons.update(value for value in group.column(0).to_pylist() if value is not None)
    return reasons.total(), reasons.most_common(5)


def _shards(folder: Path, total: int, options: ScoringOptions) -> list[Path]:
    return [_shard(folder, start) for start in range(0, total, options.shard_rows)]


def _shard(folder: Path, first_row: int) -> Path:
    return folder / f"{first_row:012d}.parquet"


def _in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
