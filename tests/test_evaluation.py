"""Evaluation: answers are found and checked as a person would, and batches change nothing."""

import json
import random
import threading

import pytest
from math_verify import parse, verify
from scipy.optimize import brentq

from onesteptrain.data.pool import Turn
from onesteptrain.errors import ConfigError, PoolError, RunError
from onesteptrain.evaluation import EvaluateOptions, evaluate, extract_answer, is_correct, read_benchmark
from onesteptrain.evaluation.answers import same_answer
from onesteptrain.evaluation.generation import end_tokens, generate
from onesteptrain.evaluation.results import wilson, write_evaluation
from onesteptrain.proxy import load_proxy
from onesteptrain.training import FinetuneOptions, finetune

RIGHT = [
    ("It is 3 plus 5.\nThe answer is 8.", "8"),
    ("The answer is 8", "8"),
    ("3 + 5 = 8. So the final answer is: **8**.", "8"),
    ("**Final Answer:** 8", "8"),
    ("Answer:\n8", "8"),
    (r"Thus \boxed{8}", "8"),
    (r"Hence the answer is $\boxed{\frac{3}{4}}$.", "3/4"),
    (r"The answer is \(\frac{3}{4}\).", "0.75"),
    ("some steps\n#### 1,234", "1234"),
    ("<think>5?</think><answer>8</answer>", "8"),
    ("The answer is 5. Wait, no: the answer is 8.", "8"),
    ("The answer to question 3 is 8.", "8"),
    ("8", "8"),
    ("x = 8", "8"),
    ("First add.\nThen carry.\n8", "8"),
    ("The answer is 3/4.", "0.75"),
    ("The answer is 6/8.", "3/4"),
    ("The answer is 1 1/2.", "1.5"),
    (r"The answer is $1\frac{1}{2}$.", "3/2"),
    ("The answer is 8.0.", "8"),
    ("The answer is 8 cm.", "8"),
    ("The answer is 8.", "8 cm"),
    ("The answer is 8 centimeters.", "8 cm"),
    ("The answer is 8 red apples.", "8"),
    ("The answer is $8.", "8"),
    (r"The answer is $45^\circ$.", "45"),
    ("The answer is 45 degrees.", r"45^{\circ}"),
    ("The answer is 12 cm^2.", "12 square centimeters"),
    ("The answer is 50%.", "50"),
    ("The answer is 50%.", "0.5"),
    (r"The answer is 50\%.", "50%"),
    ("The answer is 12,345,678.", "12345678"),
    ("The answer is -5.", "-5"),
    ("The answer is −5.", "-5"),
    ("The answer is x = -5.", "-5"),
    ("The answer is (B).", "B"),
    ("The answer is B.", "(B)"),
    ("Answer: B. 12 cm", "B"),
    ("(C) 12 cm", "C"),
    ("b", "B"),
    ("The answer is option D.", "D"),
    ("The answer is (B) 12.", "12"),
    (r"The answer is $2\sqrt{3}$.", r"\sqrt{12}"),
    ("The answer is $x^2+1$.", "1+x^2"),
    ("The answer is (3, 4).", "(3,4)"),
    (r"The answer is $3 \times 10^{2}$.", "300"),
    ("The answer is Red.", "red"),
    ("The answer is the red square.", "red square"),
    ("The answer is yes.", "Yes"),
]
WRONG = [
    ("", "8"),
    ("The answer is 7.", "8"),
    ("The answer is 8. Wait, no: the answer is 5.", "8"),
    ("There are 8 apples, and I eat some of them, so that some are left.", "8"),
    ("First I see 8.\nThen I wonder what to do", "8"),
    ("The answer is", "8"),
    ("The answer is not 8.", "8"),
    ("The answer is 5 or 8.", "8"),
    ("The answer is 3 + 5.", "8"),
    (r"The answer is $4 \times 2$.", "8"),
    ("The answer is 88.", "8"),
    ("The answer is 8.5.", "8"),
    ("The answer is 5.", "-5"),
    ("The answer is -5.", "5"),
    ("The answer is 8 cm.", "8 m"),
    ("The answer is 8 kg.", "8 g"),
    ("The answer is 8 cm.", "8 cm^2"),
    ("The answer is 5x.", "5"),
    ("The answer is 4/3.", "3/4"),
    ("The answer is 0.33.", "1/3"),
    ("The answer is 1,234.", "1.234"),
    ("The answer is (A).", "B"),
    ("The answer is A or B.", "B"),
    ("The answer is (A) or (B).", "A"),
    ("The answer is 12.", "B"),
    ("A person stands there.", "A"),
    ("Because the angle at B is right, the triangle is a right one.", "B"),
    ("The answer is blue.", "red"),
    (r"Thus \boxed{8", "8"),
    ("The answer is 9^9^9^9^9.", "8"),
]


@pytest.mark.parametrize(("prediction", "gold"), RIGHT)
def test_right_answers_are_accepted(prediction, gold):
    assert is_correct(prediction, gold)


@pytest.mark.parametrize(("prediction", "gold"), WRONG)
def test_wrong_missing_and_hedged_answers_are_refused(prediction, gold):
    assert not is_correct(prediction, gold)


def test_an_answer_at_the_cut_end_of_a_reply_does_not_count():
    assert extract_answer("The answer is 12", finished=True) == "12"
    assert extract_answer("The answer is 12", finished=False) is None
    assert extract_answer("So it is\n12", finished=False) is None
    assert extract_answer("The answer is 12. To check, we", finished=False) == "12"
    assert extract_answer(r"\boxed{12}", finished=False) == "12"


def test_the_short_cut_for_integers_agrees_with_math_verify():
    draw = random.Random(0)
    numbers = [0, 1, -1, 10, -10, 999_999_999_999_999] + [
        draw.randint(-(10 ** draw.randint(1, 15)), 99) for _ in range(60)
    ]
    pairs = [(a, b) for a in numbers[:12] for b in numbers[:12]] + [(a, a + step) for a in numbers for step in (0, 1)]
    for a, b in pairs:
        if max(abs(a), abs(b)) < 10**15:
            assert same_answer(str(a), str(b)) == verify(parse(f"${b}$"), parse(f"${a}$")), (a, b)


def test_answers_are_checked_outside_the_main_thread():
    marks = []
    pairs = [(r"The answer is $\frac{7}{9}$.", "7/9"), (r"The answer is $\frac{7}{8}$.", "7/9")]
    worker = threading.Thread(target=lambda: marks.extend(is_correct(*pair) for pair in pairs))
    worker.start()
    worker.join()
    assert marks == [True, False]


def test_the_wilson_interval_solves_its_defining_equation():
    """Its ends are the shares p at which the observed share lies 1.96 standard errors of p away."""

    def distance(p, correct, questions):
        return (correct / questions - p) ** 2 - 1.959963984540054**2 * p * (1 - p) / questions

    for correct, questions in [(1, 3), (70, 100), (399, 400)]:
        accuracy = wilson(correct, questions)
        low = brentq(distance, 1e-12, accuracy.value, args=(correct, questions), xtol=1e-14)
        high = brentq(distance, accuracy.value, 1 - 1e-12, args=(correct, questions), xtol=1e-14)
        assert (accuracy.low, accuracy.high) == pytest.approx((low, high), abs=1e-10)
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == 1


@pytest.fixture(scope="module")
def proxy(tiny_checkpoint):
    return load_proxy(tiny_checkpoint)


def prompts(make_sample, rows):
    """Prompts of mixed length, with none, one or two images."""
    return [make_sample(row, "What is this? " * (1 + row % 3), "8", images=row % 3).turns[:-1] for row in range(rows)]


def test_a_batch_of_mixed_lengths_gives_the_same_text_as_one_by_one(tiny_checkpoint, make_sample):
    proxy = load_proxy(tiny_checkpoint)  # taught to say something that depends on the question
    taught = [
        make_sample(row, "What is this? " * (1 + row % 3), "abc"[row % 3] * 3, images=row % 3) for row in range(6)
    ]
    encoded = [proxy.encoder.encode(sample) for sample in taught]
    finetune(proxy, encoded, FinetuneOptions(steps=40, batch_size=6, learning_rate=1e-2))
    turns = [sample.turns[:-1] for sample in taught]
    together = generate(proxy, turns, max_new_tokens=12, batch_size=6)
    alone = [generate(proxy, [one], max_new_tokens=12, batch_size=1)[0] for one in turns]
    assert together == alone
    assert len({reply.text for reply in alone}) > 1  # a model that always says one thing would pass any padding


def test_greedy_generation_picks_the_likeliest_token_of_a_plain_forward_pass(proxy, make_sample):
    turns = prompts(make_sample, 2)[1]
    inputs = proxy.encoder.prompt(turns)
    likeliest = int(proxy.model(**inputs, use_cache=False).logits[0, -1].argmax())
    reply = generate(proxy, [turns], max_new_tokens=1, batch_size=1)[0]
    assert reply.text == proxy.encoder.processor.tokenizer.decode([likeliest], skip_special_tokens=True).strip()


def test_the_template_tells_which_token_ends_a_turn(proxy, make_sample):
    encoded = proxy.encoder.encode(make_sample(0, "What is this?", "The answer is 8."))
    last = encoded.inputs["input_ids"][0][encoded.answer][-1]
    assert end_tokens(proxy)[0] == last


def test_a_prompt_that_cannot_be_read_gives_its_reason_and_the_others_go_on(proxy, make_sample):
    good = prompts(make_sample, 1)[0]
    bad = (Turn("user", ("One mark and no image: <|image_pad|>",)),)
    replies = generate(proxy, [bad, good], max_new_tokens=2, batch_size=2)
    assert isinstance(replies[0], str)
    assert replies[1] == generate(proxy, [good], max_new_tokens=2, batch_size=1)[0]


def write_benchmark(folder, rows):
    lines = [json.dumps(row) for row in rows]
    path = folder / "benchmark.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def question(text, answer, **more):
    return {"messages": [{"role": "user", "content": text}], "answer": answer, **more}


def test_a_benchmark_needs_no_assistant_turn_and_keeps_its_columns(tmp_path):
    with_turn = question("Two?", "2", skill="count")
    with_turn["messages"].append({"role": "assistant", "content": "Let me see. The answer is 2."})
    llava = write_benchmark(tmp_path, [question("One?", 1, id="q1", level=3), with_turn])
    first, second = read_benchmark(llava)
    assert (first.uid, first.answer, dict(first.fields)) == ("q1", "1", {"level": 3})
    assert [turn.role for turn in second.turns] == ["user"]
    assert second.answer == "2"


def test_a_benchmark_row_without_answer_is_refused_with_its_line(tmp_path):
    with pytest.raises(PoolError, match=r"benchmark\.jsonl:2: .*'answer'"):
        read_benchmark(write_benchmark(tmp_path, [question("One?", "1"), question("Two?", "")]))


def test_an_evaluation_is_one_record_a_question_in_order_and_its_counts_follow(proxy, tmp_path):
    path = write_benchmark(tmp_path, [question(f"What is {n}? " * n, str(n), skill="ab"[n % 2]) for n in range(1, 6)])
    result = evaluate(proxy, path, EvaluateOptions(max_new_tokens=4, batch_size=2, by=("skill",)))
    assert [one.answer for one in result.graded] == ["1", "2", "3", "4", "5"]
    assert result.accuracy.correct == sum(one.correct for one in result.graded)
    assert {name: accuracy.questions for name, accuracy in result.by["skill"].items()} == {"a": 2, "b": 3}
    write_evaluation(result, tmp_path / "out")
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["uid"] for line in lines] == [one.uid for one in result.graded]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["accuracy"]["questions"] == 5
    with pytest.raises(RunError, match="exists"):
        write_evaluation(result, tmp_path / "out")


def test_a_column_that_no_question_has_is_refused(proxy, tmp_path):
    with pytest.raises(ConfigError, match="'topic'"):
        evaluate(proxy, write_benchmark(tmp_path, [question("One?", "1")]), EvaluateOptions(by=("topic",)))
