"""Paired comparisons: exact where there is a closed form, and intervals that hold the truth as often as they say."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import bootstrap

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation import Graded, paired
from onesteptrain.evaluation.paired import paired_difference, paired_marks


def marks(wins, losses, both, neither):
    """Two arms with so many questions of each outcome."""
    first = np.array([True] * wins + [False] * losses + [True] * both + [False] * neither)
    second = np.array([False] * wins + [True] * losses + [True] * both + [False] * neither)
    return first, second


@pytest.mark.parametrize(("wins", "losses"), [(8, 2), (1, 0), (5, 5), (3, 12), (0, 6)])
def test_the_p_value_of_two_single_runs_is_the_binomial_tail_of_mcnemar(wins, losses):
    first, second = marks(wins, losses, 20, 10)
    result = paired_difference([first], [second])
    discordant = wins + losses
    tail = sum(comb(discordant, k) for k in range(max(wins, losses), discordant + 1)) / 2**discordant
    assert result.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-12)  # both in float64
    assert (result.wins, result.losses, result.ties, result.test) == (wins, losses, 30, "mcnemar")
    assert result.value == pytest.approx(100 * (wins - losses) / len(first), rel=1e-12)


def test_swapping_the_arms_changes_the_sign_and_nothing_else():
    first, second = marks(12, 5, 40, 20)
    there, back = paired_difference([first], [second], seed=3), paired_difference([second], [first], seed=3)
    # the same draws, so that only float64 round-off is left
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low), abs=1e-9)
    assert (back.wins, back.losses, back.p_value) == (there.losses, there.wins, there.p_value)


def test_identical_runs_differ_by_nothing_for_sure():
    first, _ = marks(0, 0, 7, 3)
    result = paired_difference([first], [first.copy()])
    assert (result.value, result.low, result.high, result.p_value, result.ties) == (0, 0, 0, 1, 10)


def test_arms_with_the_same_several_runs_differ_by_nothing_but_not_for_sure():
    runs = list(np.random.default_rng(0).random((3, 50)) < 0.6)
    result = paired_difference(runs, [run.copy() for run in runs])
    assert (result.value, result.wins, result.losses) == (0, 0, 0)
    assert result.low < 0 < result.high
    assert result.p_value > 0.5


def test_one_run_an_arm_gives_the_interval_of_scipys_paired_bootstrap():
    first, second = marks(30, 15, 100, 55)
    result = paired_difference([first], [second])
    other = bootstrap(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    # The end of an interval is a 2.5 % quantile of 9,999 draws. Its own standard error is sqrt(.025 * .975 / 9999) over
    # the density there, 0.058 standard deviations: 0.025 standard deviations of 3.3 points, 0.09; two such, at 4 sigma.
    assert (result.low, result.high) == pytest.approx((100 * other.low, 100 * other.high), abs=0.5)


def test_what_is_alike_in_both_arms_does_not_widen_the_interval():
    """Pairing: 1,000 questions of which 20 differ tell more than two independent samples of 1,000 would."""
    result = paired_difference(*([arm] for arm in marks(15, 5, 490, 490)))
    unpaired = 2 * 1.96 * 100 * np.sqrt(2 * 0.25 / 1000)
    paired_width = 2 * 1.96 * 100 * np.sqrt((20 / 1000 - 0.01**2) / 1000)  # variance of +1, -1 and 0
    assert result.high - result.low == pytest.approx(paired_width, rel=0.06)  # the ends lie on a grid of 0.1 points
    assert result.high - result.low < unpaired / 3


def drawn(random, runs, questions, shift, spread):
    """Runs of one arm: right with a chance of 0.6 + shift, moved by the run's own luck."""
    luck = spread * random.standard_normal(runs)
    return [random.random(questions) < 0.6 + shift + luck[run] for run in range(runs)]


@pytest.mark.parametrize(("runs", "spread"), [((1, 1), 0.0), ((3, 3), 0.05), ((5, 3), 0.05)])
def test_the_interval_holds_the_true_difference_about_as_often_as_it_says(runs, spread, monkeypatch):
    monkeypatch.setattr(paired, "_RESAMPLES", 499)  # enough for a 95 % interval, and quick
    random = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        arms = drawn(random, runs[0], 200, 0.05, spread), drawn(random, runs[1], 200, 0.0, spread)
        result = paired_difference(*arms, seed=trial)
        held += result.low <= 5 <= result.high
    # 95 %, less 3 standard errors of sqrt(.95 * .05 / 300) = 1.3 %, less 1 % for the coarse draws. No upper limit:
    # resampling both runs and questions is known to be on the wide side.
    assert held / 300 >= 0.90


def test_runs_that_vary_widen_the_interval_of_a_difference_that_questions_alone_would_call_sure():
    random = np.random.default_rng(1)
    first = [np.concatenate([np.ones(60 + jump, bool), np.zeros(40 - jump, bool)]) for jump in (-15, 0, 15)]
    second = [random.permutation(np.arange(100) < 50) for _ in range(3)]
    several = paired_difference(first, second)
    steady = paired_difference([first[1]] * 3, second)
    assert several.high - several.low > 1.5 * (steady.high - steady.low)
    assert several.test == "bootstrap"


def test_thirds_that_add_up_to_the_same_share_are_a_tie():
    first = [np.array([run == k for k in range(3)]) for run in range(3)]
    second = [np.array([run != k for k in range(3)]) for run in range(3)]
    result = paired_difference(first * 2, first[::-1] + first)
    assert (result.wins, result.losses, result.ties) == (0, 0, 3)
    assert paired_difference(second, first).wins == 3


def graded(uid, correct, answer="1"):
    return Graded(uid, "", "", "", answer, correct, True, None, {})


def test_questions_are_paired_by_name_and_not_by_place():
    first = [graded("a", True), graded("b", False), graded("c", True)]
    one, two = paired_marks(first, [graded("c", False), graded("a", True), graded("b", True)])
    assert one.tolist() == [True, False, True]
    assert two.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "other", [[graded("a", True)], [graded("a", True), graded("x", True)], [graded("a", True)] * 2]
)
def test_evaluations_of_other_questions_are_refused(other):
    with pytest.raises(ConfigError, match=r"not about the same questions: .* such as 'b'"):
        paired_marks([graded("a", True), graded("b", True)], other)


def test_a_question_whose_right_answer_has_changed_is_another_question():
    with pytest.raises(ConfigError, match="another right answer, such as 'a'"):
        paired_marks([graded("a", True)], [graded("a", True, answer="2")])


def test_arms_without_runs_of_other_lengths_or_with_a_strange_level_are_refused():
    run = np.ones(3, bool)
    for first, second in (([], [run]), ([run], [run[:2]]), ([run[:0]], [run[:0]])):
        with pytest.raises(ConfigError, match="each needs at least one run, and all runs the same questions"):
            paired_difference(first, second)
    with pytest.raises(ConfigError, match=r"confidence is 95; it is a share"):
        paired_difference([run], [run], confidence=95)
