"""The gradient of every sample of a batch in one forward and one backward pass, and numbers made of it.

A gradient is as large as the model, so none is kept: what is asked for is a sum over parameters (inner products, a
squared length, a sketch), and each parameter's share is measured as soon as it is there. In matrix products a linear
layer costs one in the forward pass, one in the backward pass, and one for the samples' gradients.

Source: per-sample gradients from what layers are given and the gradients of what they give, Goodfellow
(arXiv:1510.01799); for other modules than linear ones Lee and Kifer (arXiv:2009.03106).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Encoded, Proxy, prepare
from onesteptrain.proxy.memory import in_memory, out_of_memory, too_large
from onesteptrain.utility.per_sample.checking import dense, plan_for
from onesteptrain.utility.per_sample.watching import Piece, take_apart
from onesteptrain.utility.sketch import Sketch

__all__ = [
    "Measure",
    "Measured",
    "Piece",
    "both",
    "coordinates",
    "inner_products",
    "of_whole",
    "per_sample",
    "sketches",
    "squares",
]

_TINY, _HUGE = 1e-20, 1e30
"""Squared lengths between which float32 has not lost the squares that matter."""


class Measure(NamedTuple):
    """Numbers that are sums over the parameters."""

    width: int
    """How many."""

    of: Callable[[Piece], Float[Tensor, "sample number"]]
    """What one parameter adds to them, for some samples."""

    starts: Mapping[str, int] | None = None
    """Where the numbers of each parameter begin, if they are not added to those of the others but stand beside them."""

    def add(self, totals: Float64[Tensor, "sample number"], members: Sequence[int], piece: Piece) -> None:
        """Add what one parameter gives for some of the samples."""
        numbers = self.of(piece)
        start = 0 if self.starts is None else self.starts[piece.name]
        totals[members, start : start + numbers.shape[1]] += numbers.to(totals)


class Measured(NamedTuple):
    """What was measured of one sample's gradient."""

    loss: float
    """Mean answer loss, in nats a token."""

    numbers: Float64[Tensor, " number"]
    problem: str | None = None
    """Why there are no numbers, where there are none."""


def per_sample(proxy: Proxy, samples: Sequence[Encoded], measure: Measure, *, batch_size: int | None) -> list[Measured]:
    """Measure the gradient of each sample's mean answer loss, over the parameters in scope.

    A batch goes through the model once; one that cannot be taken apart, or in which anything is not finite, goes sample
    by sample.

    Args:
        proxy: The model; it remembers whether batches can be taken apart.
        samples: The samples to measure.
        measure: What to make of the gradients; summed over parameters in float64.
        batch_size: Samples in one pass.

    Returns:
        One record a sample, in the order given.
    """

    def of_batch(batch: list[Encoded]) -> list[Measured]:
        return _together(proxy, batch, measure) or [_alone(proxy, sample, measure) for sample in batch]

    return in_memory(
        proxy.backward_memory,
        samples,
        lambda batches: map(of_batch, batches),
        lambda sample: _without(measure, too_large(sample)),
        batch_size=batch_size,
    )


def squares() -> Measure:
    """The squared length of the gradient; squares are summed in float64, where the device has it."""
    return Measure(1, lambda piece: _squared_length(piece.values)[:, None])


def inner_products(directions: Mapping[str, Float[Tensor, "direction ..."]]) -> Measure:
    """Inner products of the gradient with some directions, for bfloat16 in float32.

    Args:
        directions: For each parameter, all directions; none for a parameter that no direction moves.
    """
    width = len(next(iter(directions.values())))

    def of(piece: Piece) -> Tensor:
        along = directions.get(piece.name)
        if along is None:
            return piece.values.new_zeros(len(piece.values), width)
        wide = torch.promote_types(piece.values.dtype, torch.float32)
        along = along if piece.rows is None else along[:, piece.rows]
        return piece.values.flatten(1).to(wide) @ along.flatten(1).to(wide).T

    return Measure(width, of)


def sketches(sketch: Sketch, proxy: Proxy) -> Measure:
    """A sketch of the gradient over all coordinates in scope, in the order of the proxy."""
    starts = _starts(proxy)

    def of(piece: Piece) -> Tensor:
        values = piece.values.flatten(1)
        return sketch.part(values.to(torch.promote_types(values.dtype, torch.float32)), starts[piece.name])

    return Measure(sketch.places.shape[1], of_whole(of, proxy))


def coordinates(proxy: Proxy) -> Measure:
    """The gradient itself, over all coordinates in scope, in the order of the proxy."""
    size = sum(parameter.numel() for parameter in proxy.parameters.values())
    return Measure(size, of_whole(lambda piece: piece.values.flatten(1), proxy), _starts(proxy))


def of_whole(of: Callable[[Piece], Tensor], proxy: Proxy) -> Callable[[Piece], Tensor]:
    """What takes whole gradients only, for any: a table with few rows is filled up, one sample at a time."""

    def each(piece: Piece) -> Tensor:
        if piece.rows is None:
            return of(piece)
        shape = proxy.parameters[piece.name].shape
        alone = (piece._replace(values=values[None]) for values in piece.values)
        return torch.cat([of(Piece(piece.name, dense(gradient, shape))) for gradient in alone])

    return each


def _starts(proxy: Proxy) -> dict[str, int]:
    """Where the coordinates of each parameter begin, among all in scope."""
    sizes = [parameter.numel() for parameter in proxy.parameters.values()]
    return dict(zip(proxy.parameters, itertools.accumulate(sizes, initial=0), strict=False))


def both(first: Measure, second: Measure) -> Measure:
    """The numbers of two measures, one after the other; each is a sum over parameters."""
    return Measure(first.width + second.width, lambda piece: torch.cat([first.of(piece), second.of(piece)], 1))


def _squared_length(values: Float[Tensor, "sample ..."]) -> Float[Tensor, " sample"]:
    if values.device.type not in ("cpu", "cuda"):
        return values.flatten(1).square().sum(1)
    if values.device.type == "cpu" and values.dtype == torch.float32 and values.ndim > 2:
        # along one dimension float32 is good enough, and much faster there than a copy in float64
        lengths: Tensor = torch.linalg.vector_norm(values, dim=-1)
        total = lengths.double().flatten(1).square().sum(1)
        if ((total > _TINY) & (total < _HUGE)).all():  # or else squares may have left the range of float32
            return total
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.float64)
    return norms.square()


def _together(proxy: Proxy, samples: Sequence[Encoded], measure: Measure) -> list[Measured] | None:
    """A batch in one pass; None where its samples have to be taken one by one."""
    try:
        plan = plan_for(proxy, samples)
        if plan is None:
            return None
        totals = _zeros(proxy, len(samples), measure)

        def add(members: Sequence[int], piece: Piece) -> None:
            measure.add(totals, members, piece)

        losses = take_apart(proxy, samples, plan, add).cpu().double()
    except Exception as error:
        if out_of_memory(error):
            raise
        return None  # this batch is not like the one that was checked
    numbers = totals.cpu()
    if not (losses.isfinite().all() and numbers.isfinite().all()):
        return None  # what is not finite must not touch its neighbours
    return [Measured(float(loss), row) for loss, row in zip(losses, numbers, strict=True)]


def _alone(proxy: Proxy, sample: Encoded, measure: Measure) -> Measured:
    try:
        loss, gradient = proxy.gradient([prepare(proxy, [sample])])
    except ScoreError as error:
        return _without(measure, str(error))
    total = _zeros(proxy, 1, measure)
    with torch.no_grad():
        for name, value in gradient.items():
            measure.add(total, [0], Piece(name, value[None]))
    return Measured(loss, total[0].cpu())


def _zeros(proxy: Proxy, samples: int, measure: Measure) -> Float64[Tensor, "sample number"]:
    """In float64, where the device has it or not."""
    place = proxy.device if proxy.device.type in ("cpu", "cuda") else torch.device("cpu")
    return torch.zeros(samples, measure.width, dtype=torch.float64, device=place)


def _without(measure: Measure, problem: str) -> Measured:
    return Measured(math.nan, torch.full((measure.width,), math.nan, dtype=torch.float64), problem)
