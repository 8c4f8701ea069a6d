"""Set-wise, covering and max-min choices against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from onesteptrain.errors import ScoreError
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection import setwise as setwise_module
from onesteptrain.selection.orders import cover_order, maxmin_order
from onesteptrain.selection.quotas import Wanted
from onesteptrain.selection.setwise import fresh_state, greedy
from onesteptrain.storage.score_table import ScoreTable, write_table


def set_utility(sketches, utility, ridge):
    """F of a set, from its definition in the space of its rows."""
    kernel = sketches @ sketches.T + ridge * np.eye(len(sketches))
    return float(utility @ np.linalg.solve(kernel, np.ones(len(sketches))))


def gradients(rows: int, dimensions: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gradients and what a direction makes of them."""
    generator = np.random.default_rng(seed)
    sketches = generator.normal(size=(rows, dimensions))
    return sketches, sketches @ generator.normal(size=dimensions)


def brute_force(sketches: np.ndarray, utility: np.ndarray, count: int, ridge: float) -> list[int]:
    """Each time the row whose set is worth most, every set evaluated by its definition."""
    chosen: list[int] = []
    while len(chosen) < count:
        before = set_utility(sketches[chosen], utility[chosen], ridge) if chosen else 0.0
        worth = {
            row: set_utility(sketches[[*chosen, row]], utility[[*chosen, row]], ridge) - before
            for row in range(len(sketches))
            if row not in chosen
        }
        best = max(worth, key=worth.__getitem__)
        if worth[best] <= 0:
            break
        chosen.append(best)
    return chosen


def any_of(rows: int, count: int) -> Wanted:
    """So many rows, whatever their group."""
    return Wanted(np.zeros(rows, np.int64), np.array([count]))


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_choice_is_that_of_brute_force(seed):
    sketches, utility = gradients(14, seed=seed)
    picks, _ = greedy(sketches, utility, any_of(14, 10), fresh_state(6, 2.0))
    assert picks.tolist() == brute_force(sketches, utility, 10, 2.0)


def test_the_worth_of_a_set_is_that_of_the_ridge_step():
    sketches, utility = gradients(5)
    direction = np.linalg.lstsq(sketches, utility, rcond=None)[0]
    step = np.linalg.solve(2.0 * np.eye(6) + sketches.T @ sketches, sketches.sum(0))
    assert set_utility(sketches, utility, 2.0) == pytest.approx(direction @ step, rel=1e-9)


def test_orthogonal_rows_are_ranked_by_utility_over_their_length():
    sketches = np.diag([1.0, 2.0, 3.0, 4.0])
    utility = np.array([1.0, 4.0, 5.0, 6.0])
    picks, _ = greedy(sketches, utility, any_of(4, 4), fresh_state(4, 1.0))
    assert picks.tolist() == np.argsort(-utility / (1 + np.array([1.0, 4.0, 9.0, 16.0]))).tolist()


def test_a_second_block_knows_what_the_first_has_chosen():
    sketches, utility = gradients(12)
    first, state = greedy(sketches[:6], utility[:6], any_of(6, 3), fresh_state(6, 2.0))
    (second, *_), _ = greedy(sketches[6:], utility[6:], any_of(6, 1), state)
    chosen = first.tolist()
    before = set_utility(sketches[chosen], utility[chosen], 2.0)
    worth = [set_utility(sketches[[*chosen, row]], utility[[*chosen, row]], 2.0) - before for row in range(6, 12)]
    assert second == int(np.argmax(worth))


def test_of_two_duplicates_one_is_chosen_at_most():
    sketches, utility = gradients(20, dimensions=40)
    both = np.concatenate([sketches, sketches + 1e-6]), np.concatenate([utility, utility + 1e-6])
    picks, _ = greedy(*both, any_of(40, 40), fresh_state(40, 40.0))
    assert len({pick % 20 for pick in picks.tolist()}) == len(picks)


def table_of(folder: Path, score: np.ndarray, **columns) -> ScoreTable:
    rows = len(score)
    base = {"uid": [f"u{row}" for row in range(rows)], "row": np.arange(rows), "score": score}
    nothing = {"reason": pa.nulls(rows, pa.string()), "utility": score}
    write_table(pa.table(base | nothing | columns), folder / "scores.parquet")
    return ScoreTable(folder / "scores.parquet")


def listed(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32).tolist(), pa.list_(pa.float32()))


def test_set_wise_selection_reads_the_table(tmp_path):
    sketches, utility = gradients(30)
    sketches = sketches.astype(np.float32).astype(float)
    table = table_of(tmp_path, utility, sketch=listed(sketches))
    ridge = float((sketches**2).sum(1).mean())
    selection = select_rows(table, keep="8", options=SelectOptions(prefer="setwise"))
    assert selection.rows.tolist() == sorted(brute_force(sketches, utility, 8, ridge))


def test_set_wise_selection_in_blocks_keeps_to_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(setwise_module, "_BLOCK", 50)
    sketches, utility = gradients(180, dimensions=32)
    table = table_of(tmp_path, np.abs(utility), sketch=listed(sketches))
    assert len(select_rows(table, keep="25%", options=SelectOptions(prefer="setwise")).rows) == 45


def test_max_min_is_the_greedy_definition():
    utilities = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 10.0, 0.1]
    scaled = utilities / np.abs(utilities).mean(0)
    left, got, wanted = list(range(40)), np.zeros(3), []
    for _ in range(15):
        group = int(np.argmin(got))
        best = max(left, key=lambda row: scaled[row, group])
        left.remove(best)
        wanted.append(best)
        got += scaled[best]
    assert maxmin_order(utilities, 15).tolist() == wanted
    assert sorted(maxmin_order(utilities, 99).tolist()) == list(range(40))


def test_max_min_serves_a_group_that_ranking_forgets(tmp_path):
    generator = np.random.default_rng(0)
    easy, hard = generator.normal(1, 1, 400), generator.normal(-0.5, 1, 400)
    table = table_of(tmp_path, 0.9 * easy + 0.1 * hard, **{"utility.easy": easy, "utility.hard": hard})
    ranked = select_rows(table, keep="10%", options=SelectOptions(prefer="top", gate="none")).rows
    fair = select_rows(table, keep="10%", options=SelectOptions(prefer="maxmin")).rows
    assert hard[fair].sum() > hard[ranked].sum() + 20


def test_a_max_min_selection_begins_the_order_of_all_rows(tmp_path):
    utilities = np.random.default_rng(1).normal(size=(50, 3))
    columns = {f"utility.{name}": utilities[:, place] for place, name in enumerate("abc")}
    table = table_of(tmp_path, utilities.mean(1), **columns)
    rows = select_rows(table, keep="8", options=SelectOptions(prefer="maxmin")).rows
    assert rows.tolist() == sorted(maxmin_order(utilities, 50)[:8].tolist())


def test_any_beginning_of_a_cover_holds_each_cluster_in_proportion():
    generator = np.random.default_rng(0)
    centres = np.eye(3)
    names = np.repeat([0, 1, 2], [300, 90, 10])
    vectors = (centres[names] + generator.normal(0, 0.001, (400, 3))).astype(np.float32)
    order = cover_order(vectors, np.arange(400), generator.permutation(400).astype(np.uint64), seed=0)
    assert sorted(order.tolist()) == list(range(400))
    for count in (40, 80, 200):
        seen = np.bincount(names[order[:count]], minlength=3)
        # k-means may split a group into several clusters, each of which is off by one half at most
        assert np.abs(seen - count * np.array([300, 90, 10]) / 400).max() <= 7


def test_coverage_draws_anew_with_another_seed(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(200, 4))
    table = table_of(tmp_path, np.zeros(200), representation=listed(vectors))
    one, same, other = (
        select_rows(table, keep="20%", options=SelectOptions(prefer="cover", draw_seed=seed)).rows for seed in (0, 0, 1)
    )
    assert one.tolist() == same.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("prefer", "text"), [("setwise", "--set sketch=512"), ("maxmin", "--group-by"), ("cover", "representation")]
)
def test_a_preference_says_what_it_misses(tmp_path, prefer, text):
    with pytest.raises(ScoreError, match=text):
        select_rows(table_of(tmp_path, np.arange(4.0)), keep="2", options=SelectOptions(prefer=prefer))
