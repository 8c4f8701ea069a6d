"""Exact steps on many samples, some side by side, each with weights of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Batch, Encoded, Proxy
from onesteptrain.proxy.model import Room, not_finite
from onesteptrain.proxy.versions import Stacked, Versions, repeated
from onesteptrain.utility.anchoring import AnchorGroup, Preconditioner, precondition
from onesteptrain.utility.batching import Batches, in_memory, too_large
from onesteptrain.utility.exact import exact_utility

_ROWS_AT_ONCE = 64
"""Rows of one pass beyond which a processor gains nothing: benchmarks/candidates.py."""

_MOST_CANDIDATES = 16
"""On a device of its own, which is filled by then if it is to be; this was not measured."""

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


@dataclass(frozen=True)
class ExactSteps:
    """Takes steps at the proxy's present weights, and measures the anchors after each."""

    versions: Versions = field(repr=False)
    anchors: Sequence[AnchorGroup] = field(repr=False)
    step_size: float
    preconditioner: Preconditioner = field(repr=False)
    candidates: int | None = None
    """Most steps side by side; as many as pay if it is not said."""

    room: Room = field(default_factory=Room, repr=False)
    """How many fit into memory; learned while working."""

    before: dict[int, Float64[Tensor, "version group"]] = field(default_factory=dict, repr=False)
    """Losses of the anchors before any step, by the number of versions they were measured with."""

    def __call__(self, samples: Sequence[Encoded]) -> list[Fallen]:
        """One record a sample, in the order given.

        Numbers differ from those of `exact_utility` by round-off. The weights are not touched, or put back bit for bit.
        """
        found = in_memory(
            self.versions.proxy,
            samples,
            lambda groups: self._work(samples, groups),
            batch_size=self.candidates or self.usual,
            room=self.room,
        )
        return [found.get(index) or self._nothing(too_large(one)) for index, one in enumerate(samples)]

    @functools.cached_property
    def usual(self) -> int:
        """How many steps to take side by side, if nobody says.

        On a processor as many as were measured to pay; elsewhere more, bounded by memory. Only where the scope lies in
        the layers of the language model (lora and last): else the steps are large, and gradients are taken one by one.
        """
        if not self.versions.by_row:
            return 1
        proxy = self.versions.proxy
        size = 2 * sum(value.numel() * value.element_size() for value in proxy.parameters.values())
        most = _MOST_CANDIDATES
        if proxy.device.type == "cpu" and any("lora_" in name for name in proxy.parameters):
            return 1  # slower side by side from some width on: the adapters' products are small, and all rows are many
        if proxy.device.type == "cpu":
            most = min(most, _ROWS_AT_ONCE // max(batch.answer.shape[0] for batch in self._batches))
        return max(1, min(most, _SET_ASIDE // size))

    @property
    def _batches(self) -> list[Batch]:
        return [batch for group in self.anchors for batch in group.batches]

    def _work(self, samples: Sequence[Encoded], groups: Batches) -> dict[int, Fallen]:
        (group,) = groups
        mine = [samples[index] for index in group]
        found = self._together(mine) if self._can_be_together(mine) else [self._alone(one) for one in mine]
        return dict(zip(group, found, strict=True))

    def _can_be_together(self, samples: Sequence[Encoded]) -> bool:
        if len(samples) == 1:
            return False
        mine = [self.versions.proxy.batch(samples)] if self.versions.by_row else []
        return all(self.versions.fits(batch) for batch in (*self._batches, *mine))

    def _alone(self, sample: Encoded) -> Fallen:
        proxy, step_size, preconditioner = self.versions.proxy, self.step_size, self.preconditioner
        try:
            found = exact_utility(proxy, sample, self.anchors, step_size=step_size, preconditioner=preconditioner)
            return Fallen(*found)
        except ScoreError as error:
            return self._nothing(str(error))

    def _together(self, samples: Sequence[Encoded]) -> list[Fallen]:
        count = len(samples)
        slopes = (_by_row if self.versions.by_row else _one_by_one)(self.versions, samples)
        if count not in self.before:  # measured as it is after a step, so that no step at all is worth exactly nothing
            self.before[count] = self._measured(self.versions.stacked(count))
        falls = self.before[count] - self._measured(self._stepped(slopes))
        return [
            Fallen(loss, fall) if problem is None else self._nothing(problem)
            for loss, fall, problem in zip(slopes.losses, falls, slopes.problems, strict=True)
        ]

    def _stepped(self, slopes: _Slopes) -> Stacked:
        """The weights after each step."""
        stepped = self.versions.stacked(len(slopes.losses))
        broken = [place for place, problem in enumerate(slopes.problems) if problem]
        for name, gradient in slopes.gradients.items():
            step = precondition({name: gradient}, self.preconditioner)[name]
            step[broken] = 0.0  # it keeps its place, so that its neighbours are computed as ever
            stepped[name].add_(step, alpha=-self.step_size)
        return stepped

    def _measured(self, weights: Stacked) -> Float64[Tensor, "version group"]:
        """Mean loss of each group of anchors at each version of the weights."""
        count = len(next(iter(weights.values())))
        with self.versions.at(weights):
            losses = [_mean_losses(self.versions.proxy, group.batches, count) for group in self.anchors]
        return torch.stack(losses, dim=1)

    def _nothing(self, problem: str) -> Fallen:
        return Fallen(float("nan"), torch.full((len(self.anchors),), float("nan"), dtype=torch.float64), problem)


class _Slopes(NamedTuple):
    losses: list[float]
    gradients: dict[str, Tensor]
    """Of each sample, along a first dimension."""

    problems: list[str | None]
    """Why a loss cannot be used, where it cannot."""


def _by_row(versions: Versions, samples: Sequence[Encoded]) -> _Slopes:
    """By one backward pass: every row has weights of its own, and so a gradient of its own."""
    proxy = versions.proxy
    batch = proxy.batch(samples)
    weights = {name: value.requires_grad_() for name, value in versions.stacked(len(samples)).items()}
    with torch.enable_grad(), versions.at(weights):
        losses = proxy.token_losses(batch).means()
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
    means = [proxy.token_losses(repeated(one, count)).means() for one in batches]  # the host waits after the last
    sums = [values.cpu().double().view(count, -1).sum(1) for values in means]
    return torch.stack(sums).sum(0) / sum(one.answer.shape[0] for one in batches)
