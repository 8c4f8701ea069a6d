"""The anchors' side of the utility: their loss, its gradient, and the direction in which samples are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from onesteptrain.errors import AnchorError, ModelError
from onesteptrain.proxy import Batch, Encoded, Proxy, in_batches, prepare
from onesteptrain.proxy.memory import until_it_fits
from onesteptrain.storage.seeds import seeded_bits

T = TypeVar("T")

Preconditioner = Mapping[str, Tensor]
"""What each coordinate of a gradient is multiplied with before the step; no entry at all means SGD."""


class AnchorGroup(NamedTuple):
    """Anchors whose mean loss samples are measured by."""

    name: str
    share: float
    """Their share of all anchors: the total utility is the mean of the groups' utilities with these weights."""

    loss: float
    """Mean loss at the present weights, in nats a token."""

    direction: dict[str, Tensor]
    """P times the gradient of that loss: samples whose loss rises along it lower this group's loss."""

    batches: list[Batch]
    """The anchors themselves, where they will be measured again; else nothing."""


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
        keep: For anchors that will be measured again, after steps: keep them, with what the scope does not change, and
            take the loss as it is taken then, so that no step at all is worth exactly nothing.

    Raises:
        AnchorError: one does not fit into memory.
        ScoreError: the loss is not finite.
    """
    total = sum(len(members) for members in groups.values())
    measured = []
    for name, members in groups.items():
        loss, gradient, batches = _loss_and_gradient(proxy, members, batch_size, keep=keep)
        measured.append(AnchorGroup(name, len(members) / total, loss, precondition(gradient, preconditioner), batches))
    return measured


class _Passes(NamedTuple):
    """How anchors are gone over."""

    tokens: int
    """Most tokens of a pass."""

    remember: bool
    """Whether what the scope does not change is kept."""


def _loss_and_gradient(
    proxy: Proxy, anchors: Sequence[Encoded], batch_size: int | None, *, keep: bool
) -> tuple[float, dict[str, Tensor], list[Batch]]:
    """Loss and gradient of some anchors; in smaller batches if they do not fit.

    What does not fit a backward pass may fit those that go forward only, so that the proxy does not learn of it. Where
    memory does not hold what the scope does not change of all anchors at once, it is computed anew in every pass.
    """
    measured: list[tuple[float, dict[str, Tensor], list[Batch]]] = []

    def groups_of(passes: _Passes) -> list[list[int]]:
        return in_batches(anchors, batch_size or proxy.memory.most_rows, passes.tokens)

    def measure(passes: _Passes) -> None:
        batches = (
            prepare(proxy, [anchors[index] for index in indices], keep=passes.remember) for indices in groups_of(passes)
        )
        if not keep:
            measured.append((*proxy.gradient(batches, count=len(anchors)), []))
            return
        kept = list(batches)
        _, gradient = proxy.gradient(kept)
        measured.append((mean_loss(proxy, kept), gradient, kept))

    def smaller(passes: _Passes) -> list[_Passes]:
        groups = groups_of(passes)
        sizes = [len(group) * max(anchors[index].tokens for index in group) for group in groups]
        several = [size for size, group in zip(sizes, groups, strict=True) if len(group) > 1]
        if several:
            return [passes._replace(tokens=max(several) // 2)]
        if passes.remember:
            return [_Passes(proxy.memory.tokens, remember=False)]
        raise AnchorError(
            f"an anchor does not fit into memory: they have up to {max(sizes)} tokens; choose shorter ones, or "
            "lower --max-tokens"
        )

    until_it_fits([_Passes(proxy.memory.tokens, remember=keep)], measure, smaller)
    return measured[0]


def together(groups: Sequence[AnchorGroup]) -> AnchorGroup:
    """All anchors as one nameless group: the mean of the groups, weighted by their shares."""
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
    order = np.random.default_rng(seeded_bits("parts", seed)).permutation(len(items))
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
    multiplied by 1 / epsilon; it takes no step instead. Half precision has its diagonal in float32: float16 has no
    numbers as small as second moments are.

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
        moment = moments[name].to(value.device, torch.promote_types(value.dtype, torch.float32))
        scale[name] = torch.where(moment > 0, 1 / (moment.sqrt() + epsilon), 0)
    return scale


def _shape(moments: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return moments[name].shape if name in moments else None
