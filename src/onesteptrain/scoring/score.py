"""Score a pool: shard by shard, so that a killed run continues where it stopped and ends with the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from onesteptrain.data.pool import Pool
from onesteptrain.errors import PoolError, ScoreError
from onesteptrain.methods import Scorer
from onesteptrain.scoring.engines import Deaths, rank_here, score_in_processes, score_on_ray, use_share
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.shards import Shards, belonging, failures
from onesteptrain.scoring.work import Prefetch, Step, Work, no_facts, no_prefetch, score_share
from onesteptrain.storage.intact import FILES, POOL, digests
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import CORRUPTED, REFERENCE, SCORES, ScoreTable, merge

_REASONS_SAID = 3

Progress = Callable[[int, int], None]
"""Called with the rows that are done and the rows in all."""


class ScoringResult(NamedTuple):
    """What came out of scoring a pool."""

    table: ScoreTable
    rows: int
    failed: int
    """Rows with a reason in place of a score."""

    reasons: list[tuple[str, int]]
    """The first reasons, as they stand in the table, and how many rows share each."""

    scored_now: int
    """Rows that were scored during this call; the others were there already, or were taken over."""

    seconds: float
    """Time of this call, preparation included."""

    damaged: list[str] = []  # noqa: RUF012 - nobody changes it
    """Shards of an earlier call that were scored again, with what was wrong with them."""

    taken_over: int = 0
    """Rows whose scores this call has taken from an earlier state of the pool, as they and their pictures are the
    same."""


def score_pool(  # noqa: PLR0913  the parts of `Work`
    pool: Pool,
    prepare: Callable[[], Scorer],
    run: Run,
    options: ScoringOptions | None = None,
    progress: Progress | None = None,
    prefetch: Prefetch = no_prefetch,
    facts: Callable[[], dict[str, Any]] = no_facts,
) -> ScoringResult:
    """Score every row of a pool into RUN/scores.parquet; rows that are on disk are not scored again.

    The run's provenance keeps the `seconds` of all calls together. What a method says of its anchors goes to
    RUN/reference.parquet.

    Args:
        pool: The samples.
        prepare: Makes the scorer; called once by each worker, and only if there is something to score.
        run: Where the table goes.
        options: Sizes, limits and workers.
        progress: Told after each chunk how far the work is.
        prefetch: Entered once the scorer is prepared; told of each chunk while the one before is scored.
        facts: What goes on record once the scorer is prepared.

    Raises:
        PoolError: the pool holds no rows.
        ScoreError: no row, or too few of them, can be scored; the table says why.
    """
    started = time.monotonic()
    if not len(pool):
        raise PoolError(f"{pool.path} holds no rows; give a pool with at least one")
    final, tally, damaged = run.path / SCORES, None, list[str]()
    work = plan_work(pool, prepare, run, options, prefetch, facts)
    if not final.exists():
        shards, before = work.shards, run.provenance.get("seconds", 0.0)
        damaged = shards.delete_damaged()
        tally = _Tally(shards, work.options.max_failed_share, len(pool.left_out))
        tally.look()
        already = tally.rows
        tally.refuse_failures()
        for step in _steps(work):
            if step is None:
                tally.look()
            elif step.written is not None:
                tally.add(step.written)
            if progress is not None and (step is None or step.written is None):
                progress(tally.rows if step is None else step.row, len(pool))
            if step is None or step.written is not None:
                run.record(seconds=before + time.monotonic() - started)  # what a kill has cost is not forgotten
                tally.refuse_failures()
        run.record(**work.recorded_facts())
        merge(list(shards.paths), final, {"onesteptrain.schema": "1", POOL: pool.fingerprint})
        run.record(**{FILES: digests(run.path / name for name in (SCORES, REFERENCE, CORRUPTED))})
    work.delete()
    table = ScoreTable(final)
    failed, reasons = failures([final])
    if failed == table.rows:
        refuse_unscored(pool, reasons, len(pool), "; mend the pool or the options and score again, with --overwrite")
    scored_now = len(pool) - already if tally is not None else 0
    return ScoringResult(table, table.rows, failed, reasons, scored_now, time.monotonic() - started, damaged)


def plan_work(
    pool: Pool,
    prepare: Callable[[], Scorer],
    run: Run,
    options: ScoringOptions | None = None,
    prefetch: Prefetch = no_prefetch,
    facts: Callable[[], dict[str, Any]] = no_facts,
) -> Work:
    """What the workers of a run do."""
    return Work(pool, prepare, run.path, options or ScoringOptions(), belonging(run, pool.fingerprint), prefetch, facts)


def _steps(work: Work) -> Iterator[Step | None]:
    """The work under way: each step of a worker here, or None now and then while others are at it."""
    options = work.options
    if options.engine == "ray":
        yield from score_on_ray(work, Deaths(work.shards))
    elif options.engine == "ranks":
        rank = rank_here()
        use_share(rank.local, rank.local_ranks)
        yield from score_share(work, rank.number, rank.ranks)
        yield None
    elif (options.workers or 1) > 1:
        yield from score_in_processes(work, Deaths(work.shards))
    else:
        yield from score_share(work)


class _Tally:
    """Counts the rows of the shards that are on disk, and those without a score."""

    def __init__(self, shards: Shards, max_failed_share: float, left_out: int) -> None:
        self._shards = shards
        self._max_failed_share = max_failed_share
        self._left_out = left_out
        self.seen: set[int] = set()
        self.rows = self._failed = 0

    def look(self) -> None:
        """Count what has come since."""
        for first_row in sorted(self._shards.there() - self.seen):
            self.add(first_row)

    def add(self, first_row: int) -> None:
        """Count a shard."""
        if first_row not in self.seen:
            self.seen.add(first_row)
            self.rows += self._shards.rows_of(first_row)
            self._failed += failures([self._shards.path(first_row)])[0]

    def refuse_failures(self) -> None:
        """Stop where too many of the rows so far have no score, which nobody has left out.

        Raises:
            ScoreError: it is so.
        """
        if self.rows >= 256 and self._failed - self._left_out > self._max_failed_share * self.rows:
            _, reasons = failures(map(self._shards.path, sorted(self.seen)))
            raise ScoreError(
                f"{self._failed} of {self.rows} rows cannot be scored, such as: {reasons[0][0]}; "
                "mend the pool or raise max_failed_share, and add --overwrite"
            )


def refuse_unscored(pool: Pool, reasons: Sequence[tuple[str, int]], tried: int, remedy: str) -> None:
    """Refuse scores of which there is none.

    Raises:
        ScoreError: always, with the commonest reasons.
    """
    said = "; ".join(f"{count} x {reason}" for reason, count in reasons[:_REASONS_SAID])
    raise ScoreError(f"{pool.path}: none of {tried} rows has a score: {said}{remedy}")
