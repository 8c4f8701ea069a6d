"""Marks as files: rows to leave out, rows to take in as anchors, and a table for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from onesteptrain.data.anchors import ACCEPTED
from onesteptrain.data.formats.writing import to_row
from onesteptrain.data.pool import Pool, Sample
from onesteptrain.errors import ConfigError, SampleError
from onesteptrain.jobs.anchor_files import CHECKED, WHY
from onesteptrain.storage.atomic import whole, write_text
from onesteptrain.viewing.marks import Mark


def write_exports(
    folder: Path, rows: Sequence[Mapping[str, Any]], marks: Mapping[str, Mark], pool: Pool
) -> dict[str, Path]:
    """Write what was marked, in place of earlier exports.

    Args:
        folder: Where the files go.
        rows: The marked rows, as the table has them.
        marks: By uid.
        pool: What the rows are of.

    Returns:
        Each file by what it is for: exclude (bad rows, for `ost select --exclude`), anchors (good rows, for
        `ost anchors --accept` and as anchors), table and csv (all marked rows with their columns).

    Raises:
        ConfigError: no row is marked.
    """
    if not rows:
        raise ConfigError("no row is marked; mark some as good or bad, then export")
    names = {"exclude": "exclude.jsonl", "anchors": "good.jsonl", "table": "marks.parquet", "csv": "marks.csv"}
    files = {name: folder / file for name, file in names.items()}
    bad, good = ([row for row in rows if marks[row["uid"]].mark == mark] for mark in ("bad", "good"))
    write_text(files["exclude"], _lines([{"uid": row["uid"], "note": marks[row["uid"]].note} for row in bad]))
    write_text(files["anchors"], _lines(_anchors(good, marks, pool, folder)))
    told = [{**row, **marks[row["uid"]]._asdict()} for row in rows]
    table = pa.Table.from_pylist(told)
    with whole(files["table"]) as part:
        pq.write_table(table, part)
    with whole(files["csv"]) as part:
        pyarrow.csv.write_csv(table, part)
    return files


def _anchors(
    good: Sequence[Mapping[str, Any]], marks: Mapping[str, Mark], pool: Pool, folder: Path
) -> list[dict[str, Any]]:
    """Rows as `ost anchors --suggest` writes them, marked; one that cannot be written so is left out."""
    wanted = {row["row"] for row in good}
    made: list[dict[str, Any]] = []
    for sample in pool.rows(min(wanted), max(wanted) + 1) if wanted else ():
        if sample.row not in wanted or not isinstance(sample, Sample):
            continue
        try:
            row = to_row(sample.turns, folder)
        except SampleError:
            continue
        fields = {name: value for name, value in sample.fields.items() if name not in (CHECKED, WHY, "weight")}
        source: dict[str, Any] = {ACCEPTED: str(pool.path.absolute())}
        made.append({CHECKED: "good", WHY: marks[sample.uid].note, "id": sample.uid, **row, **fields, **source})
    return made


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, default=str) + "\n" for row in rows)
