"""Which shift of the central difference is right for a model: the ladder against forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import onesteptrain as ost
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.model import Direction
from onesteptrain.utility import choose_shift, measure_anchors, token_derivatives
from onesteptrain.utility.anchoring import together
from onesteptrain.utility.encoded import anchor_groups
from onesteptrain.utility.shift import RELATIVE_SHIFTS

PROBES = 16
"""Anchors that are looked at, the first, as `choose_shift` does."""

BATCH = 8


def print_shifts(anchors: Path, checkpoint: Path, scope: str) -> None:
    """For each shift, the loss at both ends, and how far the derivatives of the tokens are off."""
    loading = ost.LoadOptions(device="cpu")
    proxy = ost.load_proxy(checkpoint, scope=ost.ScopeOptions(scope), loading=loading)
    groups = anchor_groups(proxy.encoder, list(ost.open_pool(anchors)), None)
    probes = groups[""][:PROBES]
    direction = together(measure_anchors(proxy, groups, preconditioner={}, batch_size=None)).direction
    unit = _norm([proxy.parameters[name].detach() for name in direction]) / _norm(list(direction.values()))
    true = _derivatives(proxy, probes, direction, None)
    print(f"\n{checkpoint.name}, scope {scope}: {PROBES} anchors, loss {_loss(proxy, probes):.6f}\n")
    print("| relative shift | shift | loss above | loss below | mean derivative | off from jvp |\n|" + " --- |" * 6)
    print(f"| jvp | | | | {float(true.mean()):.4g} | 0 |", flush=True)
    for relative in RELATIVE_SHIFTS:
        _print_shift(proxy, probes, direction, (f"{relative:.1e}", relative * unit), true)
    chosen = choose_shift(proxy, probes, direction, batch_size=None)
    if chosen is None:
        print("\nnone is chosen: `one_step` would take jvp")
    else:
        _print_shift(proxy, probes, direction, (f"{chosen / unit:.1e}, chosen", chosen), true)


def _print_shift(
    proxy: Proxy, probes: Sequence[Encoded], direction: Direction, shift: tuple[str, float], true: Tensor
) -> None:
    name, size = shift
    ends = []
    for sign in (1, -1):
        with proxy.shifted(direction, sign * size):
            ends.append(_loss(proxy, probes))
    found = _derivatives(proxy, probes, direction, size)
    off = float((found - true).norm() / true.norm())
    print(
        f"| {name} | {size:.4g} | {ends[0]:.6f} | {ends[1]:.6f} | {float(found.mean()):.4g} | {off:.3g} |", flush=True
    )


def _derivatives(proxy: Proxy, probes: Sequence[Encoded], direction: Direction, shift: float | None) -> Tensor:
    """Of every answer token; in forward mode where no shift is given."""
    records = token_derivatives(
        proxy,
        probes,
        [direction],
        estimator="jvp" if shift is None else "fd",
        epsilons=[shift or 0.0],
        batch_size=BATCH,
    )
    return torch.cat([record.derivative[0] for record in records])


@torch.no_grad()
def _loss(proxy: Proxy, probes: Sequence[Encoded]) -> float:
    """Mean sample loss, in nats a token."""
    parts = [probes[start : start + BATCH] for start in range(0, len(probes), BATCH)]
    means = torch.cat([proxy.token_losses(proxy.batch(part)).means() for part in parts])
    return float(means.double().mean())


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(tensor).double() for tensor in tensors]).norm())
