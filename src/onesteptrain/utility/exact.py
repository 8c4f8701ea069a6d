"""The utility by definition: take the step, measure the anchors, put the weights back; or many steps side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Batch, Encoded, Proxy
from onesteptrain.proxy.model import Room, not_finite
from onesteptrain.proxy.versions import Versions, repeated
from onesteptrain.utility.anchoring import AnchorGroup, Preconditioner, mean_loss, precondition
from onesteptrain.utility.batching import Batches, in_memory, too_large


class Fallen(NamedTuple):
    """What one step on one sample does."""

    loss: float
    """The sample's own loss before the step, in nats a token."""

    falls: Float64[Tensor, " group"]
    """L(w) - L(w') of each group of anchors, in nats a token."""

    problem: str | None = None
    """Why there are no numbers, where there are none."""


def exact_utility(
    proxy: Proxy,
    sample: Encoded,
    anchors: Sequence[AnchorGroup],
    *,
    step_size: float,
    preconditioner: Preconditioner,
) -> tuple[float, Float64[Tensor, " group"]]:
    """Fall of each group's loss after one step on one sample.

    Args:
        proxy: Model at the weights to step from; they are bit for bit the same afterwards.
        sample: The sample to step on.
        anchors: Groups with their loss before the step.
        step_size: Learning rate of the step.
        preconditioner: Adam's diagonal, or nothing for SGD.

    Returns:
        The sample's own loss before the step, and L(w) - L(w') for each group, both in nats a token.

    Raises:
        ScoreError: the sample's loss is not finite.

    Source: One-Step-Train (arXiv:2605.07488).
    """
    loss, gradient = proxy.gradient([proxy.batch([sample])])
    with proxy.shifted(precondition(gradient, preconditioner), -step_size):
        after = [mean_loss(proxy, group.batches) for group in anchors]
    falls = [group.loss - value for group, value in zip(anchors, after, strict=True)]
    return loss, torch.tensor(falls, dtype=torch.float64)


def exact_utilities(  # noqa: PLR0913  the step, the anchors, and how many at once
    versions: Versions,
    samples: Sequence[Encoded],
    anchors: Sequence[AnchorGroup],
    *,
    step_size: float,
    preconditioner: Preconditioner,
    candidates: int,
    room: Room,
) -> list[Fallen]:
    """The same for many samples, some side by side, each with weights of its own; one by one where that cannot be.

    Args:
        versions: The proxy at the weights to step from; they are not touched, or put back bit for bit.
        samples: The samples to step on, each on its own.
        anchors: Groups with their loss before the step.
        step_size: Learning rate of the step.
        preconditioner: Adam's diagonal, or nothing for SGD.
        candidates: Most samples side by side; fewer where memory is short, which `room` remembers.
        room: How many fit.

    Returns:
        One record a sample, in the order given; numbers differ from those of `exact_utility` by round-off.
    """
    proxy = versions.proxy

    def alone(sample: Encoded) -> Fallen:
        try:
            return Fallen(
                *exact_utility(proxy, sample, anchors, step_size=step_size, preconditioner=preconditioner)
            )
        except ScoreError as error:
            return _nothing(anchors, str(error))

    def work(groups: Batches) -> dict[int, Fallen]:
        (group,) = groups
        mine = [samples[index] for index in group]
        batch = proxy.batch(mine) if len(group) > 1 else None
        if batch is None or not all(versions.fits(one) for one in (batch, *_batches(anchors))):
            return {index: alone(sample) for index, sample in zip(group, mine, strict=True)}
        found = _together(versions, batch, anchors, step_size, preconditioner)
        return dict(zip(group, found, strict=True))

    found = in_memory(proxy, samples, work, batch_size=candidates, room=room)
    return [found.get(index) or _nothing(anchors, too_large(one)) for index, one in enumerate(samples)]


def _together(
    versions: Versions, batch: Batch, anchors: Sequence[AnchorGroup], step_size: float, preconditioner: Preconditioner
) -> list[Fallen]:
    """Take a step on each sample of a batch, and measure the anchors after all of them at once."""
    losses, stepped = _steps(versions, batch, step_size, preconditioner)
    with versions.at(stepped):
        after = [_mean_losses(versions.proxy, group.batches, len(losses)) for group in anchors]
    falls = torch.stack([group.loss - value for group, value in zip(anchors, after, strict=True)], dim=1)
    return [
        Fallen(loss, fall) if problem is None else _nothing(anchors, problem)
        for loss, fall in zip(losses, falls, strict=True)
        for problem in [not_finite(loss)]
    ]


def _steps(
    versions: Versions, batch: Batch, step_size: float, preconditioner: Preconditioner
) -> tuple[list[float], dict[str, Tensor]]:
    """Loss of each sample, and the weights after a step on it; those of a loss that is not finite take no step.

    Every row runs at a version of its own, so that one backward pass gives the gradient of each.
    """
    weights = {name: value.requires_grad_() for name, value in versions.stacked(len(batch.answer)).items()}
    with torch.enable_grad(), versions.at(weights):
        losses = versions.proxy.token_losses(batch).means()
        gradients = torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
    broken = ~losses.detach().isfinite()
    for (name, value), gradient in zip(weights.items(), gradients, strict=True):
        value.requires_grad_(False)
        if gradient is not None:
            gradient[broken] = 0.0
            value.add_(precondition({name: gradient}, preconditioner)[name], alpha=-step_size)
    return losses.tolist(), weights


@torch.no_grad()
def _mean_losses(proxy: Proxy, batches: Sequence[Batch], count: int) -> Float64[Tensor, " version"]:
    """What `mean_loss` gives, at each version."""
    sums = [proxy.token_losses(repeated(one, count)).means().cpu().double().view(count, -1).sum(1) for one in batches]
    return torch.stack(sums).sum(0) / sum(one.answer.shape[0] for one in batches)


def _batches(anchors: Sequence[AnchorGroup]) -> list[Batch]:
    return [batch for group in anchors for batch in group.batches]


def _nothing(anchors: Sequence[AnchorGroup], problem: str) -> Fallen:
    return Fallen(float("nan"), torch.full((len(anchors),), float("nan"), dtype=torch.float64), problem)
