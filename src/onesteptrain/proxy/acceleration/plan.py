"""How passes over a batch run: what `prepare` decides, and what `Proxy` goes by."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onesteptrain.proxy.acceleration.prefix_cache import NO_PREFIX, Kept, Prefix, replayed

MASK = "attention_mask"


class PassPlan(NamedTuple):
    """How passes over one batch run; by default in full."""

    unmasked: bool = False
    """Whether padding may count as tokens, so that no mask is needed."""

    positions: Tensor | None = None
    """Positions of the tokens, where the model need not work them out itself."""

    prefix: Prefix = NO_PREFIX
    """What the scope does not reach: where it is kept, if anything is."""

    kept: Kept | None = None
    """What the scope does not change, from the first pass on; None if nothing is to be kept."""

    def arguments(self, inputs: Mapping[str, Tensor], *, training: bool) -> dict[str, Any]:
        """What a model is called with."""
        unmasked = self.unmasked and not training  # dropout draws for each weight of attention
        positions = {} if self.positions is None else {"position_ids": self.positions}
        return {**(without_mask(inputs) if unmasked else inputs), **positions, "use_cache": False}

    def running(self, model: nn.Module) -> AbstractContextManager[None]:
        """Run one pass."""
        return replayed(model, self.prefix, self.kept)


def without_mask(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a batch padded on the right, in which padding counts as tokens.

    A mask that hides nothing is left: some models read positions from it.
    """
    return {name: torch.ones_like(value) if name == MASK else value for name, value in inputs.items()}
