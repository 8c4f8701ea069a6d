"""Take scores over: a row is scored again only where it, or a picture of it, is not as it was when it was scored.

A score depends on its row, the anchors, the proxy and the settings alone. Where a run of the same settings is asked for
a pool of which rows were added, changed, moved or taken out, what it has is put aside as `kept.parquet`, by content,
and each row that is found there takes its record from it. Killed at any point, the same call ends in the same table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from onesteptrain.data.contents import Contents, pool_mark, read_contents, stamps_differ, take_contents
from onesteptrain.data.likeness import FINDINGS
from onesteptrain.data.pool import Pool, Sample
from onesteptrain.errors import OneStepError, RunError, ScoreError
from onesteptrain.methods import Reference, Referenced, Scorer
from onesteptrain.scoring.second_pass import stored_records
from onesteptrain.scoring.shards import belonging
from onesteptrain.storage.atomic import whole
from onesteptrain.storage.intact import FILES, POOL, refuse_damaged
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import CORRUPTED, REFERENCE, SCORES, Record, write_table

KEPT = "kept.parquet"
"""Records of an earlier state of the pool, with the content of their rows; gone once the new table is there."""

POOL_INPUTS = ("pool", "excluded rows")
"""Inputs of a run that may change from call to call."""

_CONTENT = "content"
_GROUP = 4096

Prefetch = Callable[[int | None], AbstractContextManager[Callable[[Sequence[Sample]], None]]]


@dataclass(frozen=True)
class Kept:
    """Records of a run directory that can be taken over, if there are some."""

    folder: Path

    def prepare(self, prepare: Callable[[], Scorer]) -> Scorer:
        """A scorer that takes over what is kept, and asks another for the rest."""
        scorer, found = prepare(), _found(self.folder)
        if found is None:
            return scorer
        return _TakingReferenced(scorer, found, scorer) if isinstance(scorer, Referenced) else _Taking(scorer, found)

    @contextmanager
    def prefetch(self, prefetch: Prefetch, readers: int | None) -> Iterator[Callable[[Sequence[Sample]], None]]:
        """Prefetch what is not kept."""
        found = _found(self.folder)
        with prefetch(readers) as expect:
            yield expect if found is None else lambda samples: expect(found.missing(samples))

    def count(self) -> int:
        """Rows that will be taken over, those of finished shards aside."""
        found = _found(self.folder)
        if found is None or (self.folder / SCORES).exists():
            return 0
        known = found.places >= 0
        for shard in _shards(self.folder):
            with suppress(OSError, pa.ArrowException):
                rows = pq.read_table(shard, columns=["row"])["row"].to_numpy()
                known[rows[rows < len(known)]] = False
        return int(known.sum())

    def delete(self) -> None:
        """Delete what was kept, once all of it stands in the new table."""
        (self.folder / KEPT).unlink(missing_ok=True)


def renew(run: Run, pool: Pool, inputs: Mapping[str, str], *, reuse: Path | None = None) -> Kept:
    """Bring a run directory to what the pool holds now, before it is scored.

    Args:
        run: The directory, which this process owns.
        pool: What is to be scored.
        inputs: Fingerprint of each file that goes in, as of now.
        reuse: A run directory of the same settings, whose scores may be taken over.

    Raises:
        RunError: the pool has changed, and what its rows were is not known.
    """
    before = read_contents(run.path)
    changed = [name for name in POOL_INPUTS if run.provenance.get("inputs", {}).get(name) != inputs.get(name)]
    if before is None and changed:
        raise RunError(
            f"output folder {run.path} holds a run with other content of {' and '.join(changed)}, and has no record of "
            "its rows; choose another --out, or add --overwrite"
        )
    if before is None or before.mark != pool_mark(pool) or stamps_differ(before, pool.image_root):
        now = take_contents(pool, before.pictures if before is not None else {})
        if before is not None and (before.mark != now.mark or not before.rows.equals(now.rows)):
            _put_aside(run, run.path, before)
            run.record(**{FILES: {}})  # the digests of what is now replaced
            for path in (run.path / SCORES, run.path / FINDINGS, *_shards(run.path)):
                path.unlink(missing_ok=True)
            _relabel(run.path, run.path, pool)
        now.write(run.path)
    if reuse is not None and not (run.path / KEPT).exists() and not (run.path / SCORES).exists():
        _take_from(reuse, run.path, pool)
    if changed:
        run.record(inputs=dict(inputs))
    return Kept(run.path)


def _take_from(reuse: Path, folder: Path, pool: Pool) -> None:
    contents = read_contents(reuse)
    if contents is None:
        raise RunError(f"{reuse} has no record of the rows that it scored; score without reuse")
    _put_aside(Run(reuse), folder, contents)
    _relabel(reuse, folder, pool)


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "shards.part").glob("*.parquet"))


def _put_aside(source: Run, folder: Path, contents: Contents) -> None:
    """Collect the scored records of a run directory, each with the content of its row."""
    metadata = belonging(source, contents.mark[POOL])
    tables: list[tuple[Path, Contents | None]] = [(path, None) for path in (source.path / KEPT,) if path.exists()]
    tables += [(path, contents) for path in (source.path / SCORES,) if _is_of(path, contents, {POOL: metadata[POOL]})]
    tables += [(path, contents) for path in _shards(source.path) if _is_of(path, contents, metadata)]
    if not tables:
        return
    schemas = [pq.read_schema(path).remove_metadata() for path, _ in tables]
    schema = pa.unify_schemas([*schemas, pa.schema([(_CONTENT, contents.rows.type)])], promote_options="permissive")
    with whole(folder / KEPT) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for table in _records(tables, schema):
            writer.write_table(table, row_group_size=_GROUP)


def _records(tables: Iterable[tuple[Path, Contents | None]], schema: pa.Schema) -> Iterator[pa.Table]:
    for path, contents in tables:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(_GROUP):
                table = pa.Table.from_batches([batch])
                if contents is not None:
                    table = table.append_column(_CONTENT, contents.rows.take(table["row"]))
                table = table.filter(pc.and_(table["score"].is_valid(), table[_CONTENT].is_valid()))
                columns = [
                    table[part.name].cast(part.type)
                    if part.name in table.column_names
                    else pa.nulls(len(table), part.type)
                    for part in schema
                ]
                yield pa.Table.from_arrays(columns, schema=schema)


def _is_of(path: Path, contents: Contents, metadata: Mapping[str, str]) -> bool:
    """Whether a table is as it was written, and of the pool whose contents are known."""
    with suppress(OSError, pa.ArrowException, ValueError, OneStepError):
        refuse_damaged(path, whole_pool=False)
        found = pq.read_schema(path).metadata or {}
        rows = pq.read_table(path, columns=["row"])["row"].to_numpy()
        inside = len(rows) > 0 and rows.min() >= 0 and rows.max() < len(contents.rows)
        return inside and all(found.get(key.encode(), b"").decode() == value for key, value in metadata.items())
    return False


def _relabel(source: Path, folder: Path, pool: Pool) -> None:
    """Let what is known of the anchors, which has not changed, belong to the scores of the pool as it is now."""
    for name in (REFERENCE, CORRUPTED):
        with suppress(OSError, pa.ArrowException):
            write_table(
                pq.read_table(source / name, page_checksum_verification=True), folder / name, {POOL: pool.fingerprint}
            )


class _Found:
    """Where the record of each row stands in the table of what is kept."""

    def __init__(self, file: Path, contents: Contents) -> None:
        kept = pq.read_table(file, columns=[_CONTENT])[_CONTENT].combine_chunks()
        places = pc.index_in(contents.rows, value_set=kept, skip_nulls=True)
        self.places = places.fill_null(-1).to_numpy(zero_copy_only=False).copy()
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._group = functools.lru_cache(maxsize=2)(opened.read_row_group)

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those of which nothing is kept."""
        return [sample for sample in samples if self.places[sample.row] < 0]

    def record(self, sample: Sample) -> Record:
        """What is kept of a sample."""
        place = self.places[sample.row]
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        return stored_records(self._group(group).slice(place - self._starts[group], 1).drop_columns([_CONTENT]))[0]


def _found(folder: Path) -> _Found | None:
    file = folder / KEPT
    contents = read_contents(folder) if file.exists() else None
    return None if contents is None else _Found(file, contents)


@dataclass(frozen=True)
class _Taking:
    """A scorer that takes over what is kept."""

    scorer: Scorer
    found: _Found

    def __call__(self, samples: Sequence[Sample]) -> list[Record]:
        """One record a sample."""
        new = self.found.missing(samples)
        made = self.scorer(new) if new else []
        if len(made) != len(new):
            raise ScoreError(f"the method gave {len(made)} records for {len(new)} samples; it is broken")
        by_row = {sample.row: record for sample, record in zip(new, made, strict=True)}
        return [by_row.get(sample.row) or self.found.record(sample) for sample in samples]


@dataclass(frozen=True)
class _TakingReferenced(_Taking):
    """One that says what its anchors look like, too."""

    referenced: Referenced

    def reference(self) -> Reference:
        """Of the scorer behind it."""
        return self.referenced.reference()
