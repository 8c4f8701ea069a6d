"""Gradients of one module's parameters, sample by sample, from what it was given and the gradient of what it gave.

Everywhere `given` and `slope` (the gradient of the loss by the output) have the dimensions [sample, row, ...]: the rows
of one call, cut by sample into equal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

Rule = Callable[[Any, str, Tensor, Tensor], Tensor]
"""From a module, the name of its parameter, given and slope to the gradient [sample, *shape of the parameter]."""


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a module of a usual type; None for others."""
    forward = type(module).forward
    if forward is nn.Linear.forward:
        return _linear
    if forward is nn.LayerNorm.forward:
        return _layer_norm
    usual = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    if isinstance(module, nn.modules.conv._ConvNd) and forward in usual and _cuts_patches(module):
        return _convolution
    return None


def looks_up(module: nn.Module) -> bool:
    """Whether it is an embedding without special rules for its gradient."""
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )


def embedding_gradient(
    module: nn.Embedding, given: Int[Tensor, "sample row ..."], slope: Float[Tensor, "sample row ... dim"], rows: Tensor
) -> Float[Tensor, "sample entry dim"]:
    """Gradient of some entries of the table.

    Args:
        module: The embedding.
        given: What was looked up.
        slope: Gradient of what was found.
        rows: The entries in ascending order; everything given is among them.
    """
    samples, dim = given.shape[0], slope.shape[-1]
    tokens = given.reshape(samples, -1)
    slope = slope.reshape(samples, -1, dim)
    if module.padding_idx is not None:
        slope = slope.masked_fill((tokens == module.padding_idx)[..., None], 0)
    places = (
        torch.searchsorted(rows, tokens.contiguous()) + len(rows) * torch.arange(samples, device=tokens.device)[:, None]
    )
    entries = slope.new_zeros(samples * len(rows), dim)
    return entries.index_add_(0, places.flatten(), slope.reshape(-1, dim)).view(samples, len(rows), dim)


def _linear(module: nn.Linear, parameter: str, given: Tensor, slope: Tensor) -> Tensor:
    slope = slope.flatten(1, -2)
    return slope.sum(1) if parameter == "bias" else slope.transpose(1, 2) @ given.flatten(1, -2)


def _layer_norm(module: nn.LayerNorm, parameter: str, given: Tensor, slope: Tensor) -> Tensor:
    shape = module.normalized_shape
    if parameter == "weight":
        slope = slope * layer_norm(given, shape, eps=module.eps)
    return slope.sum(dim=tuple(range(1, slope.ndim - len(shape))))


def _convolution(module: Any, parameter: str, given: Tensor, slope: Tensor) -> Tensor:
    """A linear layer on the patches that the kernel sees."""
    spatial = len(module.kernel_size)
    slope = slope.movedim(2, -1)  # channels last
    if parameter == "bias":
        return slope.flatten(1, -2).sum(1)
    if module.padding != "valid":
        given = pad(given, [size for padding in reversed(module.padding) for size in (padding, padding)])
    patches = given
    for place in range(spatial):
        patches = patches.unfold(3 + place, module.kernel_size[place], module.stride[place])
    # sample, row, channel, places of the patch, offsets in it
    patches = patches.movedim(2, -1 - spatial).flatten(-1 - spatial).flatten(1, -2)
    gradient = slope.flatten(1, -2).transpose(1, 2) @ patches
    return gradient.reshape(len(gradient), *module.weight.shape)


def _cuts_patches(module: nn.modules.conv._ConvNd) -> bool:
    return (
        module.groups == 1
        and not module.transposed
        and module.padding_mode == "zeros"
        and module.padding != "same"
        and all(step == 1 for step in module.dilation)
    )
