import gzip
import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesteptrain.data.formats.arrow import ArrowRows
from onesteptrain.data.formats.json_rows import JsonLines
from onesteptrain.data.pool import open_pool, write_subset
from onesteptrain.errors import PoolError
from tests.pool_files import CONTAINERS, arrow_table, qa, write_json, write_jsonl, write_parquet

ROWS = [qa(f"Q{i}", id=f"{i % 7}") for i in range(11)]


def asked(pool):
    return [(sample.row, sample.uid, sample.turns[0].text) for sample in pool]


@pytest.fixture
def whole(tmp_path):
    return asked(open_pool(write_jsonl(tmp_path / "whole.jsonl", ROWS)))


@pytest.mark.parametrize("pattern", ["*/*.jsonl", "**/*.jsonl", "[ab]/?.jsonl", "a/../?/*"])
def test_files_that_a_pattern_names_are_one_pool_in_the_order_of_their_names(pattern, whole, tmp_path):
    for name, rows in {"b/2": ROWS[8:], "a/1": ROWS[:3], "b/1": ROWS[3:8]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    if pattern == "**/*.jsonl":
        (tmp_path / "whole.jsonl").unlink()
    assert asked(open_pool(tmp_path / pattern)) == whole


def test_a_pool_mixes_containers_where_a_pattern_says_so(whole, tmp_path):
    write_parquet(tmp_path / "part-0", ROWS[:2])
    write_json(tmp_path / "part-1", ROWS[2:4])
    CONTAINERS["hf"](tmp_path / "part-2", ROWS[4:7])
    CONTAINERS["pool.jsonl.gz"](tmp_path / "part-3", ROWS[7:])
    pool = open_pool(tmp_path / "part-?")
    assert asked(pool) == whole
    assert len(pool) == 11
    assert write_subset(pool, [0, 3, 5, 10], tmp_path / "out") == 4
    assert [ids[2] for ids in asked(open_pool(tmp_path / "out" / "part*"))] == ["Q0", "Q3", "Q5", "Q10"]


def test_the_fingerprint_goes_over_all_files_and_not_over_their_names(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = write_jsonl(tmp_path / "a" / "1.jsonl", ROWS[:4]), write_jsonl(tmp_path / "a" / "2.jsonl", ROWS[4:])
    before = open_pool(tmp_path / "a").fingerprint
    assert open_pool(tmp_path / "a" / "*.jsonl").fingerprint == before
    assert open_pool(first.rename(tmp_path / "a" / "0.jsonl").parent).fingerprint == before
    write_jsonl(second, ROWS[5:])
    assert open_pool(tmp_path / "a").fingerprint != before


def test_a_packed_subset_holds_the_lines_as_they_stand(tmp_path):
    lines = [b'{"id": 1,  "messages": []}\r\n', b'{"id": 2.0e0}\n', b"broken\n", b'{"id": 3}']
    (tmp_path / "pool.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    pool = open_pool(tmp_path / "pool.jsonl.gz", format="messages")
    for name in ("out.jsonl.gz", "out", "out.jsonl.zst", "out.jsonl"):
        assert write_subset(pool, [1, 2, 3], tmp_path / name) == 3
    written = {name: (tmp_path / name).read_bytes() for name in ("out.jsonl.gz", "out", "out.jsonl.zst", "out.jsonl")}
    assert written["out.jsonl"] == b"".join(lines[1:])
    assert gzip.decompress(written["out.jsonl.gz"]) == gzip.decompress(written["out"]) == written["out.jsonl"]
    unpacked = pa.input_stream(pa.BufferReader(written["out.jsonl.zst"]), compression="zstd").read()
    assert unpacked == written["out.jsonl"]


def test_a_subset_of_a_pattern_is_a_folder_with_the_same_names(tmp_path):
    pool = open_pool(CONTAINERS["lines"](tmp_path / "pool", ROWS) / "**" / "*.jsonl*")
    write_subset(pool, [3, 9], tmp_path / "out")
    files = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.jsonl*"))
    assert [name for name in files if not name.startswith(".")] == ["a.jsonl.gz", "b/0.jsonl", "b/1.jsonl"]
    assert [row.uid for row in open_pool(tmp_path / "out")] == ["3", "2"]


def test_a_packed_file_that_is_cut_off_ends_in_one_line_after_the_good_rows(tmp_path):
    path = CONTAINERS["pool.jsonl.gz"](tmp_path / "pool.jsonl.gz", [qa("Q" * 20_000, id=f"{i}") for i in range(80)])
    path.write_bytes(path.read_bytes()[:-9])
    rows = iter(open_pool(path))
    assert len(list(itertools.islice(rows, 60))) == 60
    with pytest.raises(PoolError, match=r"pool.jsonl.gz: cannot be read \(Truncated compressed stream\)"):
        list(rows)


def test_files_of_two_kinds_in_a_folder_are_no_pool_until_a_pattern_says_which(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_json(tmp_path / "dataset_infos.json", [{}])
    assert len(open_pool(tmp_path)) == 11
    write_parquet(tmp_path / "rows.parquet", ROWS)
    with pytest.raises(PoolError, match=r"holds 1 JSONL and 1 Parquet files; say which .* \S+/\*.jsonl"):
        open_pool(tmp_path)
    assert len(open_pool(tmp_path / "*.parquet")) == 11


@pytest.mark.parametrize("out", ["pool/new.jsonl", "pool/c/1.jsonl", "pool"])
def test_a_subset_does_not_go_where_the_pattern_of_its_pool_would_find_it(out, tmp_path):
    pool = open_pool(CONTAINERS["lines"](tmp_path / "pool", ROWS) / "**" / "*.jsonl")
    with pytest.raises(PoolError, match="is the pool itself or holds it"):
        write_subset(pool, [1], tmp_path / out, overwrite=True)


def test_a_pattern_that_nothing_matches_says_what_a_pattern_is(tmp_path):
    with pytest.raises(PoolError, match=r"no file has such a name; .* stands for any part"):
        open_pool(tmp_path / "*.jsonl")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    assert len(open_pool(write_jsonl(tmp_path / "rows[1].jsonl", ROWS))) == 11


def test_rows_from_the_middle_read_no_file_and_no_row_group_before_it(tmp_path, monkeypatch):
    """What is decoded is counted where Arrow gives it out, and where lines come from."""
    pq.write_table(arrow_table(ROWS), tmp_path / "a.parquet", row_group_size=3)
    write_jsonl(tmp_path / "b.jsonl", ROWS)
    pq.write_table(arrow_table(ROWS), tmp_path / "c.parquet", row_group_size=3)
    container = open_pool(tmp_path / "?.*").container
    container.count()
    groups, files, real = [], [], pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda file, **how: groups.append(list(how["row_groups"])) or real(file, **how)
    )
    for kind in (ArrowRows, JsonLines):
        told = kind.raw_rows
        monkeypatch.setattr(
            kind, "raw_rows", lambda part, *at, told=told, **how: files.append(part.path.name) or told(part, *at, **how)
        )
    assert [raw.value["id"] for raw in container.raw_rows(29)] == ["0", "1", "2", "3"]
    assert files == ["c.parquet"]
    assert groups == [[2, 3]]
