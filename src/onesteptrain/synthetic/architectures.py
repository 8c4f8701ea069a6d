"""Small checkpoints of real architectures, built from configuration: the family's own model, processor and template.

Nothing is downloaded: the weights are random, and the tokenizer is a byte-level BPE trained on the given texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onesteptrain.errors import ConfigError, RunError
from onesteptrain.storage.atomic import whole
from onesteptrain.synthetic.families import BUILDERS, Architecture
from onesteptrain.synthetic.sizes import ModelSize

__all__ = ["Architecture", "ModelSize", "build_checkpoint"]


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
