"""Tables that do not belong, or are not as they were written, are scored again or refused."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ScoreError
from onesteptrain.methods import Setting
from onesteptrain.methods.uniform import Random
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.score import score_pool
from onesteptrain.storage.run_directory import begin_run
from onesteptrain.storage.score_table import Record, ScoreTable, read_scores, to_table, write_table
from tests.commands import done, refusal
from tests.pool_files import qa, write_jsonl

ROWS = 12
OPTIONS = ScoringOptions(shard_rows=4, chunk_rows=4)


@pytest.fixture
def pool(tmp_path):
    return write_jsonl(tmp_path / "pool.jsonl", [qa(f"Question {i}?", "It is 7.", id=f"u{i}") for i in range(ROWS)])


def score(pool, out, *, stop_after=None, seed=0):
    """Score a pool by chance; `stop_after` so many shards the process is cut off."""

    class CutError(Exception):
        pass

    def progress(rows, of):
        if stop_after is not None and rows > stop_after * OPTIONS.shard_rows:
            raise CutError

    opened = open_pool(pool)
    with begin_run(out, {"seed": seed}, {"pool": opened.fingerprint, "seed": str(seed)}) as run:
        try:
            return score_pool(opened, lambda: Random().prepare(Setting(None, [], seed=seed)), run, OPTIONS, progress)
        except CutError:
            return None


def shards(out):
    return sorted((out / "shards.part").glob("*.parquet"))


def swap(path, other, third):
    shutil.copy(other, path)


def foreign(path, other, third):
    shutil.copy(third, path)


def cut(path, other, third):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path, other, third):
    content = bytearray(path.read_bytes())
    content[content.index(b"u1") if b"u1" in content else 60] ^= 4
    path.write_bytes(content)


def shorten(path, other, third):
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize("spoil", [swap, foreign, cut, flip, shorten])
def test_a_shard_that_does_not_belong_is_scored_again_and_said(pool, tmp_path, spoil):
    whole = score(pool, tmp_path / "whole")
    assert whole.damaged == []
    score(pool, tmp_path / "run", stop_after=2)
    score(pool, tmp_path / "other", stop_after=2, seed=1)
    first, second = shards(tmp_path / "run")
    spoil(first, second, shards(tmp_path / "other")[0])
    again = score(pool, tmp_path / "run")
    assert [text[:20] for text in again.damaged] == [first.name]
    assert again.scored_now == ROWS - 4
    assert again.table.path.read_bytes() == whole.table.path.read_bytes()


def test_no_flipped_bit_of_a_finished_table_goes_unnoticed(pool, tmp_path):
    path = score(pool, tmp_path / "run").table.path
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ScoreError, match="is damaged"):
            read_scores(tmp_path / "run")
    path.write_bytes(content)
    read_scores(tmp_path / "run")


def test_a_flipped_bit_in_a_page_is_noticed_without_a_digest(pool, tmp_path):
    copy = tmp_path / "scores.parquet"
    content = score(pool, tmp_path / "run").table.path.read_bytes()
    column = pq.read_metadata(tmp_path / "run" / "scores.parquet").row_group(0).column(2)
    end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    for place in range(end - 8, end):  # the values of a page come last
        changed = bytearray(content)
        changed[place] ^= 1
        copy.write_bytes(changed)
        with pytest.raises(ScoreError, match="is damaged"):
            ScoreTable(copy)


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 2, 3], [1, 2, 3], [0, 1, -1]])
def test_a_table_without_each_row_once_is_refused(tmp_path, rows):
    write_table(to_table((f"u{i}", row, Record(1.0)) for i, row in enumerate(rows)), tmp_path / "scores.parquet")
    with pytest.raises(ScoreError, match="its rows are not 0 to 2, once each"):
        ScoreTable(tmp_path / "scores.parquet")


def test_anchors_of_another_pool_are_refused_beside_a_table(tmp_path):
    table = to_table([("u0", 0, Record(1.0))])
    write_table(table, tmp_path / "scores.parquet", {"pool": "one"})
    write_table(table, tmp_path / "reference.parquet", {"pool": "one"})
    assert ScoreTable(tmp_path / "scores.parquet").reference is not None
    write_table(table, tmp_path / "reference.parquet", {"pool": "another"})
    with pytest.raises(ScoreError, match="another pool"):
        _ = ScoreTable(tmp_path / "scores.parquet").reference


@pytest.mark.parametrize("command", ["select", "advise", "report", "explain"])
def test_every_command_that_reads_scores_refuses_damaged_ones_in_a_line(pool, tmp_path, command):
    done("score", pool, "--method", "random", "--out", tmp_path / "run")
    path = tmp_path / "run" / "scores.parquet"
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    out = {"select": ["--keep", "2", "--out", tmp_path / "s.jsonl"], "report": ["--out", tmp_path / "r.html"]}
    assert "is damaged" in refusal(command, tmp_path / "run", *out.get(command, []))


def test_a_table_that_ost_itself_changes_stays_readable(pool, tmp_path):
    done("score", pool, "--method", "random", "--out", tmp_path / "run")
    table = read_scores(tmp_path / "run")
    before = table.metadata
    from onesteptrain.cli.explaining import _add_column

    class Explanation:
        corrected = pa.array([0.5] * ROWS)

    _add_column(table, "corrected", Explanation())
    again = read_scores(tmp_path / "run")
    assert again.numbers("corrected").tolist() == [0.5] * ROWS
    assert again.metadata == before
