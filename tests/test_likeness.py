"""Anchors against a pool, by texts and pictures: what differs is said, and what chance makes is not."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesteptrain.data.images import image_size
from onesteptrain.data.likeness import compare, compare_sizes, read_findings, share_below, write_findings
from onesteptrain.data.pool import ImageRef, Sample, Turn, Unreadable, open_pool
from onesteptrain.data.traits import read_traits
from onesteptrain.errors import SampleError
from tests.pool_files import png
from tests.synthetic_data import synthetic

REASONED = "There are {} red ones. {} + 1 = 7. The answer is 7."


def sample(row, question="How many are red?", answer=REASONED, images=(), **fields):
    parts = (*(ImageRef(image, "x") for image in images), question.format(row))
    return Sample(f"u{row}", row, (Turn("user", parts), Turn("assistant", (answer.format(row, row),))), fields)


def rows(count, first=0, **changes):
    return [sample(first + row, **changes) for row in range(count)]


def texts(anchors, pool, about, kinds=None):
    return [finding.text for finding in compare(anchors, pool, kinds) if finding.about == about]


def held_out():
    pool, anchors = (list(open_pool(synthetic("digits") / f"{name}.jsonl")) for name in ("pool", "heldout"))
    return anchors, pool


def test_of_held_out_rows_of_the_same_data_no_more_is_said_than_that_rows_are_cut_off():
    assert all("state no conclusion" in finding.text for finding in compare(*held_out()))


def test_parts_of_one_population_are_alike():
    population = [
        *rows(300),
        *rows(60, 300, answer="7", kind="short"),
        *rows(40, 360, question="Is it {}?", kind="odd"),
    ]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(population))
        parts = [[population[place] for place in part] for part in (order[:100], order[100:])]
        assert compare(*parts) == []  # each of some thirty comparisons errs once in a thousand draws


def test_anchors_of_one_skill_are_said_to_lack_the_others():
    anchors, pool = held_out()
    counting = [anchor for anchor in anchors if anchor.fields["skill"] == "count"]
    (text,) = (text for text in texts(counting, pool, "kinds") if "skill" in text)
    shares = Counter(row.fields["skill"] for row in pool)
    told = dict(re.findall(r"'(\w+)' \((\d+)% of the rows\)", text))
    assert told == {skill: f"{100 * rows / len(pool):.0f}" for skill, rows in shares.items() if skill != "count"}
    bare = [[Sample(row.uid, row.row, row.turns) for row in part] for part in (counting, pool)]
    (text,) = texts(*bare, "wording")  # no column tells it: their questions do
    share = float(text.partition("%")[0])
    assert share == pytest.approx(100 * (1 - shares["count"] / len(pool)), abs=6)  # 5 % of what is like the anchors


def test_anchors_of_another_style_are_said_to_be_so():
    anchors, pool = held_out()
    styles = {
        "answer without reasoning": "{}",
        r"put the answer into \boxed{}": r"\boxed{{{}}}",
        "state no conclusion": "It has a number of them, namely this many as one can see: {} and not more than that",
    }
    for does, form in styles.items():
        other = [
            Sample(one.uid, one.row, (*one.turns[:-1], Turn("assistant", (form.format(one.fields["answer"]),))))
            for one in anchors
        ]
        assert any(text.startswith(f"100% of the anchors {does}, and ") for text in texts(other, pool, "form")), does


def test_kinds_without_anchors_and_with_few_are_named_and_others_are_not():
    pool = [*rows(600, source="a"), *rows(300, 600, source="b"), *rows(95, 900, source="c"), *rows(5, 995, source="d")]
    anchors = [*rows(95, source="a"), *rows(5, 95, source="b")]
    remedy = "add some, as with `ost anchors --suggest`"
    assert texts(anchors, pool, "kinds") == [  # d is half a per cent of the pool
        f"no anchor is of source 'c' (10% of the rows): {remedy}",
        f"few anchors are of source 'b' (30% of the rows): {remedy}",
    ]
    elsewhere = rows(100, source="by hand")  # where they are from, not what they are
    assert texts(elsewhere, pool, "kinds") == []
    many = [sample(row, name=str(row)) for row in range(200)]
    assert texts(many[:100], many[50:], "kinds") == []
    assert len(texts(many[:100], many[50:130], "kinds", ["name"])) == 1


def test_pictures_count_by_number_and_by_size():
    small, large = ([png(size=(side, side))] for side in (32, 128))
    (text,) = texts(rows(30), rows(30, images=small), "pictures")
    assert text.startswith("100% of the anchors show no picture, and 0% of the rows")
    both = texts(rows(30, images=small), rows(30, images=large), "pictures")
    assert [text.partition(":")[0] for text in both] == [
        "100% of the rows have pictures that are larger than any anchor's (32 to 32 pixels)",
        "100% of the anchors have pictures that are smaller than any row's (128 to 128 pixels)",
    ]
    broken = [*rows(29, images=small), sample(29, images=[b"no picture"])]
    assert texts(rows(30, images=small), broken, "pictures") == []


def test_rows_that_cannot_be_read_are_passed_over():
    pool = [Unreadable("x", 0, "broken"), *rows(30, 1)]
    assert compare(rows(30), pool) == []
    assert compare(rows(30), pool[:1]) == []
    assert compare([], pool) == []


@pytest.mark.parametrize("count", [5, 40, 100])
def test_the_share_below_nearly_all_anchors_is_said_once_in_a_thousand_draws_of_equals(count):
    grid = (np.arange(1000) + 0.5) / 1000  # rows of a uniform distribution, without chance
    draws = 4000
    said = sum(share_below(grid, np.random.default_rng(seed).random(count)) > 0 for seed in range(draws))
    assert said <= 4 + 5 * 2  # Poisson with mean 4, five standard deviations
    assert share_below(grid, grid[500:]) > 0.5


@given(st.lists(st.floats(1, 100), min_size=1, max_size=20), st.lists(st.floats(1, 100), min_size=1, max_size=20))
def test_sizes_beyond_half_as_much_again_are_counted(ours, theirs):
    found = [finding.text for finding in compare_sizes("answers", "tokens", np.array(ours), np.array(theirs))]
    beyond = sum(one > 1.5 * max(theirs) for one in ours) / len(ours)
    said = [text for text in found if text.startswith(f"{beyond:.0%} of the rows have answers that are longer")]
    assert len(said) == (beyond >= 0.1)


def test_traits_of_a_sample():
    traits = read_traits(sample(3, answer="<think>2 + 1 = 3.</think>\\boxed{{B}}", images=[png(size=(40, 30))]))
    assert traits.form == {
        "reasoning": "reason before they conclude",
        "thoughts": "think in <think> tags",
        "conclusion": "conclude with an option's letter",
        "mark": r"put the answer into \boxed{}",
        "turns": "ask once",
        "system": "have no system turn",
        "pictures": "show one picture",
    }
    assert traits.sizes == {"answers": 34, "questions": 17, "pictures": 40}
    assert traits.words == {"how", "many", "are", "red"}


def test_the_size_of_a_picture_is_read_from_its_head(tmp_path):
    whole = png(size=(40, 30))
    assert image_size(ImageRef(whole, "x")) == (40, 30)
    assert image_size(ImageRef(whole[:60], "cut off")) == (40, 30)
    with pytest.raises(SampleError, match="no such file"):
        image_size(ImageRef(tmp_path / "none.png", "none.png"))
    with pytest.raises(SampleError, match="has no size"):
        image_size(ImageRef(b"text", "text"))


def test_findings_are_kept_and_read_again(tmp_path):
    findings = compare(rows(30, answer="7"), rows(30))
    write_findings(findings, tmp_path)
    assert read_findings(tmp_path) == findings != []
    assert json.loads((tmp_path / "anchors.json").read_text())["findings"][0]["about"] == "form"
    assert read_findings(tmp_path / "elsewhere") == []
