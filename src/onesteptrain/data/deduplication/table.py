"""The findings as a Parquet table, one line for each row of the pool that something was found of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.data.deduplication.findings import Findings
from onesteptrain.data.deduplication.index import POOL, Place
from onesteptrain.data.deduplication.pairs import GuardOptions
from onesteptrain.data.pool import Pool
from onesteptrain.errors import PoolError
from onesteptrain.storage.atomic import refuse_existing, whole

KEPT = "kept"
"""Kind of the row to keep of each cluster."""

_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "uid": pa.string(),
        "cluster": pa.int64(),
        "kind": pa.string(),
        "duplicate_of": pa.string(),
        "answer": pa.string(),
        "similarity": pa.float64(),
        "distance": pa.int64(),
        "leak_of": pa.string(),
        "leak_kind": pa.string(),
        "reason": pa.string(),
    }
)


def write_findings(
    findings: Findings, pool: Pool, options: GuardOptions, out: Path, *, overwrite: bool = False
) -> None:
    """Write the table whole or not at all.

    Raises:
        RunError: the file exists.
    """
    refuse_existing(out, "guard.parquet", overwrite=overwrite)
    facts = {"onesteptrain.guard": "1", "pool": pool.fingerprint}
    facts |= {name: str(value) for name, value in dataclasses.asdict(options).items()}
    table = pa.Table.from_pylist(_records(findings), _SCHEMA.with_metadata(facts))
    with whole(out) as part:
        pq.write_table(table, part, compression="zstd")


def is_guard_table(path: Path) -> bool:
    """Whether a file is a table that `write_findings` has made."""
    try:
        return b"onesteptrain.guard" in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read_duplicates(path: Path, pool: Pool | str | None = None) -> NDArray[np.int64]:
    """Rows to pass over so that every cluster is there once: all of it but the kept one, rising.

    Look-alikes, leaks and rows that could not be read are not among them.

    Args:
        path: The table of `ost guard`.
        pool: The pool that rows are passed over in, or its fingerprint; a table of another one is refused.

    Raises:
        PoolError: this is no such table, or it is of another pool.
    """
    table = _read(path, pool, ["row", "cluster", "kind"])
    rows = [row["row"] for row in table.to_pylist() if row["cluster"] is not None and row["kind"] != KEPT]
    return np.array(sorted(rows), np.int64)


def read_leaks(path: Path, pool: Pool | str | None = None) -> NDArray[np.int64]:
    """Rows of the pool that repeat a row of the anchors or the benchmark, rising.

    Raises:
        PoolError: this is no such table, or it is of another pool.
    """
    table = _read(path, pool, ["row", "leak_of"])
    return np.array(sorted(row["row"] for row in table.to_pylist() if row["leak_of"] is not None), np.int64)


def _read(path: Path, pool: Pool | str | None, columns: list[str]) -> pa.Table:
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise PoolError(f"{path} cannot be read as a table ({error}); give the --out of `ost guard`") from error
    facts = table.schema.metadata or {}
    if b"onesteptrain.guard" not in facts:
        raise PoolError(f"{path} is no table of duplicates; give the --out of `ost guard`")
    if pool is not None and facts[b"pool"].decode() != (pool if isinstance(pool, str) else pool.fingerprint):
        name = "the one that is asked for" if isinstance(pool, str) else pool.path
        raise PoolError(f"{path} is of another pool than {name}, or that has changed; run `ost guard` again")
    return table


def _records(findings: Findings) -> list[dict[str, Any]]:
    """One record a row, in pool order; a row that leaks several times names the first."""
    rows: dict[int, dict[str, Any]] = {}

    def add(place: Place, **facts: Any) -> None:
        rows.setdefault(place.row, {"row": place.row, "uid": place.uid}).update(facts)

    for cluster, place in enumerate(findings.clusters.kept):
        add(place, cluster=cluster, kind=KEPT)
    for duplicate in (*findings.clusters.duplicates, *findings.clusters.look_alikes):
        of = duplicate.duplicate_of.uid
        add(duplicate.place, cluster=duplicate.cluster, duplicate_of=of, **duplicate.relation._asdict())
    for leak in reversed(findings.leaks):
        add(leak.place, leak_of=f"{leak.leak_of.source}: {leak.leak_of.uid}", leak_kind=leak.relation.kind)
    for unused in findings.unused:
        if unused.place.source == POOL:
            add(unused.place, reason=unused.reason)
    return [rows[row] for row in sorted(rows)]
