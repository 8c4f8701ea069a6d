"""dattri's inner products of gradients by vmap; the target function takes a whole group as one query.

The gradients of the queries are taken anew for each batch of rows, so that almost nothing is set-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from cases import Loaded, mean_losses
from clock import Clock, Rows
from dattri.algorithm.base import BaseInnerProductAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from onesteptrain.proxy import Encoded


def score(case: Loaded, clock: Clock) -> Tensor:
    """Rows against groups, each group one query."""
    everything = [*case.rows, *case.anchors]
    names = sorted(case.collate(everything))
    longest = max(sample.tokens for sample in everything)
    model = case.proxy.model

    def loss(parameters: Mapping[str, Tensor], data: Sequence[Tensor]) -> Tensor:
        # vmap takes one group from the data; dattri keeps an axis of length one in front of it
        batch = {name: value[0] for name, value in zip(names, data, strict=True)}
        return mean_losses(lambda **inputs: functional_call(model, dict(parameters), (), inputs), batch).mean()

    def stacked(groups: Sequence[Sequence[Encoded]]) -> tuple[Tensor, ...]:
        batches = [_padded(case.collate(group), longest) for group in groups]
        return tuple(torch.stack([batch[name] for batch in batches]) for name in names)

    def rows(samples: Sequence[Encoded]) -> tuple[Tensor, ...]:
        return stacked([[sample] for sample in samples])

    task = AttributionTask(loss_func=loss, target_func=loss, model=model, checkpoints=model.state_dict())
    layers = list(case.proxy.parameters)
    attributor = BaseInnerProductAttributor(task, layer_name=layers, device="cpu")
    loader = DataLoader(Rows(case.rows, clock), batch_size=case.batch_size, collate_fn=rows)
    attributor.cache(loader)
    with torch.no_grad():
        return attributor.attribute(loader, DataLoader(case.grouped, batch_size=1, collate_fn=stacked))


def _padded(batch: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    """What runs along the tokens, padded to the longest of all samples: vmap stacks them."""
    along = batch["input_ids"].shape
    return {
        name: pad(value, (0, longest - along[1])) if value.shape == along else value for name, value in batch.items()
    }
