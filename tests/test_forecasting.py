"""What scoring will take, told from scorers whose pace and answers are known."""

from __future__ import annotations

import json
import time

import pytest

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.scoring.forecast import forecast
from onesteptrain.scoring.score import score_pool
from onesteptrain.storage.score_table import Record
from tests.pool_files import qa
from tests.test_scoring import SMALL, pool_of, run_in


def whole_pool(folder, rows: int):
    """A pool whose every row can be read."""
    lines = [json.dumps(qa("?" * (row % 13 + 1), id=f"x{row}")) for row in range(rows)]
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    return open_pool(folder / "pool.jsonl")


class Ticking:
    """Every row takes two ticks of a clock that only this scorer moves, and preparing takes fifty."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def prepare(self):
        self.now += 50
        return self

    def __call__(self, samples):
        self.now += 2 * len(samples)
        return [Record(1.0, columns={"vector": [0.5] * 100}) for _ in samples]


def test_time_is_preparation_and_the_pace_of_the_rows(tmp_path, monkeypatch):
    expected = forecast(pool_of(tmp_path, 300), Ticking(monkeypatch).prepare, rows=40)
    assert expected.rows == 300
    assert expected.prepare_seconds == 50
    assert expected.seconds_per_row == pytest.approx(2)
    assert expected.seconds == pytest.approx(50 + 300 * 2)
    assert expected.seconds_low == pytest.approx(expected.seconds)  # an even pace leaves nothing unsure
    assert expected.seconds_high == pytest.approx(expected.seconds)


def test_an_uneven_pace_is_less_sure(tmp_path, monkeypatch):
    scorer = Ticking(monkeypatch)
    paces = iter([9, 1, 3, 1, 3])  # of five groups of 8 rows

    def uneven(samples):
        scorer.now += next(paces) * len(samples)
        return [Record(1.0) for _ in samples]

    expected = forecast(whole_pool(tmp_path, 300), lambda: uneven, rows=40)
    assert expected.seconds_per_row == pytest.approx(2)  # the first group warms up and does not count
    reach = 3.182446 * (4 / 3 / 4) ** 0.5  # t with 3 degrees of freedom, of the mean of 1, 3, 1, 3
    assert expected.seconds_high == pytest.approx(300 * (2 + reach), rel=1e-5)  # the table of t has 7 digits
    assert expected.seconds_low == pytest.approx(300 * (2 - reach), rel=1e-5)


def test_disk_is_about_what_scoring_then_takes(tmp_path, monkeypatch):
    pool = whole_pool(tmp_path, 400)

    def scorer(samples):
        return [
            Record(float(drawn.row), columns={"vector": [drawn.row / (k + 1) for k in range(200)]}) for drawn in samples
        ]

    expected = forecast(pool, lambda: scorer, rows=100)
    table = score_pool(pool, lambda: scorer, run_in(tmp_path / "run"), SMALL).table
    # a small table spends relatively more on its schema, and a large one compresses better
    assert 0.8 < expected.disk_bytes / (2 * table.path.stat().st_size) < 2


def test_rows_that_fail_are_counted(tmp_path):
    groups = []

    def all_but_first(some):
        groups.append(some)
        return [Record(reason="no") if place else Record(1.0) for place, _ in enumerate(some)]

    expected = forecast(pool_of(tmp_path, 100), lambda: all_but_first, rows=20)
    assert expected.tried == 20
    assert expected.failed == 20 - len(groups)


def test_too_few_rows_and_an_empty_pool_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="from 5 rows"):
        forecast(pool_of(tmp_path), lambda: None, rows=5)
    lines = [json.dumps(qa("?", id="x")), "{broken"]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n")
    bad = open_pool(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text("{broken\n{broken\n")
    with pytest.raises(PoolError, match="no row that can be read"):
        forecast(bad, lambda: None)


def test_a_forecast_of_rows_of_which_none_has_a_score_is_refused_with_the_reasons(tmp_path):
    def refuse(samples):
        return [Record(reason="cut off") for _ in samples]

    with pytest.raises(ScoreError, match="none of 20 rows has a score: 20 x cut off"):
        forecast(whole_pool(tmp_path, 40), lambda: refuse, rows=20)
