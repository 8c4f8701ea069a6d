"""Scoring shard by shard, with scorers whose answers are known; no model is needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from onesteptrain.data.pool import Sample, Turn, open_pool
from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.methods import Reference
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.score import score_pool
from onesteptrain.scoring.shards import Chunk
from onesteptrain.scoring.work import expected
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import Record
from tests.commands import done, refusal
from tests.pool_files import qa, write_jsonl, write_parquet

SMALL = ScoringOptions(shard_rows=4, chunk_rows=3)


class Lengths:
    """Scores a sample by the length of its question, and remembers whom it has scored."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.seen: list[str] = []
        self.prepared = 0
        self.fail_at = fail_at

    def prepare(self):
        self.prepared += 1
        return self

    def __call__(self, samples):
        if self.fail_at in [sample.uid for sample in samples]:
            raise KeyboardInterrupt
        self.seen += [sample.uid for sample in samples]
        return [Record(float(len(sample.turns[0].text)), columns={"tokens": sample.row}) for sample in samples]


def pool_of(folder: Path, rows: int = 14):
    """A pool whose third row is broken and whose ids repeat."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(qa("?" * (row * 5 % 13 + 1), id=f"x{row % 10}")) for row in range(rows)]
    if rows > 2:
        lines[2] = "{broken"
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    return open_pool(folder / "pool.jsonl")


def run_in(path: Path) -> Run:
    path.mkdir(exist_ok=True)
    return Run(path)


def scored(pool, scorer, path, options=SMALL, progress=None):
    return score_pool(pool, scorer.prepare, run_in(path), options, progress)


def test_every_row_of_the_pool_has_its_score_or_its_reason_in_order(tmp_path):
    result = scored(pool_of(tmp_path / "data"), Lengths(), tmp_path / "run")
    rows = result.table.read().to_pylist()
    assert [row["row"] for row in rows] == list(range(14))
    assert [row["score"] for row in rows] == [None if n == 2 else n * 5 % 13 + 1.0 for n in range(14)]
    assert [row["row"] for row in rows if row["reason"]] == [2]
    assert "pool.jsonl:3: invalid JSON" in rows[2]["reason"]
    assert (result.rows, result.failed, result.scored_now) == (14, 1, 14)
    assert result.reasons == [(rows[2]["reason"], 1)]


def test_repeated_ids_are_kept_and_told_apart(tmp_path):
    result = scored(pool_of(tmp_path / "data"), Lengths(), tmp_path / "run")
    uids = result.table.read().column("uid").to_pylist()
    assert len(set(uids)) == 14
    assert uids[10] == "x0#2"


def test_the_table_says_of_which_pool_it_is(tmp_path):
    pool = pool_of(tmp_path / "data")
    assert scored(pool, Lengths(), tmp_path / "run").table.metadata["pool"] == pool.fingerprint


@pytest.mark.parametrize("stop_at", ["x0", "x3", "x9"])
def test_an_interrupted_run_scores_the_rest_and_ends_with_the_same_bytes(tmp_path, stop_at):
    pool = pool_of(tmp_path / "data")
    whole = scored(pool, Lengths(), tmp_path / "whole")
    first = Lengths(fail_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        scored(pool, first, tmp_path / "run")
    kept = sum(pq.read_metadata(shard).num_rows for shard in (tmp_path / "run").glob("shards.part/*.parquet"))
    second = Lengths()
    result = scored(pool, second, tmp_path / "run")
    assert result.scored_now == 14 - kept
    assert result.table.path.read_bytes() == whole.table.path.read_bytes()
    readable = [row.uid for row in pool if row.row != 2]
    assert second.seen == [
        uid for uid, row in zip(readable, [r for r in range(14) if r != 2], strict=True) if row >= kept
    ]


def test_a_shard_that_went_missing_in_the_middle_is_scored_again_and_no_other(tmp_path):
    pool = pool_of(tmp_path / "data")
    whole = scored(pool, Lengths(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        scored(pool, Lengths(fail_at="x3#2"), tmp_path / "run")  # the last shard
    shards = sorted((tmp_path / "run").glob("shards.part/*.parquet"))
    shards[1].unlink()
    again = Lengths()
    assert scored(pool, again, tmp_path / "run").scored_now == 4 + 14 - 4 * len(shards)
    assert again.seen[:4] == ["x4", "x5", "x6", "x7"]
    assert (tmp_path / "run" / "scores.parquet").read_bytes() == whole.table.path.read_bytes()


def test_a_finished_run_prepares_and_scores_nothing(tmp_path):
    pool = pool_of(tmp_path / "data")
    before = scored(pool, Lengths(), tmp_path / "run").table.path.read_bytes()
    again = Lengths()
    result = scored(pool, again, tmp_path / "run")
    assert (again.prepared, result.scored_now, result.rows, result.failed) == (0, 0, 14, 1)
    assert result.table.path.read_bytes() == before
    assert not (tmp_path / "run" / "shards.part").exists()


@pytest.mark.parametrize(("shard_rows", "chunk_rows"), [(1, 1), (5, 2), (100, 100), (3, 64)])
def test_the_sizes_of_shards_and_chunks_leave_no_trace(tmp_path, shard_rows, chunk_rows):
    pool = pool_of(tmp_path / "data")
    whole = scored(pool, Lengths(), tmp_path / "whole")
    cut = scored(pool, Lengths(), tmp_path / "cut", ScoringOptions(shard_rows, chunk_rows))
    assert cut.table.path.read_bytes() == whole.table.path.read_bytes()


def test_progress_counts_rows_up_to_all_of_them(tmp_path):
    told: list[tuple[int, int]] = []
    scored(pool_of(tmp_path / "data"), Lengths(), tmp_path / "run", progress=lambda *now: told.append(now))
    assert told == [(3, 14), (4, 14), (7, 14), (8, 14), (11, 14), (12, 14), (14, 14)]


def failing(folder: Path, rows: int, broken: int) -> Path:
    folder.mkdir()
    lines = ["{broken" if row < broken else json.dumps(qa(str(row))) for row in reversed(range(rows))]
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pool.jsonl"


def test_a_pool_of_which_too_much_fails_is_refused_and_stays_refused(tmp_path):
    pool = open_pool(failing(tmp_path / "data", 300, 151), format="messages")
    options = ScoringOptions(shard_rows=50)
    for _ in range(3):
        with pytest.raises(ScoreError, match=r"151 of 300 rows cannot be scored, such as: .*invalid JSON"):
            scored(pool, Lengths(), tmp_path / "run", options)
    assert not (tmp_path / "run" / "scores.parquet").exists()


def test_a_good_shard_after_many_bad_ones_does_not_hide_why_the_pool_is_refused(tmp_path):
    path = failing(tmp_path / "data", 300, 250)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ScoreError, match=r"250 of 300 rows cannot be scored, such as: .*invalid JSON"):
        scored(open_pool(path, format="messages"), Lengths(), tmp_path / "run", ScoringOptions(shard_rows=50))


@pytest.mark.parametrize(("rows", "broken"), [(300, 150), (255, 254)])
def test_half_of_a_pool_or_all_but_one_row_of_a_short_one_may_fail(tmp_path, rows, broken):
    pool = open_pool(failing(tmp_path / "data", rows, broken), format="messages")
    assert scored(pool, Lengths(), tmp_path / "run", ScoringOptions(shard_rows=50)).failed == broken


def test_a_pool_without_rows_is_refused(tmp_path):
    path = write_parquet(tmp_path / "pool.parquet", [qa()])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(PoolError, match="holds no rows"):
        scored(open_pool(path, format="messages"), Lengths(), tmp_path / "run")


def test_rows_before_a_file_breaks_off_are_scored_though_they_were_read_ahead():
    def chunks():
        yield Chunk([], ["one"])
        yield Chunk([], ["two"])
        raise PoolError("it breaks off here")

    left = expected(chunks(), lambda samples: None)
    assert [next(left).rows, next(left).rows] == [["one"], ["two"]]
    with pytest.raises(PoolError, match="breaks off"):
        next(left)


def test_a_method_that_loses_records_is_named_as_broken(tmp_path):
    pool = open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa("1"), qa("2")]))
    with pytest.raises(ScoreError, match="gave 1 records for 2 samples"):
        score_pool(pool, lambda: lambda samples: [Record(1.0)], run_in(tmp_path / "run"))


@pytest.mark.parametrize("options", [{"shard_rows": 0}, {"chunk_rows": 0}, {"max_failed_share": 1.5}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ConfigError):
        ScoringOptions(**options)


def test_scores_come_back_as_numbers(tmp_path):
    table = scored(pool_of(tmp_path / "data", 2), Lengths(), tmp_path / "run").table
    np.testing.assert_array_equal(table.numbers("score"), [1.0, 6.0])


def test_the_seconds_of_an_interrupted_run_are_counted_too(tmp_path, monkeypatch):
    pool = pool_of(tmp_path / "pool")
    clock = iter(range(10_000))  # every look at the clock is a second
    monkeypatch.setattr("onesteptrain.scoring.score.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(KeyboardInterrupt):
        scored(pool, Lengths(fail_at="x8"), tmp_path / "run")
    before = Run(tmp_path / "run").provenance["seconds"]
    assert before > 0
    scored(pool, Lengths(), tmp_path / "run")
    in_all = Run(tmp_path / "run").provenance["seconds"]
    assert in_all > before
    scored(pool, Lengths(), tmp_path / "run")  # nothing is left to do, and nothing is added
    assert Run(tmp_path / "run").provenance["seconds"] == in_all


class Referencing(Lengths):
    """A scorer that also says what its anchors look like."""

    def reference(self):
        anchors = [Sample(f"a{row}", row, (Turn("user", ("?" * row,)), Turn("assistant", ("x",)))) for row in (2, 5)]
        measured = [(anchor, Record(float(anchor.row), columns={"tokens": anchor.row})) for anchor in anchors]
        return Reference(measured, [])


def test_what_a_method_says_of_its_anchors_stands_beside_the_table(tmp_path):
    table = scored(pool_of(tmp_path), Referencing(), tmp_path / "run").table
    assert table.reference is not None
    assert table.reference.read(["uid", "row", "score", "tokens"]).to_pylist() == [
        {"uid": "a2", "row": 2, "score": 2.0, "tokens": 2},
        {"uid": "a5", "row": 5, "score": 5.0, "tokens": 5},
    ]


def test_the_anchors_are_known_after_an_interruption_too(tmp_path):
    pool = pool_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        scored(pool, Referencing(fail_at="x7"), tmp_path / "run")
    killed = (tmp_path / "run" / "reference.parquet").read_bytes()
    table = scored(pool, Referencing(), tmp_path / "run").table
    assert table.reference.path.read_bytes() == killed


def test_a_method_that_knows_no_anchors_leaves_no_reference(tmp_path):
    assert scored(pool_of(tmp_path), Lengths(), tmp_path / "run").table.reference is None


@pytest.mark.parametrize("again", [False, True])
def test_a_pool_of_which_no_row_has_a_score_ends_in_an_error_with_the_reasons(tmp_path, again):
    broken = [qa("What?", "") for _ in range(3)]
    pool = write_jsonl(tmp_path / "pool.jsonl", [*broken, {"messages": [{"role": "user", "content": "only asked"}]}])
    arguments = ["score", pool, "--method", "random", "--out", tmp_path / "run"]
    if again:
        refusal(*arguments)
    line = refusal(*arguments)
    assert "none of 4 rows has a score: " in line
    assert "is an empty answer" in line
    assert "; mend the pool or the options" in line
    assert pq.read_table(tmp_path / "run" / "scores.parquet")["reason"].null_count == 0


def test_a_pool_of_which_one_row_has_a_score_is_scored(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", [*[qa("What?", "") for _ in range(3)], qa()])
    facts = json.loads(done("score", pool, "--method", "random", "--out", tmp_path / "run", "--json").out)
    assert (facts["rows"], facts["failed"]) == (4, 3)
