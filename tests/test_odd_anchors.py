"""Wrong anchors among right ones: named where the proxy can tell, and where it cannot, nothing is named."""

import numpy as np
import pytest
from scipy.stats import norm

from onesteptrain.selection.odd_anchors import find_odd_anchors, odd_places
from onesteptrain.selection.trust import SIGNALS
from tests.test_trust import SEEN, UNSEEN, corrupted_like, signals, table_of

KINDS = np.repeat(["wrong_step", "cut_off", "other_picture"], 100)


def drawn(count, seed, middle=0.0):
    return np.random.default_rng(seed).normal(middle, 1, count)


@pytest.mark.parametrize("wrong", [0, 4, 10, 30])
def test_wrong_anchors_are_found_as_far_as_the_two_can_be_told_apart(wrong):
    """The oracle knows both densities and the share: it names what is more probably wrong than right."""
    found, right, oracle = 0, 0, 0
    for seed in range(20):
        anchors = np.concatenate([drawn(200 - wrong, seed), drawn(wrong, 100 + seed, 4)])
        places, told = odd_places(anchors, drawn(300, 200 + seed, 4), KINDS)
        assert told
        assert sorted(anchors[places], reverse=True) == anchors[places].tolist()
        found, right = found + len(places), right + sum(place >= 200 - wrong for place in places)
        harm = wrong * norm.pdf(anchors, 4)
        oracle += int((harm > (200 - wrong) * norm.pdf(anchors))[200 - wrong :].sum())
    if wrong:
        assert right >= 0.8 * oracle
        assert right >= 2 / 3 * found  # as many as it is meant to be sure of
    else:
        assert found <= 20 * 200 * 0.005


@pytest.mark.parametrize(("apart", "wrong"), [(0.0, 20), (0.7, 20), (4.0, 80)])
def test_nothing_is_named_where_it_cannot_be_told(apart, wrong):
    """Corrupted anchors look like right ones, or so many anchors are wrong that they may as well be hard."""
    anchors = np.concatenate([drawn(200 - wrong, 0), drawn(wrong, 1, apart)])
    assert odd_places(anchors, drawn(300, 2, apart), KINDS) == ([], False)


def test_anchors_that_are_all_the_same_are_not_told_from_each_other():
    assert odd_places(np.zeros(50), np.zeros(300), KINDS) == ([], False)
    assert odd_places(np.zeros(50), np.ones(300), KINDS) == ([], True)


def test_an_odd_anchor_is_named_with_the_signals_that_stand_out(tmp_path):
    sizes = signals(100, 5)
    sizes[7] = sizes[7] * 0 + np.median(sizes, axis=0) * [1, 1, 5000]  # its worst token alone
    sizes[30] = np.median(sizes, axis=0) * 5000
    table = table_of(tmp_path, signals(400, 1), sizes, corrupted_like(SEEN, 3))
    odd = find_odd_anchors(table)
    uids = table.reference.read(["uid"])["uid"].to_pylist()
    assert [anchor.uid for anchor in odd.anchors][:2] == [uids[30], uids[7]]
    assert odd.anchors[1].why.startswith(f"loss of the worst token {abs(sizes[7, 2]):.2g}, above ")
    assert all(word in odd.anchors[0].why for word in ("harm to the other anchors", "mean loss", "worst token"))
    assert len(SIGNALS) == 3


def test_without_power_or_corrupted_anchors_none_is_named(tmp_path):
    for corrupted in (corrupted_like(UNSEEN, 3), None):
        sizes = np.concatenate([signals(95, 5), signals(5, 6, 8.0)])
        table = table_of(tmp_path, signals(400, 1), sizes, *([corrupted] if corrupted else []))
        assert find_odd_anchors(table) == ([], False)
        for path in tmp_path.iterdir():
            path.unlink()
