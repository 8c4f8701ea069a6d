"""The utilities by many groups of anchors, from one gradient of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onesteptrain.data.pool import Sample
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.utility import AnchorGroup
from onesteptrain.utility.per_sample import Measured, inner_products, per_sample

if TYPE_CHECKING:
    from onesteptrain.methods.one_step.extras import Found
    from onesteptrain.methods.one_step.first_order import FirstOrder

CROSSOVER = 3
"""Groups from which on one gradient a sample is cheaper than passes for each: `python benchmarks/groups.py`."""


@dataclass(frozen=True)
class GroupGradients:
    """Measures samples along the gradients of all groups at once; a column for each."""

    proxy: Proxy
    names: Sequence[str]
    directions: Mapping[str, Tensor] = field(repr=False)
    """For each parameter the directions of all groups, in the order of their names."""

    step_size: float
    batch_size: int | None

    def __call__(
        self, scorer: FirstOrder, samples: Sequence[Sample], encoded: Sequence[Encoded], records: Sequence[Record], /
    ) -> Found:
        """Columns utility.GROUP: s <P grad L_k, grad l_z>."""
        usable = [one for one, record in zip(encoded, records, strict=True) if record.score is not None]
        measured = iter(per_sample(self.proxy, usable, inner_products(self.directions), batch_size=self.batch_size))
        return [{} if record.score is None else self._columns(next(measured)) for record in records]

    def _columns(self, found: Measured) -> Mapping[str, Value] | str:
        if found.problem is not None:
            return found.problem
        if not found.numbers.isfinite().all():
            return "its gradient is not finite; check the sample, or use float32"
        utilities = (self.step_size * found.numbers).tolist()
        return {f"utility.{name}": value for name, value in zip(self.names, utilities, strict=True)}


def stacked(groups: Sequence[AnchorGroup]) -> dict[str, Tensor]:
    """The directions of some groups side by side; zero where a group does not move a parameter."""
    shapes = {name: value for group in groups for name, value in group.direction.items()}
    return {
        name: torch.stack([group.direction.get(name, torch.zeros_like(like)) for group in groups])
        for name, like in shapes.items()
    }
