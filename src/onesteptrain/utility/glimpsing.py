"""A glimpse of a sample: what one pass shows of its gradient.

If a square matrix, the identity, stood in the residual stream, the gradient of a sample's loss with respect to it would
be G = sum over tokens of e a^T: a is the hidden state there, and e the derivative with respect to it, for which a
backward pass through the layers above is enough. The utility is linear in the whole gradient, and what the layers
below do with e and a goes together with G, so that a line fitted to some rows tells much of the others. Kept are the
inner product with the mean G of the anchors, and a sketch.

    sketch(G) = P^T G Q = sum over tokens of (P^T e) (Q^T a)^T

with random matrices P and Q whose columns are few, so that G itself is never made; E <sketch(G), sketch(H)> = <G, H>.

Source: two-sided random projections of gradients, LoGra (arXiv:2405.13954), section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from onesteptrain.errors import ConfigError, ModelError
from onesteptrain.proxy import Encoded, Proxy, TokenLosses
from onesteptrain.proxy.acceleration.prefix_cache import gradients_from
from onesteptrain.proxy.scope import decoder_of
from onesteptrain.utility.batching import Batches, in_memory, too_large

SIDE = 32
"""Columns of P and of Q."""


class Glimpse(NamedTuple):
    """What one pass shows of a sample."""

    loss: Float64[Tensor, " token"]
    """Of each answer token, in nats."""

    shown: Float[Tensor, " number"]
    """Of its gradient: the part that lies along the anchors', and then the sketch."""

    problem: str | None = None
    """Why there are no numbers, where there are none."""


class _Seen(NamedTuple):
    """One place of the model in one pass."""

    losses: TokenLosses
    states: Float[Tensor, "sample token width"]
    slopes: Float[Tensor, "sample token width"]
    """Derivatives of the samples' mean losses with respect to the states."""


@dataclass(frozen=True)
class Glimpser:
    """Takes glimpses of samples."""

    proxy: Proxy
    layers: int
    """Layers of the language model above the place that is looked at; with 0 it is what the head is given."""

    seed: int
    batch_size: int | None
    anchors: Float[Tensor, "width width"] | None = field(default=None, repr=False)
    """Mean G of the anchors, of length one; without it nothing lies along it."""

    def towards(self, anchors: Sequence[Encoded]) -> Glimpser:
        """The same with some anchors to look along.

        Raises:
            ModelError: the model shows no output head or no layers.
            ConfigError: it has fewer layers.
        """
        total = torch.zeros((), device=self.proxy.device)

        def work(batches: Batches) -> dict[int, bool]:
            nonlocal total
            parts = [self._see([anchors[index] for index in indices]) for indices in batches]
            total = total + sum(one.slopes.flatten(0, 1).T @ one.states.flatten(0, 1) for one in parts)
            return {index: True for indices in batches for index in indices}

        self._in_memory(anchors, work)
        return replace(self, anchors=total / total.norm())

    def __call__(self, samples: Sequence[Encoded]) -> list[Glimpse]:
        """One glimpse a sample, in the order given.

        Raises:
            ModelError: the model shows no output head or no layers.
            ConfigError: it has fewer layers.
        """

        def work(batches: Batches) -> dict[int, Glimpse]:
            found: dict[int, Glimpse] = {}
            for indices in batches:
                found |= dict(zip(indices, self._glimpses([samples[index] for index in indices]), strict=True))
            return found

        found = self._in_memory(samples, work)
        return [found.get(index) or self._without_room(one) for index, one in enumerate(samples)]

    def _in_memory(self, samples: Sequence[Encoded], work: Callable[[Batches], dict[int, Any]]) -> dict[int, Any]:
        return in_memory(self.proxy, samples, work, batch_size=self.batch_size, room=self.proxy.backward_room)

    def _glimpses(self, samples: Sequence[Encoded]) -> list[Glimpse]:
        seen = self._see(samples)
        outer, inner = _sides(seen.states.shape[-1], self.seed, seen.states.dtype, seen.states.device)
        sketch = (seen.slopes @ outer).mT @ (seen.states @ inner)
        along = sketch.new_zeros(len(samples))
        if self.anchors is not None:
            along = (seen.slopes * (seen.states @ self.anchors.T)).sum((1, 2))
        shown = torch.cat([along[:, None], sketch.flatten(1)], 1).cpu()
        loss = torch.split(seen.losses.loss.detach().cpu().double(), list(seen.losses.lengths))
        return [Glimpse(*one) for one in zip(loss, shown, strict=True)]

    def _see(self, samples: Sequence[Encoded]) -> _Seen:
        batch = self.proxy.batch(samples)
        place: list[Tensor] = []
        hook = gradients_from(self._above, place)
        # no weight requires a gradient here, so that the backward pass ends where the glimpse begins
        weights = {name: parameter.detach() for name, parameter in self.proxy.parameters.items()}
        try:
            with torch.enable_grad(), self.proxy.eagerly():
                losses = self.proxy.token_losses(batch, weights)
                (slopes,) = torch.autograd.grad(losses.means().sum(), place)
        finally:
            hook.remove()
        wide = torch.promote_types(slopes.dtype, torch.float32)
        return _Seen(losses, place[0].detach().to(wide), slopes.to(wide))

    def _without_room(self, sample: Encoded) -> Glimpse:
        nothing = torch.full((1,), float("nan"), dtype=torch.float64)
        return Glimpse(nothing, nothing.float().expand(1 + SIDE**2), too_large(sample))

    @functools.cached_property
    def _above(self) -> nn.Module:
        """The module that is given the states of the place."""
        if self.layers:
            stack: Any = decoder_of(self.proxy.model).layers
            if self.layers > len(stack):
                raise ConfigError(
                    f"glimpse_layers is {self.layers} and the language model has {len(stack)} layers; give fewer"
                )
            layer: nn.Module = stack[-self.layers]
            return layer
        head = self.proxy.model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise ModelError(f"{type(self.proxy.model).__name__} shows no output head; use --estimator fd")
        return head


@functools.lru_cache(maxsize=2)
def _sides(width: int, seed: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 width side"]:
    """P and Q; they do not depend on the device."""
    generator = torch.Generator().manual_seed(seed)
    sides: Tensor = torch.randn(2, width, SIDE, generator=generator) / SIDE**0.5
    return sides.to(device, dtype)
