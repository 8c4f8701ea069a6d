"""The plain loop: one backward pass for each row, and the inner product of its gradient with the anchors'."""

from __future__ import annotations

import torch
from cases import Loaded, mean_losses
from clock import Clock
from torch import Tensor


def loop(case: Loaded, clock: Clock) -> Tensor:
    """Row by row, one group after the other."""
    parameters = list(case.proxy.parameters.values())
    model = case.proxy.model
    kind = parameters[0].dtype
    directions = []
    for group in case.grouped:
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(group), case.batch_size):
            batch = in_type(case.collate(group[start : start + case.batch_size]), kind)
            loss = mean_losses(model, batch).sum() / len(group)
            total = [sum_ + part for sum_, part in zip(total, gradient(loss, parameters), strict=True)]
        directions.append(total)
    clock.touch()
    scores = []
    for row in case.rows:
        loss = mean_losses(model, in_type(case.collate([row]), kind)).sum()
        found = gradient(loss, parameters)
        products = [sum((a * b).sum() for a, b in zip(found, direction, strict=True)) for direction in directions]
        scores.append(torch.stack(products))
    return torch.stack(scores)


def gradient(loss: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    """Gradient of a loss; zero for a parameter that does not enter it."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if part is None else part for part, p in zip(found, parameters, strict=True)]


def in_type(batch: dict[str, Tensor], kind: torch.dtype) -> dict[str, Tensor]:
    """Pixels in the type of the weights."""
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in batch.items()}
