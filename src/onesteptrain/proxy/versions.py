"""One pass over a batch at several versions of the parameters in scope, as if the model stood there several times.

The batch is repeated, once for each version. A module that owns parameters in scope gets its rows split by version, and
computes each part with its own: a linear layer by one batched product, any other module (a norm, an embedding) mapped
over the versions by `vmap`, which sees that one module and never the whole model. All other modules see a larger batch.

What that saves, and what not. Only the launch of the work is shared: kernels, Python and the reading of weights
outside the scope. Arithmetic is not, since behind the first module in scope every version has activations of its own,
and what lies upstream of the scope is kept anyway (see `upstream`), and repeated. That a step is of low rank saves
none either: the difference x (W' - W) is of low rank, but x W is to be computed for every version's own x. So this pays
where a device is not filled by one version.

Before it is relied upon, two versions are measured in this way and one after the other: a model that is not as it seems
(an expert layer that sends tokens elsewhere, a layer that reads the weights of another) is found out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from onesteptrain.errors import ModelError
from onesteptrain.proxy.acceleration.prefix_cache import REFUSALS, agrees, in_place_of_forward
from onesteptrain.proxy.encoding import Answers, Batch
from onesteptrain.proxy.memory import out_of_memory
from onesteptrain.proxy.model import Proxy
from onesteptrain.proxy.scope import decoder_of

Stacked = Mapping[str, Tensor]
"""Versions of each parameter in scope by name, along a new first dimension."""


class _Owner(NamedTuple):
    """A module that owns parameters in scope, itself or in its parts."""

    module: nn.Module
    names: Mapping[str, str]
    """Of each such parameter, as the module and as the proxy call it."""


@dataclass
class Versions:
    """Runs a proxy's batches at several versions of its parameters."""

    proxy: Proxy
    known: dict[tuple[bool | str, ...], bool] = field(default_factory=dict)
    """Whether it gives what single passes give, by whether something is kept and by kind of batch."""

    def stacked(self, count: int) -> dict[str, Tensor]:
        """So many copies of the parameters in scope."""
        return {name: value.detach().repeat(count, *[1] * value.ndim) for name, value in self.proxy.parameters.items()}

    @contextlib.contextmanager
    def at(self, versions: Stacked) -> Iterator[None]:
        """Let the model run on repeated batches, each part of the rows at its own version; its weights stay."""
        count = len(next(iter(versions.values())))
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.proxy.eagerly())
            for module, names in self._owners:
                mine = {own: versions[name] for own, name in names.items()}
                run = _linear(count, mine) if _is_linear(module) else _mapped(module, count, mine)
                stack.enter_context(in_place_of_forward(module, run))
            yield

    def fits(self, batch: Batch) -> bool:
        """Whether a batch of such inputs can be run so; found out once, by two versions drawn at random."""
        kind: tuple[bool | str, ...] = (batch.kept is not None, *batch.kind)
        if kind not in self.known:
            seen = self._is_as_it_seems(batch)
            if seen is None:
                return False
            self.known[kind] = seen
        return self.known[kind]

    @torch.no_grad()
    def _is_as_it_seems(self, batch: Batch) -> bool | None:
        """Whether both versions give what they give alone; None where no logit is a number."""
        moves = [self.proxy.anyhow(seed) for seed in range(2)]
        before = self.proxy.answer_logits(batch).logits
        apart = []
        for move in moves:
            with self.proxy.shifted(move, 1.0):
                apart.append(self.proxy.answer_logits(batch).logits)
        versions = self.stacked(len(moves))
        for name, value in versions.items():
            value.add_(torch.stack([move[name] for move in moves]))
        try:
            with self.at(versions):
                found = self.proxy.answer_logits(repeated(batch, len(moves))).logits.chunk(len(moves))
        except REFUSALS as error:
            if out_of_memory(error):
                raise
            return False  # whatever it is, it does not run in this way; alone it does
        usable = torch.stack([before, *apart]).isfinite().all(-1).all(0)
        if not usable.any():
            return None
        return all(agrees(a[usable], b[usable], before[usable]) for a, b in zip(apart, found, strict=True))

    @functools.cached_property
    def by_row(self) -> bool:
        """Whether the rows of a batch can each have a version: in the layers of the language model they lie apart.

        A head sees the answer tokens of all rows joined, a vision tower the patches of all pictures.
        """
        try:
            layers: Any = decoder_of(self.proxy.model)
        except ModelError:
            return False
        inside = {id(value) for layer in layers.layers for value in layer.parameters()}
        return all(id(value) in inside for value in self.proxy.parameters.values())

    @functools.cached_property
    def _owners(self) -> list[_Owner]:
        """The modules that have parameters in scope of their own; what lies within one of them is run with it."""
        names = {id(value): name for name, value in self.proxy.parameters.items()}
        owners: list[_Owner] = []
        within: set[nn.Module] = set()
        for module in self.proxy.model.modules():  # from the whole to its parts
            own = any(id(value) in names for value in module.parameters(recurse=False))
            if own and module not in within:
                parts = dict(module.named_parameters(remove_duplicate=False))
                owners.append(_Owner(module, {one: names[id(v)] for one, v in parts.items() if id(v) in names}))
                within |= set(module.modules())
        return owners


def repeated(batch: Batch, count: int) -> Batch:
    """A batch so many times in a row; what was kept of it is repeated too, not computed again."""

    def again(value: Any) -> Any:
        return value.repeat(count, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value

    kept = batch.kept
    if kept is not None:  # one of its own, even if it is empty: this batch's first pass may be the first of all
        kept = {
            name: [([again(leaf) for leaf in leaves], form) for leaves, form in calls] for name, calls in kept.items()
        }
    inputs = {name: again(value) for name, value in batch.inputs.items()}
    place, target, sample, lengths = batch.answers
    rows, tokens = batch.answer.shape
    shift = torch.arange(count, device=place.device)[:, None]
    found = Answers(
        (place + rows * tokens * shift).flatten(),
        target.repeat(count),
        (sample + rows * shift).flatten(),
        lengths * count,
    )
    positions = batch.positions
    if positions is not None:  # samples and tokens come last: some models have several numbers for each token
        positions = positions.repeat(*[1] * (positions.ndim - 2), count, 1)
    return batch._replace(inputs=inputs, answer=again(batch.answer), kept=kept, found=found, positions=positions)


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer that nobody has changed."""
    return type(module).forward is nn.Linear.forward and "forward" not in vars(module)


def _linear(count: int, versions: Stacked) -> Callable[[Tensor], Tensor]:
    weight, bias = versions["weight"].mT, versions.get("bias")

    def run(rows: Tensor) -> Tensor:
        parts = _parts(rows, count).flatten(1, -2)
        out = torch.bmm(parts, weight) if bias is None else torch.baddbmm(bias[:, None], parts, weight)
        return out.view(*rows.shape[:-1], out.shape[-1])

    return run


class _Holder(nn.Module):
    """Holds a module, to run what its forward was before something else was put in its place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.run = module.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def _mapped(module: nn.Module, count: int, versions: Stacked) -> Callable[..., Any]:
    holder = _Holder(module)
    mine = {f"module.{name}": value for name, value in versions.items()}

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, form = pytree.tree_flatten((args, kwargs))
        parts = [_parts(leaf, count) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def one(values: Stacked, *leaves: Any) -> Any:
            args, kwargs = pytree.tree_unflatten(leaves, form)
            return torch.func.functional_call(holder, dict(values), args, kwargs)

        out = torch.vmap(one, in_dims=(0, *(0 if isinstance(part, Tensor) else None for part in parts)))(mine, *parts)
        return pytree.tree_map(lambda value: value.flatten(0, 1), out)

    return run


def _parts(rows: Tensor, count: int) -> Float[Tensor, "version row *rest"]:
    """Rows by version."""
    if not rows.ndim or len(rows) % count:
        raise ModelError(f"{tuple(rows.shape)} are not the rows of {count} versions")
    return rows.view(count, -1, *rows.shape[1:])
