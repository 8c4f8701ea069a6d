"""What the trust gate learns from corrupted anchors: weights, power, blindness, and how clean a pool is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

import onesteptrain as ost
from onesteptrain.data.corruption import STYLE
from onesteptrain.data.pool import open_pool
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.kinds import find_kinds
from onesteptrain.selection.mixture import clean_intervals, clean_share, count
from onesteptrain.selection.power import measure_power
from onesteptrain.selection.separation import Examples, distinctness, equal_weights, separate
from onesteptrain.selection.trust import SECOND_SIGNALS, SIGNALS, measure_trust, p_values, read_examples
from onesteptrain.storage.score_table import ScoreTable, write_table
from onesteptrain.synthetic import SyntheticOptions, make_synthetic
from tests.building import checkpoint as random_checkpoint
from tests.test_trust import ANCHORS, SEEN, UNSEEN, corrupted_like, mixture, signals, table_of


def moved(count: int, seed: int, shifts: tuple[float, float, float]) -> np.ndarray:
    """Log-normal signals, each with a shift of its own."""
    logs = np.random.default_rng(seed).normal(0, 1, (count, 3)) + np.array(shifts)
    return np.exp(logs) * np.array([-1.0, 1.0, 1.0])


def examples(anchors: np.ndarray, corrupted: np.ndarray, errors: np.ndarray) -> Examples:
    """All of one kind of rows."""
    zeros = (np.zeros(len(part), np.int64) for part in (anchors, corrupted))
    return Examples(SIGNALS, anchors, next(zeros), corrupted, next(zeros), errors)


def test_a_signal_that_tells_nothing_has_little_weight_and_few_anchors_pull_towards_equal_ones():
    kinds = np.repeat(["cut_off"], 300)
    many, few = (
        separate(examples(moved(count, 1, (0, 0, 0)), moved(300, 2, (0, 3, 0)), kinds)).weights for count in (1000, 20)
    )
    assert many.sum() == pytest.approx(1)
    assert many[1] > 0.8
    assert many[1] > few[1] > 1 / 3


def test_learned_weights_tell_bad_rows_apart_better_than_equal_ones():
    anchors, bad, kinds = moved(100, 1, (0, 0, 0)), moved(300, 2, (0, 2, 0)), np.repeat(["cut_off"], 300)
    others = examples(moved(5000, 3, (0, 0, 0)), bad, kinds)
    learned = distinctness(separate(examples(anchors, bad, kinds)), others)
    equal = distinctness(equal_weights(SIGNALS, anchors), others)
    best = norm.cdf(2 / 2**0.5)  # by the one signal that tells, the most there is
    assert best - 0.03 < learned < best + 0.03  # 300 rows know the area to 0.01
    assert learned > equal + 0.03


def test_a_kind_counts_alike_however_many_copies_it_has():
    anchors, harmful, surprising = moved(200, 1, (0, 0, 0)), moved(20, 2, (2, 0, 0)), moved(20, 3, (0, 2, 0))

    def pull(times: int) -> np.ndarray:
        """How much each logarithm counts; the scales that weights refer to change with the copies."""
        copies = np.concatenate([harmful, *[surprising] * times])
        separation = separate(examples(anchors, copies, np.repeat(["other_picture", "cut_off"], [20, 20 * times])))
        return separation.weights / separation.scale / (separation.weights / separation.scale).sum()

    # harm would have a weight below 0.1 if all copies counted alike
    np.testing.assert_allclose(pull(20), pull(1), atol=0.12)
    assert pull(20)[0] > 0.25


def test_a_change_of_style_alone_moves_neither_weights_nor_what_is_said(tmp_path):
    rows, _ = mixture(0.5)
    copies, kinds = corrupted_like(SEEN, 9)
    styled = np.concatenate([copies, moved(200, 5, (1, 0, 0))]), np.concatenate([kinds, np.repeat([STYLE], 200)])
    plain, more = (
        table_of(tmp_path / name, rows, signals(ANCHORS, 7), tried)
        for name, tried in (("plain", (copies, kinds)), ("more", styled))
    )
    learned = (separate(read_examples(table, find_kinds(table))) for table in (plain, more))
    assert all(np.array_equal(one, other) for one, other in zip(*learned, strict=True))
    first, second = measure_trust(plain), measure_trust(more)
    np.testing.assert_array_equal(first.passing(), second.passing())
    assert second.verdict.clean == first.verdict.clean
    assert second.verdict.power.at_cut == first.verdict.power.at_cut


def test_a_kind_that_nobody_could_notice_drops_no_row():
    """It looks clean at every cut; if it moved the cut, clean rows would go with it and harm would stay."""
    generator = np.random.default_rng(0)
    anchors, seen, unseen = generator.normal(0, 1, 200), generator.normal(6, 1, 100), generator.normal(0, 1, 300)
    rows = np.concatenate([generator.normal(0, 1, 600), generator.normal(6, 1, 1400)])
    kinds = np.repeat(["cut_off", "wrong_step", "wrong_result", "carried_error"], 100)
    one_kind = np.zeros(len(rows), np.int64)
    without = count(rows, anchors, seen, kinds[:100]).probability(rows, one_kind) >= 0.5
    with_it = count(rows, anchors, np.concatenate([seen, unseen]), kinds).probability(rows, one_kind) >= 0.5
    assert without[:600].mean() > 0.98
    np.testing.assert_array_equal(with_it, without)


@pytest.mark.parametrize("zeros", [0.6, 1.0])
def test_a_signal_that_is_zero_for_most_anchors_is_no_switch(zeros):
    """As harm is for short answers; a tiny harm must not stand out like a large one."""
    anchors = moved(100, 1, (0, 0, 0))
    anchors[: round(100 * zeros), 0] = 0.0
    separation = equal_weights(SIGNALS, anchors)
    none, tiny, usual = (np.array([[-harm, 1.0, 1.0]]) for harm in (0.0, 1e-9, 1.0))
    steps = [float(separation.nonconformity(row)[0]) for row in (none, tiny, usual)]
    assert steps[1] - steps[0] < 1e-3
    assert steps[1] <= steps[2] < steps[0] + 10


def test_power_is_that_of_a_shifted_normal():
    generator = np.random.default_rng(0)
    kinds = np.repeat(["wrong_step", "cut_off", STYLE], 4000)
    corrupted = generator.normal(0, 1, 12_000) + np.repeat([1.0, 3.0, 9.0], 4000)
    power = measure_power(generator.normal(0, 1, 20_000), corrupted, kinds, 2.0)
    by_kind = {kind.kind: kind for kind in power.kinds}
    limit = norm.ppf(0.95)
    for kind, shift in (("wrong_step", 1.0), ("cut_off", 3.0)):
        assert by_kind[kind].at_cut.value == pytest.approx(norm.sf(2 - shift), abs=0.025)  # 3 standard errors
        assert by_kind[kind].at_false_alarms.value == pytest.approx(norm.sf(limit - shift), abs=0.03)
    # a mere change of style is no error, and no credit either
    assert power.at_cut == pytest.approx((norm.sf(1.0) + norm.sf(-1.0)) / 2, abs=0.025)


@pytest.mark.parametrize("missed", [0.0, 0.3, 0.5])
def test_the_clean_share_is_right_where_a_part_of_the_harm_is_not_noticed(missed):
    """Storey's estimator alone would count the missed rows as clean."""
    generator = np.random.default_rng(1)

    def wrong(count: int) -> np.ndarray:
        return generator.normal(0, 1, count) + 6 * (generator.random(count) >= missed)

    anchors = generator.normal(0, 1, 5000)
    rows = np.concatenate([generator.normal(0, 1, 6000), wrong(4000)])
    counted = count(rows, anchors, wrong(5000), np.repeat(["cut_off"], 5000))
    assert counted.clean_shares() == pytest.approx(0.6, abs=0.03)
    assert clean_share(p_values(rows, anchors)) == pytest.approx(0.6 + 0.4 * missed, abs=0.03)


def test_intervals_cover_the_truth_where_the_pool_errs_as_the_copies_do(monkeypatch):
    monkeypatch.setattr("onesteptrain.selection.mixture._RESAMPLES", 60)  # coarser ends, and faster
    covered, shifts = [], {"wrong_step": 1.0, "cut_off": 4.0, "other_picture": 3.0, "other_answer": 5.0}
    for seed in range(60):
        generator = np.random.default_rng(seed)
        clean = generator.uniform(0.2, 1.0)
        kinds = np.repeat(list(shifts), 30)
        corrupted = generator.normal(0, 1, len(kinds)) + np.repeat(list(shifts.values()), 30)
        wrong = generator.choice(list(shifts.values()), round(2000 * (1 - clean)))
        rows = generator.normal(0, 1, 2000)
        rows[: len(wrong)] += wrong
        is_clean = np.arange(2000) >= len(wrong)
        pool, passing = clean_intervals(count(rows, generator.normal(0, 1, 100), corrupted, kinds), np.array([1.5]))
        covered.append([pool.low <= clean <= pool.high, passing.low <= is_clean[rows <= 1.5].mean() <= passing.high])
    # 95 % are meant; of 60 pools, 50 would be seen in one of a thousand such tests
    assert np.mean(covered, axis=0).min() > 0.84


def test_where_corrupted_anchors_look_like_anchors_the_gate_says_that_it_is_blind(tmp_path):
    rows, _ = mixture(0.5)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7), corrupted_like(UNSEEN, 9))
    verdict = measure_trust(table).verdict
    assert verdict.blind
    assert verdict.clean is None
    assert verdict.passing_clean is None
    assert "blind" in verdict.sentences()[0]
    selection = select_rows(table, keep="20%")
    assert (selection.gate, selection.prefer, selection.dropped) == ("blind", "draw", 0)
    assert selection.kept.clean_share is None
    assert selection.summary()["verdict"]["blind"]
    asked = select_rows(table, keep="20%", options=SelectOptions(gate="trust"))
    assert asked.gate == "trust"
    assert asked.kept.clean_share is None


def test_errors_beyond_all_rows_of_a_clean_pool_are_noticed(tmp_path):
    chance = np.random.default_rng(0)
    rows = signals(500, 1)
    far = -np.exp(chance.normal(20, 0.1, (90, 3))) * [1.0, -1.0, -1.0]
    table = table_of(tmp_path, rows, signals(ANCHORS, 7), (far, np.repeat(list(SEEN), 30)))
    verdict = measure_trust(table).verdict
    assert verdict.clean.value > 0.99
    assert verdict.power.at_cut == 1.0


def test_where_they_do_not_it_says_what_it_would_notice(tmp_path):
    rows, clean = mixture(0.5)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7), corrupted_like({**SEEN, "wrong_result": 0.0}, 9))
    verdict = measure_trust(table).verdict
    assert not verdict.blind
    power = {kind.kind: kind.at_cut.value for kind in verdict.power.kinds}
    assert min(power[kind] for kind in SEEN) > 0.7
    assert power["wrong_result"] < 0.4  # as many anchors are dropped
    assert verdict.clean.low <= clean.mean() <= verdict.clean.high
    assert any("mostly missed: wrong_result" in sentence for sentence in verdict.sentences())


def test_without_corrupted_anchors_it_says_that_it_does_not_know_its_power(tmp_path):
    rows, _ = mixture(0.5)
    verdict = measure_trust(table_of(tmp_path, rows, signals(ANCHORS, 7))).verdict
    assert verdict.power is None
    assert "not known" in verdict.sentences()[-1]
    assert json.loads(json.dumps(verdict.facts(), allow_nan=False))["clean"]["low"] is None


@pytest.mark.parametrize(("second", "chosen"), [(5.0, SECOND_SIGNALS), (0.0, SIGNALS)])
def test_the_losses_of_a_second_pass_count_only_where_they_tell_more(tmp_path, second, chosen):
    table = table_of(
        tmp_path,
        moved(500, 1, (0, 0, 0)),
        moved(100, 2, (0, 0, 0)),
        (moved(90, 3, (2, 2, 2)), np.repeat(["cut_off"], 90)),
    )
    shifts = {"scores": 0.0, "reference": 0.0, "corrupted": second}
    for place, (name, shift) in enumerate(shifts.items()):
        path = tmp_path / f"{name}.parquet"
        rows = ScoreTable(path).read()
        more = moved(rows.num_rows, 10 + place, (0, shift, shift))
        for column, values in zip(SECOND_SIGNALS[1:], more.T[1:], strict=True):
            rows = rows.append_column(column, [values])
        write_table(rows, path)
    assert read_examples(table, find_kinds(table)).signals == chosen
    assert set(measure_trust(table).verdict.weights) == set(chosen)


@pytest.mark.parametrize(
    ("rows", "anchors", "words"),
    [
        ((40, 90), (30, 100), []),
        ((40, 90), (2, 4), ["100% of the rows have answers that are longer than any anchor's", "100% of the anchors"]),
        (
            (5, 300),
            (100, 140),
            ["of the rows have answers that are shorter", "of the rows have answers that are longer"],
        ),
    ],
)
def test_anchors_that_answer_otherwise_than_the_pool_are_worth_a_word(tmp_path, rows, anchors, words):
    generator = np.random.default_rng(0)
    table = table_of(tmp_path, signals(400, 1), signals(ANCHORS, 2), corrupted_like(SEEN, 3))
    for name, (low, high) in (("scores", rows), ("reference", anchors)):
        path = tmp_path / f"{name}.parquet"
        there = ScoreTable(path).read()
        lengths = generator.integers(low, high, there.num_rows)
        write_table(there.append_column("answer_tokens", [lengths]).append_column("tokens", [lengths + 20]), path)
    told = measure_trust(table).verdict.unlike
    assert len(told) == len(words)
    assert all(word in sentence for word, sentence in zip(words, told, strict=True))
    assert measure_trust(table).verdict.sentences()[-len(told) :] == told or not told


def test_a_proxy_of_random_weights_is_blind(tmp_path):
    """It has learned nothing, so that it cannot tell a right answer from a wrong one."""
    data = make_synthetic(
        "digits", SyntheticOptions(pool_rows=60, heldout_rows=40, benchmark_rows=1), tmp_path / "data"
    )
    anchors = open_pool(data.heldout)
    scores = ost.score(open_pool(data.pool), anchors=anchors, proxy=str(random_checkpoint()), out=tmp_path / "run")
    verdict = measure_trust(scores).verdict
    assert verdict.blind
    assert select_rows(scores, keep="20%").kept.clean_share is None
