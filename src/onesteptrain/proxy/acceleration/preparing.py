"""Make batches whose passes are cheap; run the model on samples, to find out what their answers need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onesteptrain.proxy.acceleration.inputs import can_be_continued, continued, positions_of, works_out_positions
from onesteptrain.proxy.acceleration.plan import PassPlan
from onesteptrain.proxy.acceleration.prefix_cache import NO_PREFIX, REFUSALS, Prefix, agrees, find_prefix
from onesteptrain.proxy.acceleration.probes import Kind, ModelProbe, ModelProbes
from onesteptrain.proxy.encoding import Batch, Encoded, kind_of, longest
from onesteptrain.proxy.memory import out_of_memory
from onesteptrain.proxy.model import Proxy

_MOVE = 3e-2
"""Share of its own size that each weight is moved by, to see what depends on it."""

_LEAST = 1e-2
"""Size that a weight of zero is taken to have."""


def prepare(proxy: Proxy, samples: Sequence[Encoded], *, keep: bool = False) -> Batch:
    """Pad samples to one batch on the proxy's device, with a plan that makes passes over it cheap.

    With the first samples of a kind the model is run, to find what their answers need; with more of them, as long
    as they do not tell.

    Args:
        proxy: What is learned of its model goes to its `probes`; where it has none, passes run in full.
        samples: The samples.
        keep: Keep what the scope does not change from the first pass on, for a batch that several passes go over.
    """
    probes = proxy.probes
    if probes is None:
        return proxy.batch(samples)
    keep = keep and len(proxy.parameters) < sum(1 for _ in proxy.model.parameters())  # else all is in scope
    kind = kind_of(samples)
    if not proxy.model.training:  # dropout lets no two passes agree
        _learn(proxy, probes, samples, kind, keep=keep)
    prepared = _planned(proxy, probes, samples, kind)
    return prepared._replace(plan=prepared.plan._replace(kept={})) if keep else prepared


def _learn(proxy: Proxy, probes: ModelProbes, samples: Sequence[Encoded], kind: Kind, *, keep: bool) -> None:
    """Find out what is not known yet of samples of a kind, each time on the shortest that can tell."""

    def learn(probe: ModelProbe[Any], find: Callable[..., Any], tells: Callable[[Encoded], bool]) -> None:
        telling = (
            [] if kind in probe.known else [sample for sample in samples if kind_of([sample]) == kind and tells(sample)]
        )
        if telling:
            shortest = min(telling, key=lambda sample: sample.tokens)
            probe.learn(kind, shortest.tokens, lambda: find(proxy, probes, shortest, kind))

    most = longest(proxy.model) // 2
    learn(probes.positions, _may_be_numbered, lambda _: True)
    learn(probes.causal, _is_causal, lambda sample: sample.tokens <= most and can_be_continued(sample))
    learn(probes.prefix, _find_prefix, lambda _: keep)


def _planned(
    proxy: Proxy, probes: ModelProbes, samples: Sequence[Encoded], kind: Kind, *, numbered: bool | None = None
) -> Batch:
    """A batch by what is known; numbered says otherwise of the positions."""
    numbered = probes.positions.of(kind) if numbered is None else numbered

    def plan(inputs: Mapping[str, Tensor]) -> PassPlan:
        positions = positions_of(proxy.model, inputs) if numbered else None
        return PassPlan(probes.causal.of(kind), positions, probes.prefix.of(kind))

    return proxy.batch(samples, plan)


@torch.no_grad()
def _may_be_numbered(proxy: Proxy, probes: ModelProbes, sample: Encoded, kind: Kind) -> bool | None:
    """Whether a model gives the same logits with positions worked out before."""
    if not works_out_positions(proxy.model):
        return False
    return _same_logits(
        proxy, lambda: [_planned(proxy, probes, [sample], kind, numbered=numbered) for numbered in (False, True)]
    )


@torch.no_grad()
def _is_causal(proxy: Proxy, probes: ModelProbes, sample: Encoded, kind: Kind) -> bool | None:
    # the same operations on the same numbers, up to what follows
    return _same_logits(proxy, lambda: [_planned(proxy, probes, [continued(sample, turn)], kind) for turn in range(2)])


def _same_logits(proxy: Proxy, batches: Callable[[], Sequence[Batch]]) -> bool | None:
    """Whether two batches give the same bits; not so where the model refuses one."""
    try:
        with proxy.eagerly():
            first, second = (proxy.answer_logits(batch).logits for batch in batches())
    except REFUSALS as error:
        if out_of_memory(error):
            raise
        return False
    return torch.equal(first, second) if first.isfinite().all() else None


def _find_prefix(proxy: Proxy, probes: ModelProbes, sample: Encoded, kind: Kind) -> Prefix | None:
    """What the scope does not reach; nothing where relying on it would change a logit."""
    batch = _planned(proxy, probes, [sample], kind)
    with proxy.eagerly():
        prefix = find_prefix(proxy.model, lambda: proxy.answer_logits(batch).logits)
    if not prefix:
        return prefix
    remembering = batch._replace(plan=batch.plan._replace(kept={}, prefix=prefix))
    with torch.no_grad():
        before = proxy.answer_logits(remembering).logits
        with proxy.shifted(some_move(proxy.parameters, seed=0), 1.0):
            plain, again = (proxy.answer_logits(each).logits for each in (batch, remembering))
    if not (before.isfinite().all() and plain.isfinite().all()):
        return None
    return prefix if agrees(plain, again, before) else NO_PREFIX


def some_move(parameters: Mapping[str, nn.Parameter], *, seed: int) -> dict[str, Tensor]:
    """A move of all parameters, by a few hundredths of their size: what depends on them shows.

    They grow by a part of themselves, which changes their length, and by as much at random, which moves a weight of
    zero too: fresh adapters begin there.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, value in parameters.items():
        size = max(float(value.detach().square().mean().sqrt()), _LEAST)
        drawn[name] = _MOVE * (value.detach() + (size * torch.randn(value.shape, generator=generator)).to(value))
    return drawn
