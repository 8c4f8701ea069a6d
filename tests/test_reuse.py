"""Scores are kept by content: only rows that are new or have changed are scored, whatever else happens to the pool."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field

import pytest

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import PoolError, RunError
from onesteptrain.jobs.scoring import ScoreRequest, score_into
from onesteptrain.methods import INCIDENTAL, Reference
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.selection import select_rows
from onesteptrain.storage.score_table import Record, ScoreTable, read_scores
from tests.building import png, write_pool
from tests.commands import done, refusal, world
from tests.pool_files import write_jsonl

SEEN: list[str] = []


@dataclass(frozen=True)
class Sizes:
    """Scores a row by its question and the sizes of its pictures; remembers whom it has scored."""

    factor: float = 1.0
    stop_at: str = field(default="", metadata=INCIDENTAL)

    def prepare(self, setting):
        return self

    def __call__(self, samples):
        return [self._record(sample) for sample in samples]

    def _record(self, sample):
        if sample.uid == self.stop_at:
            raise KeyboardInterrupt
        SEEN.append(sample.uid)
        if any(not image.source.is_file() for image in sample.images):
            return Record(reason="its picture is missing")
        sizes = [float(image.source.stat().st_size) for image in sample.images]
        return Record(self.factor * sum(sizes), columns={"sizes": sizes, "turns": len(sample.turns)})

    def reference(self):
        return Reference([], [])


def score(pool, out, *, method=None, rows=4, **options):
    """Score a pool in small shards."""
    SEEN.clear()
    request = ScoreRequest(open_pool(pool), method or Sizes(), "sizes", scoring=ScoringOptions(rows, rows))
    return score_into(out, request, **options)


def lines(pool):
    return [json.loads(line) for line in pool.read_text().splitlines()]


@pytest.fixture
def pool(tmp_path):
    return write_pool(tmp_path / "data", 10)


def append(rows, folder):
    write_pool(folder, 2, name="more.jsonl", start=10)
    return [*rows, *lines(folder / "more.jsonl")]


def change(rows, folder):
    rows[3]["messages"][1]["content"] = "Now it is another answer."
    return rows


def repaint(rows, folder):
    (folder / "images" / "6.png").write_bytes(png(77, 200))
    return rows


CHANGES = {
    "appended": (append, ["s10", "s11"]),
    "changed": (change, ["s3"]),
    "repainted": (repaint, ["s6"]),
    "put first": (lambda rows, folder: [rows[-1], *rows[:-1]], []),
    "taken out": (lambda rows, folder: rows[2:], []),
    "other column": (lambda rows, folder: [row | {"topic": "x"} for row in rows], []),
    "spelled otherwise": (lambda rows, folder: [dict(reversed(row.items())) for row in rows], []),
    "another picture": (lambda rows, folder: [rows[0] | {"images": ["images/1.png"]}, *rows[1:]], ["s0"]),
    "all at once": (
        lambda rows, folder: append(change(repaint(rows, folder), folder)[1:], folder),
        ["s3", "s6", "s10", "s11"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_only_what_is_new_or_changed_is_scored_and_the_table_is_that_of_a_new_run(pool, tmp_path, what):
    make, new = CHANGES[what]
    score(pool, tmp_path / "run")
    write_jsonl(pool, make(lines(pool), pool.parent))
    said: list[str] = []
    result = score(pool, tmp_path / "run", tell=said.append)
    assert new == SEEN
    assert (result.scored_now, result.taken_over) == (len(new), result.rows - len(new))
    assert said == [
        f"{result.taken_over} rows and their pictures are as they were when they were scored: "
        "their scores are taken over"
    ]
    whole = score(pool, tmp_path / "whole")
    assert result.table.path.read_bytes() == whole.table.path.read_bytes()
    assert not (tmp_path / "run" / "kept.parquet").exists()
    again = score(pool, tmp_path / "run")
    assert (SEEN, again.scored_now, again.taken_over) == ([], 0, 0)


@pytest.mark.parametrize("stop_at", ["s8", "s10", "s11"])
def test_cut_off_at_any_row_and_changed_again_nothing_is_scored_twice(pool, tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        score(pool, tmp_path / "run", method=Sizes(stop_at="s8"))  # eight rows are on disk
    write_jsonl(pool, append(lines(pool), pool.parent))
    with pytest.raises(KeyboardInterrupt):
        score(pool, tmp_path / "run", method=Sizes(stop_at=stop_at))
    write_jsonl(pool, lines(pool)[1:])
    result = score(pool, tmp_path / "run", method=Sizes())
    assert not set(SEEN) & {f"s{row}" for row in range(8)}
    assert result.table.path.read_bytes() == score(pool, tmp_path / "whole").table.path.read_bytes()


def test_rows_without_a_score_are_tried_again(pool, tmp_path):
    picture = pool.parent / "images" / "4.png"
    content = picture.read_bytes()
    picture.unlink()
    assert score(pool, tmp_path / "run").failed == 1
    score(pool, tmp_path / "run")
    assert SEEN == []  # nothing has come
    picture.write_bytes(content)
    assert score(pool, tmp_path / "run").failed == 0
    assert SEEN == ["s4"]


def test_a_touched_picture_is_no_changed_one(pool, tmp_path):
    score(pool, tmp_path / "run")
    os.utime(pool.parent / "images" / "4.png", (1, 1))
    score(pool, tmp_path / "run")
    assert SEEN == []


def test_a_picture_that_changed_is_noticed_where_scores_are_used(pool, tmp_path):
    table = score(pool, tmp_path / "run").table
    for row in (4, 5):
        os.utime(pool.parent / "images" / f"{row}.png", (1, 1))
    select_rows(table, keep="50%").write(tmp_path / "a.jsonl")
    repaint([], pool.parent)
    with pytest.raises(
        PoolError, match=r"picture 'images/6.png' in .* changed since .*run was scored; score the pool ag"
    ):
        select_rows(table, keep="50%").write(tmp_path / "b.jsonl")
    (pool.parent / "images" / "6.png").unlink()  # the scores are right without it
    select_rows(table, keep="50%").write(tmp_path / "c.jsonl")


def test_a_picture_that_changed_under_way_is_noticed_when_the_run_goes_on(pool, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score(pool, tmp_path / "run", method=Sizes(stop_at="s9"))
    (pool.parent / "images" / "2.png").write_bytes(png(78, 100))
    result = score(pool, tmp_path / "run", method=Sizes())
    assert SEEN == ["s2", "s8", "s9"]
    assert result.table.path.read_bytes() == score(pool, tmp_path / "whole").table.path.read_bytes()


def test_a_pool_elsewhere_takes_scores_over_from_a_run_that_is_named(pool, tmp_path):
    score(pool, tmp_path / "run")
    new = write_jsonl(pool.parent / "new.jsonl", append(lines(pool), pool.parent))
    result = score(new, tmp_path / "other", reuse=tmp_path / "run")
    assert SEEN == ["s10", "s11"]
    assert result.table.path.read_bytes() == score(new, tmp_path / "whole").table.path.read_bytes()
    with pytest.raises(RunError, match=r"was scored with other score method options factor \(1.0, now 2.0\)"):
        score(new, tmp_path / "third", method=Sizes(factor=2.0), reuse=tmp_path / "run")


def test_another_pool_in_another_place_is_refused_in_a_run_directory(pool, tmp_path):
    score(pool, tmp_path / "run")
    new = write_jsonl(pool.parent / "new.jsonl", lines(pool)[1:])
    with pytest.raises(RunError, match="holds a run with other score pool"):
        score(new, tmp_path / "run")


def test_other_settings_take_nothing_over(pool, tmp_path):
    score(pool, tmp_path / "run")
    write_jsonl(pool, append(lines(pool), pool.parent))
    with pytest.raises(RunError, match="factor"):
        score(pool, tmp_path / "run", method=Sizes(factor=2.0))


def test_a_damaged_table_is_scored_again_not_taken_over(pool, tmp_path):
    table = score(pool, tmp_path / "run").table.path
    content = bytearray(table.read_bytes())
    content[content.index(b"s1")] ^= 1
    table.write_bytes(content)
    write_jsonl(pool, append(lines(pool), pool.parent))
    result = score(pool, tmp_path / "run")
    assert len(SEEN) == 12
    assert result.table.path.read_bytes() == score(pool, tmp_path / "whole").table.path.read_bytes()


def test_a_run_of_a_model_takes_scores_and_anchors_over(tmp_path):
    here = world()
    data = tmp_path / "data"
    shutil.copytree(here.pool.parent, data)
    pool = data / here.pool.name
    run = tmp_path / "run"
    done(*here.scoring(run, pool=pool, batch_size=1, corrupted=0, reference_folds=2))
    before = ScoreTable(run / "scores.parquet").read().to_pylist()
    reference = ScoreTable(run / "reference.parquet").read()
    rows = lines(pool)
    rows[2]["messages"][1]["content"] = "It is quite another thing."
    write_jsonl(pool, rows)
    assert (
        json.loads(done(*here.scoring(run, pool=pool, batch_size=1, corrupted=0, reference_folds=2), "--json").out)[
            "taken_over"
        ]
        == len(rows) - 1
    )
    table = ScoreTable(run / "scores.parquet")
    assert table.reference is not None
    assert table.reference.read().equals(reference)
    after = table.read().to_pylist()
    assert [row["row"] for row, other in zip(before, after, strict=True) if row != other] == [2]
    fresh = tmp_path / "fresh"
    done(*here.scoring(fresh, pool=pool, batch_size=1, corrupted=0, reference_folds=2))
    assert ScoreTable(fresh / "scores.parquet").read().to_pylist() == after  # a batch of one knows no neighbours


def test_a_changed_picture_of_an_anchor_is_another_request(tmp_path):
    here = world()
    shutil.copytree(here.anchors.parent, tmp_path / "anchors")
    anchors = tmp_path / "anchors" / here.anchors.name
    done(*here.scoring(tmp_path / "run", anchors=anchors, corrupted=0, reference_folds=0))
    (tmp_path / "anchors" / "images" / "100.png").write_bytes(png(5, 64))
    line = refusal(*here.scoring(tmp_path / "run", anchors=anchors, corrupted=0, reference_folds=0))
    assert "other content of pictures of the anchors" in line


def test_run_and_pool_that_were_moved_together_go_on_and_are_used(pool, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        score(pool, tmp_path / "data" / "run", method=Sizes(stop_at="s9"))
    moved = tmp_path / "elsewhere" / "deeper"
    moved.parent.mkdir()
    shutil.move(tmp_path / "data", moved)
    score(moved / "pool.jsonl", moved / "run")
    assert SEEN == ["s8", "s9"]
    again = tmp_path / "again"
    shutil.copytree(moved, again)
    shutil.rmtree(moved)
    select_rows(read_scores(again / "run"), keep="50%").write(tmp_path / "subset.jsonl")
    assert len(lines(tmp_path / "subset.jsonl")) == 5
