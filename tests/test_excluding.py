"""Rows that a file names are not scored, not selected and not trained on, and anchors that leak are drawn anew."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesteptrain.data.anchors import find_leaks
from onesteptrain.data.deduplication import FinalAnswers, GuardOptions, guard, write_findings
from onesteptrain.data.pool import Unreadable, open_pool
from onesteptrain.errors import AnchorError, PoolError, ScoreError
from onesteptrain.jobs.steps import AnchorDraw, PoolOptions, draw_anchor_file
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.score_table import Record, ScoreTable, merge, to_table, write_table
from tests.pool_files import qa

UIDS = [f"r{row}" for row in range(8)]
QUESTIONS = ["One apple?", "Two bears?", "One apple?", "Three cars?", "Four dogs?", "Five eels?", "One apple?", "Six?"]
LEAK = qa("Three cars?", "A")


def pool_file(folder):
    path = folder / "pool.jsonl"
    rows = [{"id": uid, **qa(text)} for uid, text in zip(UIDS, QUESTIONS, strict=True)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def guard_table(folder, pool):
    against = {"anchors": open_pool([LEAK])}
    finals = FinalAnswers(lambda text: text, lambda one, other: one == other)
    write_findings(guard(pool, finals=finals, against=against), pool, GuardOptions(), folder / "guard.parquet")
    return folder / "guard.parquet"


def scored(folder, fingerprint=""):
    records = [(uid, row, Record(score=float(row))) for row, uid in enumerate(UIDS)]
    write_table(to_table(records), folder / "shard.parquet")
    merge([folder / "shard.parquet"], folder / "scores.parquet", {"pool": fingerprint})
    return ScoreTable(folder / "scores.parquet")


LISTS = {
    "list.txt": "r1\n\n r5 \nunknown\n",
    "list.csv": "why,uid\nx,r1\ny,r5\n",
    "list.tsv": "id\twhy\nr1\tx\nr5\ty\n",
    "list.jsonl": '{"id": "r1"}\n"r5"\n',
    "list.json": '["r1", {"uid": "r5"}]',
}


@pytest.mark.parametrize("name", [*LISTS, "list.parquet"])
def test_rows_that_a_list_names_have_that_reason_and_are_not_selected(name, tmp_path):
    path, pool = tmp_path / name, pool_file(tmp_path)
    if name in LISTS:
        path.write_text(LISTS[name])
    else:
        pq.write_table(pa.table({"question_id": ["r1", "r5"]}), path)
    read = PoolOptions(exclude=path).open(pool)
    assert {row.uid: row.reason for row in read if isinstance(row, Unreadable)} == dict.fromkeys(
        ("r1", "r5"), f"excluded by {path}"
    )
    assert read.fingerprint == open_pool(pool).fingerprint
    kept = select_rows(scored(tmp_path), keep="100%", options=SelectOptions(exclude=path))
    assert [UIDS[row] for row in kept.rows] == [uid for uid in UIDS if uid not in ("r1", "r5")]
    assert kept.excluded == 2


def test_the_table_of_guard_leaves_out_leaks_and_all_but_one_of_each_cluster(tmp_path):
    pool = open_pool(pool_file(tmp_path))
    table = guard_table(tmp_path, pool)
    kept = select_rows(scored(tmp_path, pool.fingerprint), keep="100%", options=SelectOptions(exclude=table))
    assert np.array_equal(kept.rows, [0, 1, 4, 5, 7])  # 2 and 6 repeat 0, 3 is the anchor
    left = [row.row for row in PoolOptions(exclude=table).open(pool.path) if isinstance(row, Unreadable)]
    assert left == [2, 3, 6]


def test_a_share_of_the_pool_is_filled_with_rows_that_are_not_excluded(tmp_path):
    (tmp_path / "list.txt").write_text("r7\nr6\n")
    kept = select_rows(scored(tmp_path), keep="2", options=SelectOptions(exclude=tmp_path / "list.txt"))
    assert [UIDS[row] for row in kept.rows] == ["r4", "r5"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.txt", "x\ny\n", "none of its 2 uids, such as 'x', is in the pool"),
        ("list.csv", "a,b\n1,2\n", "has the columns a, b"),
        ("list.jsonl", "{broken", "cannot be read"),
        ("list.json", "[" * 100_000, "cannot be read"),
        ("list.parquet", "no parquet", "cannot be read"),
    ],
)
def test_a_file_that_names_no_row_is_refused_in_one_line(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PoolError, match=words) as caught:
        PoolOptions(exclude=tmp_path / name).open(pool_file(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_guard_table_of_another_pool_is_refused(tmp_path):
    table = guard_table(tmp_path, open_pool(pool_file(tmp_path)))
    with pytest.raises(PoolError, match="of another pool"):
        select_rows(scored(tmp_path, "another"), keep="50%", options=SelectOptions(exclude=table))


def test_a_selection_of_which_all_is_excluded_is_refused(tmp_path):
    (tmp_path / "all.txt").write_text("\n".join(UIDS))
    with pytest.raises(ScoreError, match="names all rows"):
        select_rows(scored(tmp_path), keep="50%", options=SelectOptions(exclude=tmp_path / "all.txt"))


def test_others_are_drawn_in_place_of_anchors_that_leak(tmp_path):
    heldout = open_pool([{"id": f"h{row}", **qa(text)} for row, text in enumerate([*QUESTIONS, "Ten?", "Elf?", "Ox?"])])
    pool, out = open_pool(pool_file(tmp_path)), tmp_path / "anchors.jsonl"
    with pytest.raises(AnchorError, match="are anchors too"):
        draw_anchor_file(heldout, pool, out, AnchorDraw(count=3))
    assert draw_anchor_file(heldout, pool, out, AnchorDraw(count=3, skip_leaks=True)) == 3
    assert {row.uid for row in open_pool(out)} == {"h8", "h9", "h10"}
    assert not find_leaks(open_pool(out), pool)
    with pytest.raises(AnchorError, match="4 anchors are asked for, but 3 rows"):
        draw_anchor_file(heldout, pool, out, AnchorDraw(count=4, skip_leaks=True), overwrite=True)
