"""From the losses and utilities of answer tokens to the columns of the score table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from onesteptrain.methods import finish_record
from onesteptrain.proxy import Encoded
from onesteptrain.storage.score_table import Record, Value
from onesteptrain.utility import AnchorGroup

CONFIDENCE = 0.95
"""Of the intervals."""


def token_signals(loss: Float64[Tensor, " token"], utility: Float64[Tensor, " token"]) -> dict[str, Value]:
    """What the answer tokens say of a sample.

    One wrong token hides among many right ones in a mean, so harm and gain keep the two signs apart, and the worst
    token stands for itself. The relative utility is the fall of the anchor loss per nat of the sample's own loss.

    Args:
        loss: Nats.
        utility: Fall of the anchor loss, in nats, that a step on the token's loss would bring; their mean is the
            sample's utility.
    """
    mean = float(loss.mean())
    return {
        "harm": float(utility.clamp(max=0).mean()),
        "gain": float(utility.clamp(min=0).mean()),
        "worst_utility": float(utility.min()),
        "relative": float(utility.mean()) / mean if mean > 0 else None,
        "loss": mean,
        "worst_loss": float(loss.max()),
    }


def interval_signals(parts: Float64[Tensor, "part token"], shares: Float64[Tensor, " part"]) -> dict[str, Value]:
    """Intervals for utility and harm, from what each part of the anchors says alone.

    The utility is linear in the anchors, so its parts are independent draws of one quantity and their spread gives a t
    interval. Harm is not; its interval is the jackknife's, which leaves one part out at a time.

    Args:
        parts: Utility of each token by each part of the anchors.
        shares: Share of the anchors in each part, all nearly alike.

    Source: Tukey's jackknife, as in Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11.
    """
    count = len(shares)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, count - 1))
    total = shares @ parts
    alone = parts.mean(1)
    utility = float(total.mean())
    spread = float((shares.square() * (alone - utility).square()).sum() * count / (count - 1)) ** 0.5
    without = (total - shares[:, None] * parts) / (1 - shares[:, None])
    harms = without.clamp(max=0).mean(1)
    harm = float(total.clamp(max=0).mean())
    harm_spread = float((harms - harms.mean()).square().sum() * (count - 1) / count) ** 0.5
    return {
        "utility_low": utility - reach * spread,
        "utility_high": utility + reach * spread,
        "harm_low": harm - reach * harm_spread,
        "harm_high": min(0.0, harm + reach * harm_spread),
        "part_utility": alone.numpy().astype(np.float32),
    }


def compact(values: Float64[Tensor, " token"]) -> NDArray[np.float32]:
    """Four bytes a number, before compression."""
    return values.float().numpy()


def finish(
    sample: Encoded,
    utility: float,
    signals: Mapping[str, Value],
    groups: Sequence[AnchorGroup],
    by_group: Float64[Tensor, " group"],
) -> Record:
    """The record of a sample, or the reason why its numbers cannot be used."""
    loss = signals["loss"]
    if not (isinstance(loss, float) and math.isfinite(loss) and math.isfinite(utility)):
        return Record(reason=f"its loss is {loss} and its utility {utility}; check the sample, or use float32")
    columns: dict[str, Value] = {"utility": utility, **signals}
    named = [(group.name, float(value)) for group, value in zip(groups, by_group, strict=True) if group.name]
    return finish_record(sample, utility, columns | {f"utility.{name}": value for name, value in named})


def shares_of(groups: Sequence[AnchorGroup]) -> Float64[Tensor, " group"]:
    """The share of the anchors in each group."""
    return torch.tensor([group.share for group in groups], dtype=torch.float64)
