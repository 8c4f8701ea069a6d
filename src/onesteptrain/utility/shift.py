"""How far the central difference moves the weights along a direction."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from scipy.stats import spearmanr
from torch import Tensor

from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.proxy import Encoded, Proxy, prepare
from onesteptrain.proxy.model import Direction
from onesteptrain.utility.answers import answer_losses
from onesteptrain.utility.first_order import token_derivatives
from onesteptrain.utility.gradients import Slope, slope_along

RELATIVE_SHIFTS: tuple[float, ...] = tuple(10.0 ** (-exponent / 2) for exponent in range(4, 21))
"""Candidate sizes of the shift, as a share of the norm of the weights it moves: from 1e-2 to 1e-10."""

_FIRST = 4
"""The pair of neighbours that are looked at first: 1e-4 and 3e-5."""

_LOSS_ERROR, _LEAST_RANK = 0.02, 0.97
"""The mean loss of both ends may be off by this share of the loss of the probes, and must rank them like it: its own
error is half the curvature times the shift squared, where that of the derivative is the third derivative's sixth. Of
a model of real weights, shifts within it have token derivatives right to 5 % (`experiments/real_weights`, --shifts)."""

_ROUND_OFF = 1e-6
"""Nats that float32 cannot tell apart in a mean loss."""

_SLOPE_ERROR, _CANCELLED = 0.05, 1e-3
"""The derivative may be off by this share of itself, and by this one of the lengths of gradient and direction."""


def check_direction(direction: Direction) -> float:
    """Length of a direction to measure along.

    Raises:
        ConfigError: it is zero or not finite, so that there is nothing to measure along.
    """
    length = _norm(direction.values())
    if not 0 < length < math.inf:
        raise ConfigError(f"the anchor gradient has length {length}; check the anchors and the scope")
    return length


def choose_shift(
    proxy: Proxy, probes: Sequence[Encoded], direction: Direction, *, batch_size: int | None
) -> float | None:
    """Find the shift at which a central difference along a direction is most trustworthy.

    Too large a shift leaves third-order terms, too small a one leaves round-off; both make neighbouring shifts
    disagree. On a ladder of shifts one goes from the middle to where the token derivatives that two neighbours give on
    the probes differ least, and takes the smaller of the two. Where the loss saturates, neighbours agree too, on
    nothing; so a shift counts only if both its ends together have the loss of the weights as they are, and its
    derivative is that of the gradient.

    Args:
        proxy: The model, at the weights to differentiate at.
        probes: Some of the anchors.
        direction: Direction in weight space.
        batch_size: Samples in one pass.

    Returns:
        The shift, in units of the direction; None where none is trustworthy, as for weights that the loss bends too
        sharply around, or that have too few digits.

    Raises:
        ConfigError: the direction is zero or not finite, so that there is nothing to measure along.
        ScoreError: a weight or the loss of the probes is not finite.
    """
    unit = _norm(proxy.parameters[name].detach() for name in direction) / check_direction(direction)
    if not math.isfinite(unit):
        raise ScoreError("a weight of the proxy is not finite; check the checkpoint, or load it in float32")
    known = _Probes.of(proxy, probes, direction, batch_size)
    measured = functools.cache(lambda place: known.measure(RELATIVE_SHIFTS[place] * unit))

    @functools.cache
    def change(pair: int) -> float:
        larger, smaller = measured(pair), measured(pair + 1)
        if not known.agree(smaller):
            return math.inf
        return float((torch.cat(smaller.derivatives) - torch.cat(larger.derivatives)).norm().nan_to_num(math.inf))

    if not known.samples:  # none fits into memory, as rows of their size will say
        return RELATIVE_SHIFTS[1 + _FIRST] * unit
    place = lowest(change, len(RELATIVE_SHIFTS) - 1, start=_FIRST)
    best = RELATIVE_SHIFTS[1 + place] * unit
    return best if math.isfinite(change(place)) else None


def shift_is_sound(
    proxy: Proxy, probes: Sequence[Encoded], direction: Direction, shift: float, *, batch_size: int | None
) -> bool:
    """Whether a given shift is trustworthy; arguments as for `choose_shift`."""
    known = _Probes.of(proxy, probes, direction, batch_size)
    return not known.samples or known.agree(known.measure(shift))


def lowest(height: Callable[[int], float], count: int, *, start: int) -> int:
    """A place as low as its neighbours, downhill from the start; the lowest of all where there is no slope to follow.

    Args:
        height: How high a place is; infinite where nobody can stand.
        count: Places, from 0.
        start: Where to begin.
    """
    place, before = start, -1
    while place != before:
        near = [neighbour for neighbour in (place, place - 1, place + 1) if 0 <= neighbour < count]
        place, before = min(near, key=height), place
    return place if math.isfinite(height(place)) else min(range(count), key=height)


class _Tokens(NamedTuple):
    """What a shift says of the answer tokens of each probe."""

    losses: list[Float64[Tensor, " token"]]
    derivatives: list[Float64[Tensor, " token"]]


class _Probes(NamedTuple):
    """Anchors, and what a shift must say of them, found without one."""

    proxy: Proxy
    samples: Sequence[Encoded]
    direction: Direction
    batch_size: int | None
    losses: Float64[Tensor, " probe"]
    slope: Slope
    """Of their mean loss along the direction."""

    @classmethod
    def of(cls, proxy: Proxy, probes: Sequence[Encoded], direction: Direction, batch_size: int | None) -> _Probes:
        """Measure some anchors at the weights as they are; those that do not fit into memory are left out."""
        losses = _means(answer_losses(proxy, probes, batch_size=batch_size))
        fit = [probe for probe, loss in zip(probes, losses, strict=True) if loss.isfinite()]
        if not fit:
            return cls(proxy, fit, direction, batch_size, losses[:0], Slope(0.0, 0.0))
        _, gradient = proxy.gradient([prepare(proxy, [probe]) for probe in fit])
        slope = slope_along(gradient, direction)
        return cls(proxy, fit, direction, batch_size, losses[losses.isfinite()], slope)

    def measure(self, shift: float) -> _Tokens:
        """What a shift says."""
        records = token_derivatives(
            self.proxy,
            self.samples,
            [self.direction],
            estimator="fd",
            epsilons=[shift],
            batch_size=self.batch_size,
        )
        return _Tokens([record.loss for record in records], [record.derivative[0] for record in records])

    def agree(self, tokens: _Tokens) -> bool:
        """Whether losses and derivatives are as they must be, up to what a good shift leaves."""
        losses, slope = _means(tokens.losses), float(_means(tokens.derivatives).mean())
        moved = float((losses - self.losses).abs().mean()) - _ROUND_OFF
        return (
            moved <= _LOSS_ERROR * float(self.losses.mean())
            and (moved <= 0 or _same_order(losses, self.losses))
            and abs(slope - self.slope.value) <= _SLOPE_ERROR * abs(self.slope.value) + _CANCELLED * self.slope.lengths
        )


def _means(tokens: Sequence[Float64[Tensor, " token"]]) -> Float64[Tensor, " sample"]:
    return torch.stack([values.mean() for values in tokens])


def _same_order(first: Float64[Tensor, " probe"], second: Float64[Tensor, " probe"]) -> bool:
    """Whether two measures rank probes alike; of a few, or of equal ones, ranks say nothing."""
    if len(second) < 3 or float(second.max()) == float(second.min()):
        return True
    return float(spearmanr(first.numpy(), second.numpy()).statistic) >= _LEAST_RANK


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(tensor).cpu().double() for tensor in tensors]
    return float(torch.stack(norms).norm())
