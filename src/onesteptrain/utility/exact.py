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

_ROWS_AT_ONCE = 64
"""Rows of one pass beyond which a processor gains nothing: benchmarks/candidates.py."""

_MOST_CANDIDATES = 16
"""On a device of its own, which is filled by then if it is to be."""

_SET_ASIDE = 2**30
"""Bytes for the weights of all candidates with their gradients."""


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
            return Fallen(*exact_utility(proxy, sample, anchors, step_size=step_size, preconditioner=preconditioner))
        except ScoreError as error:
            return _nothing(anchors, str(error))

    def work(groups: Batches) -> dict[int, Fallen]:
        (group,) = groups
        mine = [samples[index] for index in group]
        seen = [*_batches(anchors), *([proxy.batch(mine)] if versions.by_row and len(group) > 1 else [])]
        if len(group) == 1 or not all(map(versions.fits, seen)):
            return {index: alone(sample) for index, sample in zip(group, mine, strict=True)}
        found = _together(versions, mine, anchors, step_size, preconditioner)
        return dict(zip(group, found, strict=True))

    found = in_memory(proxy, samples, work, batch_size=candidates, room=room)
    return [found.get(index) or _nothing(anchors, too_large(one)) for index, one in enumerate(samples)]


def side_by_side(versions: Versions, anchors: Sequence[AnchorGroup]) -> int:
    """How many steps to take side by side, if nobody says.

    On a processor as many as are measured to pay; elsewhere more, bounded by memory. Only where all of the scope lies
    in the layers of the language model (lora and last): else the steps are large, and the gradients are taken apart.
    """
    if not versions.by_row:
        return 1
    proxy = versions.proxy
    size = 2 * sum(value.numel() * value.element_size() for value in proxy.parameters.values())
    most = _MOST_CANDIDATES
    if proxy.device.type == "cpu":
        most = min(most, _ROWS_AT_ONCE // max(batch.answer.shape[0] for batch in _batches(anchors)))
    return max(1, min(most, _SET_ASIDE // size))


def _together(
    versions: Versions,
    samples: Sequence[Encoded],
    anchors: Sequence[AnchorGroup],
    step_size: float,
    preconditioner: Preconditioner,
) -> list[Fallen]:
    """Take a step on each of some samples, and measure the anchors after all of these at once."""
    slopes = (_by_row if versions.by_row else _one_by_one)(versions, samples)
    stepped = versions.stacked(len(samples))
    broken = [place for place, problem in enumerate(slopes.problems) if problem]
    for name, gradient in slopes.gradients.items():
        step = precondition({name: gradient}, preconditioner)[name]
        step[broken] = 0.0  # it keeps its place, so that its neighbours are computed as ever
        stepped[name].add_(step, alpha=-step_size)
    with versions.at(stepped):
        after = [_mean_losses(versions.proxy, group.batches, len(samples)) for group in anchors]
    falls = torch.stack([group.loss - value for group, value in zip(anchors, after, strict=True)], dim=1)
    return [
        Fallen(loss, fall) if problem is None else _nothing(anchors, problem)
        for loss, fall, problem in zip(slopes.losses, falls, slopes.problems, strict=True)
    ]


class _Slopes(NamedTuple):
    losses: list[float]
    gradients: dict[str, Tensor]
    """Of each sample, along a first dimension."""

    problems: list[str | None]
    """Why a loss cannot be used, where it cannot."""


def _by_row(versions: Versions, samples: Sequence[Encoded]) -> _Slopes:
    """By one backward pass: every row has weights of its own, and so a gradient of its own."""
    proxy = versions.proxy
    weights = {name: value.requires_grad_() for name, value in versions.stacked(len(samples)).items()}
    with torch.enable_grad(), versions.at(weights):
        losses = proxy.token_losses(proxy.batch(samples)).means()
        found = torch.autograd.grad(losses.sum(), list(weights.values()), allow_unused=True)
    gradients = {name: one for name, one in zip(weights, found, strict=True) if one is not None}
    return _Slopes(losses.tolist(), gradients, [not_finite(loss) for loss in losses.tolist()])


def _one_by_one(versions: Versions, samples: Sequence[Encoded]) -> _Slopes:
    """By a backward pass for each sample."""
    found = _Slopes([], {}, [])
    for place, sample in enumerate(samples):
        try:
            loss, gradient = versions.proxy.gradient([versions.proxy.batch([sample])])
            problem = None
        except ScoreError as error:
            loss, gradient, problem = float("nan"), {}, str(error)
        found.losses.append(loss)
        found.problems.append(problem)
        for name, value in gradient.items():
            if name not in found.gradients:
                found.gradients[name] = value.new_zeros(len(samples), *value.shape)
            found.gradients[name][place] = value
    return found


@torch.no_grad()
def _mean_losses(proxy: Proxy, batches: Sequence[Batch], count: int) -> Float64[Tensor, " version"]:
    """What `mean_loss` gives, at each version."""
    sums = [proxy.token_losses(repeated(one, count)).means().cpu().double().view(count, -1).sum(1) for one in batches]
    return torch.stack(sums).sum(0) / sum(one.answer.shape[0] for one in batches)


def _batches(anchors: Sequence[AnchorGroup]) -> list[Batch]:
    return [batch for group in anchors for batch in group.batches]


def _nothing(anchors: Sequence[AnchorGroup], problem: str) -> Fallen:
    return Fallen(float("nan"), torch.full((len(anchors),), float("nan"), dtype=torch.float64), problem)
