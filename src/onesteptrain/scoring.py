"""Score a pool: shard by shard, so that a killed run continues where it stopped and ends with the same bytes."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import pyarrow.parquet as pq

from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.methods import Referenced, Scorer
from onesteptrain.pool import Sample, Unreadable
from onesteptrain.runs import Run
from onesteptrain.scores import REFERENCE, Record, ScoreTable, merge, to_table, write_table

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with the rows that are done and the rows in all."""


@dataclass(frozen=True)
class ScoringOptions:
    """How a pool is worked through."""

    shard_rows: int = 256
    """Rows that are written together: what a kill can lose."""

    chunk_rows: int = 128
    """Rows that are held encoded in memory at a time; batches are put together from them by length, so that more rows
    mean less padding."""

    max_failed_share: float = 0.5
    """Stop when, of at least 256 rows, more than this share cannot be scored."""

    def __post_init__(self) -> None:
        if self.shard_rows < 1 or self.chunk_rows < 1:
            raise ConfigError("shard_rows and chunk_rows must be at least 1")
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

        scored_now = _score_shards(pool, prepared, folder, total, options, progress, shard_done)
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
    for shard in _in_groups(pool.rows(first), options.shard_rows):
        path = _shard(folder, shard[0].row)
        if path.exists():
            continue
        records: list[Record] = []
        for chunk in _in_groups(shard, options.chunk_rows):
            records += score_rows(scorer, chunk)
            if progress is not None:
                progress(shard[0].row + len(records), total)
        write_table(to_table((one.uid, one.row, record) for one, record in zip(shard, records, strict=True)), path)
        shard_done()
        scored += len(shard)
        seen += len(shard)
        failed += sum(record.reason is not None for record in records)
        _refuse_too_many(seen, failed, options, shards)
    return scored


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
