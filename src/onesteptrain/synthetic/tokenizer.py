"""The texts of the small checkpoints: a fresh byte-level BPE, and the chat templates of the families.

The templates are those of the published checkpoints, and support system turns, several turns, several images and text
alone. Two differ from the originals: LLaVA's here closes an answer with its end token, which the original leaves to
the tokenizer, and none of them knows tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% elif c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

INTERNVL = _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")

QWEN3_VL = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")

QWEN2_5_VL = (
    "{% if messages and messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + QWEN3_VL
)

IDEFICS3 = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m.content is string %}: {{ m.content }}{% else %}"
    "{% if m.content and m.content[0].type == 'image' %}:{% else %}: {% endif %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

LLAVA = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role | upper }}: {% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def train_tokenizer(texts: Sequence[str], *, vocabulary: int, named: Mapping[str, str], bos: str | None = None) -> Any:
    """A byte-level BPE that keeps every digit a token of its own.

    Args:
        texts: What to train on.
        vocabulary: Most entries.
        named: The special tokens, by the attribute that holds each; eos_token and pad_token are needed.
        bos: A token that is put before every text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys([*named.values(), *([bos] if bos else [])]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if bos:
        pair = (bos, bpe.token_to_id(bos))
        bpe.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[pair])
    standard = {name: token for name, token in named.items() if name in ("eos_token", "pad_token")}
    extra = {name: token for name, token in named.items() if name not in standard}
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=bpe, bos_token=bos, extra_special_tokens=extra, **standard)
