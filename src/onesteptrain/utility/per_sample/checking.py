"""Find a way to take batches apart that gives what one backward pass a sample gives, or say that there is none.

Nothing is taken on trust: for each kind of batch, two of its samples are measured alone too. A module whose gradients
differ has them taken module by module; where they still differ, or where anything raises, samples go one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onesteptrain.errors import ScoreError
from onesteptrain.proxy import Encoded, Proxy, prepare
from onesteptrain.proxy.encoding import kind_of
from onesteptrain.proxy.memory import out_of_memory
from onesteptrain.utility.gradients import gradient_norm
from onesteptrain.utility.per_sample.ownership import find_rows, shares_of
from onesteptrain.utility.per_sample.watching import Piece, Plan, take_apart

_OF_ONE, _OF_ALL = 1e-2, 1e-6
"""What a gradient may be off by, as a share of its own length and of that of all parameters together: padding changes
the order of sums, and some gradients (by the bias of keys) are zero but for rounding. Another sample's rows, or a
forgotten use, are off by all of it."""

_ROUNDINGS = 8
"""The same in units of the type's rounding, where it is coarser."""


def plan_for(proxy: Proxy, samples: Sequence[Encoded]) -> Plan | None:
    """How to take apart batches of this kind; None for one by one. It is kept among the proxy's probes.

    Args:
        proxy: The model.
        samples: A batch; the first of its kind is checked.
    """
    if len(samples) < 2:
        return None  # as good as alone
    known: dict[Any, Plan | None] = {} if proxy.probes is None else proxy.probes.per_sample
    kind = _kind(samples)
    if kind not in known:
        known[kind] = _find(proxy, samples)
    return known[kind]


def disagreeing(proxy: Proxy, samples: Sequence[Encoded], plan: Plan) -> set[str]:
    """Parameters by which two samples of a batch have other gradients than alone.

    Raises:
        ScoreError: a loss or a gradient is not finite, so that there is nothing to compare.
    """
    places = _probed(samples)
    alone = {place: proxy.gradient([prepare(proxy, [samples[place]])])[1] for place in places}
    lengths = {place: gradient_norm(gradient) for place, gradient in alone.items()}
    if not all(map(math.isfinite, lengths.values())):
        raise ScoreError("a gradient is not finite")
    left = {(place, name) for place, gradient in alone.items() for name in gradient}
    wrong: set[str] = set()

    def compare(members: Sequence[int], piece: Piece) -> None:
        for place in places:
            if place in members:
                gradient = dense(piece, proxy.parameters[piece.name].shape)[members.index(place)]
                wanted = alone[place].get(piece.name)
                if wanted is None or not _agree(gradient, wanted, lengths[place]):
                    wrong.add(piece.name)
                left.discard((place, piece.name))

    take_apart(proxy, samples, plan, compare)
    return wrong | {name for _, name in left}


def dense(piece: Piece, shape: torch.Size) -> Tensor:
    """The gradients for all rows of a parameter: [sample, *shape]."""
    if piece.rows is None:
        return piece.values
    values = piece.values.new_zeros(len(piece.values), *shape)
    values[:, piece.rows] = piece.values
    return values


def _find(proxy: Proxy, samples: Sequence[Encoded]) -> Plan | None:
    fullest = max(samples, key=lambda sample: len(sample.inputs))
    alone: frozenset[str] = frozenset()
    for _ in range(2):
        try:
            plan = Plan(find_rows(proxy, fullest), alone)
            wrong = disagreeing(proxy, samples, plan)
        except ScoreError:
            raise  # nothing can be compared with this batch; the next one may do
        except Exception as error:
            if out_of_memory(error):
                raise  # says nothing of the model, and is answered by smaller batches
            wrong = set(proxy.parameters)  # perhaps a parameter that cannot be spread out
        if not wrong:
            return plan
        alone = frozenset(name for name, _ in proxy.model.named_modules() if wrong.intersection(_own(proxy, name)))
    return None


def _own(proxy: Proxy, owner: str) -> list[str]:
    """Names of the parameters that a module has itself."""
    prefix = f"{owner}." if owner else ""
    names = [name for name, _ in proxy.model.get_submodule(owner).named_parameters(recurse=False)]
    return [prefix + name for name in names]


def _agree(gradient: Tensor, wanted: Tensor, length: float) -> bool:
    rounding = _ROUNDINGS * torch.finfo(gradient.dtype).eps
    allowed = max(_OF_ONE, rounding) * gradient_norm({"": wanted}) + max(_OF_ALL, rounding) * length
    return gradient.shape == wanted.shape and gradient_norm({"": gradient - wanted}) <= allowed


def _kind(samples: Sequence[Encoded]) -> tuple[Any, ...]:
    """What batches are alike: the inputs, and whether images are spread evenly over the samples."""
    images = shares_of(samples).images
    return (*kind_of(samples), len(set(images)) > 1, 0 in images)


def _probed(samples: Sequence[Encoded]) -> list[int]:
    """The sample with most images and the last one, or the two at the ends: where a wrong share shows."""
    images = shares_of(samples).images
    last = len(samples) - 1
    fullest = max(range(last), key=lambda place: images[place])
    return [fullest, last]
