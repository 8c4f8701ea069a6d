"""Final answers: a table of replies with the verdict that a person gives, and MathVista's choices."""

import json
from pathlib import Path

import pytest

from onesteptrain.evaluation import extract_answer, is_correct
from onesteptrain.evaluation.answers.thoughts import without_thoughts
from onesteptrain.evaluation.suites.mathematics import chosen

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "answer_pairs.jsonl").read_text("utf-8").splitlines()]


def test_the_table_of_answers_is_graded_as_a_person_grades_it_and_nothing_wrong_is_credited():
    graded = [(pair, is_correct(pair["reply"], pair["reference"])) for pair in PAIRS]
    credited = [pair for pair, correct in graded if correct and not pair["right"]]
    refused = [pair for pair, correct in graded if not correct and pair["right"]]
    assert len(PAIRS) >= 600
    assert sum(not pair["right"] for pair in PAIRS) >= 200  # a grader that credits all would fail by these
    assert credited == []
    assert len(refused) <= 0.02 * len(PAIRS), refused


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair["right"]][::7], ids=lambda pair: pair["reply"][:30])
def test_a_thought_before_a_reply_changes_nothing_and_a_thought_without_end_is_no_answer(pair):
    assert is_correct(f"<think>\nSo the answer is 123456.\n</think>\n\n{pair['reply']}", pair["reference"])
    assert not is_correct(f"<think>\n{pair['reply']}", pair["reference"]) or "</think>" in pair["reply"]
    assert extract_answer(f"<think>{pair['reply'].replace('think', '')}", finished=True) is None


def test_thoughts_are_cut_wherever_they_stand():
    assert without_thoughts("a<think>b</think>c<think>d</think>e") == "ace"
    assert without_thoughts("b</think>c") == "c"  # the prompt opened the thought
    assert without_thoughts("a<think>b") is None
    assert without_thoughts("a < b and b > c") == "a < b and b > c"


CHOSEN = [
    ("a square", ["circle", "square", "line"], "square"),
    ("A square", ["circle", "square"], "square"),
    ("A dog", ["cat", "dog"], "dog"),
    ("an apple", ["pear", "apple"], "apple"),
    ("B", ["circle", "square"], "square"),
    ("B, because it has corners", ["circle", "square"], "square"),
    ("(A) circle", ["circle", "square"], "circle"),
    ("A", ["circle", "square"], "circle"),
    ("no", ["yes", "no"], "no"),
    ("Yes, because it rises", ["no", "yes"], "yes"),
    ("145 degrees", ["145°", "35°"], "145°"),
    ("12 cm", ["12", "13"], "12"),
    ("the red one", ["red", "green"], "red"),
    ("red or green", ["red", "green"], None),
    ("not red", ["red", "green"], None),
    ("a cat and a dog", ["cat", "dog"], None),
    ("(A) or (B)", ["cat", "dog"], None),
]


@pytest.mark.parametrize(("stated", "choices", "meant"), CHOSEN)
def test_a_mathvista_choice_is_told_by_its_letter_or_its_own_text_and_an_article_is_no_letter(stated, choices, meant):
    assert chosen(stated, choices) == meant


def test_a_word_after_an_article_is_never_a_letter_in_a_reply():
    stated = extract_answer("The answer is a square.")
    assert chosen(stated, ["circle", "square"]) == "square"
    assert chosen(stated, ["square", "circle"]) == "square"
