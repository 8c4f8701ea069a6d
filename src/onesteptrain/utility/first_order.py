"""The first-order utility from forward passes alone, token by token."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.autograd import forward_ad

from onesteptrain.errors import ConfigError
from onesteptrain.proxy import Batch, Encoded, Proxy, prepare
from onesteptrain.proxy.memory import BATCH_TOKENS, in_memory, too_large
from onesteptrain.proxy.model import Direction
from onesteptrain.utility.forward_mode import FewerPasses, one_by_one
from onesteptrain.utility.gradients import gradient_norm, slope_along

FirstOrder = Literal["fd", "jvp"]

_FORWARD_ERROR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of the lengths of gradient and direction: what forward mode may be off by. A derivative that was dropped is missing
with all of its size."""

_FEW_BLOCKS = 4

_SHIFTED_TOGETHER = 4
"""Batches that the weights are moved for at a time: moving them costs, and so does keeping batches on the device. Where
batches are small there are more of them, up to `BATCH_TOKENS` altogether."""


class TokenDerivatives(NamedTuple):
    """Losses of one sample's answer tokens, and how fast they change along each direction."""

    loss: Float64[Tensor, " token"]
    """Nats."""

    derivative: Float64[Tensor, "direction token"]
    """d/de of each token's loss at w + e direction; positive where a step on the token lowers the anchor loss."""

    problem: str | None = None
    """Why there are no numbers, where there are none."""


def token_derivatives(
    proxy: Proxy,
    samples: Sequence[Encoded],
    directions: Sequence[Direction],
    *,
    estimator: FirstOrder,
    epsilons: Sequence[float],
    batch_size: int | None,
) -> list[TokenDerivatives]:
    """Differentiate the answer tokens' losses along some directions in weight space.

    Args:
        proxy: Model at the weights to differentiate at; they are bit for bit the same afterwards.
        samples: The samples to measure.
        directions: Directions, such as the preconditioned anchor gradient of each group.
        estimator: fd takes two passes a direction and is off by O(epsilon**2) and by round-off over epsilon;
            jvp takes one forward-mode pass and is exact up to round-off, but cannot use fused attention.
        epsilons: Shift of each direction for fd; not used by jvp.
        batch_size: Samples in one pass.

    Returns:
        One record a sample, in the order given.
    """
    keep = estimator == "fd" or len(directions) > 1  # more than one pass over each batch

    def work(groups: list[list[Encoded]]) -> list[list[TokenDerivatives]]:
        batches = [prepare(proxy, group, keep=keep) for group in groups]
        passes: list[list[_Pass]] | list[list[_Ends]]
        if estimator == "jvp":
            passes = [_forward_mode(proxy, batches, direction) for direction in directions]
        else:
            passes = [
                _central_difference(proxy, batches, direction, epsilon)
                for direction, epsilon in zip(directions, epsilons, strict=True)
            ]
        # the host waits for the device once all passes are on it
        return [
            _by_sample([along[place].here() for along in passes], batch.answers.lengths)
            for place, batch in enumerate(batches)
        ]

    return in_memory(
        proxy.memory,
        samples,
        work,
        lambda sample: _lost(sample, len(directions)),
        batch_size=batch_size,
        at_once=max(_SHIFTED_TOGETHER, BATCH_TOKENS // proxy.memory.most_tokens),
    )


def _by_sample(passes: Sequence[_Pass], lengths: Sequence[int]) -> list[TokenDerivatives]:
    """What the passes along all directions say of each sample of a batch."""
    loss = torch.stack([one_pass.loss for one_pass in passes]).mean(0)
    derivative = torch.stack([one_pass.derivative for one_pass in passes])
    parts = zip(torch.split(loss, list(lengths)), torch.split(derivative, list(lengths), dim=1), strict=True)
    return [TokenDerivatives(loss, derivative) for loss, derivative in parts]


def _lost(sample: Encoded, directions: int) -> TokenDerivatives:
    nothing = torch.full((directions, int(sample.answer.sum())), float("nan"), dtype=torch.float64)
    return TokenDerivatives(nothing.new_full(nothing.shape[1:], float("nan")), nothing, too_large(sample))


def check_forward_mode(proxy: Proxy, probes: Sequence[Encoded], direction: Direction) -> None:
    """Refuse a model that forward mode does not see through: a kernel without a rule may drop derivatives unnoticed.

    Along a direction, the mean loss of the probes must change by the inner product of its gradient with it; so it must
    along its parts that move a few blocks alone, where rounding of the others hides nothing.

    Raises:
        ConfigError: a kernel knows no forward mode, or the two numbers differ.
        ScoreError: the loss of the probes is not finite.
    """
    _, gradient = proxy.gradient([prepare(proxy, [probe]) for probe in probes])
    directions = [direction, *_blocks(direction)]
    none = [0.0] * len(directions)
    try:
        records = token_derivatives(proxy, probes, directions, estimator="jvp", epsilons=none, batch_size=1)
    except NotImplementedError as error:
        raise _blind(str(error).strip().split("\n")[0]) from error
    if any(record.problem is not None for record in records):
        return  # there is no memory for them, as rows of their size will say
    measured = torch.stack([record.derivative.mean(1) for record in records]).mean(0).tolist()
    for along, value in zip(directions, measured, strict=True):
        wanted = slope_along(gradient, along)
        if not abs(value - wanted.value) <= _FORWARD_ERROR[proxy.dtype] * wanted.lengths:
            raise _blind(f"it gives {value:.3g} for the anchors, where their gradient gives {wanted.value:.3g}")


def _blocks(direction: Direction) -> list[Direction]:
    """Parts of a direction that move one block of the model each; a few that lie apart."""
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, value in direction.items():
        if block := re.match(r".*?\.\d+(?=\.)", name):
            blocks.setdefault(block[0], {})[name] = value
    step = max(1, math.ceil(len(blocks) / _FEW_BLOCKS))
    return [part for part in list(blocks.values())[::step] if gradient_norm(part)]


def _blind(reason: str) -> ConfigError:
    return ConfigError(
        f"estimator jvp does not see through this model: {reason}; use --dtype float32 with --estimator fd, or another "
        "kernel (--set attention=eager)"
    )


class _Pass(NamedTuple):
    """What one batch gave, where it was measured."""

    loss: Float[Tensor, " answer_token"]
    derivative: Float[Tensor, " answer_token"]

    def here(self) -> _Pass:
        return _Pass(self.loss.cpu().double(), self.derivative.cpu().double())


class _Ends(NamedTuple):
    """Losses at both ends of a shift; their difference is taken in float64, which not every device has."""

    above: Float[Tensor, " answer_token"]
    below: Float[Tensor, " answer_token"]
    epsilon: float

    def here(self) -> _Pass:
        high, low = self.above.cpu().double(), self.below.cpu().double()
        return _Pass((high + low) / 2, (high - low) / (2 * self.epsilon))


@torch.no_grad()
def _central_difference(proxy: Proxy, batches: Sequence[Batch], direction: Direction, epsilon: float) -> list[_Ends]:
    with proxy.shifted(direction, epsilon):
        above = [proxy.token_losses(batch).loss for batch in batches]
    with proxy.shifted(direction, -epsilon):
        below = [proxy.token_losses(batch).loss for batch in batches]
    return [_Ends(high, low, epsilon) for high, low in zip(above, below, strict=True)]


@torch.no_grad()
def _forward_mode(proxy: Proxy, batches: Sequence[Batch], direction: Direction) -> list[_Pass]:
    if proxy.dtype == torch.float16:  # so narrow that a direction must be of the size of what it moves
        size = _length(direction.values()) / _length(proxy.parameters[name].detach() for name in direction)
        passes = _along(proxy, batches, {name: step / size for name, step in direction.items()})
        return [_Pass(along.loss, along.derivative * size) for along in passes]
    return _along(proxy, batches, direction)


def _along(proxy: Proxy, batches: Sequence[Batch], direction: Direction) -> list[_Pass]:
    with forward_ad.dual_level(), FewerPasses(), proxy.eagerly(), one_by_one(proxy.model):
        weights = {
            name: forward_ad.make_dual(  # type: ignore[no-untyped-call]
                proxy.parameters[name].detach(), step.to(proxy.parameters[name].dtype)
            )
            for name, step in direction.items()
        }
        duals = (forward_ad.unpack_dual(proxy.token_losses(batch, weights).loss) for batch in batches)  # type: ignore[no-untyped-call]
        return [_Pass(loss, torch.zeros_like(loss) if derivative is None else derivative) for loss, derivative in duals]


def _length(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Of all together, where they are: the host does not wait for it."""
    length: Tensor = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]).norm()
    return length
