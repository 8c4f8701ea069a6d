"""A glimpse of a sample: what one pass shows of its gradient.

Where a linear layer takes a to W a, the gradient of a sample's loss with respect to W is the sum of e a^T over tokens,
e being the derivative with respect to what the layer gives out. At the top of the model both are at hand: the last
hidden state and, by one product with the head, the derivative with respect to it. The utility is linear in the whole
gradient, and gradients of the top and of the rest go together, so that a line fitted to some rows tells much of the
others. The matrix is kept as a sketch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from onesteptrain.errors import ConfigError, ModelError
from onesteptrain.proxy import Encoded, Proxy
from onesteptrain.proxy.scope import decoder_of
from onesteptrain.proxy.upstream import gradients_from
from onesteptrain.utility.batching import Batches, in_memory, too_large
from onesteptrain.utility.sketch import Sketch, make_sketch


class Glimpse(NamedTuple):
    """What one pass shows of a sample."""

    loss: Float64[Tensor, " token"]
    """Of each answer token, in nats."""

    length: float
    """Of the gradient that was seen: all coordinates, before the sketch."""

    sketch: Float[Tensor, " dimension"]
    problem: str | None = None
    """Why there are no numbers, where there are none."""


class _Layer(NamedTuple):
    """A linear layer in one pass: what went in, and what came out (or, of the head, what went in)."""

    inside: Tensor
    outside: Tensor


@dataclass(frozen=True)
class Glimpser:
    """Takes glimpses of samples."""

    proxy: Proxy
    layers: int
    """Layers at the top of the language model whose linear maps are looked at; 0 looks at the last hidden state only,
    as if a square matrix stood there."""

    dimensions: int
    """Of a sketch."""

    seed: int
    batch_size: int | None
    _sketches: dict[int, Sketch] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, samples: Sequence[Encoded]) -> list[Glimpse]:
        """One glimpse a sample, in the order given.

        Raises:
            ModelError: the model shows no output head or no layers.
            ConfigError: it has fewer layers.
        """

        def work(batches: Batches) -> dict[int, Glimpse]:
            found: dict[int, Glimpse] = {}
            for indices in batches:
                found |= dict(zip(indices, self._batch([samples[index] for index in indices]), strict=True))
            return found

        found = in_memory(self.proxy, samples, work, batch_size=self.batch_size)
        return [found.get(index) or self._without_room(one) for index, one in enumerate(samples)]

    def _batch(self, samples: Sequence[Encoded]) -> list[Glimpse]:
        batch = self.proxy.batch(samples)
        seen: list[_Layer] = []
        # no weight requires a gradient here, so that the backward pass ends where the glimpse begins
        weights = {name: parameter.detach() for name, parameter in self.proxy.parameters.items()}
        with torch.enable_grad(), self._watching(seen), self.proxy.eagerly():
            losses = self.proxy.token_losses(batch, weights)
            slopes = torch.autograd.grad(losses.means().sum(), [one.outside for one in seen], allow_unused=True)
        used = [(one.inside, slope) for one, slope in zip(seen, slopes, strict=True) if slope is not None]
        layers = [[self._by_sample(one, batch.answer.shape) for one in both] for both in used]
        gradients = [self._of(place, layers) for place in range(len(samples))]
        lengths = torch.stack([torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]).tolist()
        sketched = torch.stack([self._sketch(one)(one) for one in gradients]).cpu()
        loss = torch.split(losses.loss.detach().cpu().double(), list(losses.lengths))
        return [Glimpse(*one) for one in zip(loss, lengths, sketched, strict=True)]

    def _by_sample(self, values: Tensor, shape: torch.Size) -> Tensor:
        """What a layer has of each token, sample by sample; some layers see the tokens of all samples in a row."""
        if values.numel() != shape.numel() * values.shape[-1]:
            raise ModelError(
                f"a layer at the top of {type(self.proxy.model).__name__} sees other tokens than the model does; use "
                "--glimpse-layers 0, or --estimator fd"
            )
        return values.reshape(*shape, values.shape[-1])

    @staticmethod
    def _of(place: int, layers: Sequence[Sequence[Tensor]]) -> Tensor:
        """The gradient of one sample, layer by layer."""
        parts = [slope[place].T @ inside[place] for inside, slope in layers]
        return torch.cat([one.flatten().float() for one in parts])

    def _sketch(self, gradient: Tensor) -> Sketch:
        size = gradient.numel()
        if size not in self._sketches:
            self._sketches[size] = make_sketch(size, self.dimensions, seed=self.seed, device=gradient.device)
        return self._sketches[size]

    def _without_room(self, sample: Encoded) -> Glimpse:
        nothing = torch.full((1,), float("nan"), dtype=torch.float64)
        return Glimpse(nothing, float("nan"), nothing.float().expand(self.dimensions), too_large(sample))

    @contextlib.contextmanager
    def _watching(self, seen: list[_Layer]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for hook in self._top_hooks(seen) if self.layers else [self._head_hook(seen)]:
                stack.callback(hook.remove)
            yield

    def _head_hook(self, seen: list[_Layer]) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            states = args[0].detach().requires_grad_()
            seen.append(_Layer(states.detach(), states))
            return (states, *args[1:])

        return self._head.register_forward_pre_hook(note)

    def _top_hooks(self, seen: list[_Layer]) -> list[Any]:
        top = self._stack[-self.layers :]

        def note(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            seen.append(_Layer(args[0].detach(), output))

        linear = [module for layer in top for module in layer.modules() if isinstance(module, nn.Linear)]
        return [gradients_from(top[0]), *(module.register_forward_hook(note) for module in linear)]

    @functools.cached_property
    def _head(self) -> nn.Module:
        head = self.proxy.model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise ModelError(f"{type(self.proxy.model).__name__} shows no output head; use --estimator fd")
        return head

    @functools.cached_property
    def _stack(self) -> Any:
        layers: Any = decoder_of(self.proxy.model).layers
        if self.layers > len(layers):
            raise ConfigError(
                f"glimpse_layers is {self.layers} and the language model has {len(layers)} layers; give fewer"
            )
        return layers
