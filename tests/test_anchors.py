import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.data.anchors import Leak, allocate, draw_anchors, find_leaks, refuse_leaks
from onesteptrain.data.pool import open_pool
from onesteptrain.errors import AnchorError, ConfigError
from tests.pool_files import png, qa, write_json, write_jsonl

TOPICS = ["sum"] * 60 + ["area"] * 30 + ["clock"] * 9 + ["rare"]


@pytest.fixture
def topics(tmp_path):
    return open_pool(write_jsonl(tmp_path / "pool.jsonl", [qa(f"Q{i}", id=i, topic=t) for i, t in enumerate(TOPICS)]))


def counts(rows):
    drawn = [TOPICS[row] for row in rows]
    return [drawn.count(topic) for topic in ("sum", "area", "clock", "rare")]


def test_strata_get_their_share_and_each_at_least_one(topics):
    # one for "rare"; the other 19 by 60, 30 and 9 of 99 are 11.5, 5.8 and 1.7
    assert counts(draw_anchors(topics, count=20, by=["topic"])) == [11, 6, 2, 1]
    assert counts(draw_anchors(topics, count=100, by=["topic"])) == [60, 30, 9, 1]


def test_without_columns_the_draw_is_over_all_rows(topics):
    rows = draw_anchors(topics, count=20)
    assert len(set(rows)) == 20
    assert (np.diff(rows) > 0).all()


def test_the_draw_depends_on_seed_and_uids_and_not_on_the_order_of_rows(topics, tmp_path):
    turned = [qa(f"Q{i}", id=i, topic=t) for i, t in reversed(list(enumerate(TOPICS)))]
    other = open_pool(write_json(tmp_path / "turned.json", turned))
    rows = draw_anchors(topics, count=20, by=["topic"], seed=1)
    assert set(rows) == {99 - row for row in draw_anchors(other, count=20, by=["topic"], seed=1)}
    assert set(rows) != set(draw_anchors(topics, count=20, by=["topic"], seed=2))


def test_every_row_is_drawn_equally_often(topics):
    seeds, share = 200, 0.2
    drawn = np.zeros(len(TOPICS))
    for seed in range(seeds):
        drawn[draw_anchors(topics, count=20, seed=seed)] += 1
    # binomial counts; five standard deviations leave one in 17,000 samples of a hundred rows
    assert (abs(drawn - seeds * share) < 5 * math.sqrt(seeds * share * (1 - share))).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_shares_add_up_and_stay_within_one_of_proportion(sizes, data):
    count = data.draw(st.integers(1, sum(sizes)))
    shares = allocate(sizes, count)
    assert sum(shares) == count
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    quotas = [Fraction(size * count, sum(sizes)) for size in sizes]
    if count >= len(sizes):
        assert min(shares) >= 1
    if count < len(sizes) or min(quotas) >= 1:
        assert all(abs(share - quota) < 1 for share, quota in zip(shares, quotas, strict=True))


def test_what_is_left_over_goes_to_the_largest_remainders():
    assert allocate([33, 33, 34], 10) == [3, 3, 4]  # 3.3, 3.3 and 3.4
    assert allocate([10, 10, 10], 4) == [2, 1, 1]  # a tie
    assert allocate([1, 1, 98], 2) == [0, 0, 2]  # too few for one each


def test_rows_that_cannot_be_used_are_never_drawn(tmp_path):
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "cut.png").write_bytes(png()[:40])
    kinds = ["good.png", "cut.png", "missing.png"]
    rows = [qa(f"Q{i}", "" if i % 10 == 9 else "A", image=kinds[i % 3]) for i in range(60)]
    pool = open_pool(write_jsonl(tmp_path / "pool.jsonl", rows))
    usable = [i for i in range(60) if i % 3 == 0 and i % 10 != 9]
    assert list(draw_anchors(pool, count=18)) == usable
    assert set(draw_anchors(pool, count=9)) <= set(usable)
    with pytest.raises(AnchorError, match="19 anchors are asked for, but 18 rows can be used"):
        draw_anchors(pool, count=19)


def test_what_cannot_be_drawn_is_refused_with_what_is_there(topics, tmp_path):
    with pytest.raises(AnchorError, match="no row has the column level; there are topic"):
        draw_anchors(topics, by=["topic", "level"])
    with pytest.raises(ConfigError, match="at least 1"):
        draw_anchors(topics, count=0)


IMAGES = {"red.png": png("red"), "red.webp": png("red", kind="WEBP", lossless=True), "blue.png": png("blue")}


@pytest.fixture
def leaky(tmp_path):
    for name, content in IMAGES.items():
        (tmp_path / name).write_bytes(content)
    anchors = [qa("What is this?", "Red.", id="a", image="red.png"), qa("2 + 2?", "4", id="b")]
    pool = [
        qa("<image>WHAT is\n this？", " red. ", id="same", image="red.webp"),
        qa("What is this?", "Blue.", id="other answer", image="red.png"),
        qa("What is this?", "Red.", id="other image", image="blue.png"),
        qa("What is that?", "Red.", id="other question", image="red.png"),
        qa("What is this?", "Red.", id="no image"),
        qa("What is this?", "Red.", id="lost image", image="gone.png"),
        qa("2 + 2?", "5", id="text"),
    ]
    return open_pool(write_jsonl(tmp_path / "anchors", anchors)), open_pool(write_json(tmp_path / "pool", pool))


def test_a_leak_is_the_same_question_about_the_same_pixels(leaky):
    other = "same question and image, other answer"
    assert find_leaks(*leaky) == [
        Leak(0, "a", 0, "same", "same sample"),
        Leak(0, "a", 1, "other answer", other),
        Leak(1, "b", 6, "text", other),
    ]


def test_leaks_are_refused_with_their_rows_and_what_to_do(leaky):
    with pytest.raises(AnchorError, match=r"3 rows are anchors too: row 0 is anchor 'a' \(same sample\); row 1 .*draw"):
        refuse_leaks(*leaky)


def test_a_pool_without_the_anchors_passes(leaky, tmp_path):
    anchors, _ = leaky
    refuse_leaks(anchors, open_pool(write_jsonl(tmp_path / "clean", [qa("Another?", image="red.png")])))


def test_an_anchor_whose_image_is_lost_is_refused_once_it_matters(leaky, tmp_path):
    anchors = open_pool(write_jsonl(tmp_path / "lost", [qa("What is this?", image="gone.png")]))
    with pytest.raises(AnchorError, match=r"anchor '.*': image 'gone.png': no such file"):
        find_leaks(anchors, leaky[1])


def test_images_are_decoded_only_where_the_question_is_an_anchors(leaky, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr("onesteptrain.data.anchors.image_fingerprint", lambda ref: decoded.append(ref.name) or ref.name)
    find_leaks(*leaky)
    assert decoded == ["red.webp", "red.png", "red.png", "blue.png", "gone.png"]
