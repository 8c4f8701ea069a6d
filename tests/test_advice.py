"""Advice on shares, against curves whose knee and sums are known."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from onesteptrain.cli import main
from onesteptrain.cli.choosing import describe_advice
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.advice import advise, find_knee
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import ScoreTable, write_table
from tests.test_trust import ANCHORS, ROWS, mixture, signals, table_of


def plain_table(folder, utility, **columns) -> ScoreTable:
    rows = len(utility)
    base = {"uid": [f"u{row}" for row in range(rows)], "row": np.arange(rows), "score": utility, "utility": utility}
    write_table(pa.table(base | {"reason": pa.nulls(rows, pa.string())} | columns), folder / "scores.parquet")
    return ScoreTable(folder / "scores.parquet")


def test_the_knee_of_a_bent_line_is_where_it_bends():
    curve = np.concatenate([np.linspace(0.04, 0.8, 20), np.linspace(0.8025, 1.0, 80)])
    assert find_knee(curve) == 20


def test_without_a_gate_a_share_keeps_the_sums_of_the_best_rows(tmp_path):
    utility = np.array([4.0, -1.0, 3.0, 2.0, 1.0, -2.0, 0.5, 0.5, -0.5, 0.0])
    table = plain_table(tmp_path, utility, tokens=[10, 20, 30, 40, 50, 60, 70, 80, 90, 50])
    kept = {line.share: line.kept for line in advise(table).shares}
    assert kept[0.2].utility_share == pytest.approx(7 / 11)
    assert kept[0.5].utility_share == pytest.approx(10.5 / 11)
    assert kept[1.0].harmful == 3
    assert kept[0.2].tokens_share == pytest.approx(40 / 500)
    assert (kept[0.2].rows, kept[0.2].tokens) == (2, 40)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("keep", ["20%", "90%"])
def test_advise_tells_the_figures_that_select_states(tmp_path, trusted, keep):
    rows, _ = mixture(0.5)
    tokens = np.random.default_rng(0).integers(100, 300, ROWS)
    utility = np.random.default_rng(1).normal(0, 1, ROWS)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7) if trusted else None, utility=utility, tokens=tokens)
    selection = select_rows(table, keep=keep)
    told = {f"{line.share:.0%}": line.kept for line in advise(table).shares}[keep]
    assert told == (selection.expected if trusted else selection.kept)
    if trusted:  # a draw of some 1,700 rows that pass: a sum of so many lies within a tenth of its mean
        assert selection.kept._replace(tokens=0, harmful=0) == pytest.approx(
            told._replace(tokens=0, harmful=0), rel=0.1
        )
        assert (selection.kept.tokens, selection.kept.harmful) == pytest.approx((told.tokens, told.harmful), rel=0.1)


def test_the_expectation_of_a_draw_is_its_mean_over_seeds(tmp_path):
    rows, _ = mixture(0.5)
    utility = np.random.default_rng(1).normal(0, 1, ROWS)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7), utility=utility)
    drawn = [select_rows(table, keep="5%", options=SelectOptions(draw_seed=seed)) for seed in range(40)]
    for name in ("utility_share", "harmful", "clean_share"):
        seen = [getattr(selection.kept, name) for selection in drawn]
        error = np.std(seen) / len(seen) ** 0.5
        assert abs(np.mean(seen) - getattr(drawn[0].expected, name)) <= 4 * error + 1e-12  # of the mean of 40 draws


def test_without_a_reference_the_knee_is_the_advice(tmp_path):
    advice = advise(plain_table(tmp_path, np.concatenate([np.full(30, 10.0), np.full(70, 0.1)])))
    assert advice.recommended == advice.knee == pytest.approx(0.3)
    assert advice.verdict is None
    assert "score with --intervals 8" in describe_advice(advice)


def test_with_a_reference_the_advice_is_what_passes_the_gate(tmp_path):
    rows, clean = mixture(0.5)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7), utility=-rows[:, 1])
    advice = advise(table)
    trust = measure_trust(table)
    assert advice.recommended == trust.passing().mean()
    kept = {line.share: line.kept for line in advice.shares}
    selection = select_rows(table, keep="20%")
    # a kernel as wide as 100 anchors need blurs the edge, to the safe side
    assert clean[selection.rows].mean() > kept[0.2].clean_share
    passing = int(trust.passing().sum())
    assert kept[0.2].rows == 0.2 * ROWS
    assert kept[1.0].rows == kept[0.8].rows == passing == len(select_rows(table, keep="80%"))


def test_intervals_say_how_sure_it_is(tmp_path):
    rows, _ = mixture(0.5)
    generator = np.random.default_rng(0)
    parts = -rows[:, 1][:, None] + generator.normal(0, 0.01, (ROWS, 8))
    listed = pa.array(parts.astype(np.float32).tolist(), pa.list_(pa.float32()))
    advice = advise(table_of(tmp_path, rows, signals(ANCHORS, 7), utility=-rows[:, 1], part_utility=listed))
    assert advice.stable > 0.95
    assert [line.anchors for line in advice.anchors] == [10, 20, 50, 100, 200, 500, 1000]
    assert advice.anchors[3].reliability > 0.99
    assert "would stay with other anchors" in describe_advice(advice)


def test_a_method_without_utility_gives_no_advice(tmp_path):
    columns = {"uid": ["a"], "row": [0], "score": [1.0], "reason": [None]}
    write_table(pa.table(columns), tmp_path / "scores.parquet")
    with pytest.raises(ScoreError, match="rests on method one_step"):
        advise(ScoreTable(tmp_path / "scores.parquet"))


def test_an_epoch_takes_the_time_of_its_rows_or_of_their_tokens(tmp_path):
    utility = np.array([4.0, 3.0, 2.0, 1.0])
    told = advise(plain_table(tmp_path, utility), seconds_per_row=0.5)
    assert {line.share: line.train_seconds for line in told.shares}[0.5] == pytest.approx(0.5 * 2)
    (tmp_path / "tokens").mkdir()
    table = plain_table(tmp_path / "tokens", utility, tokens=[10, 30, 30, 30])
    told = advise(table, seconds_per_row=3600)
    assert {line.share: line.train_seconds for line in told.shares}[0.5] == pytest.approx(3600 * 4 * 40 / 100)
    assert "1.6 h" in describe_advice(told)
    assert all(line.train_seconds is None for line in advise(table).shares)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_no_time_is_refused(tmp_path, seconds):
    with pytest.raises(ConfigError, match="train_seconds_per_row is"):
        advise(plain_table(tmp_path, np.ones(4)), seconds_per_row=seconds)


def test_the_command_prints_the_advice_for_people_and_for_machines(tmp_path, capsys):
    plain_table(tmp_path, np.concatenate([np.full(30, 10.0), np.full(70, 0.1)]))
    assert main(["advise", str(tmp_path), "--train-seconds-per-row", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["recommended"] == pytest.approx(0.3)
    assert facts["shares"][-1]["train_seconds"] == 200
    assert main(["advise", str(tmp_path)]) == 0
    assert "advice: keep at most 30.0%" in capsys.readouterr().out
