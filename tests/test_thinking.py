"""Chat templates that think: rows are scored, and what the template writes around an answer is outside the loss."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from onesteptrain.data.pool import Sample, Turn, open_pool
from onesteptrain.errors import SampleError
from onesteptrain.proxy import load_proxy

TURN = "<|im_start|>{{ m['role'] }}\n"
PLAIN = "{% for m in messages %}" + TURN + "{{ m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
STRIPS = PLAIN.replace("m['content'][0]['text']", "m['content'][0]['text'].split('</think>')[-1].lstrip('\n')")
ADDS = PLAIN.replace(TURN, TURN + "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}")
SAID = "m['content'][0]['text']"
HIDES = PLAIN.replace(SAID, f"'...' if m['role'] == 'assistant' and not loop.last else {SAID}")

TEMPLATES = {
    "plain": PLAIN + PROMPT,
    "opens": PLAIN + OPENS,
    "strips": STRIPS + PROMPT,
    "strips and opens": STRIPS + OPENS,
    "adds to the last": ADDS + PROMPT,
    "adds to the last and opens": ADDS + OPENS,
}


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint):
    return load_proxy(tiny_checkpoint).encoder


def thinking(encoder, template):
    processor = copy.copy(encoder.processor)
    processor.chat_template = template
    return dataclasses.replace(encoder, processor=processor, prefetched={})


def conversation(*answers):
    turns = [Turn(role, (text,)) for answer in answers for role, text in (("user", "Is it 8?"), ("assistant", answer))]
    return Sample("one", 0, tuple(turns))


def learned(encoder, sample):
    encoded = encoder.encode(sample)
    return encoder.processor.tokenizer.decode(encoded.inputs["input_ids"][0][encoded.answer])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("answers", [["8"], ["Is it", "8"], ["8", "8", "It is 8."]])
def test_the_answers_and_their_ends_alone_are_learned(encoder, template, answers):
    expected = "".join(f"{answer}<|im_end|>" for answer in answers)
    assert learned(thinking(encoder, template), conversation(*answers)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", "<think>\nseven?\n</think>\n\n8<|im_end|>"),
        ("strips", "8<|im_end|>"),
        ("strips and opens", "8<|im_end|>"),
        ("opens", "seven?\n</think>\n\n8<|im_end|>"),  # the model goes on behind the tag of the prompt
    ],
)
def test_thoughts_of_an_answer_are_learned_as_far_as_the_template_keeps_them(encoder, name, expected):
    sample = conversation("<think>\nseven?\n</think>\n\n8")
    assert learned(thinking(encoder, TEMPLATES[name]), sample) == expected


def test_a_template_that_hides_earlier_answers_is_refused_with_what_to_do(encoder):
    with pytest.raises(SampleError, match="give each answer a row of its own, or a checkpoint whose chat template"):
        thinking(encoder, HIDES + PROMPT).encode(conversation("8", "8"))


def test_the_reasoning_of_a_message_is_its_thought(tmp_path, encoder):
    messages = [
        {"role": "user", "content": "Is it 8?", "reasoning_content": None},
        {"role": "assistant", "content": "8", "reasoning_content": "seven?"},
    ]
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    (row,) = open_pool(path).rows()
    assert row.turns[-1].text == "<think>\nseven?\n</think>\n\n8"
    assert learned(thinking(encoder, TEMPLATES["strips"]), row) == "8<|im_end|>"
