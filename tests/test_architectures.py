import time

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from onesteptrain.data.images import load_image
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.proxy import load_proxy
from onesteptrain.proxy.encoding import Encoder, collate
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint
from tests.building import ARCHITECTURES, TEXTS, checkpoint, sample

WRAPPED = {  # what each family's published template puts around one question with a picture and its answer
    "internvl": "<|im_start|>user\n<IMG_CONTEXT>\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
    "qwen3_vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n",
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
    "smolvlm": "<|im_start|>User:<image>Q<end_of_utterance>\nAssistant: A<end_of_utterance>\n",
    "idefics3": "<|im_start|>User:<image>Q<end_of_utterance>\nAssistant: A<end_of_utterance>\n",
    "llava": "USER: <image>\nQ ASSISTANT: A</s>",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def processor(architecture):
    return AutoProcessor.from_pretrained(checkpoint(architecture))


@pytest.fixture(scope="module")
def model(architecture):
    return AutoModelForImageTextToText.from_pretrained(checkpoint(architecture)).eval()


def texts_of(turns):
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]


def test_a_default_checkpoint_is_tiny(model):
    assert 5e4 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e5


def test_the_template_is_the_familys_own(architecture, processor):
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}
    rendered = processor.apply_chat_template([question, *texts_of([("assistant", "A")])], tokenize=False)
    assert rendered == WRAPPED[architecture]


def test_the_template_keeps_system_and_later_turns_in_order(processor):
    turns = [("system", "S0"), ("user", "U1"), ("assistant", "A1"), ("user", "U2"), ("assistant", "A2")]
    rendered = processor.apply_chat_template(texts_of(turns), tokenize=False)
    places = [rendered.index(text) for _, text in turns]
    assert places == sorted(places)
    assert all(rendered.count(text) == 1 for _, text in turns)


def test_the_generation_prompt_is_how_an_answer_begins(processor):
    turns = texts_of([("user", "Q"), ("assistant", "A")])
    prompt = processor.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert processor.apply_chat_template(turns, tokenize=False).startswith(prompt.rstrip())


def test_every_digit_is_a_token_of_its_own_after_loading(tmp_path, architecture):
    texts = ["It is 1234."] * 50  # would be merged to one token, were digits not kept apart
    folder = build_checkpoint(architecture, tmp_path / "model", texts=texts)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    ids = tokenizer("It is 1234.", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([token]) for token in ids]
    assert [piece for piece in pieces if any(char.isdigit() for char in piece)] == list("1234")


def test_text_survives_the_tokenizer(processor):
    text = "Größe: 3 + 4 = 7, 30 °C → fine."
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_forward_pass_gives_logits_for_every_token(processor, model, images):
    encoded = Encoder(processor, 2048).encode(sample(3, images=images))
    logits = model(**encoded.inputs).logits
    assert logits.shape == (1, encoded.tokens, model.config.text_config.vocab_size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("images", [1, 2])
def test_the_picture_changes_the_prediction_of_the_answer(processor, model, images):
    encoded = Encoder(processor, 2048).encode(sample(3, images=images))
    darker = {**encoded.inputs, "pixel_values": encoded.inputs["pixel_values"] - 1.0}
    with torch.no_grad():
        change = (model(**encoded.inputs).logits - model(**darker).logits)[0, encoded.answer]
    assert (change.abs().amax(-1) > 0).all()


def test_the_processor_says_where_it_expanded_the_picture(processor):
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}
    out = processor(
        text=[processor.apply_chat_template([question], tokenize=False)],
        images=[[load_image(ref) for ref in sample(0).images]],
        return_tensors="pt",
        return_offsets_mapping=True,
        return_text_replacement_offsets=True,
    )
    (replaced,) = out["text_replacement_offsets"][0]
    start, end = replaced["new_span"]
    offsets = out["offset_mapping"][0]
    inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
    expanded = processor.tokenizer.decode(out["input_ids"][0][inside])
    assert expanded.replace(" ", "") == replaced["replacement"].replace(" ", "")


def test_the_loss_of_a_batch_is_finite_and_reaches_the_language_model(architecture):
    proxy = load_proxy(checkpoint(architecture))
    batch = collate(
        [proxy.encoder.encode(sample(row, images=images)) for row, images in [(0, 1), (1, 1), (2, 2), (3, 0)]],
        pad_token_id=proxy.encoder.processor.tokenizer.pad_token_id,
    )
    loss = proxy.token_losses(batch).loss.mean()
    loss.backward()
    assert loss.isfinite()
    reached = {name for name, weight in proxy.model.named_parameters() if weight.grad is not None and weight.grad.any()}
    layers = [name for name, _ in proxy.model.named_parameters() if "language_model" in name or "text_model" in name]
    assert any("layers" in name for name in layers)
    assert {name for name in layers if "layers" in name and name.endswith("weight")} <= reached


def test_generation_stops_at_the_familys_end_of_turn(processor, model):
    tokenizer = processor.tokenizer
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_seed_fixes_the_weights_and_leaves_the_callers_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    folders = [build_checkpoint("qwen3_vl", tmp_path / str(n), texts=TEXTS, seed=n // 2) for n in range(3)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert first == again
    assert first != other


def test_a_build_takes_little_time(tmp_path, architecture):
    started = time.process_time()
    build_checkpoint(architecture, tmp_path / "model", texts=TEXTS)
    assert time.process_time() - started < 10  # processor time; about half a second on one slow core


def test_an_existing_folder_is_refused_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(RunError, match="exists"):
        build_checkpoint("llava", tmp_path, texts=TEXTS)
    assert not list(tmp_path.parent.glob("*.part"))


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="choose internvl"):
        build_checkpoint("gpt", tmp_path / "model", texts=TEXTS)


def test_sizes_that_no_family_can_use_are_refused():
    with pytest.raises(ConfigError, match="multiple of 8 wide"):
        ModelSize(hidden=60)
    with pytest.raises(ConfigError, match="image_size"):
        ModelSize(image_size=40)
