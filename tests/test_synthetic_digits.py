import functools
import itertools
import json
import re
import sys
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from onesteptrain.errors import MissingExtraError
from onesteptrain.synthetic.digits import QUESTIONS, DigitProblem, scans
from tests.synthetic_data import synthetic


class Made(NamedTuple):
    """Data as read back from its files."""

    pool: list
    heldout: list
    benchmark: list
    truth: list
    shown: dict  # uid -> what the pixels show, as (scan number, digit) in reading order


@pytest.fixture(scope="module")
def made():
    folder = synthetic("digits")
    parts = [read_rows(folder / f"{name}.jsonl") for name in ("pool", "heldout", "benchmark")]
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    rows = [row for part in parts for row in part]
    shown = read_pictures([folder / row["images"][0] for row in rows])
    return Made(*parts, truth, dict(zip([row["id"] for row in rows], shown, strict=True)))


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@functools.cache
def templates():
    """Every scan of scikit-learn in every place of a cell that it may be drawn at, as unit vectors."""
    large = [
        np.asarray(Image.fromarray((scan / 16 * 255).astype(np.uint8)).resize((14, 14), Image.Resampling.BILINEAR))
        for scan in load_digits().images
    ]
    cells = np.zeros((len(large), 9, 16, 16), np.float32)
    for place, (down, right) in enumerate(itertools.product(range(3), repeat=2)):
        cells[:, place, down : down + 14, right : right + 14] = large
    flat = cells.reshape(-1, 256)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def read_pictures(paths):
    """Tell what pictures show by comparing their cells with all scans: nothing of the generator is used.

    The ink scales a cell and rounding moves each pixel by less than 1 of 255, which leaves a cosine above 0.999.
    """
    found, inked = [], []
    for number, path in enumerate(paths):
        pixels = np.asarray(Image.open(path).convert("L"), np.float32)
        for row, column in itertools.product(range(2), repeat=2):
            cell = pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1)
            if cell.any():
                inked.append(number)
                found.append(cell / np.linalg.norm(cell))
    likeness = np.stack(found) @ templates().T
    assert likeness.max(1).min() > 0.999
    shown = [[] for _ in paths]
    for number, scan in zip(inked, likeness.argmax(1) // 9, strict=True):
        shown[number].append((int(scan), int(load_digits_labels()[scan])))
    return shown


@functools.cache
def load_digits_labels():
    return load_digits().target


def evaluated(skill, digits):
    """What a question comes to, worked out a second time."""
    ordered = sorted(digits)
    if skill == "product":
        return sum(digits[-1] for _ in range(digits[0]))
    return {
        "sum": int(np.sum(digits)),
        "difference": ordered[-1] - ordered[0],
        "count": len([digit for digit in digits if digit in (1, 3, 5, 7, 9)]),
    }[skill]


def digits_of(made, uid):
    return [digit for _, digit in made.shown[uid]]


def answer_of(row):
    return row["messages"][1]["content"]


def result_of(answer):
    found = re.search(r"The answer is (-?\d+)\.$", answer)
    return int(found[1]) if found else None


def read_digits_of(answer):
    """The digits that an answer says it sees."""
    found = re.match(r"The digits: ([\d,]+)\.", answer)
    return [int(digit) for digit in re.findall(r"\d", found[0])] if found else None


def test_every_clean_answer_is_what_the_pixels_come_to(made):
    clean = [row for row, fact in zip(made.pool, made.truth, strict=True) if fact["clean"]]
    for row in clean + made.heldout:
        digits = digits_of(made, row["id"])
        assert read_digits_of(answer_of(row)) == digits
        assert result_of(answer_of(row)) == evaluated(row["skill"], digits)


def test_every_step_of_a_clean_answer_is_right_arithmetic(made):
    clean = [row for row, fact in zip(made.pool, made.truth, strict=True) if fact["clean"]]
    steps = [step for row in clean for step in re.findall(r"(\d+)([-+x])(\d+)=(\d+)", answer_of(row))]
    work = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
    assert len(steps) > len(clean) / 2
    assert all(work[sign](int(left), int(right)) == int(result) for left, sign, right, result in steps)


def test_the_expected_answers_of_heldout_rows_and_benchmark_are_right(made):
    for row in made.heldout + made.benchmark:
        assert row["answer"] == str(evaluated(row["skill"], digits_of(made, row["id"])))


def test_the_level_is_the_number_of_digits(made):
    for row in made.pool + made.heldout + made.benchmark:
        assert row["level"] == len(made.shown[row["id"]])


def test_the_question_does_not_give_the_digits_away():
    assert not [wording for wordings in QUESTIONS.values() for wording in wordings if re.search(r"\d", wording)]


def test_the_same_question_has_many_answers_so_that_the_picture_is_needed(made):
    for skill, wordings in QUESTIONS.items():
        for wording in wordings:
            answers = [
                row["answer"] for row in made.heldout + made.benchmark if row["messages"][0]["content"][7:] == wording
            ]
            assert len(set(answers)) > 2, skill


@pytest.mark.parametrize("kind", DigitProblem.noise_kinds)
def test_a_noisy_answer_is_never_what_a_clean_one_would_be(made, kind):
    rows = [row for row, fact in zip(made.pool, made.truth, strict=True) if fact["kind"] == kind]
    assert len(rows) == 100
    for row in rows:
        digits = digits_of(made, row["id"])
        reading = read_digits_of(answer_of(row))
        wrong = result_of(answer_of(row)) != evaluated(row["skill"], digits)
        if kind in ("misread", "swapped_image"):
            assert reading != digits  # the result may be right by chance: see docs/synthetic.md
        else:
            assert wrong


def test_a_wrong_operation_reads_the_picture_rightly(made):
    rows = [row for row, fact in zip(made.pool, made.truth, strict=True) if fact["kind"] == "wrong_operation"]
    assert all(read_digits_of(answer_of(row)) == digits_of(made, row["id"]) for row in rows)


def test_cut_off_and_off_topic_answers_have_no_result(made):
    for row, fact in zip(made.pool, made.truth, strict=True):
        if fact["kind"] in ("cut_off", "off_topic"):
            assert "The answer is" not in answer_of(row)


def test_the_span_of_the_error_is_what_differs_from_the_right_answer(made):
    for row, fact in zip(made.pool, made.truth, strict=True):
        answer, start, end = answer_of(row), fact["error_start"], fact["error_end"]
        right = spelled_out(row["skill"], digits_of(made, row["id"]))
        if fact["clean"]:
            assert (answer, start, end) == (right, None, None)
        elif fact["kind"] == "off_topic":
            assert (start, end) == (0, len(answer))
        elif fact["kind"] == "cut_off":
            assert (start, end) == (len(answer), len(answer))
            assert right.startswith(answer)
        else:
            assert answer[:start] == right[:start]
            assert answer[start:end] != right[start:end]
            assert re.fullmatch(r"[A-Za-z]+|\d+|\W", answer[start:end])


def spelled_out(skill, digits):
    """The whole of a right answer, written a second time."""
    if skill == "sum":
        totals = list(itertools.accumulate(digits))
        steps = [f"{total - digit}+{digit}={total}" for total, digit in zip(totals[1:], digits[1:], strict=True)]
        work = f"{','.join(steps)}."
    elif skill == "count":
        odd = [str(digit) for digit in digits if digit % 2]
        work = f"Odd: {','.join(odd)}." if odd else "None is odd."
    else:
        pair = (max(digits), min(digits)) if skill == "difference" else (digits[0], digits[-1])
        work = f"{pair[0]}{'-' if skill == 'difference' else 'x'}{pair[1]}={evaluated(skill, digits)}."
    return f"The digits: {','.join(map(str, digits))}. {work} The answer is {evaluated(skill, digits)}."


def test_no_scan_is_shown_in_two_files(made):
    used = [
        {scan for row in part for scan, _ in made.shown[row["id"]]}
        for part in (made.pool, made.heldout, made.benchmark)
    ]
    assert all(len(shown) > 50 for shown in used)
    assert not any(first & second for first, second in itertools.combinations(used, 2))


def test_no_pixels_of_a_scan_are_in_two_parts():
    parts = ("pretrain", "pool", "heldout", "benchmark")
    held = [{scan.tobytes() for digit in scans(part) for scan in digit} for part in parts]
    assert not any(first & second for first, second in itertools.combinations(held, 2))
    assert sum(map(len, held)) == 1797  # all scans of the data set, which differ from one another


def test_every_part_has_many_scans_of_every_digit():
    for part in ("pretrain", "pool", "heldout", "benchmark"):
        assert min(map(len, scans(part))) >= 10


def test_near_duplicates_show_the_same_scans_and_ask_for_the_same_skill(made):
    kind = {fact["uid"]: fact["kind"] for fact in made.truth}
    rows = {row["id"]: row for row in made.pool}
    copies = [fact for fact in made.truth if fact["duplicate_of"] is not None]
    assert len(copies) == 60
    for copy in copies:
        uid, source = copy["uid"], copy["duplicate_of"]
        assert rows[uid]["skill"] == rows[source]["skill"]
        if "swapped_image" not in (kind[uid], kind[source]):  # a swapped picture is no longer the copied one
            assert made.shown[uid] == made.shown[source]


def test_ids_are_unique_over_all_files(made):
    ids = [row["id"] for row in made.pool + made.heldout + made.benchmark]
    assert len(set(ids)) == len(ids)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    scans.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=re.escape('pip install "onesteptrain[synthetic]"')):
            scans("pool")
    finally:
        scans.cache_clear()
