"""How each family is put together: configuration, model, tokenizer and processor, as its published checkpoints are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from onesteptrain.synthetic import templates
from onesteptrain.synthetic.sizes import ModelSize
from onesteptrain.synthetic.tokenizer import train_tokenizer

Architecture = Literal["internvl", "qwen3_vl", "qwen2_5_vl", "smolvlm", "idefics3", "llava"]


class Parts(NamedTuple):
    """What is saved in a checkpoint folder."""

    model: Any
    processor: Any


def _internvl(size: ModelSize, texts: Sequence[str]) -> Parts:
    tf = _transformers()

    named = _CHATML_TOKENS | {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=named)
    image_tokens = (size.image_size // size.patch_size // 2) ** 2
    square = {"height": size.image_size, "width": size.image_size}
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=square, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(size=square),
        image_seq_length=image_tokens,
        chat_template=templates.INTERNVL,
    )
    vision = _vision(size) | {"image_size": size.image_size, "intermediate_size": size.vision_mlp, "use_qk_norm": False}
    config = tf.InternVLConfig(
        text_config={"model_type": "qwen2", "tie_word_embeddings": True} | _text(size, tokenizer),
        vision_config=vision | {"num_hidden_layers": size.vision_layers, "num_attention_heads": size.vision_heads},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=image_tokens,
        tie_word_embeddings=True,
    )
    return Parts(tf.InternVLForConditionalGeneration(config), processor)


def _qwen3_vl(size: ModelSize, texts: Sequence[str]) -> Parts:
    tf = _transformers()

    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=_QWEN_TOKENS)
    processor = tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(**_qwen_images(size)),
        tokenizer=tokenizer,
        video_processor=tf.Qwen3VLVideoProcessor(**_qwen_images(size)),
        chat_template=templates.QWEN3_VL,
    )
    vision = _qwen_vision(size) | {
        "num_position_embeddings": (size.image_size // size.patch_size) ** 2,
        "deepstack_visual_indexes": [0],
    }
    text = _text(size, tokenizer) | {"head_dim": size.hidden // size.heads, "rope_parameters": _mrope(size, True)}
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer), tie_word_embeddings=True)
    return Parts(tf.Qwen3VLForConditionalGeneration(config), processor)


def _qwen2_5_vl(size: ModelSize, texts: Sequence[str]) -> Parts:
    tf = _transformers()

    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=_QWEN_TOKENS)
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(**_qwen_images(size)),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(**_qwen_images(size)),
        chat_template=templates.QWEN2_5_VL,
    )
    vision = _qwen_vision(size) | {
        "window_size": size.image_size,
        "fullatt_block_indexes": [size.vision_layers - 1],
    }
    text = _text(size, tokenizer) | {"rope_parameters": _mrope(size, False)}
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, **_qwen_ids(tokenizer), tie_word_embeddings=True
    )
    return Parts(tf.Qwen2_5_VLForConditionalGeneration(config), processor)


def _smolvlm(size: ModelSize, texts: Sequence[str]) -> Parts:
    tf = _transformers()

    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=_IDEFICS_TOKENS)
    edge = {"longest_edge": size.image_size}
    processor = tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(**_idefics_images(size)),
        tokenizer=tokenizer,
        video_processor=tf.SmolVLMVideoProcessor(
            size=edge, max_image_size=edge, video_sampling={"fps": 1, "max_frames": 8, "video_size": edge}
        ),
        image_seq_len=(size.image_size // size.patch_size // 2) ** 2,
        chat_template=templates.IDEFICS3,
    )
    config = tf.SmolVLMConfig(**_idefics_config(size, tokenizer))
    return Parts(tf.SmolVLMForConditionalGeneration(config), processor)


def _idefics3(size: ModelSize, texts: Sequence[str]) -> Parts:
    tf = _transformers()

    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=_IDEFICS_TOKENS)
    processor = tf.Idefics3Processor(
        image_processor=tf.Idefics3ImageProcessor(**_idefics_images(size)),
        tokenizer=tokenizer,
        image_seq_len=(size.image_size // size.patch_size // 2) ** 2,
        chat_template=templates.IDEFICS3,
    )
    config = tf.Idefics3Config(**_idefics_config(size, tokenizer))
    return Parts(tf.Idefics3ForConditionalGeneration(config), processor)


def _llava(size: ModelSize, texts: Sequence[str]) -> Parts:
    tf = _transformers()

    named = {"pad_token": "<pad>", "eos_token": "</s>", "image_token": "<image>"}
    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=named, bos="<s>")
    square = {"height": size.image_size, "width": size.image_size}
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size={"shortest_edge": size.image_size}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=size.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=templates.LLAVA,
    )
    vision = _vision(size) | {"image_size": size.image_size, "intermediate_size": size.vision_mlp}
    depth = {"num_hidden_layers": size.vision_layers, "num_attention_heads": size.vision_heads}
    config = tf.LlavaConfig(
        text_config={"model_type": "llama"} | _text(size, tokenizer),
        vision_config={"model_type": "clip_vision_model", "projection_dim": size.vision_hidden} | vision | depth,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(size.image_size // size.patch_size) ** 2,
        vision_feature_layer=-2,
    )
    return Parts(tf.LlavaForConditionalGeneration(config), processor)


_CHATML_TOKENS = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "turn_token": "<|im_start|>"}

_QWEN_TOKENS = _CHATML_TOKENS | {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}

_IDEFICS_TOKENS = {
    "pad_token": "<|endoftext|>",
    "eos_token": "<end_of_utterance>",
    "turn_token": "<|im_start|>",
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def _text(size: ModelSize, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(size: ModelSize) -> dict[str, Any]:
    return {"hidden_size": size.vision_hidden, "patch_size": size.patch_size}


def _qwen_vision(size: ModelSize) -> dict[str, Any]:
    return _vision(size) | {
        "depth": size.vision_layers,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.hidden,
    }


def _qwen_images(size: ModelSize) -> dict[str, Any]:
    area = size.image_size**2
    return {"patch_size": size.patch_size, "merge_size": 2, "size": {"shortest_edge": area, "longest_edge": 9 * area}}


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token": "image_pad", "video_token": "video_pad"} | {
        name: name.removesuffix("_token") for name in ("vision_start_token", "vision_end_token")
    }
    return {f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}


def _mrope(size: ModelSize, interleaved: bool) -> dict[str, Any]:
    """Rotary positions in time, height and width share a head's frequencies."""
    half = size.hidden // size.heads // 2
    sections = [half - 2 * (half // 4), half // 4, half // 4]
    common = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return common | ({"mrope_interleaved": True} if interleaved else {})


def _idefics_images(size: ModelSize) -> dict[str, Any]:
    edge = {"longest_edge": size.image_size}
    return {"size": edge, "max_image_size": edge, "do_image_splitting": False}


def _idefics_config(size: ModelSize, tokenizer: Any) -> dict[str, Any]:
    vision = _vision(size) | {"image_size": size.image_size, "intermediate_size": size.vision_mlp}
    return {
        "text_config": {"model_type": "llama"} | _text(size, tokenizer),
        "vision_config": vision | {"num_hidden_layers": size.vision_layers, "num_attention_heads": size.vision_heads},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _transformers() -> Any:
    """The library without its types, which know neither all options nor all classes."""
    import transformers

    return transformers


BUILDERS: Mapping[Architecture, Callable[[ModelSize, Sequence[str]], Parts]] = {
    "internvl": _internvl,
    "qwen3_vl": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "llava": _llava,
}
