"""Selection against a sort and a double loop in plain Python, and the bytes of what it writes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.cli.choosing import describe_selection
from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.selection import (
    SelectOptions,
    parse_budget,
    parse_floor,
    select_rows,
    top_rows,
)
from onesteptrain.selection import vectors as vectors_module
from onesteptrain.selection.vectors import distinct_rows
from onesteptrain.storage.score_table import Record, ScoreTable, merge, to_table, write_table
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
    selection = select_rows(table, keep=str(count), options=SelectOptions(by=by))
    assert selection.rows.tolist() == kept
    assert (selection.pool_rows, selection.scored_rows) == (12, 10)
    assert (selection.budget, selection.skipped_similar) == (count, None)
    assert selection.threshold == min(columns[by][row] for row in kept)
    told = selection.kept
    assert told.tokens == sum(TOKENS[row] or 0 for row in kept)
    assert told.tokens_share == pytest.approx(sum(TOKENS[row] for row in kept) / sum(filter(None, TOKENS)))
    positive = sum(value for value in VALUES if value and value > 0)
    assert told.utility_share == pytest.approx(sum(VALUES[row] for row in kept if VALUES[row] > 0) / positive)
    assert told.harmful == sum(VALUES[row] < 0 for row in kept)


def test_a_method_without_tokens_or_utility_gets_no_made_up_shares(tmp_path):
    selection = select_rows(table_of(tmp_path, [Record(1.0), Record(2.0)]), keep="1")
    assert json.loads(json.dumps(selection.summary())) == {
        "rows": 1,
        "pool_rows": 2,
        "scored_rows": 2,
        "threshold": 2.0,
        "budget": 1,
        "skipped_similar": None,
        "gate": "none",
        "prefer": "top",
        "dropped": 0,
        "clean_share": None,
        "verdict": None,
        "guidance": [],
        "learning": None,
        "excluded": 0,
        "groups": None,
        "kinds": None,
        "kept": {
            "rows": 1,
            "tokens": None,
            "tokens_share": None,
            "utility_share": None,
            "harmful": None,
            "clean_share": None,
        },
        "expected": None,
    }
    assert len(selection) == 1
    assert "1 of 2" in selection._repr_html_()


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
    selection = select_rows(table, keep="50%", pool=pool)
    assert selection.write(out) == out
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
    elif "parquet" in container:
        assert pq.read_table(out).equals(pq.read_table(pool.path).take(kept), check_metadata=container != "parquet")
    else:
        there = [raw.value for raw in pool.container.raw_rows()]
        assert [raw.value for raw in open_pool(out).container.raw_rows()] == [there[row] for row in kept]


@pytest.mark.parametrize("kind", ["pool.json", "list", "frame", "dataset"])
def test_a_selection_becomes_what_people_work_with(tmp_path, table, kind):
    rows = [qa(f"question {n}", f"answer {n}", id=f"u{n}") for n in range(12)]
    sources = {
        "list": lambda: rows,
        "frame": lambda: pd.DataFrame(rows),
        "dataset": lambda: datasets.Dataset.from_list(rows),
    }
    pool = pool_in(tmp_path, kind) if kind not in sources else open_pool(sources[kind]())
    selection = select_rows(table, keep="50%", pool=pool)
    kept = [f"u{row}" for row in best(VALUES, 6)]
    assert selection.to_dataset()["id"][:] == kept
    assert selection.to_pandas()["id"].tolist() == kept
    assert [row["id"] for row in json.loads(selection.write(tmp_path / "out.json").read_text())] == kept


def test_a_pool_that_has_changed_since_it_was_scored_is_refused(tmp_path):
    pool = pool_in(tmp_path, "pool.jsonl")
    table = table_of(tmp_path, [Record(float(n)) for n in range(12)], {"pool": pool.fingerprint})
    select_rows(table, keep="3", pool=pool).write(tmp_path / "good.jsonl")
    pool.path.write_bytes(pool.path.read_bytes().replace(b"answer 3", b"answer 4"))
    with pytest.raises(PoolError, match=r"has changed since .* score it again"):
        select_rows(table, keep="3", pool=open_pool(pool.path)).write(tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_subset_that_exists_is_kept_unless_asked(tmp_path, table):
    pool = pool_in(tmp_path, "pool.jsonl")
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(PoolError, match="exists"):
        select_rows(table, keep="3", pool=pool).write(out)
    assert out.read_text() == "mine"
    select_rows(table, keep="3", pool=pool).write(out, overwrite=True)
    assert len(out.read_bytes().splitlines()) == 3


# From some value up


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_floor_is_read_to_the_last_bit(value):
    assert parse_floor(f">={value!r}") == value
    assert parse_floor(f"  >= {value!r} ") == value


@pytest.mark.parametrize("keep", ["20%", "5000", "many", "", ">0.5", "=0.5"])
def test_another_budget_has_no_floor(keep):
    assert parse_floor(keep) is None


@pytest.mark.parametrize("keep", [">=", ">=many", ">=nan", ">=inf", ">=-inf", ">=50%", ">=>=1", ">= 1 2"])
def test_a_floor_that_means_nothing_is_refused_with_what_was_given(tmp_path, table, keep):
    with pytest.raises(ConfigError, match="after >= give the lowest value") as caught:
        select_rows(table, keep=keep)
    assert repr(keep) in str(caught.value)


@pytest.mark.parametrize("keep", [">0.5", ">", "<=0.5", "=0.5"])
def test_other_comparisons_are_no_budget(table, keep):
    with pytest.raises(ConfigError, match=r"or a lowest value such as >=0.5"):
        select_rows(table, keep=keep)


@pytest.mark.parametrize("floor", [-2.0, -1.0, 0.0, 0.5, 0.51, 7.0])
def test_a_floor_keeps_every_row_that_has_at_least_that_value(table, floor):
    selection = select_rows(table, keep=f">={floor}")
    assert selection.rows.tolist() == [row for row, value in enumerate(VALUES) if value is not None and value >= floor]
    assert selection.threshold >= floor
    assert selection.budget is None


def test_a_floor_works_on_any_column_of_numbers(table):
    selection = select_rows(table, keep=">=60", options=SelectOptions(by="tokens"))
    assert selection.rows.tolist() == [row for row, tokens in enumerate(TOKENS) if tokens is not None and tokens >= 60]


def test_a_floor_above_all_values_is_refused_with_the_highest(table):
    with pytest.raises(ScoreError, match=r"has at least 7.5 in column 'score', whose highest value is 7; lower"):
        select_rows(table, keep=">=7.5")


# Distinct rows


def one_by_one(vectors, ranking, count, threshold):
    """The definition: a double loop with one cosine at a time."""
    kept, skipped = [], 0
    for row in ranking:
        if len(kept) == count:
            break
        one = np.asarray(vectors[row], np.float64)
        others = (np.asarray(vectors[other], np.float64) for other in kept)
        if any(one @ other / math.sqrt((one @ one) * (other @ other)) >= threshold for other in others):
            skipped += 1
        else:
            kept.append(row)
    return kept, skipped


def clustered(rows: int, dim: int, seed: int):
    """Vectors of very different lengths around a few centres, a tenth of them exact copies of others."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(8, dim))
    vectors = centres[generator.integers(8, size=rows)] + 0.5 * generator.normal(size=(rows, dim))
    vectors *= 10 ** generator.uniform(-3, 3, (rows, 1))
    vectors[generator.integers(rows, size=rows // 10)] = vectors[generator.integers(rows, size=rows // 10)]
    return vectors.astype(np.float32)


@pytest.mark.parametrize("blocks", [(1, 1), (7, 5), (512, 8192)])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 0.999])
def test_distinct_rows_are_those_of_a_double_loop_whatever_the_blocks(monkeypatch, blocks, threshold):
    module = sys.modules[distinct_rows.__module__]
    monkeypatch.setattr(module, "_BLOCK", blocks[0])
    monkeypatch.setattr(module, "_WIDE_BLOCK", blocks[1])
    for seed, (rows, dim, count) in enumerate([(1, 3, 1), (60, 3, 60), (120, 16, 30), (90, 2, 1000)]):
        vectors = clustered(rows, dim, seed)
        ranking = np.random.default_rng(seed).permutation(rows)
        found = distinct_rows(vectors, ranking, count=count, threshold=threshold)
        assert (found.rows.tolist(), found.skipped) == one_by_one(vectors, ranking, count, threshold)


# no cosine of two vectors of whole numbers: its square is not rational, so that no rounding can decide
IRRATIONAL = 0.8 ** (1 / 3)


@given(
    st.lists(st.tuples(*[st.integers(-3, 3)] * 3).filter(any), min_size=1, max_size=40),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_ties_copies_and_multiples_are_decided_as_in_a_double_loop(vectors, count, chance):
    ranking = list(range(len(vectors)))
    chance.shuffle(ranking)
    found = distinct_rows(np.array(vectors, np.float32), np.array(ranking), count=count, threshold=IRRATIONAL)
    assert (found.rows.tolist(), found.skipped) == one_by_one(vectors, ranking, count, IRRATIONAL)


def table_with(folder: Path, rows: list) -> ScoreTable:
    """A table from pairs of a score and a vector; either may be None."""
    records = []
    for value, vector in rows:
        columns = {} if vector is None else {"representation": vector}
        records.append(Record(reason="bad") if value is None else Record(value, columns=columns))
    return table_of(folder, records)


@pytest.mark.parametrize("number", [np.float32, np.float64])
@pytest.mark.parametrize("read", [4, 4096])
def test_a_table_is_filtered_down_its_ranking_without_the_rows_that_have_no_score(tmp_path, monkeypatch, number, read):
    monkeypatch.setattr(vectors_module, "_READ_ROWS", read)
    vectors = clustered(50, 4, 3).astype(number)
    values = [None if row % 7 == 0 else float(row % 5) for row in range(50)]  # the first rows have no vector
    table = table_with(tmp_path, list(zip(values, vectors, strict=True)))
    ranking = sorted((row for row in range(50) if values[row] is not None), key=lambda row: (-values[row], row))
    for keep, count in (("20%", 10), ("100%", 50), (">=2", 50)):
        allowed = [row for row in ranking if values[row] >= 2] if keep == ">=2" else ranking
        kept, skipped = one_by_one(vectors.astype(np.float32), allowed, count, 0.9)
        selection = select_rows(table, keep=keep, options=SelectOptions(distinct=0.9))
        assert selection.rows.tolist() == sorted(kept)
        assert selection.skipped_similar == skipped
        assert selection.budget == (None if keep == ">=2" else count)
        assert selection.threshold == min(values[row] for row in kept)


def test_of_two_equal_rows_the_better_one_is_kept_alone(tmp_path):
    table = table_with(
        tmp_path, [(1.0, [0.1, 0.7, 0.3]), (2.0, [0.1, 0.7, 0.3]), (3.0, [1.0, 0.0, 0.0]), (2.0, [2, 14, 6])]
    )
    selection = select_rows(table, keep="100%", options=SelectOptions(distinct=1 - 1e-9))
    assert selection.rows.tolist() == [1, 2]
    assert (len(selection.rows), selection.budget, selection.skipped_similar) == (2, 4, 2)


def test_a_filter_that_runs_dry_says_how_many_were_asked_for_and_passed_over(tmp_path):
    table = table_with(tmp_path, [(float(row), [1.0, row % 2]) for row in range(6)])
    said = describe_selection(
        select_rows(table, keep="50%", options=SelectOptions(distinct=0.9)), tmp_path / "out"
    ).splitlines()
    assert said[1:] == [
        "4 rows were passed over as too similar to a kept one",
        "fewer than the 3 rows asked for: no other row can be kept",
    ]
    assert (
        len(
            describe_selection(
                select_rows(table, keep="2", options=SelectOptions(distinct=0.9)), tmp_path / "out"
            ).splitlines()
        )
        == 2
    )


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_threshold_that_filters_nothing_or_all_is_refused(tmp_path, threshold):
    with pytest.raises(ConfigError, match="cosine similarity between 0 and 1"):
        select_rows(table_with(tmp_path, [(1.0, [1.0])]), keep="1", options=SelectOptions(distinct=threshold))


def test_a_table_without_representations_cannot_be_filtered(table):
    with pytest.raises(
        ScoreError, match=r"no column 'representation', which --distinct and .* compare; .* such as deita"
    ):
        select_rows(table, keep="3", options=SelectOptions(distinct=0.9))


@pytest.mark.parametrize("vector", [None, [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_scored_row_without_a_vector_to_compare_is_refused_by_its_number(tmp_path, vector):
    table = table_with(tmp_path, [(1.0, [1.0, 2.0]), (None, None), (0.5, vector)])
    with pytest.raises(ScoreError, match=r"row 2 of .* has a score but no representation to compare"):
        select_rows(table, keep="1", options=SelectOptions(distinct=0.9))


def test_vectors_without_numbers_cannot_be_compared(tmp_path):
    with pytest.raises(ScoreError, match=r"row 1 of .* has a score but no representation to compare"):
        select_rows(table_with(tmp_path, [(None, None), (0.5, [])]), keep="1", options=SelectOptions(distinct=0.9))


def test_vectors_of_different_length_are_refused(tmp_path):
    with pytest.raises(ScoreError, match="have 2 and 3 numbers; all must have as many"):
        select_rows(
            table_with(tmp_path, [(1.0, [1.0, 2.0]), (2.0, [1.0, 2.0, 3.0])]),
            keep="1",
            options=SelectOptions(distinct=0.9),
        )


def test_a_representation_that_is_one_number_is_refused(tmp_path):
    with pytest.raises(ScoreError, match=r"'representation' of .* holds double, not lists"):
        select_rows(table_with(tmp_path, [(1.0, 2.0)]), keep="1", options=SelectOptions(distinct=0.9))


def test_choosing_distinct_rows_loads_no_torch(tmp_path):
    table = table_with(tmp_path, [(1.0, [1.0, 2.0]), (2.0, [2.0, 1.0])])
    code = (
        "import sys; from pathlib import Path; from onesteptrain.cli.choosing import Select; "
        "from onesteptrain.storage.score_table import ScoreTable; "
        "from onesteptrain.selection import SelectOptions, select_rows; "
        f"table = ScoreTable(Path({str(table.path)!r})); "
        "kept = select_rows(table, keep='2', options=SelectOptions(distinct=0.9)).rows; "
        "assert len(kept) == 2; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
