import dataclasses
import itertools
import json
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from onesteptrain.errors import ConfigError
from onesteptrain.evaluation.answers import is_correct
from onesteptrain.jobs.demo import TARGET, mixed_comparison
from onesteptrain.synthetic import MixedOptions, SyntheticData, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.synthetic.digits import DigitProblem
from onesteptrain.synthetic.making import problems
from onesteptrain.synthetic.mixed import NOISE_SHARES, SHARES, SOURCES
from onesteptrain.synthetic.number_texts import TextProblem, owner
from onesteptrain.synthetic.short_digits import ShortDigitProblem
from tests.synthetic_data import ROWS, synthetic

DIGIT = DigitProblem.draw("pool", np.random.default_rng(0))


class Made(NamedTuple):
    """Data as read back from its files."""

    pool: list
    heldout: list
    benchmark: list
    truth: list


def read(folder):
    parts = [
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("pool", "heldout", "benchmark")
    ]
    return Made(*parts, pq.read_table(folder / "truth.parquet").to_pylist())


@pytest.fixture(scope="module")
def made():
    return read(synthetic("mixed"))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Text and short answers of which half are bad, evenly over the kinds."""
    shares = {"text": 0.5, "short": 0.5}
    options = MixedOptions(800, 60, 60, shares=shares, noise_shares=dict.fromkeys(shares, 0.5))
    folder = tmp_path_factory.mktemp("data") / "spoiled"
    make_synthetic("mixed", options, folder)
    return read(folder)


def answer_of(row):
    return row["messages"][1]["content"]


def question_of(row):
    return row["messages"][0]["content"]


def rows_of(made, source, kind):
    pairs = zip(made.pool, made.truth, strict=True)
    rows = [(row, fact) for row, fact in pairs if row["source"] == source and fact["kind"] == kind]
    assert rows
    return rows


def evaluated(row):
    """The right answer to a text row, worked out a second time from the words of its question."""
    question = question_of(row)
    if row["skill"] == "larger":
        return str(max(eval(term.replace("x", "*")) for term in re.findall(r"\d+[+x]\d+", question)))
    if row["skill"] == "steps":
        signs = {"add": 1, "take away": -1}
        first = int(re.search(r"\d+", question)[0])
        return str(first + sum(signs[word] * int(n) for word, n in re.findall(r"(add|take away) (\d+)", question)))
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    return str(sorted(numbers)[-2] if row["skill"] == "second" else sum(number % 2 == 0 for number in numbers))


def result_of(answer):
    found = re.search(r"The answer is (-?\d+)\.$", answer)
    return found and found[1]


def false_steps(answer):
    """Sums, differences and products of an answer that do not come to what it says."""
    work = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
    steps = re.findall(r"(\d+)([-+x])(\d+)=(-?\d+)", answer)
    return [step for step in steps if work[step[1]](int(step[0]), int(step[2])) != int(step[3])]


def test_each_source_has_its_share_of_every_file(made):
    for part, rows in ((made.pool, ROWS["mixed"]), (made.heldout, 120), (made.benchmark, 120)):
        counts = Counter(row["source"] for row in part)
        assert counts == {source: pytest.approx(share * rows, abs=1) for source, share in SHARES.items()}


def test_one_source_is_half_of_the_pool_and_one_is_clean():
    assert max(SHARES.values()) == 0.5
    assert min(NOISE_SHARES.values()) == 0
    assert set(SHARES) == set(NOISE_SHARES) == set(SOURCES)


def test_each_source_has_its_share_of_bad_rows(made):
    bad = Counter(row["source"] for row, fact in zip(made.pool, made.truth, strict=True) if not fact["clean"])
    expected = {source: NOISE_SHARES[source] * SHARES[source] * ROWS["mixed"] for source in SOURCES}
    assert {source: bad[source] for source in SOURCES} == {
        source: pytest.approx(count, abs=1) for source, count in expected.items()
    }


def test_shares_and_noise_are_as_asked_and_what_is_not_named_stays(tmp_path):
    shares = {"charts": 0.5, "text": 0.25, "short": 0.25}
    options = MixedOptions(200, 10, 10, shares=shares, noise_shares={"short": 0.4, "charts": 0.0})
    folder = tmp_path / "data"
    make_synthetic("mixed", options, folder)
    made = read(folder)
    pairs = Counter((row["source"], fact["clean"]) for row, fact in zip(made.pool, made.truth, strict=True))
    assert pairs == {
        ("charts", True): 100,
        ("short", True): 30,
        ("short", False): 20,
        ("text", True): 35,
        ("text", False): 15,
    }


def test_the_share_of_one_source_changes_no_row_of_another(tmp_path):
    def texts(name, shares):
        folder = tmp_path / name
        make_synthetic("mixed", MixedOptions(40, 10, 10, shares=shares), folder)
        return sorted(question_of(row) + answer_of(row) for row in read(folder).pool if row["source"] == "text")

    assert texts("first", {"digits": 0.5, "text": 0.5}) == texts("second", {"text": 0.5, "short": 0.5})


def test_near_duplicates_name_a_row_of_their_own_source(made):
    rows = {row["id"]: row for row in made.pool}
    copies = [fact for fact in made.truth if fact["duplicate_of"] is not None]
    assert len(copies) == pytest.approx(0.05 * ROWS["mixed"], abs=len(SOURCES) / 2)
    for fact in copies:
        row, original = rows[fact["uid"]], rows[fact["duplicate_of"]]
        assert (row["source"], row["skill"], row["level"]) == (original["source"], original["skill"], original["level"])
        if row["source"] in ("text", "charts"):
            assert answer_of(row) == answer_of(original)


def test_a_near_duplicate_of_a_text_has_other_words(made):
    rows = {row["id"]: row for row in made.pool}
    copies = [fact for fact in made.truth if fact["duplicate_of"] and rows[fact["uid"]]["source"] == "text"]
    assert copies
    assert all(question_of(rows[fact["uid"]]) != question_of(rows[fact["duplicate_of"]]) for fact in copies)


def test_the_sources_answer_at_different_length(made):
    length = {
        source: np.median([len(answer_of(row)) for row in made.pool if row["source"] == source]) for source in SOURCES
    }
    assert length["short"] <= 2 < length["text"] / 10
    assert length["charts"] > 1.5 * max(length["digits"], length["text"])


def test_a_clean_text_is_right_in_every_step(made, spoiled):
    clean = [row for row, _ in rows_of(made, "text", "clean") + rows_of(spoiled, "text", "clean")]
    for row in clean + [row for row in made.heldout + spoiled.heldout if row["source"] == "text"]:
        assert result_of(answer_of(row)) == evaluated(row)
        assert not false_steps(answer_of(row))
        given = re.match(r"Given: ([\d,]+)\.", answer_of(row))[1].split(",")
        assert given == re.findall(r"\d+", question_of(row))


def test_the_expected_answers_of_texts_are_right(made):
    for row in made.heldout + made.benchmark:
        if row["source"] == "text":
            assert row["answer"] == evaluated(row)


@pytest.mark.parametrize("kind", TextProblem.noise_kinds)
def test_a_noisy_text_never_has_the_right_result(spoiled, kind):
    for row, fact in rows_of(spoiled, "text", kind):
        answer = answer_of(row)
        assert result_of(answer) != evaluated(row)
        assert 0 <= fact["error_start"] <= fact["error_end"] <= len(answer)
        given = re.match(r"Given: ([\d,]+)\.", answer)
        if kind in ("reversed", "slip"):
            assert given[1].split(",") == re.findall(r"\d+", question_of(row))
        if kind == "misquoted":
            assert given[1].split(",") != re.findall(r"\d+", question_of(row))
        if kind == "cut_off":
            assert fact["error_start"] == fact["error_end"] == len(answer)


def test_a_slip_is_a_wrong_step_or_a_wrong_count_and_nothing_else_is(spoiled):
    assert all(false_steps(answer_of(row)) or row["skill"] == "even" for row, _ in rows_of(spoiled, "text", "slip"))
    for kind in ("misquoted", "reversed", "other_answer"):
        assert not any(false_steps(answer_of(row)) for row, _ in rows_of(spoiled, "text", kind))


def test_reversed_answers_gather_at_one_skill(spoiled):
    assert {row["skill"] for row, _ in rows_of(spoiled, "text", "reversed")} == {"larger"}


def test_no_numbers_of_a_skill_are_in_two_files(made):
    asked = [
        {(row["skill"], *re.findall(r"\d+|add|take", question_of(row))) for row in part if row["source"] == "text"}
        for part in (made.pool, made.heldout, made.benchmark)
    ]
    assert not any(first & second for first, second in itertools.combinations(asked, 2))


def test_numbers_have_one_owner_whatever_the_seed():
    for place, part in enumerate(("pretrain", "pool", "heldout", "benchmark")):
        drawn = problems(TextProblem, 50, part, np.random.default_rng(place))
        assert {owner(problem.asked) for problem in drawn} == {part}


def test_a_short_answer_is_the_result_of_the_reasoned_one():
    short = ShortDigitProblem.draw("pool", np.random.default_rng(0))
    assert short.answer == short.right.result == DIGIT.right.result
    assert short.picture("pool") == DIGIT.picture("pool")
    assert short.question.startswith(DIGIT.question)
    assert short.question != DIGIT.question


@pytest.mark.parametrize("kind", ShortDigitProblem.noise_kinds)
def test_a_noisy_short_answer_is_wrong_for_its_picture(kind):
    generator = np.random.default_rng(0)
    clean = problems(ShortDigitProblem, 100, "pool", generator)
    for problem in (row.spoil(kind, generator) for row in clean):
        right = DigitProblem(
            problem.reasoned.skill, problem.reasoned.digits, problem.reasoned.drawing, wording=0, answer=""
        ).right.result
        assert re.fullmatch(r"\d+", problem.answer)
        assert problem.answer != right
        assert problem.error is not None
        assert problem.answer[: problem.error.start] == right[: problem.error.start]


def test_the_checker_takes_a_short_answer_as_it_stands(made):
    short = [row for row in made.heldout if row["source"] == "short"]
    assert short
    for row in short:
        assert answer_of(row) == row["answer"]
        assert is_correct(answer_of(row), row["answer"])
        assert not is_correct(answer_of(row), str(int(row["answer"]) + 1))


@pytest.mark.parametrize(("name", "kind"), [("mixed_proxy", "internvl"), ("mixed_target", "qwen3_vl")])
def test_the_packaged_models_are_small_and_of_their_families(name, kind):
    assert json.loads((checkpoint(name) / "config.json").read_text())["model_type"] == kind
    assert (checkpoint(name) / "model.safetensors").stat().st_size < 1.2e6


def test_a_comparison_on_the_mix_takes_its_models_and_goes_by_source(tmp_path):
    data = SyntheticData.at(synthetic("mixed"))
    comparison = mixed_comparison(data, tmp_path / "out", train=dataclasses.replace(TARGET, steps=5))
    assert (comparison.target, comparison.recipe.proxy) == tuple(
        str(checkpoint(name)) for name in ("mixed_target", "mixed_proxy")
    )
    assert comparison.train.steps == 5
    assert comparison.evaluate.by == ("source",)
    assert comparison.recipe.anchor_by == ("source", "skill")


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool_rows": 0},
        {"shares": {"digits": 0.5, "charts": 0.4}},
        {"shares": {"digits": 1.5, "charts": -0.5}},
        {"shares": {"pictures": 1.0}},
        {"noise_shares": {"digits": 1.1}},
        {"noise_shares": {"pictures": 0.1}},
        {"duplicate_share": 1.0},
    ],
)
def test_options_that_make_no_data_are_refused(wrong):
    with pytest.raises(ConfigError):
        MixedOptions(**wrong)


def test_options_of_another_kind_of_data_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="give MixedOptions"):
        make_synthetic("mixed", SyntheticOptions(), tmp_path / "data")
    with pytest.raises(ConfigError, match="give SyntheticOptions"):
        make_synthetic("digits", MixedOptions(), tmp_path / "data")
    assert not any(tmp_path.iterdir())


def test_a_source_is_the_kind_of_data_that_it_is_made_of(made):
    digits = [row for row in made.heldout if row["source"] == "digits"]
    assert all(re.match(r"The digits: [\d,]+\. ", answer_of(row)) for row in digits)
    assert all(answer_of(row).startswith("The axis goes") for row in made.heldout if row["source"] == "charts")
