import collections
import hashlib
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.data.formats.uids import UidCounter, content_hash
from onesteptrain.data.pool import open_pool, write_subset
from onesteptrain.errors import PoolError, RunError
from tests.pool_files import CONTAINERS, png, qa, write_json, write_jsonl, write_parquet

IDS = ["a", "b", "a", "a#2", "a", 7, "7", "", "b"]
UIDS = ["a", "b", "a#2", "a#2#2", "a#3", "7", "7#2", None, "b#2"]
"""None: made from the content."""


def repeated_ids(folder, container="pool.jsonl"):
    rows = [qa(f"Q{i}", id=uid if container.startswith("pool.json") else str(uid)) for i, uid in enumerate(IDS)]
    return open_pool(CONTAINERS[container](folder / container, rows))


@pytest.mark.parametrize("container", CONTAINERS)
def test_repeated_ids_are_numbered_in_pool_order(container, tmp_path):
    uids = [sample.uid for sample in repeated_ids(tmp_path, container)]
    assert [uid for uid, known in zip(uids, UIDS, strict=True) if known] == [uid for uid in UIDS if uid]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "ids", [[{"id": f"{i % 4}"} for i in range(9)], [{}] * 9, [{"id": ""}] * 9, [{"id": "0"}, {}, {}] * 3]
)
def test_rows_from_anywhere_are_the_rows_of_the_whole_pass(container, ids, tmp_path):
    rows = [qa(f"Q{i % 5}", **ids[i]) for i in range(9)]
    pool = open_pool(CONTAINERS[container](tmp_path / container, rows))
    whole = list(pool)
    assert [sample.row for sample in whole] == list(range(9))
    for start in range(10):
        assert list(pool.rows(start)) == whole[start:]
        assert list(pool.rows(start, 6)) == whole[start:6]


@pytest.mark.parametrize("container", ["pool.parquet", "hf"])
def test_skipped_rows_are_read_for_their_ids_alone(container, tmp_path):
    pool = open_pool(CONTAINERS[container](tmp_path / container, [qa("Q", id=f"{i}") for i in range(4)]))
    seen = [set(raw.value) for raw in pool.container.raw_rows(ids_until=3)]
    assert seen[:3] == [{"id"}] * 3
    assert seen[3] == {"id", "messages"}


@given(st.lists(st.sampled_from(["a", "a#2", "a#2#2", "b", "#2", ""]), max_size=60))
def test_uids_are_unique_and_the_first_of_each_keeps_its_name(bases):
    counter = UidCounter()
    uids = [counter.assign(base) for base in bases]
    assert len(set(uids)) == len(uids)
    assert all(uid.startswith(base) for uid, base in zip(uids, bases, strict=True))


def test_uids_match_a_dictionary_of_counts_when_the_table_has_grown():
    bases = [str(i) for i in np.random.default_rng(0).integers(0, 4000, 12_000)]
    counter, seen = UidCounter(), collections.Counter()
    for base in bases:
        seen[base] += 1
        assert counter.assign(base) == (base if seen[base] == 1 else f"{base}#{seen[base]}")


def test_rows_without_an_id_are_named_by_content_wherever_they_stand(tmp_path):
    (from_json,) = open_pool(write_json(tmp_path / "pool.json", [qa("Q", topic="t")]))
    (from_parquet,) = open_pool(write_parquet(tmp_path / "pool.parquet", [qa("Q", topic="t", level=None)]))
    assert from_json.uid == from_parquet.uid
    assert len(from_json.uid) == 16


def test_the_content_hash_sees_image_bytes_and_no_key_order():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1, "c": None})
    assert content_hash({"image": b"x"}) != content_hash({"image": b"y"})
    canonical = b'{"a":"\\u00e9","b":null}'.replace(b',"b":null', b"")
    assert content_hash({"a": "é", "b": None}) == hashlib.sha256(canonical).hexdigest()[:16]


def test_fields_are_the_other_plain_columns(tmp_path):
    row = qa(id="x", topic="t", level=3, share=0.5, easy=True, meta={"a": 1}, tags=["t"], image=None, thumb="data:,x")
    (sample,) = open_pool(write_jsonl(tmp_path / "pool.jsonl", [row]))
    assert sample.fields == {"topic": "t", "level": 3, "share": 0.5, "easy": True}


def test_the_fingerprint_follows_the_content_and_not_the_name(tmp_path):
    first, same, other = (
        open_pool(write_jsonl(tmp_path / name, [qa(question)]))
        for name, question in [("a", "Q"), ("b", "Q"), ("c", "R")]
    )
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_subset_of_all_rows_reads_as_the_pool_and_of_none_as_empty(container, tmp_path):
    rows = [qa(f"Q{i}", id=str(i), images=["a.png"]) for i in range(5)]
    pool = open_pool(CONTAINERS[container](tmp_path / container, rows))
    assert write_subset(pool, range(5), tmp_path / "all" / "out") == 5
    assert list(open_pool(tmp_path / "all" / "out", image_root=tmp_path)) == list(
        open_pool(pool.path, image_root=tmp_path)
    )
    assert write_subset(pool, [], tmp_path / "none") == 0
    if not container.startswith("pool.jsonl"):  # an empty file says nothing of what it is
        assert list(open_pool(tmp_path / "none", format="messages")) == []


@pytest.mark.parametrize(
    ("rows", "words"), [([1, 1], "each once"), ([2, 1], "that rise"), ([-1, 1], "from 0"), ([1, 3], "row 3")]
)
def test_rows_that_are_no_selection_are_refused_and_leave_nothing_behind(rows, words, tmp_path):
    pool = open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa(f"Q{i}") for i in range(3)]))
    with pytest.raises(PoolError, match=words):
        write_subset(pool, rows, tmp_path / "out.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["pool.jsonl"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_nothing_is_overwritten_unless_asked_and_the_pool_never(container, tmp_path):
    pool = open_pool(CONTAINERS[container](tmp_path / container, [qa(f"Q{i}") for i in range(3)]))
    before = pool.fingerprint
    for target in (pool.path, pool.path / "inside", tmp_path):
        with pytest.raises(PoolError, match="is the pool itself or holds it"):
            write_subset(pool, [0], target, overwrite=True)
    write_subset(pool, [0], tmp_path / "out")
    with pytest.raises((PoolError, RunError), match="exists; give another path"):
        write_subset(pool, [0, 1], tmp_path / "out")
    assert len(open_pool(tmp_path / "out")) == 1
    write_subset(pool, [0, 1], tmp_path / "out", overwrite=True)
    assert len(open_pool(tmp_path / "out")) == 2
    assert open_pool(pool.path).fingerprint == before
    assert {file.name for file in tmp_path.iterdir()} == {container, "out"}


def test_a_failed_copy_leaves_the_old_file_as_it_was(tmp_path):
    (tmp_path / "pool.json").write_text("[" + json.dumps(qa()) + ", broken")
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(PoolError, match="invalid JSON array"):
        write_subset(open_pool(tmp_path / "pool.json", format="messages"), [0], tmp_path / "out.json", overwrite=True)
    assert (tmp_path / "out.json").read_text() == "old"
    assert {file.name for file in tmp_path.iterdir()} == {"out.json", "pool.json"}


@pytest.mark.parametrize(
    ("options", "words"), [({"format": "alpaca"}, "choose auto, llava"), ({"image_root": "nowhere"}, "no such folder")]
)
def test_options_that_cannot_work_are_refused(options, words, tmp_path):
    with pytest.raises(PoolError, match=words):
        open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa()]), **options)


def test_a_missing_pool_is_refused(tmp_path):
    with pytest.raises(PoolError, match="no such file or folder"):
        open_pool(tmp_path / "pool.jsonl")


@pytest.mark.parametrize("container", ["pool.json", "pool.jsonl", "pool.parquet"])
def test_memory_does_not_grow_with_the_pool(container, tmp_path):
    image = png(size=(40, 40))
    kind = image if container == "pool.parquet" else "a.png"
    peaks = []
    for count in (500, 5_000):
        rows = [qa(f"Question {i} " + "x" * 500, id=f"row-{i}", image=kind) for i in range(count)]
        pool = open_pool(CONTAINERS[container](tmp_path / container, rows))
        del rows
        arrow_before = pa.total_allocated_bytes()
        tracemalloc.start()
        assert sum(1 for _ in pool) == count
        write_subset(pool, range(0, count, 2), tmp_path / "out", overwrite=True)
        peaks.append(tracemalloc.get_traced_memory()[1] - 24 * count)  # uids
        tracemalloc.stop()
        assert pa.total_allocated_bytes() - arrow_before < 2**20
    # ten times the rows, which as Python objects take more than 5 MB
    assert peaks[1] < 1.5 * peaks[0] + 2**19
