"""The score table: its schema, and that the way it was cut into shards leaves no trace."""

from __future__ import annotations

import math
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import onesteptrain.storage.score_table as scores_module
from onesteptrain.errors import MissingExtraError, ScoreError
from onesteptrain.storage.score_table import BASE_COLUMNS, Record, ScoreTable, merge, read_scores, to_table, write_table

RECORDS = [
    Record(reason="cut off"),
    Record(reason="too long"),
    Record(0.5, columns={"utility": 0.5, "tokens": 3, "token_utility": [0.25, 0.75], "note": "x"}),
    Record(-1.0, columns={"utility": -1.0, "tokens": 4, "token_utility": [-1.0], "note": None}),
    Record(reason="no image"),
    Record(2.0, columns={"utility": 2.0, "tokens": 1, "token_utility": [2.0], "note": "y"}),
    Record(reason="no answer"),
]


def merged(folder, size, records=RECORDS):
    """The records written in shards of a size and joined."""
    folder.mkdir()
    placed = [(f"u{row}", row, record) for row, record in enumerate(records)]
    shards = []
    for start in range(0, len(placed), size):
        shards.append(folder / f"{start:03d}.parquet")
        write_table(to_table(placed[start : start + size]), shards[-1])
    merge(shards, folder / "scores.parquet", {"pool": "abc"})
    return folder / "scores.parquet"


def test_a_record_has_either_a_score_or_a_reason():
    with pytest.raises(ScoreError, match="both or neither"):
        Record()
    with pytest.raises(ScoreError, match="both or neither"):
        Record(1.0, "but why")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(value):
    with pytest.raises(ScoreError, match="must be finite"):
        Record(value)


def test_the_table_has_the_documented_types_and_one_row_a_record(tmp_path):
    table = pq.read_table(merged(tmp_path / "run", 3))
    assert tuple(table.schema.names[:4]) == BASE_COLUMNS == ("uid", "row", "score", "reason")
    types = {field.name: field.type for field in table.schema}
    assert [types[name] for name in BASE_COLUMNS] == [pa.string(), pa.int64(), pa.float64(), pa.string()]
    assert types["utility"] == pa.float64()
    assert types["tokens"] == pa.int64()
    assert types["token_utility"] == pa.list_(pa.float64())
    rows = table.to_pylist()
    assert [row["uid"] for row in rows] == [f"u{n}" for n in range(7)]
    assert [row["row"] for row in rows] == list(range(7))
    for row, record in zip(rows, RECORDS, strict=True):
        assert (row["score"], row["reason"]) == (record.score, record.reason)
        assert (row["score"] is None) == (row["reason"] is not None)
        assert {name: row[name] for name in record.columns} == dict(record.columns)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_the_size_of_the_shards_leaves_no_trace_in_the_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr(scores_module, "_ROW_GROUP", 4)  # so that seven rows cross a row group
    whole = merged(tmp_path / "whole", len(RECORDS))
    cut = merged(tmp_path / "cut", size)
    assert [pq.read_metadata(cut).row_group(n).num_rows for n in range(2)] == [4, 3]
    assert cut.read_bytes() == whole.read_bytes()


def test_a_pool_without_any_score_still_gives_a_table_of_reasons(tmp_path):
    table = ScoreTable(merged(tmp_path / "run", 1, [Record(reason="a"), Record(reason="b")]))
    assert table.names == list(BASE_COLUMNS)
    assert table.read().column("reason").to_pylist() == ["a", "b"]
    assert np.isnan(table.numbers("score")).all()


def test_columns_are_read_as_numbers_with_nan_where_there_is_none(tmp_path):
    table = ScoreTable(merged(tmp_path / "run", 2))
    assert table.rows == 7
    assert table.metadata["pool"] == "abc"
    np.testing.assert_array_equal(table.numbers("tokens"), [np.nan, np.nan, 3, 4, np.nan, 1, np.nan])
    assert table.numbers("score").dtype == np.float64


def test_a_column_that_holds_no_numbers_or_is_not_there_is_refused_by_name(tmp_path):
    table = ScoreTable(merged(tmp_path / "run", 2))
    with pytest.raises(ScoreError, match=r"has no column 'gain'; it has uid, row, score"):
        table.numbers("gain")
    for name in ("reason", "uid", "token_utility"):
        with pytest.raises(ScoreError, match=f"column '{name}' .* not numbers"):
            table.numbers(name)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ScoreError, match="score the pool first"):
        ScoreTable(tmp_path / "scores.parquet")


@pytest.mark.parametrize("name", ["scores", "reference", "corrupted"])
def test_a_table_that_was_cut_is_refused_by_name(tmp_path, name):
    write_table(to_table([("u0", 0, Record(1.0))]), tmp_path / "scores.parquet")
    whole = (tmp_path / "scores.parquet").read_bytes()
    (tmp_path / f"{name}.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScoreError, match=rf"{name}\.parquet is damaged .*--overwrite"):
        _ = getattr(ScoreTable(tmp_path / "scores.parquet"), name)


def test_a_table_tells_in_a_notebook_what_it_holds(tmp_path):
    records = [*RECORDS, Record(reason="<script>")]
    table = read_scores(merged(tmp_path / "run", 3, records).parent)
    assert len(table) == 8
    assert repr(table).startswith(f"ScoreTable({table.path}: 8 rows, 3 scored; 1 not: cut off; ")
    shown = table._repr_html_()
    assert shown.count("<tr>") == 1 + 5
    assert "<td>-1</td>" in shown
    assert "<script>" not in ScoreTable(merged(tmp_path / "hostile", 1, records[-1:]))._repr_html_()


def test_a_table_becomes_a_frame_and_keeps_its_pool(tmp_path, monkeypatch):
    path = merged(tmp_path / "run", 3)
    assert read_scores(path) == ScoreTable(path, pool="any") == read_scores(tmp_path / "run")
    assert ScoreTable(path, pool="any").pool == "any"
    frame = read_scores(path).to_pandas()
    assert list(frame.columns) == read_scores(path).names
    assert frame["score"].dropna().tolist() == [0.5, -1.0, 2.0]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        read_scores(path).to_pandas()
    with pytest.raises(ScoreError, match="score the pool first"):
        read_scores(tmp_path)
