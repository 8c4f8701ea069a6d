"""The anchors' side of the utility: their loss, its gradient, and the direction in which samples are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from onesteptrain.errors import ModelError
from onesteptrain.proxy import Batch, Encoded, Proxy, in_batches

T = TypeVar("T")

Preconditioner = Mapping[str, Tensor]
"""What each coordinate of a gradient is multiplied with before the step; no entry at all means SGD."""


class AnchorGroup(NamedTuple):
    """Anchors whose mean loss is one yardstick."""

    name: str
    share: float
    """Their share of all anchors: the total utility is the mean of the groups' utilities with these weights."""

    loss: float
    """Mean loss at the present weights, in nats a token."""

    direction: dict[str, Tensor]
    """P times the gradient of that loss: samples whose loss rises along it lower this group's loss."""

    batches: list[Batch]


def measure_anchors(
    proxy: Proxy,
    groups: Mapping[str, Sequence[Encoded]],
    *,
    preconditioner: Preconditioner,
    batch_size: int | None,
    keep: bool = False,
) -> list[AnchorGroup]:
    """Loss and step direction of each group of anchors, at the proxy's present weights.

    Args:
        proxy: The model.
        groups: Anchors by group.
        preconditioner: Adam's diagonal, or nothing for SGD.
        batch_size: Anchors in one pass.
        keep: For anchors that will be measured again, after steps: keep what the scope does not change, and take the
            loss as it is taken then, so that no step at all is worth exactly nothing.
    """
    total = sum(len(members) for members in groups.values())
    measured = []
    for name, members in groups.items():
        batches = [
            proxy.batch([members[index] for index in indices], keep=keep)
            for indices in in_batches(members, proxy.rows_at_once(batch_size), proxy.room.tokens)
        ]
        loss, gradient = proxy.gradient(batches)
        loss = mean_loss(proxy, batches) if keep else loss
        measured.append(AnchorGroup(name, len(members) / total, loss, precondition(gradient, preconditioner), batches))
    return measured


def together(groups: Sequence[AnchorGroup]) -> AnchorGroup:
    """All anchors as one nameless yardstick: the mean of the groups, weighted by their shares."""
    if len(groups) == 1:
        return groups[0]._replace(name="")
    direction = {
        name: sum((group.share * group.direction[name] for group in groups if name in group.direction), torch.zeros(()))
        for name in dict.fromkeys(name for group in groups for name in group.direction)
    }
    loss = sum(group.share * group.loss for group in groups)
    return AnchorGroup("", 1.0, loss, direction, [batch for group in groups for batch in group.batches])


def without(total: AnchorGroup, part: AnchorGroup, *, share: float) -> AnchorGroup:
    """The mean over the anchors outside a part.

    Args:
        total: All anchors.
        part: Some of them.
        share: How many of all anchors the part holds, below 1.
    """
    direction = {
        name: (value - share * part.direction[name] if name in part.direction else value) / (1 - share)
        for name, value in total.direction.items()
    }
    return AnchorGroup("", 1.0, (total.loss - share * part.loss) / (1 - share), direction, [])


def in_parts(items: Sequence[T], parts: int, *, seed: int) -> list[list[T]]:
    """Split at random into parts whose sizes differ by one at most."""
    digest = hashlib.blake2b(f"parts:{seed}".encode(), digest_size=8).digest()
    order = np.random.default_rng(int.from_bytes(digest, "big")).permutation(len(items))
    return [[items[place] for place in sorted(order[part::parts])] for part in range(parts)]


@torch.no_grad()
def mean_loss(proxy: Proxy, batches: Sequence[Batch]) -> float:
    """Mean sample loss over some batches, in nats a token; summed in float64."""
    means = [proxy.token_losses(batch).means() for batch in batches]  # the host waits for the device after the last
    sums = [values.cpu().double().sum() for values in means]
    return float(torch.stack(sums).sum()) / sum(batch.answer.shape[0] for batch in batches)


def precondition(gradient: Mapping[str, Tensor], preconditioner: Preconditioner) -> dict[str, Tensor]:
    """P times a gradient, coordinate by coordinate."""
    if not preconditioner:
        return dict(gradient)
    return {name: value * preconditioner[name] for name, value in gradient.items()}


def read_preconditioner(path: Path, proxy: Proxy, *, epsilon: float = 1e-8) -> dict[str, Tensor]:
    """Adam's diagonal, 1 / (sqrt(v) + epsilon), from the second moments v (bias removed) that a warm-up kept.

    A coordinate that the warm-up never touched, such as the embedding of a token it did not see, has v = 0 and would be
    multiplied by 1 / epsilon; it takes no step instead.

    Raises:
        ModelError: the file is missing or was kept for other parameters.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path} does not exist; Adam's step needs the second moments that `ost warmup` writes")
    moments = load_file(path)
    missing = [name for name, value in proxy.parameters.items() if _shape(moments, name) != value.shape]
    if missing:
        raise ModelError(
            f"{path} has no second moments for {len(missing)} of {len(proxy.parameters)} parameters in scope "
            f"(such as {missing[0]}); warm up with the same --scope"
        )
    scale = {}
    for name, value in proxy.parameters.items():
        moment = moments[name].to(value.device, value.dtype)
        scale[name] = torch.where(moment > 0, 1 / (moment.sqrt() + epsilon), 0)
    return scale


def _shape(moments: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return moments[name].shape if name in moments else None
