"""The utility by definition: take the step, measure the anchors, put the weights back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.utility.anchoring import AnchorGroup, Preconditioner, mean_loss, precondition


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
