"""The utility by definition: take the step, measure the anchors, put the weights back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Encoded, Proxy, prepare
from onesteptrain.proxy.memory import in_memory, too_large
from onesteptrain.utility.anchoring import AnchorGroup, Preconditioner, mean_loss, precondition


class ExactUtility(NamedTuple):
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
) -> ExactUtility:
    """Fall of each group's loss after one step on one sample.

    Args:
        proxy: Model at the weights to step from; they are bit for bit the same afterwards.
        sample: The sample to step on.
        anchors: Groups with their loss before the step.
        step_size: Learning rate of the step.
        preconditioner: Adam's diagonal, or nothing for SGD.

    Raises:
        ScoreError: the sample's loss is not finite.

    Source: One-Step-Train (arXiv:2605.07488).
    """
    loss, gradient = proxy.gradient([prepare(proxy, [sample])])
    with proxy.shifted(precondition(gradient, preconditioner), -step_size):
        after = [mean_loss(proxy, group.batches) for group in anchors]
    falls = [group.loss - value for group, value in zip(anchors, after, strict=True)]
    return ExactUtility(loss, torch.tensor(falls, dtype=torch.float64))


@dataclass(frozen=True)
class ExactSteps:
    """Takes a step on each of some samples, at the proxy's present weights, and measures the anchors after each."""

    proxy: Proxy = field(repr=False)
    anchors: Sequence[AnchorGroup] = field(repr=False)
    step_size: float
    preconditioner: Preconditioner = field(repr=False)

    def __call__(self, samples: Sequence[Encoded]) -> list[ExactUtility]:
        """One record a sample, in the order given; weights are put back bit for bit."""
        return in_memory(
            self.proxy.backward_memory,
            samples,
            lambda batches: [[self._step(sample) for sample in batch] for batch in batches],
            lambda sample: self._nothing(too_large(sample)),
            batch_size=1,
        )

    def _step(self, sample: Encoded) -> ExactUtility:
        step_size, preconditioner = self.step_size, self.preconditioner
        try:
            return exact_utility(self.proxy, sample, self.anchors, step_size=step_size, preconditioner=preconditioner)
        except ScoreError as error:
            return self._nothing(str(error))

    def _nothing(self, problem: str) -> ExactUtility:
        return ExactUtility(float("nan"), torch.full((len(self.anchors),), float("nan"), dtype=torch.float64), problem)
