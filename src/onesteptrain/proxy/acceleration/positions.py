"""Positions of tokens in pictures are worked out once a batch, before it goes to a device.

Models of Qwen-VL's kind do so in every pass, row after row, and make the host wait for the device many times. All that
transformers has call one method for it, where they are given no positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_METHOD = "compute_3d_position_ids"


def longest(model: Any) -> int:
    """How many tokens of a sample a model can number."""
    text = model.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 1_000_000)


def works_out_positions(model: nn.Module) -> bool:
    """Whether a model has a way of its own to number the tokens of a batch."""
    return _owner(model) is not None


def positions_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Positions that a model gives to a batch, where the inputs are; None where it leaves them to its layers."""
    method = getattr(_owner(model), _METHOD)
    found: Tensor | None = method(**{name: inputs.get(name) for name in inspect.signature(method).parameters})
    return found


def _owner(model: nn.Module) -> Any:
    return next((module for module in model.modules() if hasattr(module, _METHOD)), None)
