"""What one worker does: look for missing shards, score those that fall to it, help the others with the rest.

There is no list of tasks that could be lost. Each of W workers takes its own W-th of the missing shards, in order, and
then again and again a part of what the others have left, from behind, until nothing is missing. Two workers may score
the same shard at the end; both write the same bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onesteptrain.data.corruption import Corrupted
from onesteptrain.data.pool import Pool, Sample
from onesteptrain.errors import PoolError, ScoreError
from onesteptrain.methods import Referenced, Scorer
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.shards import Chunk, Row, Shards
from onesteptrain.storage.atomic import write_json
from onesteptrain.storage.intact import POOL
from onesteptrain.storage.score_table import (
    CORRUPTED,
    CORRUPTION_COLUMNS,
    REFERENCE,
    SCORES,
    Record,
    ScoreTable,
    Value,
    to_table,
    write_table,
)

_FACTS = "prepared.json"
"""In the folder of shards: the anchors are measured, and what is to be recorded of the proxy."""

Expect = Callable[[Sequence[Sample]], None]
"""Says which samples will be scored next."""

Prefetch = Callable[[int | None], AbstractContextManager[Expect]]
"""Reads expected samples ahead, by as many processes as `readers` says."""


def no_prefetch(readers: int | None) -> AbstractContextManager[Expect]:
    """Every sample is read where it is scored."""
    return nullcontext(lambda samples: None)


def no_facts() -> dict[str, Any]:
    """Nothing is to be recorded."""
    return {}


class Step(NamedTuple):
    """How far a worker is."""

    row: int
    """Position after the last scored row."""

    written: int | None = None
    """First row of the shard that has just been written."""


@dataclass(frozen=True)
class Work:
    """All that a worker needs. For other processes, it must be possible to pickle it."""

    pool: Pool

    prepare: Callable[[], Scorer]
    """Makes the scorer; called once by each worker, and only if there is something for it to score."""

    run: Path
    """The run directory."""

    options: ScoringOptions
    belonging: Mapping[str, str]
    """What sets the shards of this request apart from those of others."""

    prefetch: Prefetch = no_prefetch
    """Entered once the scorer is prepared; told of each chunk while the one before is scored."""

    facts: Callable[[], dict[str, Any]] = no_facts
    """What goes on record of the proxy; called once the scorer is prepared."""

    @property
    def shards(self) -> Shards:
        """Where the scores go."""
        return Shards(self.run / "shards.part", len(self.pool), self.options.shard_rows, self.belonging)

    def recorded_facts(self) -> dict[str, Any]:
        """What worker 0 has said of the proxy."""
        path = self.shards.folder / _FACTS
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def delete(self) -> None:
        """Delete the shards and what stands beside them."""
        (self.shards.folder / _FACTS).unlink(missing_ok=True)
        self.shards.delete()


def score_share(work: Work, worker: int = 0, workers: int = 1) -> Iterator[Step]:
    """Score what falls to one worker, telling of each chunk and shard.

    Worker 0 measures the anchors too. It goes on until nothing is missing; the others end when nothing falls to them.
    """
    shards = work.shards
    scorer: Scorer | None = None
    for again in itertools.count():
        missing = shards.missing()
        mine = missing[len(missing) * worker // workers : len(missing) * (worker + 1) // workers]
        mine = mine[len(mine) // 2 :] if again else mine
        if worker == 0:
            mine = mine or missing[-1:]
        unmeasured = worker == 0 and not _is_measured(work)
        if (not mine and not unmeasured) or (work.run / SCORES).exists():
            return
        if scorer is None:
            scorer = work.prepare()
        if unmeasured:
            _measure_anchors(scorer, work)
        if mine:
            yield from _score_shards(scorer, work, mine, worker)


def _score_shards(scorer: Scorer, work: Work, first_rows: Sequence[int], worker: int) -> Iterator[Step]:
    shards, records = work.shards, list[Record]()
    with work.prefetch(work.options.readers) as expect:
        for chunk in expected(shards.chunks(work.pool, first_rows, work.options.chunk_rows), expect):
            records += score_rows(scorer, chunk.rows)
            first = chunk.shard[0].row
            yield Step(first + len(records))
            if (work.run / SCORES).exists():  # another worker has made the table
                return
            if len(records) == len(chunk.shard):
                shards.write(chunk.shard, records, worker)
                yield Step(first + len(records), first)
                records = []


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> list[Record]:
    """Score some rows; one that cannot be read keeps its reason."""
    samples = [row for row in rows if isinstance(row, Sample)]
    records = scorer(samples)
    if len(records) != len(samples):
        raise ScoreError(f"the method gave {len(records)} records for {len(samples)} samples; it is broken")
    scored = iter(records)
    return [next(scored) if isinstance(row, Sample) else Record(reason=row.reason) for row in rows]


def expected(chunks: Iterable[Chunk], expect: Expect) -> Iterator[Chunk]:
    """The chunks, each expected while the one before it is scored."""
    waiting: list[Chunk] = []
    try:
        for chunk in chunks:
            expect([row for row in chunk.rows if isinstance(row, Sample)])
            yield from waiting
            waiting = [chunk]
    except PoolError:  # a file that breaks off costs no row before the break
        yield from waiting
        raise
    yield from waiting


def _is_measured(work: Work) -> bool:
    if not (work.shards.folder / _FACTS).is_file():
        return False
    reference = work.run / REFERENCE
    return not reference.exists() or _is_whole(reference)


def _measure_anchors(scorer: Scorer, work: Work) -> None:
    """Keep what a scorer says of its anchors, if it says anything: see `methods.Referenced`."""
    if isinstance(scorer, Referenced) and not _is_whole(work.run / REFERENCE):
        belonging = {POOL: work.pool.fingerprint}
        reference = scorer.reference()
        if reference.corrupted:
            copies = ((copy.sample.uid, copy.sample.row, _placed(copy, record)) for copy, record in reference.corrupted)
            write_table(to_table(copies), work.run / CORRUPTED, belonging)
        placed = ((anchor.uid, anchor.row, record) for anchor, record in reference.anchors)
        write_table(to_table(placed), work.run / REFERENCE, belonging)
    write_json(work.shards.folder / _FACTS, work.facts())


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
