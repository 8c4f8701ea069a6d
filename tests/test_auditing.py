"""The audit's statistics against scipy and hand cases, and the audit itself on a tiny model."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from onesteptrain.data.pool import Sample, Turn, Unreadable, draw_rows
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.scoring.audit import (
    AuditOptions,
    AuditRow,
    Estimate,
    audit,
    compare,
    spearman_correlation,
    top_overlap,
    trusted_step_size,
)
from tests.building import checkpoint, sample
from tests.commands import done, refusal, world

OPTIONS = AuditOptions()
FINITE = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(FINITE, st.integers(-2, 2).map(float)), min_size=2, max_size=30))
def test_rank_correlation_is_that_of_scipy_ties_included(pairs):
    a, b = np.array(pairs).T
    correlation = spearman_correlation(a, b)
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert math.isnan(correlation)
    else:
        assert correlation == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)  # round-off of two sums


def test_overlap_of_the_top_rows_in_hand_cases():
    a = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4])
    assert top_overlap(a, a, 0.3) == 1
    assert top_overlap(a, -a, 0.3) == 0
    assert top_overlap(a, np.array([5.0, 0, 4, 0, 3, 0, 0, 0, 0, 0]), 0.3) == pytest.approx(2 / 3)  # 0, 2, 4 of 0, 1, 2
    assert top_overlap(a, a[::-1].copy(), 1.0) == 1
    assert top_overlap(a, a, 0.001) == 1  # at least one row


@pytest.mark.parametrize(
    ("seed", "noise", "rows"), [(0, 0.1, 8), (1, 0.5, 20), (2, 2.0, 60), (3, 20.0, 30), (4, 0.0, 9)]
)
def test_the_bootstrap_interval_contains_the_value(seed, noise, rows):
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=rows)
    row = compare(truth + noise * generator.normal(size=rows), truth, 1e-3, OPTIONS)
    for estimate in (row.spearman, row.top_overlap):
        assert estimate.low - 1e-12 <= estimate.value <= estimate.high + 1e-12  # round-off
        assert -1 - 1e-12 <= estimate.low <= estimate.high <= 1 + 1e-12


def test_more_confidence_gives_a_wider_interval_and_more_rows_a_narrower_one():
    def width(rows, confidence):
        generator = np.random.default_rng(0)
        truth = generator.normal(size=rows)
        options = AuditOptions(confidence=confidence)
        estimate = compare(truth + generator.normal(size=rows), truth, 1e-3, options).spearman
        return estimate.high - estimate.low

    assert width(100, 0.5) < width(100, 0.9) < width(100, 0.99)
    assert width(400, 0.9) < width(100, 0.9)


def test_the_relative_error_is_the_norm_of_the_difference_over_the_norm_of_the_truth():
    truth = np.array([3.0, 4, 0, 0, 0, 0, 0, 0])
    row = compare(truth + np.array([0, 0, 0.6, 0.8, 0, 0, 0, 0]), truth, 1e-3, OPTIONS)
    assert row.relative_error == pytest.approx(1 / 5)


def test_rows_whose_step_left_the_finite_numbers_are_left_out():
    truth = np.arange(10.0)
    whole = compare(truth, truth, 1e-3, OPTIONS)
    holes = compare(np.append(truth, [9.0, -9.0]), np.append(truth, [np.nan, np.inf]), 1e-3, OPTIONS)
    assert holes == whole


@pytest.mark.parametrize("truth", [np.zeros(8), np.full(8, np.nan), np.append(np.full(7, np.inf), 1.0)])
def test_a_step_that_moves_all_rows_alike_or_none_gives_no_made_up_number(truth):
    row = compare(np.arange(8.0), truth, 1e-3, OPTIONS)
    assert all(math.isnan(value) for value in (*row.spearman, *row.top_overlap, row.relative_error))


def rows_at(*pairs):
    return [AuditRow(size, Estimate(value, 0, 1), Estimate(1, 1, 1), 0.0) for size, value in pairs]


def test_the_trusted_step_is_the_largest_before_the_first_that_fails():
    assert trusted_step_size(rows_at((1e-2, 1.0), (1e-4, 1.0), (1e-3, 0.5)), at_least=0.9) == 1e-4
    assert trusted_step_size(rows_at((1e-4, 0.9), (1e-3, 0.95)), at_least=0.9) == 1e-3
    assert trusted_step_size(rows_at((1e-4, 0.8)), at_least=0.9) is None
    assert trusted_step_size(rows_at((1e-4, math.nan), (1e-3, 1.0)), at_least=0.9) is None


def test_the_draw_depends_on_seed_and_uids_and_not_on_the_order():
    pool = [Unreadable("bad", 0, "broken"), *(Sample(f"s{n}", n, (Turn("user", ("?",)),)) for n in range(1, 400))]
    drawn = {row.uid for row in draw_rows(pool, 40, 0)}
    assert len(drawn) == 40
    shuffled = random.Random(0).sample(pool, len(pool))
    assert {row.uid for row in draw_rows(shuffled, 40, 0)} == drawn
    assert drawn < {row.uid for row in draw_rows(pool, 41, 0)}
    assert len(drawn & {row.uid for row in draw_rows(pool, 40, 1)}) < 20  # 4 expected; 20 is eight deviations off
    assert len(draw_rows(pool, 1000, 0)) == 399
    rows = [row.row for row in draw_rows(pool, 40, 0)]
    assert rows == sorted(rows)


@pytest.mark.parametrize(
    "options",
    [{"rows": 7}, {"top_share": 0.0}, {"top_share": 1.0}, {"confidence": 1.0}, {"step_sizes": ()}]
    + [{"step_sizes": (1e-3, size)} for size in (0.0, -1.0, math.nan, math.inf)],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError):
        AuditOptions(**options)


POOL = [sample(row, images=row % 2) for row in range(12)]


@functools.cache
def setting() -> Setting:
    options = LoadOptions(dtype="float64")
    proxy = load_proxy(checkpoint("internvl"), ScopeOptions("last", last_layers=1), options)
    return Setting(proxy, [sample(row) for row in range(30, 33)])


@pytest.mark.parametrize("estimator", ["fd", "jvp"])
def test_for_tiny_steps_the_first_order_ranks_as_the_exact_step_does(estimator):
    told = []
    options = AuditOptions(rows=10, step_sizes=(1e-4, 1e-3))
    result = audit(POOL, OneStep(estimator), setting(), options, lambda *now: told.append(now))
    assert (result.estimator, result.rows, result.failed) == (estimator, 10, 0)
    for row in result.sizes:
        assert row.spearman.value == pytest.approx(1, abs=1e-12)
        assert row.top_overlap == Estimate(1, 1, 1)
        assert row.relative_error < 0.05  # the second-order term, of the order of the step
    assert told == [(done, 20) for done in range(1, 21)]


def test_the_relative_error_falls_with_the_step():
    options = AuditOptions(rows=8, step_sizes=(1e-4, 1e-3))
    small, large = audit(POOL, OneStep("jvp"), setting(), options).sizes
    # the error is O(step**2) and the utility O(step): tenfold; a quarter is left for the third order
    assert large.relative_error / small.relative_error == pytest.approx(10, rel=0.25)


def test_the_estimator_that_an_audit_compares_with_cannot_be_audited():
    with pytest.raises(ConfigError, match="choose auto, fd or jvp"):
        audit(POOL, OneStep("exact"), setting())


def test_too_few_rows_that_can_be_scored_are_refused():
    with pytest.raises(ScoreError, match="7 of 7 drawn rows can be scored; an audit needs at least 8"):
        audit(POOL[:7], OneStep(), setting())


def test_adam_without_moments_is_refused_before_the_pool_or_the_proxy_is_read(tmp_path):
    gone = tmp_path / "no-pool.jsonl"
    for command, more in (("score", ["--out", tmp_path / "run"]), ("audit", ["--out", tmp_path / "audit.json"])):
        arguments = [gone, "--anchors", gone, "--proxy", "no/such-model", "--optimizer", "adam", *more]
        assert "needs the second moments of a warm-up" in refusal(command, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_audit_says_after_a_few_steps_what_all_of_them_will_take(tmp_path):
    said = done(
        *("audit", world().pool, "--anchors", world().anchors, "--proxy", world().proxy, "--device", "cpu"),
        *("--rows", 8, "--step-sizes", 1e-3, "--out", tmp_path / "audit.json"),
    ).err.splitlines()
    assert sum(line.startswith("all exact steps will take about") for line in said) == 1
    assert said.index("loading the proxy") < said.index("anchor gradient")
