"""What the contract of `deita` needs: two tiny language models that know the six scores, with random weights."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onesteptrain.methods import Setting
from onesteptrain.methods.deita import COMPLEXITY_PROMPT, QUALITY_PROMPT, Deita
from onesteptrain.synthetic.tokenizer import train_tokenizer
from tests.building import TEXTS
from tests.methods.setups import default_setting

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@functools.cache
def scorer(seed: int, longest: int = 512) -> Path:
    """A tiny Llama, with weights so large that its scores differ from sample to sample."""
    folder = Path(tempfile.mkdtemp(prefix="ost-test-")) / f"scorer-{seed}"
    names = {"eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = train_tokenizer([*TEXTS, COMPLEXITY_PROMPT, QUALITY_PROMPT], vocabulary=300, named=names, bos="<s>")
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=longest, **SIZE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.ndim == 2 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def setup(seed: int) -> tuple[Deita, Setting]:
    return Deita(str(scorer(1)), str(scorer(2)), batch_size=4), default_setting(seed)
