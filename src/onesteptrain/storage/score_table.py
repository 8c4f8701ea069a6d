"""The score table: a value or a reason for each sample, as Parquet.

Columns: `uid` (string), `row` (int64, position in the pool), `score` (float64, higher is better, null where there is
none), `reason` (string, null where there is a score), then the method's own columns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.errors import MissingExtraError, ScoreError, one_line
from onesteptrain.storage.atomic import whole
from onesteptrain.storage.display import html_table
from onesteptrain.storage.intact import POOL, refuse_damaged

BASE_COLUMNS = ("uid", "row", "score", "reason")
_BASE_TYPES = {"uid": pa.string(), "row": pa.int64(), "score": pa.float64(), "reason": pa.string()}
SCORES = "scores.parquet"
"""The score table's name in a run directory."""

REFERENCE = "reference.parquet"
"""Beside a score table, a table of the same columns for the anchors: what clean rows look like to the method."""

CORRUPTED = "corrupted.parquet"
"""Beside it, a table of the same columns for corrupted copies of the anchors: what harm looks like to the method. Its
own columns are `CORRUPTION_COLUMNS`."""

CORRUPTION_COLUMNS = ("anchor", "kind", "span_start", "span_end")
"""Uid of the copied anchor, kind of corruption, and where it is: in characters of the answer, null for pictures."""

_ROW_GROUP = 65_536
_COMPRESSION = "zstd"
_SHOWN_ROWS, _SHOWN_REASONS = 5, 3

Value = float | int | str | Sequence[float] | NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Record:
    """What a method says of one sample: a score, or the reason why there is none."""

    score: float | None = None
    """Higher is better."""

    reason: str | None = None

    columns: Mapping[str, Value] = field(default_factory=dict)
    """The method's own columns."""

    def __post_init__(self) -> None:
        if (self.score is None) == (self.reason is None):
            raise ScoreError("a record has either a score or a reason; this one has both or neither")
        if self.score is not None and not math.isfinite(self.score):
            raise ScoreError(f"a score must be finite, this one is {self.score}; give a reason instead")


def to_table(placed: Iterable[tuple[str, int, Record]]) -> pa.Table:
    """Make a table of records with their uid and row."""
    rows: list[dict[str, Value]] = []
    names: dict[str, None] = {}
    for uid, row, record in placed:
        rows.append(
            {
                "uid": uid,
                "row": row,
                "score": record.score,
                "reason": record.reason and one_line(record.reason),
                **record.columns,
            }
        )
        names.update(dict.fromkeys(record.columns))
    columns = {name: pa.array([row[name] for row in rows], _BASE_TYPES[name]) for name in BASE_COLUMNS}
    columns |= {name: pa.array([_storable(row.get(name)) for row in rows]) for name in names}
    return pa.table(columns)


def _storable(value: Value) -> Value:
    """A text without what UTF-8 cannot hold."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_table(
    table: pa.Table, path: Path, metadata: Mapping[str, str] | None = None, *, writer: int | None = None
) -> None:
    """Write a table whole or not at all.

    Args:
        table: The table.
        path: The file.
        metadata: Text to keep in its schema, in place of what is there.
        writer: Number of the writer, where several may write the same file at a time.
    """
    with whole(path, writer=writer) as part:
        pq.write_table(
            table if metadata is None else table.replace_schema_metadata(dict(metadata)),
            part,
            row_group_size=_ROW_GROUP,
            compression=_COMPRESSION,
            write_page_checksum=True,
        )


def merge(shards: Sequence[Path], path: Path, metadata: Mapping[str, str]) -> None:
    """Join shard tables, in the order given, into one file; memory holds one shard at a time.

    Args:
        shards: Tables of consecutive rows.
        path: The file to write.
        metadata: Text to keep in the file's schema, such as the pool's fingerprint.
    """
    schema = pa.unify_schemas([pq.read_schema(shard) for shard in shards], promote_options="permissive")
    schema = pa.schema(_order(schema), metadata=dict(metadata))
    options = {"compression": _COMPRESSION, "write_page_checksum": True}
    with whole(path) as part, pq.ParquetWriter(part, schema, **options) as writer:
        for group in _grouped(shards, schema):
            writer.write_table(group, row_group_size=_ROW_GROUP)


def _order(schema: pa.Schema) -> list[pa.Field]:
    """A column that was null in every shard is a number nobody could compute."""
    fields = [pa.field(f.name, pa.float64()) if pa.types.is_null(f.type) else f for f in schema]
    return sorted(fields, key=lambda f: BASE_COLUMNS.index(f.name) if f.name in BASE_COLUMNS else len(BASE_COLUMNS))


def _grouped(shards: Sequence[Path], schema: pa.Schema) -> Iterable[pa.Table]:
    """Tables of one full row group each, whatever the size of the shards."""
    held: list[pa.Table] = []
    count = 0
    for shard in shards:
        table = _conform(pq.read_table(shard), schema)
        while count + table.num_rows >= _ROW_GROUP:
            yield pa.concat_tables([*held, table.slice(0, _ROW_GROUP - count)])
            table = table.slice(_ROW_GROUP - count)
            held, count = [], 0
        held.append(table)
        count += table.num_rows
    if count or not shards:
        yield pa.concat_tables(held)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(table.num_rows, f.type) for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class ScoreTable:
    """A finished score table on disk; columns are read when asked for."""

    path: Path

    pool: Any = field(default=None, compare=False)
    """The pool that was scored, where it came from memory."""

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ScoreError(f"{self.path} does not exist; score the pool first, or let the scoring finish")
        refuse_damaged(self.path, whole_pool=self.path.name not in (REFERENCE, CORRUPTED))
        _refuse_other_columns(self.path)

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"ScoreTable({self.path}: {self._summary()})"

    def _repr_html_(self) -> str:
        first = next(pq.ParquetFile(self.path).iter_batches(_SHOWN_ROWS), pa.table({})).to_pylist()
        return html_table(f"{self.path}: {self._summary()}", self.names, [list(row.values()) for row in first])

    @property
    def names(self) -> list[str]:
        """All columns, the method's own after the first four."""
        return list(pq.read_schema(self.path).names)

    @property
    def metadata(self) -> dict[str, str]:
        """The texts kept with the table."""
        raw = pq.read_schema(self.path).metadata or {}
        return {key.decode(): value.decode() for key, value in raw.items()}

    @property
    def rows(self) -> int:
        """Number of samples, scored or not."""
        return int(pq.read_metadata(self.path).num_rows)

    @property
    def scored(self) -> int:
        """Number of samples that have a score."""
        return self.rows - int(self.read(["score"])["score"].null_count)

    @property
    def reference(self) -> ScoreTable | None:
        """The anchors' table, each measured as if it were none; None if the method says nothing of its anchors."""
        return self._beside(REFERENCE)

    @property
    def corrupted(self) -> ScoreTable | None:
        """The table of corrupted anchors; None if the method measures none."""
        return self._beside(CORRUPTED)

    def _beside(self, name: str) -> ScoreTable | None:
        path = self.path.with_name(name)
        if not path.is_file():
            return None
        table = ScoreTable(path)
        pools = {one.metadata.get(POOL) for one in (self, table)} - {None}
        if len(pools) > 1:
            raise ScoreError(f"{path} belongs to the scores of another pool than {self.path}; score the pool again")
        return table

    def numbers(self, name: str) -> Any:
        """One numeric column as a float64 array, NaN where it is null.

        Raises:
            ScoreError: there is no such column.
        """
        if name not in self.names:
            raise ScoreError(f"{self.path} has no column {name!r}; it has {', '.join(self.names)}")
        column = pq.read_table(self.path, columns=[name])[name]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise ScoreError(f"column {name!r} of {self.path} holds {column.type}, not numbers")
        return column.cast(pa.float64()).to_numpy()

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all, as a table."""
        return pq.read_table(self.path, columns=list(columns) if columns is not None else None)

    def to_pandas(self) -> Any:
        """The table as a pandas frame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            return self.read().to_pandas()
        except ImportError as error:
            raise MissingExtraError("a frame needs pandas: pip install pandas; read() gives an Arrow table") from error

    def _summary(self) -> str:
        reasons = Counter(filter(None, self.read(["reason"])["reason"].to_pylist())).most_common(_SHOWN_REASONS)
        named = "".join(f"; {count} not: {reason}" for reason, count in reasons)
        return f"{self.rows} rows, {self.scored} scored{named}; columns {', '.join(self.names)}"


def _refuse_other_columns(path: Path) -> None:
    """Refuse a table whose first columns are not those of scores."""
    schema = pq.read_schema(path)
    is_text, is_number = (pa.types.is_string, pa.types.is_large_string), (pa.types.is_floating,)
    for name, kinds in {"uid": is_text, "row": (pa.types.is_integer,), "score": is_number, "reason": is_text}.items():
        if schema.names.count(name) != 1:
            raise ScoreError(
                f"{path} is no score table (it needs one column {name!r}); give the scores.parquet of a run"
            )
        kind = schema.field(name).type
        if not any(fits(kind) for fits in (*kinds, pa.types.is_null)):
            raise ScoreError(
                f"{path} is no score table (its column {name!r} holds {kind}); give the scores.parquet of a run"
            )


def read_scores(path: str | Path) -> ScoreTable:
    """The scores that decide, of a run directory of `ost score` or `ost run`, or the score table itself.

    Args:
        path: The directory, or the Parquet file. In that of `ost run`, a second pass decides if there is one.

    Raises:
        ScoreError: there is none, or the scoring is not finished.
    """
    path = Path(path)
    if path.is_file() or (path / SCORES).is_file():
        return ScoreTable(path if path.is_file() else path / SCORES)
    second, first = path / "second" / "score", path / "score"
    return ScoreTable((second if second.parent.is_dir() else first if first.is_dir() else path) / SCORES)
