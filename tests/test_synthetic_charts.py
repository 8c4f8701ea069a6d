import dataclasses
import io
import itertools
import json
import re
import sys
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from onesteptrain.errors import ConfigError, MissingExtraError
from onesteptrain.evaluation.answers import is_correct
from onesteptrain.jobs.demo import TARGET, charts_comparison
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, chart_drawing, checkpoint, make_synthetic
from onesteptrain.synthetic.chart_drawing import Chart, Style, draw_chart, draw_style, owner, paint
from onesteptrain.synthetic.charts import QUESTIONS, ChartProblem
from onesteptrain.synthetic.making import problems
from tests.synthetic_data import synthetic

INKS = {
    "red": (228, 26, 28),
    "blue": (32, 112, 216),
    "green": (44, 160, 44),
    "orange": (255, 159, 28),
    "purple": (142, 63, 192),
    "black": (17, 17, 17),
}


class Seen(NamedTuple):
    """What the pixels of a picture show."""

    bars: dict  # colour -> value, from left to right
    top: int


class Made(NamedTuple):
    """Data as read back from its files."""

    pool: list
    heldout: list
    benchmark: list
    truth: list
    seen: dict  # uid -> Seen
    pixels: dict  # uid -> bytes


@pytest.fixture(scope="module")
def folder():
    return synthetic("charts")


@pytest.fixture(scope="module")
def made(folder):
    parts = [read_rows(folder / f"{name}.jsonl") for name in ("pool", "heldout", "benchmark")]
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    pictures = {row["id"]: (folder / row["images"][0]).read_bytes() for part in parts for row in part}
    return Made(*parts, truth, {uid: look(picture) for uid, picture in pictures.items()}, pictures)


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def look(picture):
    """Read a chart off its pixels, by the pure colours of its bars: nothing of the generator is used."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    assert pixels.shape == (48, 48, 3)
    plot, found = pixels[:46, 13:], []  # right of the axis, above the line under the bars
    for colour, ink in INKS.items():
        mine = (np.abs(plot - ink).max(2) <= 1).sum(0)
        columns = np.flatnonzero(mine)
        if len(columns):
            found.append((columns.mean(), colour, round(mine.max() / (41 / 9))))
    wide = bool((pixels[:9, :6].min(2) < pixels[20, 3].min() - 60).any())  # the first of two figures of the label
    scale = 10 if wide else 1
    return Seen({colour: steps * scale for _, colour, steps in sorted(found)}, 9 * scale)


def evaluated(row, seen):
    """The right answer, worked out a second time from the pixels and the words of the question."""
    question = row["messages"][0]["content"]
    named = [word for word in re.findall("[a-z]+", question) if word in INKS]
    values = list(seen.bars.values())
    if row["skill"] == "read":
        return str(seen.bars[named[0]])
    if row["skill"] == "gap":
        return str(seen.bars[named[0]] - seen.bars[named[1]])
    if row["skill"] == "total":
        return str(int(np.sum(values)))
    if row["skill"] == "largest":
        return list(seen.bars)[int(np.argmax(values))]
    (limit,) = map(int, re.findall(r"\d+", question))
    return str(int((np.array(values) > limit).sum()))


def answer_of(row):
    return row["messages"][1]["content"]


def result_of(answer):
    found = re.search(r"The answer is (-?\w+)\.$", answer)
    return found and found[1]


def false_sentences(row, seen, answer=None):
    """Sentences of an answer that the pixels, or arithmetic, contradict."""
    answer = answer_of(row) if answer is None else answer
    return [sentence for sentence in re.findall(r"[^.]+\.", answer) if not holds(sentence.strip().lower(), row, seen)]


def holds(sentence, row, seen):
    order = list(seen.bars)
    if found := re.fullmatch(r"the axis goes to (\d+)\.", sentence):
        return int(found[1]) == seen.top
    if found := re.fullmatch(r"there are (\d) bars\.", sentence):
        return int(found[1]) == len(order)
    if found := re.fullmatch(r"the (first|last) bar is (\w+)\.", sentence):
        return order[0 if found[1] == "first" else -1] == found[2]
    if found := re.fullmatch(r"(bars|asked): ([a-z]+\d+(?:, [a-z]+\d+)*)\.", sentence):
        pairs = [(colour, int(value)) for colour, value in re.findall(r"([a-z]+)(\d+)", found[2])]
        shown = [*seen.bars.items()]
        return pairs == shown if found[1] == "bars" else set(pairs) < set(shown)
    if found := re.fullmatch(r"the (highest|lowest) is (\w+)\.", sentence):
        extreme = max if found[1] == "highest" else min
        return extreme(seen.bars, key=seen.bars.get) == found[2]
    if found := re.fullmatch(r"(above|below) (\d+): (.+)\.", sentence):
        above = found[1] == "above"
        right = [colour for colour, value in seen.bars.items() if (value > int(found[2])) == above]
        return found[3] == (", ".join(right) or "none")
    if found := re.fullmatch(r"the answer is (-?\w+)\.", sentence):
        return found[1] == evaluated(row, seen)
    steps = re.findall(r"(\d+)([-+])(\d+)=(-?\d+)", sentence)
    assert steps, sentence
    work = {"+": int.__add__, "-": int.__sub__}
    return all(work[sign](int(left), int(right)) == int(result) for left, sign, right, result in steps)


def noisy(made, kind):
    rows = [(row, fact) for row, fact in zip(made.pool, made.truth, strict=True) if fact["kind"] == kind]
    assert len(rows) == 100
    return [(row, fact, made.seen[row["id"]]) for row, fact in rows]


def test_every_sentence_of_a_clean_answer_is_what_the_pixels_show(made):
    clean = [row for row, fact in zip(made.pool, made.truth, strict=True) if fact["clean"]]
    assert len(clean) == 700
    for row in clean + made.heldout:
        assert not false_sentences(row, made.seen[row["id"]])
        assert result_of(answer_of(row)) == evaluated(row, made.seen[row["id"]])


def test_the_expected_answers_of_heldout_rows_and_benchmark_are_right(made):
    for row in made.heldout + made.benchmark:
        assert row["answer"] == evaluated(row, made.seen[row["id"]])


def test_the_checker_accepts_right_answers_and_refuses_wrong_ones(made):
    expected = [row["answer"] for row in made.heldout]
    assert {"red", "blue", "green"} < set(expected)
    for row in made.heldout:
        assert is_correct(answer_of(row), row["answer"])
        for other in set(expected) - {row["answer"]}:
            assert not is_correct(answer_of(row), other)


def test_right_answers_have_five_sentences_and_those_for_a_gap_six(made):
    for row in made.heldout:
        assert len(re.findall(r"[^.]+\.", answer_of(row))) == (6 if row["skill"] == "gap" else 5)


def test_a_gap_is_positive_and_no_bar_ends_at_a_limit(made):
    for row in made.heldout + made.benchmark:
        seen = made.seen[row["id"]]
        if row["skill"] == "gap":
            assert int(row["answer"]) > 0
        if row["skill"] == "above":
            assert int(re.findall(r"\d+", row["messages"][0]["content"])[0]) not in seen.bars.values()


def test_the_level_is_the_number_of_bars(made):
    for row in made.pool + made.heldout + made.benchmark:
        assert row["level"] == len(made.seen[row["id"]].bars) in (3, 4)


def test_both_axes_come_about_equally_often(made):
    ends = [made.seen[row["id"]].top for row in made.pool]
    assert set(ends) == {9, 90}
    assert abs(ends.count(9) / len(ends) - 0.5) < 5 * 0.5 / np.sqrt(len(ends))  # five standard deviations


def test_the_same_question_has_many_answers_so_that_the_picture_is_needed(made):
    for skill in QUESTIONS:
        assert len({row["answer"] for row in made.heldout + made.benchmark if row["skill"] == skill}) > 3


def test_more_noise_of_a_kind_than_there_are_rows_for_it_is_refused(tmp_path):
    options = SyntheticOptions(
        pool_rows=60, heldout_rows=1, benchmark_rows=1, noise_share=0.9, noise_kinds=("reversed",)
    )
    with pytest.raises(ConfigError, match="reversed"):  # only three of five skills have an opposite
        make_synthetic("charts", options, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_stale_image_shows_the_colours_of_the_answer_with_another_result(made):
    for row, _, seen in noisy(made, "stale_image"):
        assert result_of(answer_of(row)) != evaluated(row, seen)
        assert false_sentences(row, seen)
        assert {word for word in re.findall("[a-z]+", answer_of(row).lower()) if word in INKS} <= set(seen.bars)


def test_a_wrong_bar_is_the_neighbour_on_the_right_and_the_first_one_for_the_last(made):
    for row, _, seen in noisy(made, "wrong_bar"):
        values = list(seen.bars.values())
        beside = Seen(dict(zip(seen.bars, [*values[1:], values[0]], strict=True)), seen.top)
        assert not false_sentences(row, beside)  # all follows from the neighbours
        assert result_of(answer_of(row)) == evaluated(row, beside) != evaluated(row, seen)


def test_a_reversed_answer_is_right_for_the_opposite_question(made):
    for row, _, seen in noisy(made, "reversed"):
        result, values = result_of(answer_of(row)), list(seen.bars.values())
        if row["skill"] == "largest":
            assert seen.bars[result] == min(values)
        elif row["skill"] == "gap":
            assert int(result) == -int(evaluated(row, seen))
        else:
            assert int(result) == len(values) - int(evaluated(row, seen)) != int(evaluated(row, seen))
        assert false_sentences(row, seen) == [f" The answer is {result}."]


def test_a_miscalculated_answer_reads_the_picture_rightly_and_ends_in_a_wrong_number(made):
    for row, _, seen in noisy(made, "miscalculated"):
        off = int(result_of(answer_of(row))) - int(evaluated(row, seen))
        assert abs(off) in ((1, 2) if row["skill"] == "above" else (seen.top // 9, 2 * seen.top // 9))
        assert len(false_sentences(row, seen)) == (1 if row["skill"] == "above" else 2)


def test_an_invented_answer_has_one_false_sentence_in_its_middle_and_the_right_result(made):
    for row, _, seen in noisy(made, "invented"):
        (false,) = false_sentences(row, seen)
        sentences = re.findall(r"[^.]+\.", answer_of(row))
        assert sentences.index(false) in (1, 2)
        assert result_of(answer_of(row)) == evaluated(row, seen)


def test_a_looping_answer_repeats_a_true_sentence_and_has_no_result(made):
    for row, fact, seen in noisy(made, "looping"):
        answer = answer_of(row)
        assert result_of(answer) is None
        assert not is_correct(answer, evaluated(row, seen))
        assert not false_sentences(row, seen)
        sentences = [sentence.strip() for sentence in re.findall(r"[^.]+\.", answer)]
        again = sentences.count(sentences[-1])
        assert again >= 3
        assert answer[fact["error_start"] : fact["error_end"]] == " ".join(sentences[-1:] * (again - 1))


def test_a_wrong_format_has_the_right_chain_and_a_conclusion_that_is_not_taken_for_an_answer(made):
    for row, fact, seen in noisy(made, "wrong_format"):
        answer = answer_of(row)
        conclusion = answer[fact["error_start"] : fact["error_end"]]
        assert answer.endswith(conclusion)
        assert re.findall(r"-?\w+", conclusion)[-1].removeprefix("-") == evaluated(row, seen)
        assert not false_sentences(row, seen, answer.removesuffix(conclusion))
        assert not is_correct(answer, evaluated(row, seen))


@pytest.mark.parametrize("kind", ChartProblem.noise_kinds)
def test_the_span_of_the_error_lies_in_the_first_false_sentence(made, kind):
    for row, fact, seen in noisy(made, kind):
        answer, start, end = answer_of(row), fact["error_start"], fact["error_end"]
        assert 0 < start < end <= len(answer)
        if kind not in ("looping", "wrong_format", "reversed"):  # those are told by their own tests
            begin = answer.index(false_sentences(row, seen)[0])
            assert begin <= start < answer.index(".", begin) + 1
            assert re.fullmatch(r"[A-Za-z]+|\d+|\W", answer[start:end])


def test_a_clean_row_has_no_span_and_a_bad_one_has_one(made):
    for fact in made.truth:
        assert (fact["error_start"] is None) == (fact["error_end"] is None) == fact["clean"]


@pytest.mark.parametrize(
    ("kind", "skill"), [("wrong_bar", "read"), ("reversed", "largest"), ("miscalculated", "total")]
)
def test_systematic_noise_gathers_at_one_skill(made, kind, skill):
    assert all(row["skill"] == skill for row, _, _ in noisy(made, kind))


def test_no_picture_and_no_chart_is_in_two_files(made):
    files = [[row["id"] for row in rows] for rows in (made.pool, made.heldout, made.benchmark)]
    for shown in (made.seen, made.pixels):
        held = [{str(shown[uid]) for uid in uids} for uids in files]
        assert not any(first & second for first, second in itertools.combinations(held, 2))


def test_a_chart_has_one_owner_whatever_the_seed():
    parts = ("pretrain", "pool", "heldout", "benchmark")
    for place, part in enumerate(parts):
        assert all(owner(draw_chart(np.random.default_rng([seed, place]), part)) == part for seed in range(30))


def test_near_duplicates_show_the_same_chart_and_give_the_same_answer(made):
    kind = {fact["uid"]: fact["kind"] for fact in made.truth}
    rows = {row["id"]: row for row in made.pool}
    copies = [fact for fact in made.truth if fact["duplicate_of"] is not None]
    assert len(copies) == 70
    for copy in copies:
        uid, source = copy["uid"], copy["duplicate_of"]
        assert kind[uid] == kind[source]
        assert made.seen[uid] == made.seen[source]
        assert answer_of(rows[uid]) == answer_of(rows[source])
        assert made.pixels[uid] != made.pixels[source]


def test_a_picture_does_not_depend_on_those_drawn_before_or_on_the_users_settings():
    import matplotlib

    generator = np.random.default_rng(0)
    plans = [(draw_chart(generator, "pool"), draw_style(generator)) for _ in range(20)]
    first = [paint(*plan) for plan in plans]
    with matplotlib.rc_context({"text.hinting": "none", "font.size": 30, "axes.linewidth": 5, "path.snap": False}):
        chart_drawing._sheet.cache_clear()
        assert [paint(*plan) for plan in reversed(plans)] == first[::-1]


def test_the_label_of_the_axis_tells_the_scales_apart():
    one, ten = (paint(Chart(("red",), (4 * scale,), scale), Style(0.8, True, 1.0)) for scale in (1, 10))
    assert look(one) == Seen({"red": 4}, 9)
    assert look(ten) == Seen({"red": 40}, 90)


def test_all_skills_are_drawn_equally_often():
    drawn = [problem.asked.skill for problem in problems(ChartProblem, 1000, "pool", np.random.default_rng(0))]
    # five standard deviations of a binomial count
    assert all(abs(drawn.count(skill) - 200) < 5 * np.sqrt(1000 * 0.2 * 0.8) for skill in QUESTIONS)


@pytest.mark.parametrize(("name", "kind"), [("charts_proxy", "internvl"), ("charts_target", "qwen3_vl")])
def test_the_packaged_models_are_small_and_of_their_families(name, kind):
    assert json.loads((checkpoint(name) / "config.json").read_text())["model_type"] == kind
    assert (checkpoint(name) / "model.safetensors").stat().st_size < 1.2e6


def test_a_comparison_on_charts_takes_their_models_and_leaves_room_for_their_answers(folder, tmp_path):
    data = SyntheticData.at(folder)
    drawn = problems(ChartProblem, 500, "heldout", np.random.default_rng(0))
    comparison = charts_comparison(data, tmp_path / "out", train=dataclasses.replace(TARGET, steps=5))
    assert (comparison.target, comparison.recipe.proxy) == tuple(
        str(checkpoint(name)) for name in ("charts_target", "charts_proxy")
    )
    assert comparison.train.steps == 5
    assert comparison.recipe.pool == data.pool
    # words, digits, marks and the spaces before digits are tokens of their own
    longest = max(len(re.findall(r"[A-Za-z]+|\d|[^\w\s]| (?=\d)", problem.answer)) for problem in drawn)
    assert longest < comparison.evaluate.max_new_tokens


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    chart_drawing._sheet.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "onesteptrain[synthetic]"')):
        paint(Chart(("red",), (4,), 1), Style(0.8, True, 1.0))
