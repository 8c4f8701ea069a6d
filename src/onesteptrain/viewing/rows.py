"""The rows of a run as a table that is asked a page at a time, in a database that can be read and nothing else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onesteptrain.errors import ConfigError, ScoreError, one_line
from onesteptrain.selection import default_rule, scored_pool
from onesteptrain.selection.quotas import read_groups
from onesteptrain.storage.score_table import ScoreTable

SECONDS = 5.0
"""What a question may take."""

_MEMORY = "400MB"
_EXPLAINED = ("cause", "confidence", "blind", "span_start", "span_end", "span_text")
_FACETS = ("moved", "decision", "decision_2", "cause", "reason")
_MOST_VALUES = 30


class Facet(NamedTuple):
    """Values of a column, the most frequent first."""

    name: str
    values: Sequence[tuple[str, int]]


class Ask(NamedTuple):
    """Which rows, in which order."""

    where: str = ""
    """SQL expression; empty for all rows."""

    facets: tuple[tuple[str, str], ...] = ()
    """Columns and the texts that they must hold."""

    sort: str = "row"
    falling: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows, of a database that allows no writing, no other file and no other settings."""

    database: duckdb.DuckDBPyConnection
    columns: tuple[str, ...]
    facet_names: tuple[str, ...]
    cut_column: str
    """What the cut is moved on, the higher the better: the probability to be clean, or the score."""

    seconds: float = SECONDS

    def page(self, ask: Ask, start: int, count: int) -> list[dict[str, Any]]:
        """Some rows."""
        with self._asked(ask) as found:
            direction = "DESC" if ask.falling else "ASC"
            ordered = found.order(f'{quoted(self._known(ask.sort))} {direction} NULLS LAST, "row"')
            part = ordered.limit(count, offset=start)
            return [dict(zip(part.columns, row, strict=True)) for row in part.fetchall()]

    def count(self, ask: Ask) -> int:
        """How many rows there are."""
        with self._asked(ask) as found:
            return int(found.aggregate("count(*)").fetchall()[0][0])

    def facets(self, ask: Ask) -> list[Facet]:
        """What the rows hold in the columns that have few values."""
        with self._asked(ask) as found:
            return [Facet(name, _counts(found, name)) for name in self.facet_names]

    def row(self, row: int) -> dict[str, Any] | None:
        """One row by its place in the pool."""
        rows = self.page(Ask(where=f'"row" = {row:d}'), 0, 1)
        return rows[0] if rows else None

    def named(self, uids: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of some uids, in pool order."""
        with self._asked(Ask()) as found:
            values = [duckdb.ConstantExpression(uid) for uid in uids]
            part = found.filter(duckdb.ColumnExpression("uid").isin(*values)) if uids else found.limit(0)
            return [dict(zip(part.columns, row, strict=True)) for row in part.order('"row"').fetchall()]

    def place(self, uid: str) -> int:
        """Where in the pool a row is."""
        return int(self.named([uid])[0]["row"])

    def draw(self, decision: str, count: int) -> list[str]:
        """Uids of some rows of a decision in an order that hangs on nothing that they hold: that of a digest."""
        with self._asked(Ask(facets=(("decision", decision),))) as found:
            drawn = found.order("md5('draw for marks:' || uid), \"row\"").limit(count)
            return [str(uid) for (uid,) in drawn.project("uid").fetchall()]

    def score_range(self) -> tuple[float, float, float]:
        """Lowest, highest and middle score; zeros without any."""
        with self._asked(Ask()) as found:
            values = found.aggregate("min(score), max(score), median(score)").fetchall()[0]
        return tuple(0.0 if value is None else float(value) for value in values)  # type: ignore[return-value]

    def at_cut(self, cut: float, by: str | None) -> list[tuple[Any, ...]]:
        """Value of a column, rows, rows that would be kept, and their mean probability to be clean, None without it."""
        kept = f"{quoted(self.cut_column)} >= {float(cut)!r}::DOUBLE"
        clean = f'avg("probability") FILTER ({kept})' if "probability" in self.columns else "NULL"
        group = f"CAST({quoted(self._known(by))} AS VARCHAR)" if by else "'all rows'"
        with self._asked(Ask()) as found:
            counted = found.aggregate(f'{group} AS "name", count(*) AS n, count(*) FILTER ({kept}) AS k, {clean} AS c')
            return counted.order("n DESC").limit(_MOST_VALUES).fetchall()

    def _known(self, name: str) -> str:
        if name not in self.columns:
            raise ConfigError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        return name

    @contextlib.contextmanager
    def _asked(self, ask: Ask) -> Iterator[duckdb.DuckDBPyRelation]:
        """The rows of a question, as one expression that the parser has read; a question that takes long is ended."""
        cursor = self.database.cursor()
        ended = threading.Timer(self.seconds, cursor.interrupt)
        ended.start()
        try:
            found = cursor.table("pool")
            if ask.where.strip():
                found = found.filter(duckdb.SQLExpression(ask.where))
            for name, value in ask.facets:
                column = duckdb.ColumnExpression(self._known(name)).cast(duckdb.sqltypes.VARCHAR)
                found = found.filter(column == duckdb.ConstantExpression(value))
            yield found
        except duckdb.InterruptException as error:
            raise ConfigError(f"the question took longer than {self.seconds:g} s; ask for less") from error
        except (duckdb.Error, RuntimeError) as error:
            raise ConfigError(f"this cannot be asked: {one_line(str(error))}") from error
        finally:
            ended.cancel()
            cursor.close()


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def open_rows(table: ScoreTable, folder: Path, *, other: ScoreTable | None = None, columns: Sequence[str] = ()) -> Rows:
    """Put the rows of a run into a database.

    Args:
        table: The scores.
        folder: Where the database may lie, for as long as it is in use.
        other: Scores of a second run, whose rows are the same by their uid.
        columns: Of the pool, such as source, to show and to count by.

    Raises:
        ScoreError: the scores cannot be used, or the pool has no such column.
    """
    told = _told(table)
    for name in columns:
        groups = read_groups(table, name, lambda: scored_pool(table))
        told[name] = pa.array(groups.names).take(pa.array(groups.codes))
    names = [field.name for field in pq.read_schema(table.path) if _plain(field.type) and field.name not in told]
    scores = table.read(names)
    everything = pa.table({**dict(zip(scores.column_names, scores.columns, strict=True)), **told})
    file = folder / "rows.duckdb"
    with duckdb.connect(file, config={"memory_limit": _MEMORY, "temp_directory": str(folder)}) as writer:
        writer.register("given", everything)
        writer.execute("CREATE TABLE pool AS SELECT * FROM given")
        _join(writer, table, other)
    locked = {
        "enable_external_access": "false",
        "memory_limit": _MEMORY,
        "threads": "2",
        "python_enable_replacements": "false",
    }
    database = duckdb.connect(file, read_only=True, config={**locked, "lock_configuration": "true"})
    found = tuple(database.table("pool").columns)
    facets = tuple(name for name in (*columns, *_FACETS) if name in found)
    return Rows(database, found, facets, "probability" if "probability" in found else "score")


def _told(table: ScoreTable) -> dict[str, pa.Array]:
    """What the default rule of `ost select` says of each row."""
    decision = np.full(table.rows, "no score", dtype=object)
    decision[np.isfinite(table.numbers("score"))] = "dropped"
    try:
        gated = default_rule(table).gated
    except ScoreError:  # no rule holds for these scores; they can be looked at all the same
        return {"decision": pa.array(np.where(decision == "dropped", "scored", decision))}
    decision[gated.passed] = "kept"
    told = {"decision": pa.array(decision)}
    if gated.trust is not None:
        told |= {
            name: pa.array(getattr(gated.trust, name), from_pandas=True) for name in ("probability", "nonconformity")
        }
    return told


def _join(writer: duckdb.DuckDBPyConnection, table: ScoreTable, other: ScoreTable | None) -> None:
    """Add what explanations, and a second run, say of the same rows."""
    file = table.path.parent / "explanations.parquet"
    if file.is_file():
        explained = pq.read_table(file)
        names = [name for name in _EXPLAINED if name in explained.column_names and name not in table.names]
        writer.register("explained", explained.select(["row", "uid", *names]))
        taken = "".join(f", e.{quoted(name)}" for name in names)
        writer.execute(f"CREATE OR REPLACE TABLE pool AS SELECT p.*{taken} FROM pool p LEFT JOIN explained e "
                       "USING (row, uid)")  # fmt: skip
    if other is not None:
        writer.register("second", other.read(["uid", "score"]).append_column("decision", _told(other)["decision"]))
        writer.execute(
            "CREATE OR REPLACE TABLE pool AS SELECT p.*, s.score AS score_2, s.decision AS decision_2, CASE "
            "WHEN s.uid IS NULL THEN 'not in the second' WHEN s.decision = p.decision THEN 'as before' "
            "ELSE p.decision || ' to ' || s.decision END AS moved FROM pool p LEFT JOIN second s USING (uid)"
        )


def _plain(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _counts(found: duckdb.DuckDBPyRelation, name: str) -> list[tuple[str, int]]:
    counted = found.aggregate(f'CAST({quoted(name)} AS VARCHAR) AS "value", count(*) AS n')
    return counted.filter('"value" IS NOT NULL').order('n DESC, "value"').limit(_MOST_VALUES).fetchall()
