"""Rows that a person should check: kinds that lack anchors first, then rows near the cut."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesteptrain.errors import ConfigError
from onesteptrain.selection.suggesting import Kinds, suggest_rows
from onesteptrain.selection.trust import measure_trust
from tests.test_trust import SEEN, corrupted_like, mixture, signals, table_of

ROWS = 4000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return table_of(tmp_path_factory.mktemp("run"), mixture(0.5)[0], signals(100, 7), corrupted_like(SEEN, 3))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Scores that no gate can rest on: only kinds count."""
    return table_of(tmp_path_factory.mktemp("bare"), signals(ROWS, 1), None)


def shares(rows, anchors, count, table):
    chosen = suggest_rows(table, Kinds(rows, anchors), count=count)
    assert all(rows[each.row] == each.kind for each in chosen)
    assert [each.row for each in chosen] == sorted({each.row for each in chosen})
    return Counter(each.kind for each in chosen)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 40), min_size=4, max_size=4), st.integers(1, 60))
def test_a_kind_gets_what_its_anchors_lack_to_its_share(bare, have, count):
    """No place could be moved to a kind that is worse off without leaving this one worse off than that."""
    rows = ["a"] * 2000 + ["b"] * 1200 + ["c"] * 600 + ["d"] * 200
    anchors = [kind for kind, number in zip("abcd", have, strict=True) for _ in range(number)]
    given_out = shares(rows, anchors, count, bare)
    assert given_out.total() == count
    wanted = {kind: rows.count(kind) / ROWS * (count + len(anchors)) for kind in "abcd"}
    lacks = {kind: wanted[kind] - anchors.count(kind) - given_out[kind] for kind in "abcd"}
    for kind in given_out:
        assert lacks[kind] + 1 >= max(lacks.values()) - 1e-9


def test_a_kind_without_anchors_comes_first(table):
    rows = ["known"] * 3600 + ["new"] * 400
    assert shares(rows, ["known"] * 100, 10, table) == {"new": 10}
    assert shares(rows, ["known"] * 100, 50, table) == {"new": 15, "known": 35}  # a tenth of 150


def test_of_a_kind_with_anchors_the_rows_nearest_to_the_cut_are_taken_and_else_a_draw(table):
    rows, anchors = ["known"] * 2000 + ["new"] * 2000, ["known"] * 100
    chosen = suggest_rows(table, Kinds(rows, anchors), count=200)
    gap = np.abs(measure_trust(table).probability - 0.5)
    near = [each.row for each in chosen if each.kind == "known"]
    assert gap[near].max() <= np.delete(gap[:2000], near).min()
    drawn = gap[[each.row for each in chosen if each.kind == "new"]]
    assert drawn.mean() == pytest.approx(gap[2000:].mean(), abs=5 * gap[2000:].std() / np.sqrt(len(drawn)))
    assert {each.why for each in chosen if each.kind == "new"} == {"no anchors are of its kind"}


def test_rows_that_are_left_out_are_not_suggested(table):
    everything = Kinds([""] * ROWS, [""] * 100)
    first = {each.row for each in suggest_rows(table, everything, count=20)}
    assert not first & {each.row for each in suggest_rows(table, everything, count=20, without=first)}
    with pytest.raises(ConfigError, match="from 1 to 5"):
        suggest_rows(table, everything, count=6, without=range(ROWS - 5))
