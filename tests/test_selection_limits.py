"""Gates, quotas, budgets, repeats and preferences together: no part of a request makes another go unheard."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.cli.choosing import describe_selection
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection import setwise as setwise_module
from onesteptrain.selection.quotas import Wanted, share_out, share_tokens, to_groups
from onesteptrain.selection.setwise import fresh_state, greedy, setwise_order
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import ScoreTable
from tests.test_preferences import gradients, listed, set_utility
from tests.test_preferences import table_of as utility_table
from tests.test_trust import ANCHORS, ROWS, mixture, signals
from tests.test_trust import table_of as signal_table

PREFERENCES = ("top", "draw", "cover", "setwise", "maxmin")


def paired(folder: Path, pairs: int, **columns) -> ScoreTable:
    """Rows of which two and two have the same representation; only the gradients are all different."""
    vectors = np.repeat(np.random.default_rng(0).normal(size=(pairs, 8)), 2, axis=0)
    sketches, utility = gradients(2 * pairs, dimensions=40)
    utility = np.abs(utility)
    groups = {"utility.a": utility, "utility.b": utility[::-1].copy()}
    lists = {"representation": listed(vectors), "sketch": listed(sketches)}
    return utility_table(folder, utility, **groups, **lists, **columns)


# Gates


@pytest.mark.parametrize("gate", ["trust", "50%"])
def test_a_lowest_value_holds_behind_every_gate(tmp_path, gate):
    rows, _ = mixture(0.5)
    table, score = signal_table(tmp_path, rows, signals(ANCHORS, 7)), -rows[:, 1]
    floor = float(np.quantile(score, 0.7))
    passing = select_rows(table, keep="100%", options=SelectOptions(gate=gate, prefer="top")).rows
    for fill in (False, True):
        selection = select_rows(table, keep=f">={floor}", options=SelectOptions(gate=gate, fill=fill))
        expected = np.arange(ROWS) if fill else passing
        assert selection.rows.tolist() == expected[score[expected] >= floor].tolist()
        assert (selection.gate, selection.dropped) == (gate, ROWS - len(passing))
    with pytest.raises(ScoreError, match=f"that passes the gate {gate} has at least 1e\\+09"):
        select_rows(table, keep=">=1e9", options=SelectOptions(gate=gate))


def test_a_named_column_is_ranked_by_behind_the_trust_gate_too(tmp_path):
    rows, _ = mixture(0.5)
    table = signal_table(tmp_path, rows, signals(ANCHORS, 7))
    passing = np.flatnonzero(measure_trust(table).passing())
    selection = select_rows(table, keep="10%", options=SelectOptions(by="harm", gate="trust"))
    assert (selection.gate, selection.prefer) == ("trust", "top")
    assert selection.rows.tolist() == sorted(passing[np.argsort(-rows[passing, 0])[: ROWS // 10]].tolist())


@pytest.mark.parametrize(
    ("gate", "prefer", "by"),
    list(itertools.product(["auto", "trust", "none", "50%"], ["auto", "top", "draw"], [None, "harm"])),
)
def test_options_that_draw_are_those_by_which_another_seed_keeps_other_rows(tmp_path, gate, prefer, by):
    table = signal_table(tmp_path, mixture(0.5)[0], signals(ANCHORS, 7))
    asked = [SelectOptions(gate=gate, prefer=prefer, by=by, draw_seed=seed) for seed in (0, 1)]
    one, two = (select_rows(table, keep="10%", options=options).rows.tolist() for options in asked)
    assert (one != two) == asked[0].draws


# Repeats


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_every_preference_finds_as_many_distinct_rows_as_there_are(tmp_path, prefer):
    table = paired(tmp_path, 30)
    for count in (20,) if prefer == "setwise" else (20, 30):  # set-wise ends where no further row adds anything
        selection = select_rows(table, keep=str(count), options=SelectOptions(prefer=prefer, distinct=0.99))
        assert len(set((selection.rows // 2).tolist())) == len(selection.rows) == count


def test_rows_that_fill_up_are_distinct_too(tmp_path):
    rows, _ = mixture(0.7)
    vectors = np.repeat(np.random.default_rng(0).normal(size=(ROWS // 2, 8)), 2, axis=0)
    table = signal_table(tmp_path, rows, signals(ANCHORS, 7), representation=listed(vectors))
    selection = select_rows(table, keep="45%", options=SelectOptions(fill=True, distinct=0.99))
    assert len(set((selection.rows // 2).tolist())) == len(selection.rows) == 0.45 * ROWS
    assert selection.skipped_similar > 0


def test_to_fill_up_makes_up_for_the_gate_and_not_for_repeats(tmp_path):
    rows, _ = mixture(0.5)
    passing = measure_trust(signal_table(tmp_path, rows, signals(ANCHORS, 7))).passing()
    generator = np.random.default_rng(0)
    few, many = generator.normal(size=(10, 8)), generator.normal(size=(ROWS, 8))
    vectors = np.where(passing[:, None], few[np.arange(ROWS) % 10], many)  # what was dropped would be distinct
    table = signal_table(tmp_path, rows, signals(ANCHORS, 7), representation=listed(vectors))
    selection = select_rows(table, keep="20%", options=SelectOptions(fill=True, distinct=0.999))
    assert len(selection.rows) == 10
    assert passing[selection.rows].all()
    assert "--fill" not in describe_selection(selection, tmp_path / "out")


def test_a_row_to_fill_up_with_needs_a_vector_too(tmp_path):
    rows, _ = mixture(0.7)
    vectors = np.random.default_rng(0).normal(size=(ROWS, 8))
    passing = measure_trust(signal_table(tmp_path, rows, signals(ANCHORS, 7))).passing()
    vectors[np.flatnonzero(~passing)[0]] = 0.0
    table = signal_table(tmp_path, rows, signals(ANCHORS, 7), representation=listed(vectors))
    assert len(select_rows(table, keep="10%", options=SelectOptions(distinct=0.999)).rows) == 0.1 * ROWS
    with pytest.raises(ScoreError, match="has a score but no representation to compare"):
        select_rows(table, keep="45%", options=SelectOptions(distinct=0.999, fill=True))


# Quotas


def grouped(folder: Path, **columns) -> ScoreTable:
    """300 rows of group a and 100 of group b, which have all the highest scores."""
    skill = np.repeat(["a", "b"], [300, 100])
    score = np.where(skill == "a", 1.0, 2.0) + np.linspace(0, 0.1, 400)
    return utility_table(folder, score, skill=skill, **columns)


@pytest.mark.parametrize("keep", ["100", "1000 tokens", "25 steps of 4", "25%"])
def test_quotas_hold_for_every_kind_of_budget(tmp_path, keep):
    table = grouped(tmp_path, tokens=np.full(400, 10))
    assert select_rows(table, keep=keep, options=SelectOptions(quota="skill")).groups == {"a": 75, "b": 25}


def test_a_lowest_value_says_no_number_to_share_out(tmp_path):
    with pytest.raises(ConfigError, match="gives no number of rows to share out; leave quota out"):
        select_rows(grouped(tmp_path), keep=">=1.5", options=SelectOptions(quota="skill"))


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), min_size=1, max_size=40),
    st.integers(1, 400),
    st.sampled_from(["pool", "equal", "eligible"]),
)
def test_tokens_are_shared_out_until_no_further_row_fits(rows, limit, shares):
    groups, tokens = to_groups([name for name, _ in rows]), np.array([float(one) for _, one in rows])
    ordered = np.random.default_rng(0).permutation(len(rows))
    given_out = share_tokens(groups, ordered, tokens[ordered], limit, shares=shares)

    def cost(counts) -> float:
        of_group = [[tokens[row] for row in ordered if groups.codes[row] == one] for one in range(len(groups.names))]
        return sum(sum(mine[:count]) for mine, count in zip(of_group, counts, strict=True))

    count = int(given_out.sum())
    assert given_out.tolist() == share_out(groups, ordered, count, shares=shares).tolist()
    assert cost(given_out) <= limit
    if count < len(rows):
        assert cost(share_out(groups, ordered, count + 1, shares=shares)) > limit


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_quotas_hold_for_every_preference(tmp_path, prefer):
    skill = np.repeat(["a", "b", "c"], [30, 20, 10])
    table = paired(tmp_path, 30, skill=skill, tokens=np.full(60, 7))
    for keep in ("50%", "210 tokens"):
        selection = select_rows(table, keep=keep, options=SelectOptions(prefer=prefer, quota="skill"))
        assert selection.groups == {"a": 15, "b": 10, "c": 5}
    both = SelectOptions(prefer=prefer, quota="skill", distinct=0.99)
    assert select_rows(table, keep="20%", options=both).groups == {"a": 6, "b": 4, "c": 2}


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_repeats_in_a_group_cost_it_no_place_that_its_other_rows_can_fill(tmp_path, prefer):
    generator = np.random.default_rng(0)
    unlike = np.eye(48)
    vectors = np.concatenate([np.repeat(unlike[:1], 33, axis=0), unlike[1:]])  # group a: 33 alike, then seven others
    sketches, utility = generator.normal(size=(80, 800)), np.linspace(2, 1, 80)  # nearly orthogonal: all rows add
    groups = {"utility.a": utility, "utility.b": utility[::-1].copy()}
    lists = {"representation": listed(vectors), "sketch": listed(sketches)}
    table = utility_table(tmp_path, utility, skill=np.repeat(["a", "b"], 40), **groups, **lists)
    selection = select_rows(table, keep="20", options=SelectOptions(prefer=prefer, quota="skill", distinct=0.9))
    assert selection.groups == {"a": 8, "b": 12}


# Set-wise


def test_the_greedy_choice_within_quotas_is_that_of_brute_force():
    sketches, utility = gradients(16)
    utility, codes, counts = np.abs(utility), np.arange(16) % 2, [2, 5]
    chosen: list[int] = []
    while True:
        left = [row for row in range(16) if row not in chosen and counts[codes[row]]]
        sets = {row: [*chosen, row] for row in left}
        if not sets:
            break
        chosen.append(max(left, key=lambda row: set_utility(sketches[sets[row]], utility[sets[row]], 2.0)))
        counts[codes[chosen[-1]]] -= 1
    picks, _ = greedy(sketches, utility, Wanted(codes, np.array([2, 5])), fresh_state(6, 2.0))
    assert picks.tolist() == chosen  # as long as every row adds something, which the utilities see to


@pytest.mark.parametrize(
    ("keep", "quota"), [("40", None), ("400 tokens", None), ("40", "skill"), ("400 tokens", "skill")]
)
def test_set_wise_selection_takes_its_part_of_every_block(tmp_path, monkeypatch, keep, quota):
    monkeypatch.setattr(setwise_module, "_BLOCK", 50)
    sketches, utility = gradients(200, dimensions=300)
    more = {"tokens": np.full(200, 10), "skill": np.tile(["a", "b"], 100)}
    table = utility_table(tmp_path, np.abs(utility), sketch=listed(sketches), **more)
    rows = select_rows(table, keep=keep, options=SelectOptions(prefer="setwise", quota=quota)).rows
    block = np.empty(200, int)
    block[np.random.default_rng(0).permutation(200)] = np.repeat(range(4), 50)
    parts = np.bincount(block[rows], minlength=4)
    assert parts.sum() == 40
    assert np.abs(parts - 10).max() <= (1 if quota is None else 4)  # 50 rows at random hold a skill 25 +- 3 times


def test_blocks_together_choose_what_is_wanted_of_each_group(tmp_path, monkeypatch):
    monkeypatch.setattr(setwise_module, "_BLOCK", 50)
    sketches, utility = gradients(180, dimensions=300)
    table = utility_table(tmp_path, np.abs(utility), sketch=listed(sketches))
    codes = np.random.default_rng(2).integers(0, 3, 180)
    order = setwise_order(table, np.arange(180), np.abs(utility), Wanted(codes, np.array([5, 0, 31])), 0)
    assert np.bincount(codes[order], minlength=3).tolist() == [5, 0, 31]


def test_a_budget_of_uneven_tokens_is_spent_on_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(setwise_module, "_BLOCK", 50)
    sketches, utility = gradients(200, dimensions=300)
    table = utility_table(tmp_path, np.abs(utility), sketch=listed(sketches), tokens=np.tile([1, 19], 100))
    rows = select_rows(table, keep="400 tokens", options=SelectOptions(prefer="setwise")).rows
    block = np.empty(200, int)
    block[np.random.default_rng(0).permutation(200)] = np.repeat(range(4), 50)
    parts = np.bincount(block[rows], minlength=4)
    assert parts.max() - parts.min() <= 1


def test_duplicates_in_other_blocks_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(setwise_module, "_BLOCK", 10)
    sketches, utility = gradients(20, dimensions=40)
    both = np.concatenate([sketches, sketches])
    table = utility_table(tmp_path, np.tile(np.abs(utility), 2), sketch=listed(both))
    selection = select_rows(table, keep="100%", options=SelectOptions(prefer="setwise"))
    assert len({row % 20 for row in selection.rows.tolist()}) == len(selection.rows)


def test_a_row_whose_gradient_is_zero_adds_nothing_and_stops_nothing(tmp_path):
    sketches, utility = gradients(6)
    sketches[2], utility = 0.0, np.abs(utility)
    utility[2] = 0.0
    table = utility_table(tmp_path, utility, sketch=listed(sketches))
    assert 2 not in select_rows(table, keep="100%", options=SelectOptions(prefer="setwise")).rows


def test_a_pool_in_which_no_row_adds_utility_is_refused(tmp_path):
    sketches, utility = gradients(6)
    table = utility_table(tmp_path, -np.abs(utility), sketch=listed(sketches))
    with pytest.raises(ScoreError, match=r"no row of .* adds any utility"):
        select_rows(table, keep="2", options=SelectOptions(prefer="setwise"))


def test_a_row_without_a_sketch_is_refused_by_its_number(tmp_path):
    lists = pa.array([[1.0, 2.0], None, [2.0, 1.0]], pa.list_(pa.float32()))
    table = utility_table(tmp_path, np.arange(3.0), sketch=lists)
    with pytest.raises(ScoreError, match=r"row 1 of .* has a score but no sketch to compare"):
        select_rows(table, keep="2", options=SelectOptions(prefer="setwise"))


# Coverage


def test_coverage_depends_on_uids_and_not_on_the_order_of_the_table(tmp_path):
    table = paired(tmp_path, 100)
    kept = select_rows(table, keep="20%", options=SelectOptions(prefer="cover"))
    order = np.random.default_rng(1).permutation(200)
    columns = table.read().take(pa.array(order))
    (tmp_path / "other").mkdir()
    pq.write_table(columns, tmp_path / "other" / "scores.parquet")
    other = ScoreTable(tmp_path / "other" / "scores.parquet")
    assert select_rows(other, keep="20%", options=SelectOptions(prefer="cover")).rows.tolist() == kept.rows.tolist()
