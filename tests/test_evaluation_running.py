"""`ost evaluate`: a killed evaluation continues, suites and comparisons are one flag away."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest

from onesteptrain.evaluation import EvaluateOptions, evaluate, generation, read_benchmark
from onesteptrain.evaluation.benchmark import questions_fingerprint
from onesteptrain.evaluation.generation import Journal
from onesteptrain.evaluation.results import REPLIES
from onesteptrain.proxy import load_proxy
from tests.commands import done, ost, refusal
from tests.test_evaluation_suites import WEMATH, parquet, wemath_row


def write_benchmark(folder, rows=7):
    path = folder / "benchmark.jsonl"
    lines = [
        json.dumps(
            {
                "id": f"q{n}",
                "messages": [{"role": "user", "content": f"What is {n}? " * n}],
                "answer": str(n),
                "skill": "ab"[n % 2],
            }
        )
        for n in range(1, rows + 1)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def arguments(tmp_path, tiny_checkpoint):
    """A command that evaluates seven questions in batches of two."""
    path = write_benchmark(tmp_path)
    return ["evaluate", path, "--model", tiny_checkpoint, "--max-new-tokens", 3, "--batch-size", 2, "--device", "cpu"]


def test_a_killed_evaluation_continues_and_ends_with_the_same_results(tmp_path, arguments, monkeypatch):
    done(*arguments, "--out", tmp_path / "whole")
    asked = []
    plain = generation._generate

    def until_killed(proxy, prompts, max_new_tokens):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return plain(proxy, prompts, max_new_tokens)

    monkeypatch.setattr(generation, "_generate", until_killed)
    assert ost(*arguments, "--out", tmp_path / "killed").status == 130
    kept = (tmp_path / "killed" / REPLIES).read_text().splitlines()
    assert len(kept) == 4
    with (tmp_path / "killed" / REPLIES).open("a") as file:
        file.write('{"question": 6, "te')  # cut off in the middle of a line
    counted = []
    monkeypatch.setattr(generation, "_generate", lambda *a: counted.append(len(a[1])) or plain(*a))
    done(*arguments, "--out", tmp_path / "killed")
    assert sum(counted) == 3  # of seven questions, four were answered
    whole, killed = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("whole", "killed"))
    assert killed == whole
    assert not (tmp_path / "killed" / REPLIES).exists()


def test_an_evaluation_says_how_many_replies_were_cut_off(tmp_path, arguments, monkeypatch):
    words = [generation.Reply("The answer is 1.", True), generation.Reply("It may", False)]

    def the_first_is_cut_off(proxy, prompts, max_new_tokens):
        return [words[place == 0] for place in range(len(prompts))]

    monkeypatch.setattr(generation, "_generate", the_first_is_cut_off)
    said = done(*arguments, "--out", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "summary.json").read_text())
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert facts["cut_off"] == sum(row["prediction"] == "It may" for row in kept) == 4  # the first of each of 4 batches
    assert "4 of 7 replies were cut off; with a higher --max-new-tokens they may end" in said.out
    assert "loading the model" in said.err.splitlines()


def test_a_finished_evaluation_is_only_counted_again_also_by_other_columns(tmp_path, arguments, monkeypatch):
    done(*arguments, "--out", tmp_path / "out")
    monkeypatch.setattr(generation, "_generate", None)
    shown = json.loads(done(*arguments, "--out", tmp_path / "out", "--by", "skill", "--json").out)
    assert {name: one["questions"] for name, one in shown["by"]["skill"].items()} == {"a": 3, "b": 4}
    line = refusal(*arguments, "--out", tmp_path / "out", "--by", "topic")
    assert "no question has a column 'topic'" in line


def test_another_request_in_the_same_folder_is_refused_until_it_may_overwrite(tmp_path, arguments):
    out = ["--out", tmp_path / "out"]
    done(*arguments, *out)
    other = [4 if part == 3 else part for part in arguments]
    assert "max_new_tokens (3, now 4)" in refusal(*other, *out)
    done(*other, *out, "--overwrite")
    write_benchmark(tmp_path, rows=5)
    assert "content of questions" in refusal(*other, *out)


def test_the_request_can_be_replayed_from_its_config(tmp_path, arguments):
    done(*arguments, "--out", tmp_path / "out")
    config = tmp_path / "out" / "config.yaml"
    again = done("evaluate", "--config", config, "--out", tmp_path / "again", "--batch-size", 2).status
    assert again == 0
    first, second = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("out", "again"))
    assert first == second


def test_known_replies_spare_only_batches_that_are_known_as_a_whole(tmp_path, tiny_checkpoint):
    proxy = load_proxy(tiny_checkpoint)
    turns = [question.turns for question in read_benchmark(write_benchmark(tmp_path))]
    options = {"max_new_tokens": 3, "batch_size": 2}
    whole = generation.generate(proxy, turns, **options)
    book = Journal(tmp_path / "replies.jsonl")
    book.add(dict(enumerate(whole[:3])))  # sorted by length, the first two are a batch, the third is half of one
    assert generation.generate(proxy, turns, **options, journal=book) == whole
    lines = [json.loads(line)["question"] for line in book.path.read_text().splitlines()]
    assert sorted(lines) == [0, 1, 2, 2, 3, 4, 5, 6]


def test_replies_and_reasons_come_back_from_a_journal_as_they_were(tmp_path):
    book = Journal(tmp_path / "replies.jsonl")
    assert book.replies() == {}
    replies = {3: generation.Reply("line\none\u2028two é", finished=False), 0: "the image is missing"}
    book.add(replies)
    assert book.replies() == replies


def test_the_fingerprint_of_questions_sees_texts_answers_and_order(tmp_path):
    questions = read_benchmark(write_benchmark(tmp_path))
    changed = [questions[1], questions[0], *questions[2:]]
    assert questions_fingerprint(questions) == questions_fingerprint(list(questions))
    assert questions_fingerprint(questions) != questions_fingerprint(changed)


def test_a_journal_needs_no_model_once_it_is_full(tmp_path, tiny_checkpoint):
    questions = read_benchmark(write_benchmark(tmp_path, rows=2))
    options = EvaluateOptions(max_new_tokens=2)
    first = evaluate(tiny_checkpoint, questions, options, journal=tmp_path / "replies.jsonl")
    assert evaluate("no such checkpoint", questions, options, journal=tmp_path / "replies.jsonl") == first


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [wemath_row(1, key) for key in ("2steps_1", "2steps_2", "2steps_multi")]
    return parquet(tmp_path, rows, WEMATH)


def test_a_suite_from_a_copy_is_one_flag_and_tells_its_own_measures(tmp_path, suite, tiny_checkpoint):
    start = ["evaluate", "--suite", "wemath", "--suite-path", suite, "--model", tiny_checkpoint]
    more = ["--max-new-tokens", 2, "--device", "cpu", "--out", tmp_path / "out"]
    shown = json.loads(done(*start, *more, "--json").out)
    assert shown["accuracy"]["questions"] == 3
    assert shown["metrics"]["problems"] == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"] == shown["metrics"]
    assert "score_strict: 0.0" in done(*start, *more).out


def test_another_evaluation_of_the_same_questions_is_compared_question_by_question(tmp_path, arguments):
    done(*arguments, "--out", tmp_path / "one")
    rows = [json.loads(line) for line in (tmp_path / "one" / "results.jsonl").read_text().splitlines()]
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    better = [{**row, "correct": number < 6} for number, row in enumerate(rows)]
    (tmp_path / "two" / "results.jsonl").write_text("\n".join(map(json.dumps, better)) + "\n")
    assert not any(row["correct"] for row in rows)
    shown = json.loads(done(*arguments, "--out", tmp_path / "one", "--against", tmp_path / "two", "--json").out)
    assert (shown["difference"]["wins"], shown["difference"]["losses"], shown["difference"]["ties"]) == (0, 6, 1)
    assert shown["difference"]["value"] == pytest.approx(-600 / 7)
    assert shown["difference"]["p_value"] == pytest.approx(2 / 2**6)
    text = done(*arguments, "--out", tmp_path / "one", "--against", tmp_path / "two").out
    assert "difference -85.7 points (95 % interval" in text


def test_an_evaluation_of_other_questions_and_a_folder_without_one_are_refused(
    tmp_path, arguments, suite, tiny_checkpoint
):
    done(*arguments, "--out", tmp_path / "one")
    start = ["evaluate", "--suite", "wemath", "--suite-path", suite, "--model", tiny_checkpoint, "--max-new-tokens", 2]
    line = refusal(*start, "--out", tmp_path / "two", "--against", tmp_path / "one")
    assert "not about the same questions: 3 and 7 questions" in line
    assert "holds no evaluation" in refusal(*arguments, "--out", tmp_path / "three", "--against", tmp_path)
    assert not (tmp_path / "three").exists()


def test_a_benchmark_and_a_suite_exclude_each_other(tmp_path, arguments):
    assert "either a benchmark file or --suite" in refusal(*arguments, "--suite", "wemath", "--out", tmp_path / "out")
    assert "either a benchmark file or --suite" in refusal("evaluate", "--model", "m", "--out", tmp_path / "out")
    assert "go with --suite only" in refusal(*arguments, "--split", "test", "--out", tmp_path / "out")
