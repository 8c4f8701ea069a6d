"""Where a token sees nothing that follows it, padding behind a sample needs no mask.

Without one, causal attention skips the half of its products that count for nothing, and fused kernels can be used that
take no mask. Whether a model is of that kind is found out on a sample: what follows it is changed, and its logits are
not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onesteptrain.proxy.encoding import Encoded

_MASK = "attention_mask"


def can_be_continued(sample: Encoded) -> bool:
    """Whether two continuations differ: not so where a single token makes the answer."""
    return len(_words(sample)) > 1


def continued(sample: Encoded, turn: int) -> Encoded:
    """A sample with as many tokens again behind it, which are no answers and stand where padding would.

    They are tokens of its answer in another order for each turn, so that no place holds the same in two turns.
    """
    words = _words(sample)
    behind = {"input_ids": words[(torch.arange(sample.tokens) + turn) % len(words)], _MASK: torch.tensor(1)}

    def longer(name: str, value: Tensor) -> Tensor:
        if value.shape != (1, sample.tokens):
            return value
        more = torch.zeros_like(value)  # as padding has it
        more[0] = behind.get(name, more[0])
        return torch.cat([value, more], dim=1)

    inputs = {name: longer(name, value) for name, value in sample.inputs.items()}
    return Encoded(inputs, torch.cat([sample.answer, torch.zeros_like(sample.answer)]))


def without_mask(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a batch padded on the right, in which padding counts as tokens.

    A mask that hides nothing is left: some models read positions from it.
    """
    return {name: torch.ones_like(value) if name == _MASK else value for name, value in inputs.items()}


def _words(sample: Encoded) -> Tensor:
    words: Tensor = torch.unique(sample.inputs["input_ids"][0][sample.answer])
    return words
