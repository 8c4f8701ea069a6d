"""The proxy: which tokens are the answer's, which parameters take the step, and what loading refuses."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import normalizers

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.errors import ConfigError, ModelError, SampleError, ScoreError
from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, in_batches, load_proxy
from tests.building import ARCHITECTURES, checkpoint, png, sample

MARKS = {  # how a turn of the assistant ends, and the token that stands for an image
    "internvl": ("<|im_end|>", "<IMG_CONTEXT>"),
    "qwen3_vl": ("<|im_end|>", "<|image_pad|>"),
    "qwen2_5_vl": ("<|im_end|>", "<|image_pad|>"),
    "smolvlm": ("<end_of_utterance>", "<image>"),
    "idefics3": ("<end_of_utterance>", "<image>"),
    "llava": ("</s>", "<image>"),
}


@functools.cache
def proxy_of(architecture: str) -> Proxy:
    return load_proxy(checkpoint(architecture), options=LoadOptions(max_tokens=4096))


def picture(seed: int, width: int = 48) -> ImageRef:
    return ImageRef(png(seed, width), str(seed))


def conversation(*turns: Turn) -> Sample:
    return Sample("x", 0, turns)


def asked(question: str, answer: str, images: int = 1) -> Sample:
    pictures = [picture(k) for k in range(images)]
    return conversation(Turn("user", (*pictures, question)), Turn("assistant", (answer,)))


def marked_runs(proxy: Proxy, one: Sample) -> list[str]:
    """What each unbroken run of answer tokens reads, special tokens and all."""
    encoded = proxy.encoder.encode(one)
    ids = encoded.inputs["input_ids"][0].tolist()
    runs = itertools.groupby(zip(ids, encoded.answer.tolist(), strict=True), key=lambda pair: pair[1])
    decode = proxy.encoder.processor.tokenizer.decode
    return [decode([token for token, _ in run], clean_up_tokenization_spaces=False) for inside, run in runs if inside]


CONVERSATIONS = {
    "single turn": asked("What is 3 plus 4?", "It is 7.\nThe answer is 7."),
    "text only": asked("What is 3 plus 4?", "It is 7.", images=0),
    "several turns": conversation(
        Turn("user", (picture(1), "What is 3 plus 4?")),
        Turn("assistant", ("It is 7.",)),
        Turn("user", ("It is 7.",)),  # the same words, said by the user
        Turn("assistant", ("7",)),
        Turn("user", ("Sure?",)),
        Turn("assistant", ("The answer is 7.",)),
    ),
    "images between words and in later turns": conversation(
        Turn("user", ("Is ", picture(1, 96), " larger than ", picture(2), "?")),
        Turn("assistant", ("No.",)),
        Turn("user", (picture(3, 64), "And this?")),
        Turn("assistant", ("Yes, the last.",)),
    ),
    "system turn": conversation(
        Turn("system", ("Be brief.",)), Turn("user", (picture(1), "Which is larger?")), Turn("assistant", ("B",))
    ),
    "unicode": asked("Größe?", "Größe → ≈ 3 °C 💡 日本"),
    "one letter": asked("Which?", "B"),
    "only a digit and no image": asked("Which?", "7", images=0),
    "the role's name in the answer": asked("Who?", "user assistant system Assistant: USER:"),
    "several paragraphs": asked("Why?", "It is 7.\n\n  - one\n  - two\n\nThe answer is 7."),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_mask_holds_each_answer_with_its_end_mark_and_nothing_else(architecture, kind):
    one = CONVERSATIONS[kind]
    end, _ = MARKS[architecture]
    answers = [turn.text for turn in one.turns if turn.role == "assistant"]
    # some templates put a space before the answer, which the tokenizer may join to its first word
    assert [run.removeprefix(" ") for run in marked_runs(proxy_of(architecture), one)] == [a + end for a in answers]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_white_space_around_an_answer_does_not_hide_its_words(architecture):
    end, _ = MARKS[architecture]
    (run,) = marked_runs(proxy_of(architecture), asked("Which?", "\n\n It is 7."))
    assert run.split() == ["It", "is", "7." + end]
    (run,) = marked_runs(proxy_of(architecture), asked("Which?", "It is 7.\n"))
    assert "".join(run.split()) == "Itis7." + end


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_text_with_the_models_own_image_token_is_refused(architecture, images, place):
    text = f"What is {MARKS[architecture][1]} here?"
    one = asked(text, "7", images) if place == "question" else asked("What?", text, images)
    with pytest.raises(SampleError, match="image"):
        proxy_of(architecture).encoder.encode(one)


def with_template(architecture: str, old: str, new: str):
    """The encoder with a part of its chat template replaced, and the template put back afterwards."""
    processor = load_proxy(checkpoint(architecture)).encoder.processor
    assert old in processor.chat_template
    processor.chat_template = processor.chat_template.replace(old, new)
    return replace(proxy_of(architecture).encoder, processor=processor)


def test_a_template_that_rewrites_earlier_answers_is_refused_with_the_turn():
    hidden = "{{ '...' if m.role == 'assistant' and not loop.last else c.text }}"  # as some drop earlier reasoning
    encoder = with_template("qwen3_vl", "{% for c in m.content %}", "{% set loop_ = loop %}{% for c in m.content %}")
    template = encoder.processor.chat_template.replace("{{ c.text }}", hidden.replace("loop.last", "loop_.last"))
    encoder.processor.chat_template = template
    with pytest.raises(SampleError, match="rewrites turns that stand before turn 2"):
        encoder.encode(CONVERSATIONS["several turns"])
    encoder.encode(CONVERSATIONS["single turn"])  # nothing stands before its answer


@pytest.mark.parametrize("new", ["{{ c.text | upper }}", "{{ c.text | replace('7', '8') }}", "{{ c.text[:3] }}"])
def test_a_template_that_changes_the_answer_is_refused(new):
    encoder = with_template("qwen3_vl", "{{ c.text }}", new)
    with pytest.raises(SampleError, match=r"does not keep the answer as it is .*starts 'It is 7"):
        encoder.encode(asked("What is 3 plus 4?", "It is 7."))


def test_an_answer_that_the_tokenizer_itself_rewrites_is_no_fault_of_the_template():
    processor = load_proxy(checkpoint("qwen3_vl")).encoder.processor
    encoder = replace(proxy_of("qwen3_vl").encoder, processor=processor)
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("It is", "it is")
    rewritten = encoder.encode(asked("What is 3 plus 4?", "It is 7."))
    assert processor.tokenizer.decode(rewritten.inputs["input_ids"][0][rewritten.answer]).startswith("it is 7.")


def test_a_sample_that_is_too_long_is_refused_and_not_cut():
    encoder = replace(proxy_of("qwen3_vl").encoder, max_tokens=30)
    assert encoder.encode(asked("Q", "7", images=0)).tokens <= 30
    with pytest.raises(SampleError, match="tokens are more than the limit of 30; raise --max-tokens"):
        encoder.encode(asked("Q", "7 " * 30, images=0))


@pytest.mark.parametrize("architecture", ["qwen3_vl", "smolvlm", "llava"])
def test_the_loss_of_each_answer_token_is_the_same_alone_and_in_a_padded_batch(architecture):
    proxy = proxy_of(architecture)
    encoded = [proxy.encoder.encode(one) for one in CONVERSATIONS.values()]
    with torch.no_grad():
        together = proxy.token_losses(proxy.batch(encoded))
        for place, one in enumerate(encoded):
            alone = proxy.token_losses(proxy.batch([one])).loss
            assert len(alone) == int(one.answer.sum())
            # float32: padding changes the order of sums
            torch.testing.assert_close(together.loss[together.sample == place], alone, rtol=1e-4, atol=1e-4)


def test_batches_hold_every_sample_once_and_put_like_lengths_together():
    proxy = proxy_of("qwen3_vl")
    encoded = [proxy.encoder.encode(one) for one in CONVERSATIONS.values()]
    groups = in_batches(encoded, 3)
    assert sorted(itertools.chain(*groups)) == list(range(len(encoded)))
    lengths = [encoded[index].tokens for group in groups for index in group]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_scope_frees_the_parameters_that_its_name_says(architecture):
    names = {
        scope: set(load_proxy(checkpoint(architecture), ScopeOptions(scope, last_layers=1)).parameters)
        for scope in ("all", "language", "last", "lora")
    }
    model = proxy_of(architecture).model
    assert names["all"] == {name for name, _ in model.named_parameters()}
    seeing = {name for name in names["all"] if "vision" in name or "visual" in name}
    joining = {name for name in names["all"] if "projector" in name or "connector" in name or "merger" in name}
    assert seeing
    assert names["language"] == names["all"] - seeing - joining
    layers = {name for name in names["language"] if ".layers." in name}
    assert names["last"] == {name for name in layers if ".layers.2." in name}
    assert names["last"] < layers < names["language"]
    assert names["lora"]
    adapted = {name.partition(".lora_")[0] for name in names["lora"]}
    assert adapted == {name.removesuffix(".weight") for name in layers if "_proj.weight" in name}


def test_parameters_out_of_scope_are_frozen():
    proxy = load_proxy(checkpoint("qwen3_vl"), ScopeOptions("last", last_layers=2))
    free = {name for name, parameter in proxy.model.named_parameters() if parameter.requires_grad}
    assert free == set(proxy.parameters)
    _, gradient = proxy.gradient([proxy.batch([proxy.encoder.encode(sample(1))])])
    assert set(gradient) == free
    assert all(parameter.grad is None for parameter in proxy.model.parameters())


def test_fresh_adapters_change_no_loss_and_a_saved_folder_of_them_reads_back(tmp_path):
    cold, adapted = proxy_of("qwen3_vl"), load_proxy(checkpoint("qwen3_vl"), ScopeOptions("lora", lora_rank=2))

    def losses(proxy):
        with torch.no_grad():
            return proxy.token_losses(proxy.batch([proxy.encoder.encode(sample(row)) for row in range(3)])).loss

    torch.testing.assert_close(losses(adapted), losses(cold))  # the second factor of an adapter starts at zero
    assert {min(weight.shape) for weight in adapted.parameters.values()} == {2}
    with torch.no_grad():
        for weight in adapted.parameters.values():
            weight.add_(0.05)
    changed = losses(adapted)
    assert not torch.allclose(changed, losses(cold), atol=1e-3)
    adapted.save(tmp_path / "adapters")
    assert (tmp_path / "adapters" / "adapter_config.json").is_file()
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    back = load_proxy(tmp_path / "adapters", ScopeOptions("lora", lora_rank=7))  # the rank is for fresh ones
    assert list(back.parameters) == list(adapted.parameters)
    assert torch.equal(losses(back), changed)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ModelError, match="has 3 layers, 4 were asked for; lower last_layers"):
        load_proxy(checkpoint("qwen3_vl"), ScopeOptions("last", last_layers=4))


@pytest.mark.parametrize("options", [{"last_layers": 0}, {"lora_rank": 0}])
def test_scopes_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match="at least 1"):
        ScopeOptions(**options)


def test_a_shift_of_the_weights_is_undone_bit_for_bit_even_after_an_error():
    proxy = load_proxy(checkpoint("qwen3_vl"), ScopeOptions("last", last_layers=1))
    before = {name: value.detach().clone() for name, value in proxy.parameters.items()}

    def fail_inside():
        with proxy.shifted({name: torch.full_like(value, 0.1) for name, value in before.items()}, 0.3):
            assert not any(torch.equal(before[name], value) for name, value in proxy.parameters.items())
            raise ScoreError("in the middle")

    with pytest.raises(ScoreError, match="in the middle"):
        fail_inside()
    assert all(torch.equal(before[name], value) for name, value in proxy.parameters.items())


def remote_checkpoint(folder, model_type: str | None):
    """A checkpoint that asks for its own code, which would leave a mark."""
    shutil.copytree(checkpoint("qwen3_vl"), folder)
    mark = folder.parent / "executed"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    own = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil", "AutoProcessor": "evil.Evil"}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = own | {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoImageProcessor": "evil.Evil"}
        if name == "config.json" and model_type is not None:
            content["model_type"] = model_type
        (folder / name).write_text(json.dumps(content))
    return mark


def test_code_in_a_checkpoint_is_not_run_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = remote_checkpoint(tmp_path / "model", None)
    assert type(load_proxy(tmp_path / "model").model).__name__ == "Qwen3VLForConditionalGeneration"
    assert not mark.exists()
    mark = remote_checkpoint(tmp_path / "unknown", "evil_vl")
    with pytest.raises(ModelError, match="custom code"):
        load_proxy(tmp_path / "unknown")
    assert not mark.exists()
    with pytest.raises((ModelError, AttributeError)):  # the class there is no model; what counts is that it was read
        load_proxy(tmp_path / "unknown", options=LoadOptions(trust_remote_code=True))
    assert mark.exists()


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path):
    shutil.copytree(checkpoint("qwen3_vl"), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"has no chat template; add chat_template\.jinja"):
        load_proxy(tmp_path / "model")


def test_a_model_that_cannot_leave_logits_out_gives_the_same_losses():
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(dtype="float64", max_tokens=4096))
    batch = proxy.batch([proxy.encoder.encode(sample(row, images=row)) for row in range(3)])
    expected = proxy.token_losses(batch)
    forward = proxy.model.forward
    proxy.model.forward = lambda input_ids, **others: forward(input_ids, **others)
    found = proxy.token_losses(batch)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=0)  # float64, the same sums
    assert found.sample.tolist() == expected.sample.tolist()


def test_no_pass_holds_more_tokens_than_are_allowed_and_every_sample_is_in_one():
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(batch_tokens=60))
    assert proxy.memory.tokens == 60
    samples = [proxy.encoder.encode(sample(row, images=row % 3)) for row in range(12)]
    batches = in_batches(samples, 4, 60)
    assert sorted(index for batch in batches for index in batch) == list(range(12))
    padded = [len(batch) * max(samples[index].tokens for index in batch) for batch in batches]
    assert all(len(batch) == 1 or (len(batch) <= 4 and size <= 60) for batch, size in zip(batches, padded, strict=True))
    assert max(padded) > 60  # one is longer, alone
    lengths = [[samples[index].tokens for index in batch] for batch in batches]
    assert all(max(one) <= min(after) for one, after in itertools.pairwise(lengths))
    # greedy: nothing of the next batch would have fitted
    room = [len(one) == 4 or (len(one) + 1) * after[0] > 60 for one, after in itertools.pairwise(lengths)]
    assert all(room)


def test_the_head_sees_answers_only_and_the_rest_of_the_model_all_tokens():
    proxy = load_proxy(checkpoint("internvl"), options=LoadOptions(max_tokens=4096))
    batch = proxy.batch([proxy.encoder.encode(sample(row)) for row in range(3)])
    seen = []
    head = proxy.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, output: seen.append((tuple(given[0].shape), tuple(output.shape))))
    found = proxy.answer_logits(batch)
    answers, width = int(batch.answer.sum()), head.weight.shape[1]
    assert seen == [((answers, width), (answers, len(head.weight)))]
    full = proxy.model(**batch.inputs).logits
    rows, places = batch.answer.nonzero(as_tuple=True)
    # the same sums, of a matrix product with other rows beside them
    torch.testing.assert_close(found.logits, full[rows, places - 1], rtol=1e-5, atol=1e-6)


def test_a_model_that_rearranges_tokens_is_refused():
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))
    batch = proxy.batch([proxy.encoder.encode(sample(1))])
    forward = proxy.model.model.forward

    def longer(*given, **others):
        output = forward(*given, **others)
        states = output.last_hidden_state
        output.last_hidden_state = torch.cat([states, states[:, :1]], 1)
        return output

    proxy.model.model.forward = longer
    with pytest.raises(ModelError, match="rearranges tokens"):
        proxy.token_losses(batch)
