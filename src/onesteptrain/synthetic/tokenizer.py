"""The tokenizer of the small checkpoints: a fresh byte-level BPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
