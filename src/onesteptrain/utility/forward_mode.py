"""Forward-mode rules for the few functions that a transformer spends its time in.

PyTorch has rules of its own: that of a linear layer makes one more tensor than it needs, and attention falls back to a
kernel that does without fusion, in many small steps. The rules here compute the same in fewer passes over memory, and
leave attention fused where nothing that it is given depends on the direction.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FewerPasses(TorchFunctionMode):
    """Applies these rules inside a dual level; gradients must be off, as results are built in place."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, by a rule of this module if there is one; none writes into a tensor that is given."""
        kwargs = kwargs or {}
        rule = func if "out" in kwargs else _RULES.get(func, func)
        return rule(*args, **kwargs)


@contextlib.contextmanager
def one_by_one(model: Any) -> Iterator[None]:
    """Let experts be computed one after the other: grouped matrix products have no forward mode, or drop it."""
    known = hasattr(model, "get_experts_implementation")  # as all of transformers' own
    before = model.get_experts_implementation() if known else {}
    if set(before.values()) <= {None, "eager"}:
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b; its derivative is dx W^T + x dW^T + db."""
    (x, dx), (weight, dweight), (bias, dbias) = _parts(x), _parts(weight), _parts(bias)
    value = functional.linear(x, weight, bias)
    change: Tensor | None
    if dx is not None:
        change = functional.linear(dx, weight, dbias)
        if dweight is not None:
            change.view(-1, change.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), dweight.T)
    elif dweight is not None:
        change = functional.linear(x, dweight, dbias)
    else:
        change = None if dbias is None else dbias.expand_as(value)
    return _dual(value, change)


def attention(  # noqa: PLR0913  the arguments of PyTorch's own
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v; with P the softmax and S its argument.

        dP = P (dS - sum of P dS over keys),  dO = dP v + P dv

    Half precision is widened inside, as PyTorch's kernels do.

    Raises:
        NotImplementedError: keys and values have different numbers of heads.
    """
    (q, dq), (k, dk), (v, dv) = _parts(query), _parts(key), _parts(value)
    if dropout_p or (dq is None and dk is None and dv is None):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    narrow = q.dtype
    if enable_gqa and k.shape[-3] != v.shape[-3]:
        raise NotImplementedError(f"attention to {k.shape[-3]} heads of keys and {v.shape[-3]} of values")
    groups = q.shape[-3] // k.shape[-3] if enable_gqa else 1
    q, dq, k, dk, v, dv = (_single(part) for part in (q, dq, k, dk, v, dv))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, dq = _scaled(q, factor, groups), None if dq is None else _scaled(dq, factor, groups)
    k, v = k.contiguous(), v.contiguous()  # else each product below copies them anew
    score = q @ k.mT
    weights = _masked(_heads_parted(score, groups), attn_mask, is_causal).softmax(-1).view(score.shape)
    out = weights @ v
    change = None if dv is None else weights @ dv
    score = None if dq is None else dq @ k.mT
    if dk is not None:
        score = _plus_product(score, q, dk.mT)
    if score is not None:
        score.mul_(weights)
        score.addcmul_(weights, score.sum(-1, keepdim=True), value=-1)
        change = _plus_product(change, score, v)
    out = _heads_parted(out, groups).to(narrow)
    return _dual(out, None if change is None else _heads_parted(change, groups).to(narrow))


def multiply(first: Any, other: Any) -> Any:
    """A b; its derivative is da b + a db."""
    if not (isinstance(first, Tensor) and isinstance(other, Tensor)):
        return torch.mul(first, other)
    (a, da), (b, db) = _parts(first), _parts(other)
    if a.dtype != b.dtype:
        return torch.mul(first, other)
    change = None if da is None else da * b
    if db is not None:
        change = a * db if change is None else change.addcmul_(a, db)
    return _dual(a * b, change)


def add(first: Any, other: Any, *, alpha: Any = 1) -> Any:
    """A tensor and a number, which changes no derivative; all else is left to PyTorch."""
    if not isinstance(first, Tensor) or isinstance(other, Tensor):
        return torch.add(first, other, alpha=alpha)
    x, dx = _parts(first)
    return _dual(torch.add(x, other, alpha=alpha), None if dx is None else dx.clone())


def power(x: Tensor, exponent: Any) -> Tensor:
    """x^2; its derivative is 2 x dx. Other powers are left to PyTorch."""
    if isinstance(exponent, Tensor) or exponent != 2:
        return torch.pow(x, exponent)
    x, dx = _parts(x)
    return _dual(x.square(), None if dx is None else torch.addcmul(x.new_zeros(()), x, dx, value=2))


def _plus_product(into: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """A B, added to what is there, without a tensor in between."""
    if into is None:
        return left @ right
    if not left.shape[:-2] == right.shape[:-2] == into.shape[:-2]:
        return into.add_(left @ right)
    into.flatten(0, -3).baddbmm_(left.flatten(0, -3), right.flatten(0, -3))
    return into


def _masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    lowest = torch.finfo(scores.dtype).min  # finite: a row that sees nothing must not become NaN
    if causal:
        scores = scores.add_(scores.new_full(scores.shape[-2:], lowest).triu(1))
    if mask is None:
        return scores
    return scores.masked_fill_(~mask, lowest) if mask.dtype == torch.bool else scores.add_(mask)


def _parts(value: Any) -> tuple[Any, Any]:
    return (None, None) if value is None else forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]


def _dual(value: Tensor, change: Tensor | None) -> Tensor:
    made: Tensor = value if change is None else forward_ad.make_dual(value, change)  # type: ignore[no-untyped-call]
    return made


def _scaled(query: Tensor, factor: float, groups: int) -> Tensor:
    """A multiple whose rows lie together; heads that share keys stand as one, so that no key is copied for them."""
    made = torch.mul(query, factor, out=torch.empty(query.shape, dtype=query.dtype, device=query.device))
    if groups == 1:
        return made
    *outer, heads, length, width = query.shape
    return made.view(*outer, heads // groups, groups * length, width)


def _heads_parted(value: Tensor, groups: int) -> Tensor:
    if groups == 1:
        return value
    *outer, heads, length, width = value.shape
    return value.view(*outer, heads * groups, length // groups, width)


def _single(value: Tensor | None) -> Any:
    return None if value is None else value.to(torch.promote_types(value.dtype, torch.float32))


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: linear,
    functional.scaled_dot_product_attention: attention,
    torch.mul: multiply,
    Tensor.mul: multiply,
    Tensor.__mul__: multiply,
    torch.add: add,
    Tensor.add: add,
    Tensor.__add__: add,
    torch.pow: power,
    Tensor.pow: power,
    Tensor.__pow__: power,
}
