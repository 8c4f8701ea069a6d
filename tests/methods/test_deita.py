"""DEITA against its original's definition, one prompt at a time, and the miniature scorers of the digits world."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.errors import ConfigError, ModelError
from onesteptrain.methods import Setting
from onesteptrain.methods.deita import (
    COMPLEXITY_PROMPT,
    QUALITY_PROMPT,
    Deita,
    exchanges,
    load_text_scorer,
)
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.synthetic.digits import OFF_TOPIC, DigitProblem
from onesteptrain.synthetic.making import problems
from onesteptrain.utility.answers import represent
from tests.building import ARCHITECTURES, checkpoint, png, sample
from tests.commands import done, refusal, world
from tests.methods.setup_deita import scorer, setup
from tests.methods.setups import default_setting

sys.path.append(str(Path(__file__).parents[2] / "experiments" / "deita_scorers"))
import make

SAMPLES = [sample(row, images=row % 2) for row in range(6)]
CPU = torch.device("cpu")


def text_scorer(folder: Path):
    return load_text_scorer(str(folder), device=CPU, dtype=torch.float32)


def as_the_original_does(folder: Path, prompt: str) -> float:
    """One prompt, unpadded, through `generate`; a softmax over the logits of the six scores; the expected score."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(prompt, return_tensors="pt")
    outputs = model.generate(
        ids, max_new_tokens=2, return_dict_in_generate=True, output_scores=True, do_sample=False, pad_token_id=0
    )
    written = outputs.scores[0][0].double().numpy()
    shares = softmax([written[tokenizer.encode(str(score), add_special_tokens=False)[-1]] for score in range(1, 7)])
    return float(sum(score * share for score, share in zip(range(1, 7), shares, strict=True)))


def test_scores_read_in_padded_batches_are_those_of_the_original_one_by_one():
    prompts = [COMPLEXITY_PROMPT.format(question="What is it? " * count) for count in (1, 7, 3, 3, 12)]
    scores = text_scorer(scorer(1)).expected_scores(prompts, batch_size=3)
    wanted = [as_the_original_does(scorer(1), prompt) for prompt in prompts]
    assert max(wanted) - min(wanted) > 0.05  # else the comparison would say nothing
    # two routes through a float32 model, whose sums are ordered otherwise
    np.testing.assert_allclose([scores[prompt] for prompt in prompts], wanted, rtol=1e-4)
    assert all(1 < score < 6 for score in scores.values())


def test_a_model_that_cannot_leave_logits_out_gives_the_same_scores():
    class Plain(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    whole = text_scorer(scorer(1))
    plain = dataclasses.replace(whole, model=Plain(whole.model))
    prompts = [COMPLEXITY_PROMPT.format(question="a" * count) for count in (1, 9, 4)]
    found, wanted = (one.expected_scores(prompts, batch_size=2) for one in (plain, whole))
    assert list(found) == list(wanted)
    # the last layer multiplies matrices of another shape, in float32
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)


def test_a_score_is_the_sum_over_the_exchanges_of_complexity_times_quality():
    spoken = [("What is it?", "A seven."), ("And twice?", "It is 14."), ("Thanks.", "Not at all, and good-bye.")]
    turns = [Turn("system", ("Be brief.",))]
    for number, (question, answer) in enumerate(spoken):
        picture = (ImageRef(png(3), "picture"), "\n") if number == 0 else ()
        turns += [Turn("user", (*picture, question)), Turn("assistant", (answer,))]
    method, setting = setup(0)
    (record,) = method.prepare(setting)([Sample("a", 0, tuple(turns))])
    complexity = [as_the_original_does(scorer(1), COMPLEXITY_PROMPT.format(question=one)) for one, _ in spoken]
    quality = [as_the_original_does(scorer(2), QUALITY_PROMPT.format(question=one, answer=two)) for one, two in spoken]
    wanted = (sum(map(math.prod, zip(complexity, quality, strict=True))), sum(complexity), sum(quality))
    found = (record.score, record.columns["complexity"], record.columns["quality"])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)  # float32, padded and not


def test_turns_of_one_speaker_in_a_row_are_one_text():
    speakers = ["system", "user", "user", "assistant", "user", "assistant", "assistant"]
    turns = tuple(Turn(role, (f" {number} ",)) for number, role in enumerate(speakers))
    assert exchanges(Sample("a", 0, turns)) == [("1\n2", "3"), ("4", "5\n6")]


def test_the_image_moves_the_representation_and_no_score():
    method, setting = setup(0)
    one = sample(4)
    other = dataclasses.replace(one, turns=(Turn("user", (ImageRef(png(99), "x"), one.turns[0].text)), one.turns[1]))
    first, second = method.prepare(setting)([one, other])
    assert (first.score, first.columns["complexity"], first.columns["quality"]) == (
        second.score,
        second.columns["complexity"],
        second.columns["quality"],
    )
    assert not np.allclose(first.columns["representation"], second.columns["representation"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_representation_is_the_last_hidden_state_at_the_last_token(architecture):
    proxy = load_proxy(checkpoint(architecture), options=LoadOptions(max_tokens=4096))
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    found = represent(proxy, encoded, batch_size=4)
    for one, vector in zip(encoded, found, strict=True):
        with torch.no_grad():  # the model below the head, one sample at a time and so without padding
            wanted = proxy.model.model(**proxy.batch([one]).inputs, use_cache=False).last_hidden_state[0, -1]
        # padding reorders float32 sums over a few layers
        torch.testing.assert_close(vector, wanted, rtol=1e-3, atol=1e-4)


def test_a_bad_sample_has_a_reason_and_the_others_their_score():
    bad = Sample("bad", 1, (Turn("user", (ImageRef(b"\x89PNG broken", "broken.png"), "?")), Turn("assistant", ("7",))))
    method, setting = setup(0)
    score = method.prepare(setting)
    records = score([SAMPLES[0], bad, SAMPLES[1]])
    assert "broken.png" in records[1].reason
    wanted = [record.score for record in score(SAMPLES[:2])]
    np.testing.assert_allclose([records[0].score, records[2].score], wanted, rtol=1e-6)  # same texts, same batches
    assert score([]) == []


def test_a_text_that_a_scorer_cannot_read_whole_has_a_reason():
    lengths = [
        len(AutoTokenizer.from_pretrained(scorer(1))(COMPLEXITY_PROMPT.format(question=one.turns[0].text))[0].ids)
        for one in SAMPLES
    ]
    long = dataclasses.replace(SAMPLES[2], turns=(Turn("user", ("why " * 40,)), Turn("assistant", ("7",))))
    method = Deita(str(scorer(1, longest=max(lengths))), str(scorer(2)))
    records = method.prepare(default_setting())([SAMPLES[0], long, SAMPLES[1]])
    assert [record.score is None for record in records] == [False, True, False]
    assert f"more than the {max(lengths)} that the scorer can read; shorten the sample" in records[1].reason


def test_a_scorer_that_is_not_finite_gives_reasons(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(scorer(1))
    model.lm_head.weight.data.fill_(math.nan)
    broken = shutil.copytree(scorer(1), tmp_path / "broken")
    model.save_pretrained(broken)
    records = Deita(str(scorer(2)), str(broken)).prepare(default_setting())(SAMPLES[:2])
    assert {record.reason for record in records} == {"a scorer gives no finite score; load it in float32"}


def test_a_proxy_that_is_not_finite_gives_reasons():
    proxy = load_proxy(checkpoint("llava"), options=LoadOptions(max_tokens=4096))
    proxy.model.get_decoder().norm.weight.data.fill_(math.nan)
    (record,) = Deita(str(scorer(1)), str(scorer(2))).prepare(Setting(proxy))(SAMPLES[:1])
    assert "representation is not finite" in record.reason


def without_a_six(folder: Path) -> Path:
    shutil.copytree(scorer(1), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["six"] = vocabulary.pop("6")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_scorer_must_have_a_token_for_each_score(tmp_path):
    with pytest.raises(ModelError, match=r"has no token for the score 6; each of 1 to 6 must be one token"):
        text_scorer(without_a_six(tmp_path / "scorer"))


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (lambda _: Path("/nowhere"), "'/nowhere' does not exist; give a folder"),
        (lambda empty: empty, "has no config.json"),
        (lambda _: checkpoint("smolvlm"), "cannot be loaded: .*; give a causal language model"),
    ],
    ids=["nowhere", "empty", "vision-language"],
)
def test_what_is_no_scorer_is_refused_in_one_line(tmp_path, folder, said):
    with pytest.raises(ModelError, match=said) as caught:
        text_scorer(folder(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["complexity_scorer", "quality_scorer"])
def test_without_both_scorers_it_is_said_what_to_give_and_how_to_make_them(missing):
    method = Deita(**({"complexity_scorer": "a", "quality_scorer": "b"} | {missing: None}))
    with pytest.raises(ConfigError, match=r"needs --complexity-scorer and --quality-scorer.*experiments/deita_scorers"):
        method.prepare(default_setting())


def test_without_a_proxy_there_is_no_representation_and_so_no_score():
    with pytest.raises(ConfigError, match="'deita' needs a proxy"):
        setup(0)[0].prepare(Setting())
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Deita(batch_size=0)


def test_scoring_and_choosing_distinct_rows_from_the_command_line(tmp_path):
    run = tmp_path / "run"
    scorers = {"complexity_scorer": scorer(1), "quality_scorer": scorer(2)}
    done(*world().scoring(run, method="deita", **scorers))
    table = pq.read_table(run / "scores.parquet")
    assert str(table.schema.field("representation").type) == "list<element: float>"
    kept, out = len(table) // 2, tmp_path / "best.jsonl"
    facts = json.loads(done("select", run, "--keep", "50%", "--distinct", "0.999", "--out", out, "--json").out)
    assert facts["rows"] <= kept == facts["budget"]
    assert facts["skipped_similar"] >= 0
    floor = float(np.sort(table["complexity"].to_numpy())[-3])
    said = done("select", run, "--keep", f">={floor!r}", "--by", "complexity", "--out", tmp_path / "floor.jsonl").out
    assert "kept 3 of" in said
    assert "give --proxy" in refusal(
        "score",
        world().pool,
        "--method",
        "deita",
        "--out",
        tmp_path / "no",
        *(part for name, value in scorers.items() for part in (f"--{name.replace('_', '-')}", value)),
    )


# The miniature scorers


@pytest.fixture(scope="module")
def seeds():
    return problems(DigitProblem, 300, "pretrain", np.random.default_rng(5))


@pytest.mark.parametrize("name", make.EVOLUTIONS)
def test_evolution_gives_six_different_variants_ranked_one_to_six(seeds, name):
    evolve = make.EVOLUTIONS[name]
    first, again = ([evolve(one, np.random.default_rng(place)) for place, one in enumerate(seeds)] for _ in range(2))
    assert first == again
    for variants in first:
        assert [variant.rank for variant in variants] == [1, 2, 3, 4, 5, 6]
        assert len({variant.prompt for variant in variants}) == 6


def test_each_step_of_question_evolution_adds_to_the_question_before(seeds):
    for place, one in enumerate(seeds):
        prompts = [variant.prompt for variant in make.evolve_question(one, np.random.default_rng(place))]
        texts = [prompt.split("##Query: ")[1].split("  \n")[0] for prompt in prompts]
        assert texts[0] == one.question
        grown = [after.startswith(before) for before, after in itertools.pairwise(texts)]
        assert all(grown[1:])  # the first step may put a harder question in its place
        assert [text.count("{") for text in texts] == [0] * 6


def test_answer_evolution_ends_above_the_worlds_own_answer_and_knows_nothing_of_its_noise(seeds):
    noise = [sentence.split("{")[0].strip() for sentence in OFF_TOPIC]
    for place, one in enumerate(seeds):
        prompts = [variant.prompt for variant in make.evolve_answer(one, np.random.default_rng(place))]
        answers = [prompt.split("#Response#:\n")[1].removesuffix(" \n##Quality: ") for prompt in prompts]
        assert answers[4] == one.answer
        assert answers[5].startswith(one.answer)
        assert not any(sentence in answer for sentence in noise for answer in answers)
        assert not any(sentence.split("{")[0] in answer for sentence in make.REMARKS for answer in answers[1:])


def test_scorers_are_trained_saved_and_measured_the_same_way_twice(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    told: list[str] = []
    made = [make.make_scorers(folder, seed=3, sets=4, epochs=1, tell=told.append) for folder in folders]
    for first, second in zip(*made, strict=True):
        assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
        assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
        text_scorer(first)
    report = json.loads((folders[0] / "report.json").read_text())
    assert set(report) == {"complexity", "quality"}
    assert all(-1 <= one["spearman_over_all"] <= 1 and one["held_out_sets"] == 2 for one in report.values())
    assert len(told) == 4
