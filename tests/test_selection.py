"""Top-share selection against a sort in plain Python, and the bytes of what it writes."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.pool import open_pool
from onesteptrain.scores import Record, ScoreTable, merge, to_table, write_table
from onesteptrain.selection import parse_budget, select_rows, select_subset, top_rows
from tests.pool_files import CONTAINERS, qa

VALUES = [0.5, None, -2.0, 3.0, 0.5, None, -0.25, 0.5, 7.0, -1.0, 0.0, 2.0]
TOKENS = [10, None, 20, 30, 40, None, 50, 60, 70, 80, 90, 100]


def record(value: float | None, tokens: int | None) -> Record:
    if value is None:
        return Record(reason="cut off")
    return Record(value, columns={"utility": value, "harm": -abs(value), "tokens": tokens})


def table_of(folder: Path, records: list[Record], metadata: dict[str, str] | None = None) -> ScoreTable:
    write_table(to_table((f"u{n}", n, one) for n, one in enumerate(records)), folder / "shard.parquet")
    merge([folder / "shard.parquet"], folder / "scores.parquet", metadata or {})
    return ScoreTable(folder / "scores.parquet")


@pytest.fixture
def table(tmp_path):
    return table_of(tmp_path, [record(*pair) for pair in zip(VALUES, TOKENS, strict=True)])


def best(values, count):
    """The row numbers of the highest values: a stable sort, and nothing else."""
    there = [row for row, value in enumerate(values) if value is not None and math.isfinite(value)]
    return sorted(sorted(there, key=lambda row: (-values[row], row))[:count])


@given(
    st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(), st.just(math.nan)), max_size=40), st.integers(1, 45)
)
def test_top_rows_are_those_of_a_stable_sort(values, count):
    assert top_rows(np.array(values, np.float64), count).tolist() == best(values, count)


@pytest.mark.parametrize(
    ("keep", "rows", "expected"),
    [
        ("20%", 10, 2),
        ("100%", 7, 7),
        ("0.001%", 10, 1),
        ("12.5%", 80, 10),
        (" 50 % ", 10, 5),
        ("3", 10, 3),
        ("10", 10, 10),
    ],
)
def test_a_budget_is_a_share_of_the_pool_or_a_number_of_rows(keep, rows, expected):
    assert parse_budget(keep, rows) == expected


@given(st.integers(1, 100), st.integers(1, 10**6))
def test_a_share_is_off_by_half_a_row_at_most(percent, rows):
    exact = Fraction(percent, 100) * rows
    assert abs(parse_budget(f"{percent}%", rows) - max(exact, 1)) <= Fraction(1, 2)


@pytest.mark.parametrize(
    "keep", ["0.2", "0%", "-5%", "101%", "nan%", "inf", "many", "", "%", "0", "-3", "11", "5.5", "1e1"]
)
def test_a_budget_that_means_nothing_is_refused_with_what_was_given(keep):
    with pytest.raises(ConfigError, match="keep is"):
        parse_budget(keep, 10)


@pytest.mark.parametrize("by", ["score", "harm", "tokens"])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 10, 12])
def test_all_numbers_of_a_selection_are_those_of_a_sort_and_sums(table, by, count):
    columns = {"score": VALUES, "tokens": TOKENS, "harm": [None if v is None else -abs(v) for v in VALUES]}
    kept = best(columns[by], count)
    selection = select_rows(table, keep=str(count), by=by)
    assert selection.rows.tolist() == kept
    assert (selection.pool_rows, selection.scored_rows) == (12, 10)
    assert selection.threshold == min(columns[by][row] for row in kept)
    assert selection.tokens == sum(TOKENS[row] or 0 for row in kept)
    assert selection.tokens_share == pytest.approx(sum(TOKENS[row] for row in kept) / sum(filter(None, TOKENS)))
    positive = sum(value for value in VALUES if value and value > 0)
    assert selection.utility_share == pytest.approx(sum(VALUES[row] for row in kept if VALUES[row] > 0) / positive)
    assert selection.harmful_kept == sum(VALUES[row] < 0 for row in kept)


def test_a_method_without_tokens_or_utility_gets_no_made_up_shares(tmp_path):
    selection = select_rows(table_of(tmp_path, [Record(1.0), Record(2.0)]), keep="1")
    assert (selection.tokens_share, selection.utility_share, selection.harmful_kept) == (None, None, None)
    assert json.loads(json.dumps(selection.summary())) == {
        "rows": 1,
        "pool_rows": 2,
        "scored_rows": 2,
        "threshold": 2.0,
        "tokens": None,
        "tokens_share": None,
        "utility_share": None,
        "harmful_kept": None,
    }


def test_a_table_without_any_score_is_refused(tmp_path):
    with pytest.raises(ScoreError, match="nothing can be selected"):
        select_rows(table_of(tmp_path, [Record(reason="a")]), keep="1")


def pool_in(folder: Path, container: str):
    """Twelve rows, with spaces and escapes of their own where the container has text."""
    rows = [qa(f"question {n} Ö", f"answer {n}", id=f"u{n}", level=n) for n in range(12)]
    path = CONTAINERS[container](folder / container, rows)
    if container == "pool.jsonl":
        path.write_text("".join(json.dumps(row, separators=(" ,", ":  ")) + "\r\n" for row in rows), newline="")
    return open_pool(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_subset_holds_the_pools_rows_as_they_stand_in_the_pools_order(tmp_path, table, container):
    pool = pool_in(tmp_path, container)
    out = tmp_path / "out" / container
    selection = select_subset(table, pool, out, keep="50%")
    kept = best(VALUES, 6)
    assert selection.rows.tolist() == kept
    if container == "pool.jsonl":
        lines = pool.path.read_bytes().splitlines(keepends=True)
        assert out.read_bytes() == b"".join(lines[row] for row in kept)
    elif container == "pool.json":
        texts = [json.dumps(row, indent=2, ensure_ascii=False) for row in json.loads(pool.path.read_text())]
        indented = [text.replace("\n", "\n  ") for text in texts]  # as each element stands in the indented array
        assert all(text in pool.path.read_text() for text in indented)
        found = out.read_text()
        places = [found.index(indented[row]) for row in kept]
        assert places == sorted(places)
        assert json.loads(found) == [json.loads(texts[row]) for row in kept]
    elif container == "hf":
        whole = datasets.load_from_disk(pool.path)
        assert datasets.load_from_disk(out).to_list() == whole.select(kept).to_list()
    else:
        assert pq.read_table(out).equals(pq.read_table(pool.path).take(kept), check_metadata=container != "parquet")


def test_a_pool_that_has_changed_since_it_was_scored_is_refused(tmp_path):
    pool = pool_in(tmp_path, "pool.jsonl")
    table = table_of(tmp_path, [Record(float(n)) for n in range(12)], {"pool": pool.fingerprint})
    select_subset(table, pool, tmp_path / "good.jsonl", keep="3")
    pool.path.write_bytes(pool.path.read_bytes().replace(b"answer 3", b"answer 4"))
    with pytest.raises(PoolError, match=r"has changed since .* score it again"):
        select_subset(table, open_pool(pool.path), tmp_path / "bad.jsonl", keep="3")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_subset_that_exists_is_kept_unless_asked(tmp_path, table):
    pool = pool_in(tmp_path, "pool.jsonl")
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(PoolError, match="exists"):
        select_subset(table, pool, out, keep="3")
    assert out.read_text() == "mine"
    select_subset(table, pool, out, keep="3", overwrite=True)
    assert len(out.read_bytes().splitlines()) == 3
