"""What a model is given in a pass: no mask where it needs none, and positions worked out once a batch.

Where a token sees nothing that follows it, padding behind a sample needs no mask. Whether a model is of that kind is
found out on a sample: what follows it is changed, and its logits are not. Models of Qwen-VL's kind work out the
positions of tokens in pictures in every pass, row after row; all that transformers has call one method for it, where
they are given none.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onesteptrain.proxy.acceleration.plan import MASK
from onesteptrain.proxy.encoding import Encoded

_METHOD = "compute_3d_position_ids"


def can_be_continued(sample: Encoded) -> bool:
    """Whether two continuations differ: not so where a single token makes the answer."""
    return len(_words(sample)) > 1


def continued(sample: Encoded, turn: int) -> Encoded:
    """A sample with as many tokens again behind it, which are no answers and stand where padding would.

    They are tokens of its answer in another order for each turn, so that no place holds the same in two turns.
    """
    words = _words(sample)
    behind = {"input_ids": words[(torch.arange(sample.tokens) + turn) % len(words)], MASK: torch.tensor(1)}

    def longer(name: str, value: Tensor) -> Tensor:
        if value.shape != (1, sample.tokens):
            return value
        more = torch.zeros_like(value)  # as padding has it
        more[0] = behind.get(name, more[0])
        return torch.cat([value, more], dim=1)

    inputs = {name: longer(name, value) for name, value in sample.inputs.items()}
    return Encoded(inputs, torch.cat([sample.answer, torch.zeros_like(sample.answer)]))


def works_out_positions(model: nn.Module) -> bool:
    """Whether a model has a way of its own to number the tokens of a batch."""
    return _owner(model) is not None


def positions_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Positions that a model gives to a batch, where the inputs are; None where it leaves them to its layers."""
    method = getattr(_owner(model), _METHOD)
    positions: Tensor | None = method(**{name: inputs.get(name) for name in inspect.signature(method).parameters})
    return positions


def _owner(model: nn.Module) -> Any:
    return next((module for module in model.modules() if hasattr(module, _METHOD)), None)


def _words(sample: Encoded) -> Tensor:
    words: Tensor = torch.unique(sample.inputs["input_ids"][0][sample.answer])
    return words
