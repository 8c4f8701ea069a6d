"""How a model is fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onesteptrain.errors import ConfigError

Progress = Callable[[int, int], None]
"""Called after each optimizer step with the steps done and the steps in all."""


@dataclass(frozen=True)
class FinetuneOptions:
    """How a model is fine-tuned with AdamW."""

    steps: int | None = None
    """Optimizer steps (Protocol B): few samples are seen more often. By default the epochs decide."""

    epochs: float = 1.0
    """Passes over the samples (Protocol A): fewer samples mean fewer steps."""

    batch_size: int = 16
    """Samples in one pass through the model."""

    gradient_accumulation: int = 1
    """Passes in one optimizer step."""

    learning_rate: float = 1e-5
    """Peak of the schedule."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes after its rise: cosine and linear end at zero."""

    rise_share: float = 0.03
    """Share of the steps in which the learning rate rises from zero to its peak."""

    weight_decay: float = 0.0
    """Decay of AdamW; biases and norms are spared."""

    max_grad_norm: float = 1.0
    """Longest gradient; a longer one is shortened to it. 0 leaves gradients as they are."""

    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Type in which the model computes; the weights keep theirs. auto is bfloat16 on a GPU that has it."""

    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""

    seed: int = 0
    """Fixes the order of the samples, and dropout."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation", "steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite and not negative")
        if not 0 <= self.rise_share < 1:
            raise ConfigError(f"rise_share is {self.rise_share}; it must be at least 0 and below 1")
