"""How sure a ranking is: against refits with fresh draws from a known distribution."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from onesteptrain.errors import ScoreError
from onesteptrain.selection.certainty import anchor_curve, read_parts, stable_share, top_frequency
from onesteptrain.storage.score_table import ScoreTable, write_table

ROWS, PARTS, SIGNAL, NOISE = 4000, 8, 1.0, 2.0


def drawn(seed: int, parts: int = PARTS) -> tuple[np.ndarray, np.ndarray]:
    """True utilities, and what parts say whose noise has a known size."""
    truth = np.random.default_rng(99).normal(0, SIGNAL, ROWS)
    return truth, truth[:, None] + np.random.default_rng(seed).normal(0, NOISE, (ROWS, parts))


def top(values: np.ndarray, share: float) -> set[int]:
    return set(np.argsort(-values)[: round(share * len(values))].tolist())


def test_the_curve_gives_the_reliability_that_was_built_in():
    _, parts = drawn(1)
    for one in anchor_curve(parts, 80, 0.2, [10, 80, 800]):
        per_anchor = NOISE**2 * 80 / PARTS  # a part of ten anchors has a tenth of the variance of one
        wanted = SIGNAL**2 / (SIGNAL**2 + per_anchor / one.anchors)
        assert one.reliability == pytest.approx(wanted, rel=0.1)  # 4,000 rows know a variance ratio to 3 to 5 %


def test_the_overlap_is_that_of_two_fresh_draws():
    _, one = drawn(1)
    _, two = drawn(2)
    seen = len(top(one.mean(1), 0.2) & top(two.mean(1), 0.2)) / (0.2 * ROWS)
    (told,) = anchor_curve(one, 80, 0.2, [80])
    assert told.top_overlap == pytest.approx(seen, abs=0.04)  # 800 top rows: two standard errors are 0.035


def test_frequency_are_those_of_refits():
    _, parts = drawn(1)
    truth, _ = drawn(1)
    frequency = top_frequency(parts, 0.2)
    # what the bootstrap says of the spread is right on average: rows at one measured mean, drawn anew around it
    mean = parts.mean(1)
    spread = NOISE / PARTS**0.5
    generator = np.random.default_rng(5)
    refits = np.zeros(ROWS)
    for _ in range(200):
        refits[list(top(mean + generator.normal(0, spread, ROWS), 0.2))] += 1
    groups = np.digitize(refits / 200, [0.02, 0.2, 0.5, 0.8, 0.98])
    for group in range(6):
        rows = groups == group
        # eight parts know a spread to a quarter, which pulls single frequency towards the middle
        assert frequency[rows].mean() == pytest.approx(refits[rows].mean() / 200, abs=0.06)
    assert truth.shape == mean.shape


def test_two_parts_are_spread_as_wide_as_two_draws_are():
    # resampling two parts gives the mean twice as often as either end; widened by the root of 2, an end at 1 beats 1.2
    wavering = np.array([[-1.0, 1.0], [1.2, 1.2]])
    assert top_frequency(wavering, 0.5)[0] == pytest.approx(0.25, abs=0.1)  # 200 resamples: three standard errors
    assert top_frequency(np.array([[-1.0, 1.0], [1.5, 1.5]]), 0.5)[0] == 0


def test_parts_that_agree_make_a_stable_top():
    truth, _ = drawn(1)
    frequency = top_frequency(np.repeat(truth[:, None], PARTS, 1), 0.2)
    assert stable_share(frequency, 0.2) == 1
    assert set(np.flatnonzero(frequency).tolist()) == top(truth, 0.2)


def test_parts_that_say_nothing_make_no_stable_top():
    noise = np.random.default_rng(0).normal(size=(ROWS, PARTS))
    (told,) = anchor_curve(noise, 80, 0.2, [80])
    assert told.reliability < 0.05
    assert told.top_overlap == pytest.approx(0.2, abs=0.05)  # chance
    assert stable_share(top_frequency(noise, 0.2), 0.2) < 0.6


def test_parts_are_read_without_the_rows_that_have_no_score(tmp_path):
    columns = {"uid": ["a", "b"], "row": [0, 1], "score": [1.0, None], "reason": [None, "no"]}
    parts = pa.array([[0.5, 1.5], None], pa.list_(pa.float32()))
    write_table(pa.table({**columns, "part_utility": parts}), tmp_path / "scores.parquet")
    np.testing.assert_array_equal(read_parts(ScoreTable(tmp_path / "scores.parquet")), [[0.5, 1.5]])


def test_a_table_without_intervals_is_refused(tmp_path):
    write_table(pa.table({"uid": ["a"], "row": [0], "score": [1.0], "reason": [None]}), tmp_path / "scores.parquet")
    with pytest.raises(ScoreError, match="score with --intervals 8"):
        read_parts(ScoreTable(tmp_path / "scores.parquet"))
