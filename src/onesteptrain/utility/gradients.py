"""A gradient as a vector: its length, its slope along a direction, and Adam's update from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, in the warm-up and in LESS alike."""


def gradient_norm(gradient: Mapping[str, Tensor]) -> float:
    """Euclidean length over all parameters; squares are summed in float64."""
    # a device without float64 hands its gradient over
    here = [value if value.device.type in ("cpu", "cuda") else value.cpu() for value in gradient.values()]
    norms = [torch.linalg.vector_norm(value, dtype=torch.float64).cpu() for value in here]
    return float(torch.stack(norms).norm()) if norms else 0.0


class Slope(NamedTuple):
    """How fast a loss changes along a direction, by its gradient."""

    value: float
    """Inner product of gradient and direction."""

    lengths: float
    """Of the gradient, where the direction goes, times that of the direction: the most that the value can be."""


def slope_along(gradient: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Slope:
    """The slope along a direction; a parameter that either of the two does not have adds nothing."""
    here = {name: value.float() for name, value in gradient.items() if name in direction}
    value = sum(float((slope * direction[name].float()).sum()) for name, slope in here.items())
    return Slope(value, gradient_norm(here) * gradient_norm(direction))


def adam_update(
    gradient: Mapping[str, Tensor], first_moments: Mapping[str, Tensor], second_moments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The update that Adam would take from a state on a gradient, for a learning rate of 1.

        m' = beta1 m + (1 - beta1) g,  v' = beta2 v + (1 - beta2) g**2,  update = m' / sqrt(v' + epsilon)

    with moments as Adam keeps them (bias not removed) and epsilon inside the root, as the code of LESS has it. Adam
    itself removes the bias and adds epsilon to the root. A parameter without a gradient takes no step, as in Adam.

    Args:
        gradient: Gradient of one sample's loss.
        first_moments: Adam's exp_avg, at least for the parameters of the gradient.
        second_moments: Adam's exp_avg_sq.

    Source: LESS (arXiv:2402.04333), section 3.1, and `obtain_gradients_with_adam` of its code.
    """
    update = {}
    for name, value in gradient.items():
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        first = BETA_1 * first_moments[name].to(wide.dtype) + (1 - BETA_1) * wide
        second = BETA_2 * second_moments[name].to(wide.dtype) + (1 - BETA_2) * wide.square()
        update[name] = first / (second + EPSILON).sqrt()
    return update
