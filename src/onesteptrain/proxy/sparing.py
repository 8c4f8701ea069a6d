"""At the top of the model, work is done for answer tokens only.

The head predicts answer tokens, so logits are computed nowhere else. In the highest layer of the language model the
same holds for every part that treats tokens one by one and that nobody reads but at answers: all of its linear maps but
those of keys and values. Which parts these are is found without knowing how a layer is built. The derivative of the
answers' logits with respect to what a part gives out is zero at all other tokens, and given the answer tokens alone it
gives for them what it gives among all.

This holds for passes without gradients, where nobody looks at what a layer was given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from onesteptrain.proxy.acceleration.prefix_cache import REFUSALS, gradients_from, in_place_of_forward, layer_names
from onesteptrain.proxy.memory import out_of_memory

_WORTH_IT = 0.9
"""Share of answers among the tokens of a batch, from which on picking them costs what it saves."""

_ROUNDING = 1e-3
"""Of its largest output: what a part may be off by, in float32. One that mixes tokens is off by its own size."""


class _Call(NamedTuple):
    """What a module was given, and gave, where it was called with one tensor."""

    given: Tensor
    gave: Tensor


@contextlib.contextmanager
def spared(
    model: nn.Module, parts: Sequence[str], places: Int[Tensor, " answer_token"], shape: torch.Size
) -> Iterator[None]:
    """Run passes over a batch in which some parts see the tokens at some places only."""
    worth_it = len(places) < _WORTH_IT * shape.numel()
    with contextlib.ExitStack() as stack:
        for name in parts if worth_it else ():
            module = model.get_submodule(name)
            stack.enter_context(in_place_of_forward(module, _picking(module.forward, places, shape)))
        yield


def find_spared(
    model: nn.Module, forward: Callable[[], Tensor], places: Int[Tensor, " answer_token"], shape: torch.Size
) -> list[str]:
    """Find the largest parts of the highest layer that are wanted at some places only.

    Args:
        model: The model.
        forward: Runs it on a batch and gives the logits of its answers.
        places: Where these are predicted, as positions in the flattened tokens.
        shape: Samples and tokens of the batch.
    """
    layers = layer_names(model)
    if not layers:
        return []
    top = model.get_submodule(layers[-1])
    names = {module: name for name, module in model.named_modules()}
    calls: dict[str, list[_Call | None]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        plain = len(args) == 1 and not kwargs and all(_by_token(one, shape) for one in (args[0], output))
        calls.setdefault(names[module], []).append(_Call(args[0], output) if plain else None)

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in top.modules()]
    hooks.append(gradients_from(top))
    try:
        with torch.enable_grad(), _frozen(model):  # or the layers below would be kept to go back through them
            logits = forward()
            weighted = (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)).sum()
    finally:
        for hook in hooks:
            hook.remove()
    once = {
        name: found[0]
        for name, found in calls.items()
        if len(found) == 1 and found[0] is not None and found[0].gave.requires_grad
    }
    if not (once and weighted.requires_grad):
        return []
    outputs = [call.gave for call in once.values()]
    slopes = torch.autograd.grad(weighted, outputs, allow_unused=True)
    wanted = {
        name: call
        for (name, call), slope in zip(once.items(), slopes, strict=True)
        if slope is not None and _is_zero_elsewhere(slope, places) and _is_work(model.get_submodule(name))
    }
    alone = {name for name, call in wanted.items() if _treats_tokens_alone(model.get_submodule(name), call, places)}
    return sorted(name for name in alone if not any(name.startswith(f"{other}.") for other in alone))


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    free = [value for value in model.parameters() if value.requires_grad]
    for value in free:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in free:
            value.requires_grad_(True)


def _picking(
    forward: Callable[..., Tensor], places: Int[Tensor, " answer_token"], shape: torch.Size
) -> Callable[..., Tensor]:
    def run(tokens: Tensor) -> Tensor:
        found = forward(tokens.flatten(0, 1)[places])
        everywhere = found.new_zeros(shape.numel(), found.shape[-1])
        return everywhere.index_copy_(0, places, found).view(*shape, -1)

    return run


def _by_token(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.ndim == len(shape) + 1 and value.shape[:-1] == shape


def _is_zero_elsewhere(slope: Tensor, places: Int[Tensor, " answer_token"]) -> bool:
    rows = slope.flatten(0, 1).ne(0).any(-1)
    here = rows[places].any()
    rows[places] = False
    return bool(here and not rows.any())


def _is_work(module: nn.Module) -> bool:
    """Whether there is a matrix in it."""
    return any(value.ndim > 1 for value in module.parameters())


@torch.no_grad()
def _treats_tokens_alone(module: nn.Module, call: _Call, places: Int[Tensor, " answer_token"]) -> bool:
    among_all = call.gave.flatten(0, 1)[places]
    try:
        alone = module(call.given.flatten(0, 1)[places])
    except REFUSALS as error:
        if out_of_memory(error):
            raise
        return False  # whatever it is, it takes no tokens out of their samples
    if not isinstance(alone, Tensor) or alone.shape != among_all.shape:
        return False
    rounding = max(_ROUNDING, 4 * torch.finfo(alone.dtype).eps)
    return bool((alone - among_all).abs().max() <= rounding * among_all.abs().max())
