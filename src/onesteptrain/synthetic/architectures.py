"""Small checkpoints of real architectures, built from configuration: the family's own model, processor and template.

Each family is put together as its published checkpoints are. Nothing is downloaded: the weights are random, and the
tokenizer is a byte-level BPE trained on the given texts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.storage.atomic import whole
from onesteptrain.synthetic.tokenizer import IDEFICS3, INTERNVL, LLAVA, QWEN2_5_VL, QWEN3_VL, train_tokenizer

Architecture = Literal["internvl", "qwen3_vl", "qwen2_5_vl", "smolvlm", "idefics3", "llava"]


@dataclass(frozen=True)
class ModelSize:
    """How large a checkpoint is; widths and heights are counted in numbers of a vector, images in pixels."""

    hidden: int = 64
    """Width of the language model."""

    layers: int = 3
    """Layers of the language model."""

    heads: int = 4
    """Attention heads of the language model."""

    kv_heads: int = 2
    """Key-value heads of the language model."""

    mlp: int = 64
    """Width of the language model's feed-forward layers."""

    vision_hidden: int = 16
    """Width of the vision tower."""

    vision_layers: int = 2
    """Layers of the vision tower."""

    vision_heads: int = 2
    """Attention heads of the vision tower."""

    vision_mlp: int = 32
    """Width of the vision tower's feed-forward layers."""

    image_size: int = 32
    """Side of the square that an image is scaled to; Qwen-VL keeps the shape, from this area to nine times as much."""

    patch_size: int = 8
    """Side of a patch; all families but LLaVA merge two by two patches into one token."""

    vocabulary: int = 300
    """Most entries of the tokenizer, its 256 bytes and the special tokens included."""

    def __post_init__(self) -> None:
        if self.hidden % (8 * self.heads) or self.vision_hidden % (8 * self.vision_heads):
            raise ConfigError(
                f"a width of {self.hidden} with {self.heads} heads, and {self.vision_hidden} with {self.vision_heads}: "
                "each head must be a multiple of 8 wide"
            )
        if self.image_size % (2 * self.patch_size):
            raise ConfigError(f"image_size is {self.image_size}; it must be a multiple of {2 * self.patch_size}")


def build_checkpoint(
    architecture: Architecture, folder: Path, *, size: ModelSize | None = None, texts: Sequence[str], seed: int = 0
) -> Path:
    """Save a model with random weights, with its processor, as a folder that the Auto classes of transformers load.

    Args:
        architecture: The family.
        folder: A new folder; it appears whole or not at all.
        size: How large; tiny by default, about 0.1 M parameters.
        texts: What the tokenizer is trained on.
        seed: Fixes the weights.

    Raises:
        ConfigError: no such architecture.
        RunError: the folder exists.
    """
    import torch

    if architecture not in BUILDERS:
        raise ConfigError(f"architecture {architecture!r} is not known; choose {', '.join(BUILDERS)}")
    if folder.exists():
        raise RunError(f"{folder}: exists; give a new folder for the checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = BUILDERS[architecture](size or ModelSize(), texts)
    built.model.generation_config.eos_token_id = built.processor.tokenizer.eos_token_id
    built.model.generation_config.pad_token_id = built.processor.tokenizer.pad_token_id
    with whole(folder) as part:
        part.mkdir()
        built.model.save_pretrained(part)
        built.processor.save_pretrained(part)
    return folder


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
        chat_template=INTERNVL,
    )
    config = tf.InternVLConfig(
        text_config={"model_type": "qwen2", "tie_word_embeddings": True} | _text(size, tokenizer),
        vision_config=_tower(size) | {"use_qk_norm": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=image_tokens,
        tie_word_embeddings=True,
    )
    return Parts(tf.InternVLForConditionalGeneration(config), processor)


def _qwen(size: ModelSize, texts: Sequence[str], version: Literal["3", "2_5"]) -> Parts:
    tf = _transformers()
    # the names of Qwen2.5-VL are Qwen2_5_VLConfig and so on, those of Qwen3-VL Qwen3VLConfig
    name = "Qwen3VL" if version == "3" else "Qwen2_5_VL"
    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=_QWEN_TOKENS)
    area = size.image_size**2
    images = {"patch_size": size.patch_size, "merge_size": 2, "size": {"shortest_edge": area, "longest_edge": 9 * area}}
    videos = tf.Qwen3VLVideoProcessor if version == "3" else tf.Qwen2VLVideoProcessor
    processor = getattr(tf, f"{name}Processor")(
        image_processor=tf.Qwen2VLImageProcessor(**images),
        tokenizer=tokenizer,
        video_processor=videos(**images),
        chat_template=QWEN3_VL if version == "3" else QWEN2_5_VL,
    )
    tokens = {"image_token": "image_pad", "video_token": "video_pad"}
    tokens |= {"vision_start_token": "vision_start", "vision_end_token": "vision_end"}
    config = getattr(tf, f"{name}Config")(
        text_config=_text(size, tokenizer) | _qwen_text(size, version),
        vision_config=_qwen_vision(size, version),
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()},
        tie_word_embeddings=True,
    )
    return Parts(getattr(tf, f"{name}ForConditionalGeneration")(config), processor)


def _qwen_vision(size: ModelSize, version: Literal["3", "2_5"]) -> dict[str, Any]:
    if version == "3":
        own = {"num_position_embeddings": (size.image_size // size.patch_size) ** 2, "deepstack_visual_indexes": [0]}
    else:
        own = {"window_size": size.image_size, "fullatt_block_indexes": [size.vision_layers - 1]}
    return _vision(size) | {
        "depth": size.vision_layers,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_heads,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.hidden,
        **own,
    }


def _qwen_text(size: ModelSize, version: Literal["3", "2_5"]) -> dict[str, Any]:
    """Rotary positions in time, height and width share a head's frequencies."""
    half = size.hidden // size.heads // 2
    sections = [half - 2 * (half // 4), half // 4, half // 4]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    if version == "2_5":
        return {"rope_parameters": rope}
    return {"rope_parameters": rope | {"mrope_interleaved": True}, "head_dim": size.hidden // size.heads}


def _idefics(size: ModelSize, texts: Sequence[str], name: Literal["SmolVLM", "Idefics3"]) -> Parts:
    tf = _transformers()
    tokenizer = train_tokenizer(texts, vocabulary=size.vocabulary, named=_IDEFICS_TOKENS)
    edge = {"longest_edge": size.image_size}
    images = getattr(tf, f"{name}ImageProcessor")(size=edge, max_image_size=edge, do_image_splitting=False)
    video = {"fps": 1, "max_frames": 8, "video_size": edge}
    more = (
        {"video_processor": tf.SmolVLMVideoProcessor(size=edge, max_image_size=edge, video_sampling=video)}
        if name == "SmolVLM"
        else {}
    )
    processor = getattr(tf, f"{name}Processor")(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=(size.image_size // size.patch_size // 2) ** 2,
        chat_template=IDEFICS3,
        **more,
    )
    config = getattr(tf, f"{name}Config")(
        text_config={"model_type": "llama"} | _text(size, tokenizer),
        vision_config=_tower(size),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Parts(getattr(tf, f"{name}ForConditionalGeneration")(config), processor)


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
        chat_template=LLAVA,
    )
    config = tf.LlavaConfig(
        text_config={"model_type": "llama"} | _text(size, tokenizer),
        vision_config={"model_type": "clip_vision_model", "projection_dim": size.vision_hidden} | _tower(size),
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


def _tower(size: ModelSize) -> dict[str, Any]:
    """A vision tower of the usual make."""
    return _vision(size) | {
        "image_size": size.image_size,
        "intermediate_size": size.vision_mlp,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.vision_heads,
    }


def _transformers() -> Any:
    """The library without its types, which know neither all options nor all classes."""
    import transformers

    return transformers


BUILDERS: Mapping[Architecture, Callable[[ModelSize, Sequence[str]], Parts]] = {
    "internvl": _internvl,
    "qwen3_vl": functools.partial(_qwen, version="3"),
    "qwen2_5_vl": functools.partial(_qwen, version="2_5"),
    "smolvlm": functools.partial(_idefics, name="SmolVLM"),
    "idefics3": functools.partial(_idefics, name="Idefics3"),
    "llava": _llava,
}
