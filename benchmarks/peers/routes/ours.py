"""First order from forward passes, or from one gradient a row, through the public functions of onesteptrain."""

from __future__ import annotations

import torch
from cases import Loaded
from clock import Clock
from torch import Tensor

from onesteptrain.utility import choose_shift, measure_anchors, token_derivatives
from onesteptrain.utility.first_order import FirstOrder
from onesteptrain.utility.per_sample import inner_products, per_sample

_PROBES = 16


def fd(case: Loaded, clock: Clock) -> Tensor:
    """Two passes a group, by central difference."""
    return _score(case, clock, "fd")


def jvp(case: Loaded, clock: Clock) -> Tensor:
    """One forward-mode pass a group."""
    return _score(case, clock, "jvp")


def gradient(case: Loaded, clock: Clock) -> Tensor:
    """One batched forward and backward pass for all groups."""
    members = {f"{number:03}": group for number, group in enumerate(case.grouped)}
    groups = measure_anchors(case.proxy, members, preconditioner={}, batch_size=case.batch_size)
    directions = {name: torch.stack([group.direction[name] for group in groups]) for name in groups[0].direction}
    # how batches are taken apart is found out, and checked, once
    per_sample(case.proxy, case.anchors[: case.batch_size], inner_products(directions), batch_size=case.batch_size)
    clock.touch()
    records = per_sample(case.proxy, case.rows, inner_products(directions), batch_size=case.batch_size)
    return torch.stack([record.numbers for record in records])


def _score(case: Loaded, clock: Clock, estimator: FirstOrder) -> Tensor:
    members = {f"{number:03}": group for number, group in enumerate(case.grouped)}
    groups = measure_anchors(case.proxy, members, preconditioner={}, batch_size=case.batch_size)
    epsilons = [
        choose_shift(case.proxy, members[group.name][:_PROBES], group.direction, batch_size=case.batch_size)
        if estimator == "fd"
        else 0.0
        for group in groups
    ]
    clock.touch()
    records = token_derivatives(
        case.proxy,
        case.rows,
        [group.direction for group in groups],
        estimator=estimator,
        epsilons=epsilons,
        batch_size=case.batch_size,
    )
    return torch.stack([record.derivative.mean(1) for record in records])
