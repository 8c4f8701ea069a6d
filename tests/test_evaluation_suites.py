"""Public benchmarks: rows in their own schemas become questions, and their own rules decide."""

from __future__ import annotations

import functools
import itertools
import json
import random

import datasets
import pytest
from PIL import Image

from onesteptrain.data.images import load_image
from onesteptrain.data.pool import ImageRef
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.evaluation import EvaluateOptions, Graded, evaluate
from onesteptrain.evaluation.results import Counting, summarise
from onesteptrain.evaluation.suites import load_suite
from onesteptrain.evaluation.suites.mathematics import chosen, edit_distance
from onesteptrain.evaluation.suites.mathematics import is_right as vista_right
from onesteptrain.evaluation.suites.reasoning import is_right, labels
from onesteptrain.evaluation.suites.reasoning import wemath_metrics as metrics
from onesteptrain.proxy import load_proxy

TEXT, IMAGE, TEXTS = datasets.Value("string"), datasets.Image(), datasets.List(datasets.Value("string"))


def picture(shade):
    return Image.new("RGB", (48, 32), (shade, 0, 0))


MATHVISION = {
    "id": TEXT,
    "question": TEXT,
    "options": TEXTS,
    "image": TEXT,
    "decoded_image": IMAGE,
    "answer": TEXT,
    "solution": TEXT,
    "level": datasets.Value("int64"),
    "subject": TEXT,
}
MATHVISTA = {
    "pid": TEXT,
    "question": TEXT,
    "image": TEXT,
    "decoded_image": IMAGE,
    "choices": TEXTS,
    "unit": TEXT,
    "precision": datasets.Value("float64"),
    "answer": TEXT,
    "question_type": TEXT,
    "answer_type": TEXT,
    "metadata": {
        "category": TEXT,
        "grade": TEXT,
        "skills": TEXTS,
        "split": TEXT,
        "img_height": datasets.Value("int64"),
    },
    "query": TEXT,
}
WEMATH = {
    "ID": TEXT,
    "split": TEXT,
    "knowledge concept": TEXT,
    "question": TEXT,
    "option": TEXT,
    "answer": TEXT,
    "image_path": IMAGE,
    "key": TEXT,
    "question number": datasets.Value("int64"),
    "knowledge concept description": TEXT,
}
LOGICVISTA = dict.fromkeys(("id", "question", "answer", "reasoning", "skill", "broad_capability"), TEXT) | {
    "image": IMAGE
}


def mathvision_row(number, answer, options=(), **changes):
    row = {
        "id": str(number),
        "question": "How many bricks are missing?\n<image1>",
        "options": list(options),
        "image": f"images/{number}.jpg",
        "decoded_image": picture(number),
        "answer": answer,
        "solution": None,
        "level": number,
        "subject": "counting",
    }
    return row | changes


def mathvista_row(number, answer, kind, choices=None, **changes):
    metadata = {"category": "math", "grade": "college", "skills": ["algebra", "logic"], "split": "testmini"}
    row = {
        "pid": str(number),
        "question": "What is the height?",
        "image": f"images/{number}.jpg",
        "decoded_image": picture(number),
        "choices": choices,
        "unit": None,
        "precision": None,
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": kind,
        "metadata": metadata | {"img_height": 32},
        "query": "Hint: ...",
    }
    return row | changes


def wemath_row(number, key, answer="B"):
    return {
        "ID": f"{key[:6]}_{number}",
        "split": "testmini",
        "knowledge concept": "Circumference of Circles",
        "question": "As shown, the radius is ( ) cm.",
        "option": "A. 1;B. 2;C. 3; D. No correct answer",
        "answer": answer,
        "image_path": picture(number),
        "key": key,
        "question number": number,
        "knowledge concept description": "Circumference of Circles:\n1. ...",
    }


def logicvista_row(number, answer, **changes):
    row = {
        "id": f"v1_{number}",
        "question": "Which choices in the image (A-D) belong to the green category?",
        "answer": answer,
        "reasoning": "Because.",
        "skill": "inductive",
        "broad_capability": "diagram",
        "image": picture(number),
    }
    return row | changes


def parquet(folder, rows, features):
    path = folder / "rows.parquet"
    datasets.Dataset.from_list(rows, datasets.Features(features)).to_parquet(path)
    return path


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def test_mathvision_options_get_letters_and_either_the_letter_or_the_text_is_right(tmp_path):
    rows = [
        mathvision_row(1, "B", ["$6 \\mathrm{~m}$", "$8 \\mathrm{~m}$", "10", "11", "12"]),
        mathvision_row(2, "\\frac{3}{4}"),
        mathvision_row(3, "A", ["B", "A", "C", "D", "E"]),
    ]
    choice, free, letters = load_suite("mathvision", path=parquet(tmp_path, rows, MATHVISION))
    image, text = choice.turns[0].parts
    assert isinstance(image, ImageRef)
    assert load_image(image).getpixel((0, 0)) == (1, 0, 0)
    assert "\n(A) $6 \\mathrm{~m}$\n(B) $8 \\mathrm{~m}$\n" in text
    assert (choice.uid, choice.answer, dict(choice.fields)) == ("1", "B", {"subject": "counting", "level": 1})
    assert [choice.check(stated) for stated in ("B", "(B)", "8 m", "A", "6 m")] == [True, True, True, False, False]
    assert "(A)" not in free.turns[0].text
    assert [free.check(stated) for stated in ("0.75", "$\\frac{6}{8}$", "4/3")] == [True, True, False]
    assert [letters.check(stated) for stated in ("A", "B")] == [True, False]  # a letter is never taken for a text


def test_the_official_mathvision_jsonl_needs_only_the_folder_of_its_images(tmp_path):
    (tmp_path / "images").mkdir()
    picture(7).save(tmp_path / "images" / "7.jpg")
    row = {key: value for key, value in mathvision_row(7, "3").items() if key != "decoded_image"}
    (tmp_path / "testmini.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (question,) = load_suite("mathvision", path=tmp_path / "testmini.jsonl", split="testmini")
    assert load_image(question.turns[0].parts[0]).size == (48, 32)


def test_mathvista_questions_say_which_kind_of_value_is_asked_for(tmp_path):
    rows = [
        mathvista_row(1, "tokyo", "text", ["hong kong", "osaka", "shanghai", "tokyo"]),
        mathvista_row(2, "14", "integer", unit="cm"),
        mathvista_row(3, "0.6", "float", precision=1.0),
        mathvista_row(4, "[2007, 2008]", "list"),
    ]
    choice, integer, decimal, several = load_suite("mathvista", path=parquet(tmp_path, rows, MATHVISTA))
    assert "(D) tokyo" in choice.turns[0].text
    assert "(Unit: cm)" in integer.turns[0].text
    assert "1 decimal place." in decimal.turns[0].text
    assert "list" in several.turns[0].text
    assert choice.fields["skills"] == ["algebra", "logic"]
    assert choice.check("D")
    assert integer.check("14 cm")
    assert decimal.check("0.61")
    assert several.check("[2007, 2008]")


VISTA_RULES = [
    ("D", "tokyo", "text", True),
    ("(D) tokyo", "tokyo", "text", True),
    ("d.", "tokyo", "text", True),
    ("Tokyo", "tokyo", "text", True),  # one letter away, and further from all others
    ("The capital is (A)", "tokyo", "text", False),
    ("14", "14", "integer", True),
    ("14.9", "14", "integer", True),  # int(float("14.9"))
    ("1,400", "1400", "integer", True),
    ("14 apples", "14", "integer", True),
    ("7 + 7", "14", "integer", False),
    ("14 or 15", "14", "integer", False),
    ("-3", "3", "integer", False),
    ("0.55", "0.6", "float", True),  # round(0.55, 1) is 0.6
    ("0.64", "0.6", "float", True),
    ("0.66", "0.6", "float", False),
    ("3/5", "0.6", "float", True),
    ("[1, 2]", "[1,2]", "list", True),
    ("[1.0, 2]", "[1, 2]", "list", True),
    ("[2, 1]", "[1, 2]", "list", False),
]


@pytest.mark.parametrize(("stated", "answer", "kind", "right"), VISTA_RULES)
def test_mathvista_answers_are_judged_by_its_own_rules(stated, answer, kind, right):
    choices = ["hong kong", "osaka", "shanghai", "tokyo"] if kind == "text" else []
    assert vista_right(answer, stated, choices=choices, kind=kind, decimals=1) is right


def test_a_mathvista_choice_that_looks_like_a_letter_stands_for_itself():
    assert chosen("B", ["B", "A"]) == "B"
    assert chosen("(B)", ["yes", "no"]) == "no"


def test_the_edit_distance_is_that_of_its_recursion():
    @functools.cache
    def slow(first, second):
        if not first or not second:
            return len(first) + len(second)
        same = slow(first[1:], second[1:]) + (first[0] != second[0])
        return min(same, slow(first[1:], second) + 1, slow(first, second[1:]) + 1)

    draw = random.Random(0)
    texts = ["".join(draw.choices("abc", k=draw.randint(0, 6))) for _ in range(12)]
    for first, second in itertools.product(texts, texts):
        assert edit_distance(first, second) == slow(first, second)


def test_logicvista_counts_several_labels_as_a_set(tmp_path):
    rows = [logicvista_row(0, "C"), logicvista_row(1, "A, C"), logicvista_row(2, "", question="")]
    one, several = load_suite("logicvista", path=parquet(tmp_path, rows, LOGICVISTA))  # the blank row is left out
    assert one.check("(C)")
    assert not one.check("A, C")
    rights = ["A, C", "C and A", "(A), (C)", "AC", "a & c."]
    assert [several.check(stated) for stated in rights] == [True] * len(rights)
    wrongs = ["A", "A, B", "A, C, D", "A or C", "the first and C"]
    assert [several.check(stated) for stated in wrongs] == [False] * len(wrongs)
    assert is_right("3", "3")
    assert labels("B. the square") is None


def test_the_official_logicvista_file_is_an_object_of_rows(tmp_path):
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "v1_0.png")
    row = {"imagename": "v1_0.png", "question": "Which?", "answer": "C", "skill": ["inductive"]}
    (tmp_path / "dataset.json").write_text(json.dumps({"v1_0": row}), encoding="utf-8")
    (question,) = load_suite("logicvista", path=tmp_path / "dataset.json")
    assert (question.uid, question.fields["skill"]) == ("v1_0", ["inductive"])
    assert load_image(question.turns[0].parts[0]).size == (48, 32)


def test_wemath_rows_of_one_problem_have_names_of_their_own(tmp_path):
    rows = [wemath_row(1, key) for key in ("2steps_1", "2steps_2", "2steps_multi")]
    questions = load_suite("wemath", path=parquet(tmp_path, rows, WEMATH))
    assert [one.uid for one in questions] == ["2steps_1/2steps_1", "2steps_1/2steps_2", "2steps_1/2steps_multi"]
    assert "A. 1;B. 2;C. 3; D. No correct answer" in questions[0].turns[0].text
    assert {one.fields["ID"] for one in questions} == {"2steps_1"}


def wemath_graded(problem, marks):
    """The parts of a problem; the last mark is that of the whole."""
    steps = len(marks) - 1
    keys = [f"{steps}steps_{part}" for part in [*range(1, steps + 1), "multi"]]
    facts = [{"ID": f"{steps}steps_{problem}", "key": key} for key in keys]
    return [Graded(f"{problem}/{n}", "", "", "", "B", mark, True, None, facts[n]) for n, mark in enumerate(marks)]


def test_the_wemath_measures_count_every_pattern_of_right_and_wrong_as_the_paper_defines_them():
    patterns = [*itertools.product([False, True], repeat=3), *itertools.product([False, True], repeat=4)]
    graded = [one for number, marks in enumerate(patterns) for one in wemath_graded(number, marks)]
    random.Random(0).shuffle(graded)
    found = metrics(graded)
    # Of the 24 patterns, 12 have a wrong whole: 2 of them (one of each length) with all steps right. Of the 12 with a
    # right whole, 2 have all steps right and 2 have none.
    assert found["problems"] == 24
    expected = {
        "insufficient_knowledge": 10 / 24,
        "inadequate_generalization": 2 / 24,
        "complete_mastery_strict": 2 / 24,
        "complete_mastery_loose": 10 / 24,
        "rote_memorization_strict": 10 / 12,
        "rote_memorization_loose": 2 / 12,
        "score_strict": (24 - 0.5 * 2 - 10 - 10) / 24,  # the official form: 1 minus half of IG, RM and IK
        "score_loose": (24 - 0.5 * 2 - 2 - 10) / 24,
        "one_step": 1 / 2,
        "two_step": 1 / 2,
        "three_step": 1 / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx({n: 100 * v for n, v in expected.items()})


def test_a_wemath_problem_with_a_missing_part_is_not_counted_and_a_share_of_nothing_is_not_defined():
    found = metrics(wemath_graded(1, (True, True, True))[:2])
    assert found["problems"] == 0
    assert set(found.values()) == {0.0, None}
    assert metrics(wemath_graded(1, (True, True, False)))["rote_memorization_strict"] is None


def test_a_question_with_several_skills_counts_in_each():
    graded = [
        Graded("a", "", "", "", "1", True, True, None, {"skills": ["x", "y"]}),
        Graded("b", "", "", "", "1", False, True, None, {"skills": ["x"]}),
    ]
    by = summarise(graded, Counting(["skills"])).by["skills"]
    assert {name: (one.correct, one.questions) for name, one in by.items()} == {"x": (1, 2), "y": (1, 1)}


def test_a_suite_is_answered_like_any_benchmark(tmp_path, tiny_checkpoint):
    rows = [wemath_row(1, key) for key in ("2steps_1", "2steps_2", "2steps_multi")]
    questions = load_suite("wemath", path=parquet(tmp_path, rows, WEMATH))
    result = evaluate(load_proxy(tiny_checkpoint), questions, EvaluateOptions(max_new_tokens=2, by=("key",)))
    assert [one.reason for one in result.graded] == [None] * 3
    assert sorted(result.by["key"]) == ["2steps_1", "2steps_2", "2steps_multi"]


def test_a_data_set_folder_and_a_copy_of_the_repository_give_the_questions_of_the_file(tmp_path):
    rows = [mathvision_row(1, "3"), mathvision_row(2, "B", ["A", "B"])]
    file = parquet(tmp_path, rows, MATHVISION)
    datasets.Dataset.from_list(rows, datasets.Features(MATHVISION)).save_to_disk(tmp_path / "saved")
    (tmp_path / "copy" / "data").mkdir(parents=True)
    (tmp_path / "copy" / "data" / "test-00000-of-00001.parquet").write_bytes(file.read_bytes())
    from_file, *others = (load_suite("mathvision", path=tmp_path / name) for name in ("rows.parquet", "saved", "copy"))
    for other in others:
        assert [(one.uid, one.turns[0].text, one.answer) for one in other] == [
            (one.uid, one.turns[0].text, one.answer) for one in from_file
        ]
        assert load_image(other[1].turns[0].parts[0]).tobytes() == load_image(from_file[1].turns[0].parts[0]).tobytes()


BAD_ROWS = [
    ("mathvision", mathvision_row(1, "3", decoded_image=None, image=None), "row 0: there is no image in decoded_image"),
    (
        "mathvision",
        mathvision_row(1, "B") | {"options": "['A', 'B']"},
        "row 0: options is str .* must be a list of texts",
    ),
    ("mathvision", mathvision_row(1, "C", ["one", "two"]), "row 0: the answer 'C' is no letter of its 2 options"),
    ("mathvision", mathvision_row(1, ""), "row 0: answer is ''; it must be a text"),
    ("mathvista", mathvista_row(1, "0.5", "float"), "row 0: precision is None"),
    ("mathvista", mathvista_row(1, "paris", "text", ["tokyo", "osaka"]), "row 0: .* 'paris' of the choices"),
    ("mathvista", mathvista_row(1, "4", "fraction"), "row 0: answer_type is 'fraction'"),
    ("logicvista", logicvista_row(1, "A", image="https://example.org/1.png"), "row 0: .* not on this machine"),
]


@pytest.mark.parametrize(("suite", "row", "line"), BAD_ROWS, ids=[line for _, _, line in BAD_ROWS])
def test_a_row_that_is_not_in_the_schema_is_refused_in_one_line(suite, row, line, tmp_path):
    plain = {key: None if isinstance(value, Image.Image) else value for key, value in row.items()}
    if isinstance(row.get("decoded_image"), Image.Image):
        plain["image"] = "1.png"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(plain) + "\n", encoding="utf-8")
    with pytest.raises(PoolError, match=line) as caught:
        load_suite(suite, path=path)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_a_missing_copy_and_an_unreachable_hub_are_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="mathvista has no split 'test' with right answers; choose testmini"):
        load_suite("mathvista", split="test")
    with pytest.raises(PoolError, match="no such file or folder; give a copy of We-Math/We-Math"):
        load_suite("wemath", path=tmp_path / "none")
    (tmp_path / "rows.tsv").write_text("a\n")
    with pytest.raises(PoolError, match=r"rows.tsv: not a file that can be read; give .* as .parquet"):
        load_suite("wemath", path=tmp_path / "rows.tsv")
    with pytest.raises(
        PoolError, match=r"MathLLMs/MathVision: the split test cannot be loaded .* --suite-path"
    ) as caught:
        load_suite("mathvision")  # tests are offline
    assert "\n" not in str(caught.value)
