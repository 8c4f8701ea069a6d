"""One batched forward and backward pass that leaves behind what every sample's gradient is made of.

The backward pass goes to the outputs of the modules in scope, not to their parameters, so that it costs one matrix
product for each of the forward pass. Parameters of modules of no usual type (norms of a model's own, scales of a layer)
are spread out in the forward pass where they can be, one copy a row, so that autograd itself keeps the rows apart.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from onesteptrain.proxy import Encoded, Proxy, prepare
from onesteptrain.utility.per_sample.layers import embedding_gradient, looks_up, rule_of
from onesteptrain.utility.per_sample.ownership import (
    Place,
    Rows,
    Shares,
    UnfitError,
    first_tensor,
    shared_by,
    shares_of,
)

NUMBERS_AT_ONCE = 1 << 26
"""Most coordinates of gradients that are held at a time, unless one sample alone has more for one parameter."""


class Piece(NamedTuple):
    """Gradients of some samples by one parameter."""

    name: str
    values: Float[Tensor, "sample ..."]
    rows: Int[Tensor, " row"] | None = None
    """Which rows of the parameter these are, where all others have no gradient; None for all."""


Take = Callable[[Sequence[int], Piece], None]
"""Takes the gradients of some samples of a batch, given by their positions."""


class Plan(NamedTuple):
    """How to take a batch apart."""

    rows: Mapping[Place, Rows]
    alone: frozenset[str]
    """Modules of no usual type whose parameters cannot be spread out: their gradient is taken module by module."""


class _Use(NamedTuple):
    """A call of a module, for one of its parameters."""

    module: nn.Module
    parameter: str
    """Its name in the module."""

    given: Any
    """Arguments by position and by name."""

    slope: int
    """Which of autograd's gradients is the one by the output, or by the parameter that was spread out."""

    bounds: Sequence[int]
    """Where the rows of each sample begin, and where the last ones end."""

    spread: bool

    def ranges(self, start: int, stop: int) -> list[slice]:
        """Rows of the samples from start to stop."""
        return [slice(self.bounds[place], self.bounds[place + 1]) for place in range(start, stop)]


def take_apart(proxy: Proxy, samples: Sequence[Encoded], plan: Plan, take: Take) -> Float[Tensor, " sample"]:
    """Hand over the gradient of each sample's mean answer loss, parameter by parameter.

    Args:
        proxy: The model.
        samples: One batch.
        plan: Says whose each row is.
        take: Is called with some samples and a parameter at a time; samples that do not enter it are left out.

    Returns:
        The samples' losses, in nats a token.

    Raises:
        UnfitError: the samples cannot be told apart; something may have been handed over before.
    """
    batch, watch = prepare(proxy, samples), _Watch(proxy, plan, shares_of(samples))
    with torch.enable_grad(), watch.watching(), proxy.eagerly():
        losses = proxy.token_losses(batch).means()
    slopes = torch.autograd.grad(losses.sum(), watch.edges, allow_unused=True)
    with torch.no_grad():
        for name, uses in watch.uses.items():
            reached = [use for use in uses if slopes[use.slope] is not None]
            if reached:
                _hand_over(Piece(name, proxy.parameters[name].detach()), reached, slopes, take)
    return losses.detach()


def _hand_over(parameter: Piece, uses: Sequence[_Use], slopes: Sequence[Tensor], take: Take) -> None:
    """Gradients by one parameter; what several uses of it give is added up."""
    parameter = _looked_up(parameter, uses)
    count = len(uses[0].bounds) - 1
    step = max(1, NUMBERS_AT_ONCE // max(1, parameter.values.numel()))
    for start in range(0, count, step):
        stop = min(count, start + step)
        parts = [_by_sample(use, slopes[use.slope], start, stop, parameter) for use in uses]
        values = sum(parts[1:], parts[0])
        entering = [
            place for place in range(start, stop) if any(use.bounds[place] < use.bounds[place + 1] for use in uses)
        ]
        if len(entering) < stop - start:
            values = values[[place - start for place in entering]]
        if entering:
            take(entering, parameter._replace(values=values))


def _looked_up(parameter: Piece, uses: Sequence[_Use]) -> Piece:
    """Of a table that is only looked up in, the rows that were."""
    if not all(looks_up(use.module) for use in uses):
        return parameter
    rows = torch.unique(torch.cat([_first(use).flatten() for use in uses]))
    return Piece(parameter.name, parameter.values[rows], rows)


def _by_sample(use: _Use, slope: Tensor, start: int, stop: int, parameter: Piece) -> Float[Tensor, "sample ..."]:
    """Gradients of the samples from start to stop by one use."""
    if rule_of(use.module) is None and not looks_up(use.module) and not use.spread:
        return torch.stack([_alone(use, slope, mine, parameter.values) for mine in use.ranges(start, stop)])
    ranges = use.ranges(start, stop)
    if len({mine.stop - mine.start for mine in ranges}) == 1:
        return _of_rows(use, slope, slice(ranges[0].start, ranges[-1].stop), len(ranges), parameter)
    return torch.cat([_of_rows(use, slope, mine, 1, parameter) for mine in ranges])


def _of_rows(use: _Use, slope: Tensor, rows: slice, samples: int, parameter: Piece) -> Float[Tensor, "sample ..."]:
    """Gradients of samples that have equal numbers of rows."""
    if rows.start == rows.stop:
        return slope.new_zeros(samples, *parameter.values.shape)
    slope = _split(slope[rows], samples)
    if use.spread:
        return slope.sum(1).reshape(samples, *parameter.values.shape)
    given = _split(_first(use)[rows], samples)
    if isinstance(use.module, nn.Embedding):
        entries = parameter.rows
        if entries is None:
            entries = torch.arange(len(parameter.values), device=given.device)
        return embedding_gradient(use.module, given, slope, entries)
    rule = rule_of(use.module)
    if rule is None:
        raise UnfitError("no rule for a module")
    return rule(use.module, use.parameter, given, slope)


def _alone(use: _Use, slope: Tensor, rows: slice, value: Tensor) -> Tensor:
    """Gradient of one sample by a parameter of any module, which is run again on the sample's rows."""
    if rows.start == rows.stop:
        return torch.zeros_like(value)

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach()
        return leaf[rows] if leaf.ndim and leaf.shape[0] == len(slope) else leaf

    args, kwargs = pytree.tree_map(cut, use.given)
    parameter = value.clone().requires_grad_()
    with torch.enable_grad():
        output = torch.func.functional_call(use.module, {use.parameter: parameter}, args, kwargs)
        (gradient,) = torch.autograd.grad(output, parameter, slope[rows], allow_unused=True)
    return torch.zeros_like(value) if gradient is None else gradient


def _split(rows: Tensor, samples: int) -> Float[Tensor, "sample row ..."]:
    return rows.reshape(samples, len(rows) // samples, *rows.shape[1:])


def _first(use: _Use) -> Tensor:
    given = first_tensor(use.given)
    if given is None:
        raise UnfitError("a module was given no tensor")
    given = given.detach()
    # what all share has one row in place of many
    return given.expand(use.bounds[-1], *given.shape[1:]) if given.shape[0] == 1 else given


class _Watch:
    """Notes what the modules with parameters in scope are given, and where the gradients by their outputs pass."""

    def __init__(self, proxy: Proxy, plan: Plan, shares: Shares) -> None:
        self.edges: list[GradientEdge] = []
        self.uses: dict[str, list[_Use]] = {}
        self._plan, self._shares = plan, shares
        self._calls: Counter[str] = Counter()
        scope = {id(parameter): name for name, parameter in proxy.parameters.items()}
        self._owned: dict[nn.Module, tuple[str, dict[str, str]]] = {}
        for name, module in proxy.model.named_modules():
            own = module.named_parameters(recurse=False, remove_duplicate=False)
            owned = {local: scope[id(parameter)] for local, parameter in own if id(parameter) in scope}
            if owned:
                self._owned[module] = (name, owned)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch one forward pass."""
        hooks: list[Any] = []
        spread = [module for module in self._owned if self._is_spread(module)]
        try:
            for module in self._owned:
                if module in spread:
                    hooks.append(module.register_forward_pre_hook(self._spread, with_kwargs=True))
                    hooks.append(module.register_forward_hook(self._gather))
                else:
                    hooks.append(module.register_forward_hook(self._note, with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in spread:
                self._gather(module)

    def _is_spread(self, module: nn.Module) -> bool:
        usual = rule_of(module) is not None or looks_up(module)
        return not usual and self._owned[module][0] not in self._plan.alone

    def _rows(self, name: str) -> Rows:
        place = (name, self._calls[name])
        self._calls[name] += 1
        if place not in self._plan.rows:
            raise UnfitError(f"call {place[1]} of {name} has rows that follow no known rule")
        return self._plan.rows[place]

    def _note(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Keep what a module was given; where all samples share what it gives, hand on a copy for each."""
        name, owned = self._owned[module]
        rows = self._rows(name)
        if not isinstance(output, Tensor):
            raise UnfitError(f"{name} gives no tensor")
        if not output.requires_grad:
            return None
        if rows.kind == "shared":
            rows = shared_by(self._plan.rows, name)
            count = len(self._shares.answers) if rows.kind == "samples" else sum(self._shares.images)
            output = output.expand(count, *output.shape[1:])
        bounds = self._shares.bounds(rows, output.shape[0])
        for local, parameter in owned.items():
            use = _Use(module, local, (args, kwargs), len(self.edges), bounds, spread=False)
            self.uses.setdefault(parameter, []).append(use)
        self.edges.append(get_gradient_edge(output))  # of what the output is now: some models write over it later
        return output

    def _spread(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Put a copy a row in place of each parameter that a module owns itself."""
        name, owned = self._owned[module]
        rows = self._rows(name)
        given = first_tensor((args, kwargs))
        if given is None or rows.kind == "shared":
            raise UnfitError(f"{name} has no rows of its own")
        bounds = self._shares.bounds(rows, given.shape[0])
        for local, parameter in owned.items():
            copies = _copies(module.get_parameter(local), given.shape[0], rows.dimensions)
            use = _Use(module, local, None, len(self.edges), bounds, spread=True)
            self.uses.setdefault(parameter, []).append(use)
            self.edges.append(get_gradient_edge(copies))
            module.__dict__[local] = copies  # is found before the parameter of the name

    def _gather(self, module: nn.Module, *_: Any) -> None:
        for local in self._owned[module][1]:
            module.__dict__.pop(local, None)


def _copies(parameter: Tensor, rows: int, dimensions: int) -> Tensor:
    """A parameter as often as there are rows, for an output of so many dimensions."""
    shape = parameter.shape
    if len(shape) == dimensions and shape[0] == 1:
        return parameter.expand(rows, *shape[1:])
    if len(shape) >= dimensions:
        raise UnfitError(f"a parameter of shape {tuple(shape)} cannot be spread out over {dimensions} dimensions")
    return parameter.view(*[1] * (dimensions - len(shape)), *shape).expand(rows, *[-1] * (dimensions - 1))
