"""What the scope does not change is computed once a batch, and used again in every further pass over it.

Autograd says what that is: where only the parameters in scope require a gradient, a module whose output requires none
does not depend on them. Vision tower and projector are such modules for the scopes language and lora, and the lower
layers too for the scope last. The largest of them are kept, without knowing how a model is built, and before they are
relied upon, one sample is measured with and without them at moved weights: a model that is not as it seems is run in
full.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from onesteptrain.errors import ModelError
from onesteptrain.proxy.scope import decoder_of

Kept = dict[str, list[Any]]
"""Outputs of modules of the prefix by name, one a call: what a batch carries from pass to pass."""

REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a module raises that is not made for the input it is given."""

_AGREEMENT = 1e-3
"""Of the effect of moved weights: what a replay may be off by. A module wrongly held fast is off by all of it."""


class Prefix(NamedTuple):
    """Modules that nothing in scope reaches."""

    kept: Sequence[str]
    """Names of modules whose outputs are kept."""

    skipped: Mapping[str, str]
    """Names of lower layers that need no output of their own, and the layer above whose output stands for it: nobody
    reads it but layers that are replayed too."""

    def __bool__(self) -> bool:
        return bool(self.kept)


NO_PREFIX = Prefix((), {})


@contextlib.contextmanager
def replayed(model: nn.Module, prefix: Prefix, kept: Kept | None) -> Iterator[None]:
    """Run one pass over a batch; `kept` is filled by its first pass and read by the others. None keeps nothing."""
    if kept is None or not prefix:
        yield
        return
    first = not kept
    with contextlib.ExitStack() as stack:
        for name in prefix.kept:
            module = model.get_submodule(name)
            with_memory = _recording(module, kept.setdefault(name, [])) if first else _replaying(kept[name])
            stack.enter_context(in_place_of_forward(module, with_memory))
        for name, stand_in in prefix.skipped.items():
            if not first:
                stack.enter_context(in_place_of_forward(model.get_submodule(name), _replaying(kept[stand_in])))
        try:
            yield
        except BaseException:
            kept.clear()  # a pass that broke off has kept a part
            raise


def find_prefix(model: nn.Module, forward: Callable[[], Tensor]) -> Prefix:
    """Find the largest modules with weights whose outputs do not depend on what requires a gradient.

    Args:
        model: The model; exactly the parameters in scope require a gradient.
        forward: Runs it on a sample, in any way, and gives its logits.
    """
    depends: dict[str, bool] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        reached = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(output))
        depends[names[module]] = depends.get(names[module], False) or reached

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with torch.enable_grad(), saved_tensors_hooks(lambda _: None, _no_way_back):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    free = {name for name in depends if not depends[name]}
    largest = [name for name in depends if name in free and not free.intersection(_above(name))]
    return _cut(model, [name for name in largest if _is_work(model.get_submodule(name))])


def _no_way_back(_: Any) -> Tensor:
    raise RuntimeError("nothing was kept of this pass")


def _cut(model: nn.Module, names: Sequence[str]) -> Prefix:
    """Of the layers of the language model, the highest stands for those below it; parts of a layer are not worth it."""
    layers = layer_names(model)
    others = [name for name in names if not set(layers).intersection((name, *_above(name)))]
    lower = [name for name in layers if name in names]
    if lower != layers[: len(lower)]:
        return Prefix(others, {})
    return Prefix([*others, *lower[-1:]], dict.fromkeys(lower[:-1], "".join(lower[-1:])))


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers of the language model, from the lowest up; none where they cannot be told."""
    try:
        stack: Any = decoder_of(model)
    except ModelError:
        return []
    names = {module: name for name, module in model.named_modules()}
    return [names[layer] for layer in stack.layers]


def agrees(plain: Tensor, replayed: Tensor, before: Tensor) -> bool:
    """Whether a replay at moved weights gives what a plain pass gives, measured by what the move itself has changed."""
    effect = (plain - before).abs().max()
    return bool((plain - replayed).abs().max() <= _AGREEMENT * effect)


def _recording(module: nn.Module, calls: list[Any]) -> Callable[..., Any]:
    forward = module.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        leaves, form = pytree.tree_flatten(output)
        calls.append(([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves], form))
        return output

    return record


def _replaying(calls: Sequence[Any]) -> Callable[..., Any]:
    left = iter(calls)

    def replay(*args: Any, **kwargs: Any) -> Any:
        leaves, form = next(left)
        return pytree.tree_unflatten(leaves, form)  # anew each time: some models write into what they are given

    return replay


@contextlib.contextmanager
def in_place_of_forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another function; what stood in its own attributes before is put back."""
    own = module.__dict__.get("forward")
    compiled, module._compiled_call_impl = module._compiled_call_impl, None  # else the function would be compiled
    module.forward = function
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
        if own is None:
            del module.forward
        else:
            module.forward = own


def _is_work(module: nn.Module) -> bool:
    """A look-up costs nothing, and nor does what has no weights."""
    return not isinstance(module, nn.Embedding) and any(True for _ in module.parameters())


def _above(name: str) -> list[str]:
    """Names of the modules that a module is a part of."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts))] if name else []
