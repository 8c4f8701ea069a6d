"""The gradient of every sample of a batch in one forward and one backward pass, and numbers made of it.

A gradient is as large as the model, so none is kept: what is asked for is a sum over parameters (inner products, a
squared length, a sketch), and each parameter's share is measured as soon as it is there. In matrix products a linear
layer costs one in the forward pass, one in the backward pass, and one for the samples' gradients.

Source: per-sample gradients from what layers are given and the gradients of what they give, Goodfellow
(arXiv:1510.01799); for other modules than linear ones Lee and Kifer (arXiv:2009.03106).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float, Float64
from torch import Tensor

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.utility.batching import Batches, in_memory, too_large
from onesteptrain.utility.per_sample.checking import dense, plan_for
from onesteptrain.utility.per_sample.watching import Piece, take_apart
from onesteptrain.utility.sketch import Sketch

__all__ = ["Measure", "Measured", "Piece", "both", "dense", "inner_products", "per_sample", "sketches", "squares"]


class Measure(NamedTuple):
    """Numbers that are sums over the parameters."""

    width: int
    """How many."""

    of: Callable[[Piece], Float[Tensor, "sample number"]]
    """What one parameter adds to them, for some samples."""


class Measured(NamedTuple):
    """What was measured of one sample's gradient."""

    loss: float
    """Mean answer loss, in nats a token."""

    numbers: Float64[Tensor, " number"]
    problem: str | None = None
    """Why there are no numbers, where there are none."""


def per_sample(proxy: Proxy, samples: Sequence[Encoded], measure: Measure, *, batch_size: int) -> list[Measured]:
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

    def work(batches: Batches) -> dict[int, Measured]:
        found: dict[int, Measured] = {}
        for indices in batches:
            members = [samples[index] for index in indices]
            measured = _together(proxy, members, measure) or [_alone(proxy, one, measure) for one in members]
            found |= dict(zip(indices, measured, strict=True))
        return found

    records = in_memory(proxy, samples, work, batch_size=batch_size)
    return [records.get(index) or _without(measure, too_large(one)) for index, one in enumerate(samples)]


def squares() -> Measure:
    """The squared length of the gradient; squares are summed in float64 where the device has it."""

    def of(piece: Piece) -> Tensor:
        wide = piece.values.dtype if piece.values.device.type not in ("cpu", "cuda") else torch.float64
        norms: Tensor = torch.linalg.vector_norm(piece.values.flatten(1), dim=1, keepdim=True, dtype=wide)
        return norms.square()

    return Measure(1, of)


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
    starts, size = {}, 0
    for name, parameter in proxy.parameters.items():
        starts[name] = size
        size += parameter.numel()

    def of(piece: Piece) -> Tensor:
        values = dense(piece, proxy.parameters[piece.name].shape).flatten(1)
        wide = torch.promote_types(values.dtype, torch.float32)
        return sketch.part(values.to(wide), starts[piece.name])

    return Measure(sketch.places.shape[1], of)


def both(one: Measure, other: Measure) -> Measure:
    """The numbers of two measures, one after the other."""
    return Measure(one.width + other.width, lambda piece: torch.cat([one.of(piece), other.of(piece)], 1))


def _together(proxy: Proxy, samples: Sequence[Encoded], measure: Measure) -> list[Measured] | None:
    """A batch in one pass; None where its samples have to be taken one by one."""
    try:
        plan = plan_for(proxy, samples)
        if plan is None:
            return None
        totals = _zeros(proxy, len(samples), measure)

        def add(members: Sequence[int], piece: Piece) -> None:
            totals[members] += measure.of(piece).to(totals)

        losses = take_apart(proxy, samples, plan, add).cpu().double()
    except Exception as error:
        if should_reduce_batch_size(error):
            raise
        return None  # this batch is not like the one that was checked
    numbers = totals.cpu()
    if not (losses.isfinite().all() and numbers.isfinite().all()):
        return None  # what is not finite must not touch its neighbours
    return [Measured(float(loss), row) for loss, row in zip(losses, numbers, strict=True)]


def _alone(proxy: Proxy, sample: Encoded, measure: Measure) -> Measured:
    try:
        loss, gradient = proxy.gradient([proxy.batch([sample])])
    except ScoreError as error:
        return _without(measure, str(error))
    total = _zeros(proxy, 1, measure)
    with torch.no_grad():
        for name, value in gradient.items():
            total += measure.of(Piece(name, value[None])).to(total)
    return Measured(loss, total[0].cpu())


def _zeros(proxy: Proxy, samples: int, measure: Measure) -> Float64[Tensor, "sample number"]:
    """In float64, where the device has it or not."""
    place = proxy.device if proxy.device.type in ("cpu", "cuda") else torch.device("cpu")
    return torch.zeros(samples, measure.width, dtype=torch.float64, device=place)


def _without(measure: Measure, problem: str) -> Measured:
    return Measured(math.nan, torch.full((measure.width,), math.nan, dtype=torch.float64), problem)
