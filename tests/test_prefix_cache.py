"""What is kept from pass to pass changes no number, saves work, and is not relied on where it would mislead."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy, prepare
from onesteptrain.proxy.acceleration.prefix_cache import NO_PREFIX
from onesteptrain.utility import token_derivatives
from tests.building import ARCHITECTURES, checkpoint, sample

SCOPES = ("language", "last", "lora")
SAMPLES = [sample(row, images=row % 2) for row in range(6)]


@functools.cache
def proxy(architecture: str, scope: str) -> Proxy:
    options = ScopeOptions(scope=scope, last_layers=1)
    return load_proxy(checkpoint(architecture), options, LoadOptions(max_tokens=4096))


def direction(one: Proxy) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.05 * torch.randn(value.shape, generator=generator) for name, value in one.parameters.items()}


def calls(one: Proxy, work) -> dict[str, int]:
    """How often each module's own code runs."""
    counts: dict[str, int] = {}

    def counting(name, forward):
        def run(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return forward(*args, **kwargs)

        return run

    modules = dict(one.model.named_modules())
    for name, module in modules.items():
        module.forward = counting(name, module.forward)
    try:
        work()
    finally:
        for module in modules.values():
            del module.forward
    return counts


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_replay_at_other_weights_gives_the_same_bits(architecture, scope):
    one = proxy(architecture, scope)
    encoded = [one.encoder.encode(each) for each in SAMPLES]
    keeping, plain = prepare(one, encoded, keep=True), prepare(one, encoded)
    with torch.no_grad():
        start = one.answer_logits(keeping).logits
        assert keeping.plan.kept
        for size in (1.0, -1.0):
            with one.shifted(direction(one), size):
                wanted = one.answer_logits(plain).logits
                assert torch.equal(one.answer_logits(keeping).logits, wanted)
                assert not torch.equal(start, wanted)
        assert torch.equal(one.answer_logits(keeping).logits, start)


@pytest.mark.parametrize(
    ("scope", "kept"),
    [("language", {"vision"}), ("last", {"vision", "lower layer"}), ("lora", {"vision"}), ("all", set())],
)
def test_only_what_the_scope_changes_runs_twice(scope, kept):
    one = proxy("internvl", scope)
    batch = prepare(one, [one.encoder.encode(SAMPLES[1])], keep=True)
    names = {"vision": "model.vision_tower", "lower layer": "model.language_model.layers.0", "head": "lm_head"}

    @torch.no_grad()
    def twice():
        for _ in range(2):
            one.answer_logits(batch)

    counts = calls(one, twice)
    assert {what for what, name in names.items() if counts[name] == 1} == kept


@pytest.mark.parametrize("estimator", ["fd", "jvp"])
@pytest.mark.parametrize("scope", SCOPES)
def test_derivatives_are_those_of_the_plain_path(scope, estimator, monkeypatch):
    one = proxy("qwen3_vl", scope)
    encoded = [one.encoder.encode(each) for each in SAMPLES]
    steps = [direction(one), {name: -2 * value for name, value in direction(one).items()}]

    def measured():
        return token_derivatives(one, encoded, steps, estimator=estimator, epsilons=[1e-3, 1e-3], batch_size=4)

    kept = measured()
    monkeypatch.setattr(one.probes.prefix, "known", dict.fromkeys(one.probes.prefix.known, NO_PREFIX))
    for with_memory, plain in zip(kept, measured(), strict=True):
        assert torch.equal(with_memory.loss, plain.loss)
        assert torch.equal(with_memory.derivative, plain.derivative)


def test_exact_steps_are_those_of_the_plain_path(monkeypatch):
    one = proxy("qwen3_vl", "last")
    setting = Setting(one, [sample(row) for row in range(30, 34)])

    def scores():
        return [record.score for record in OneStep(estimator="exact").prepare(setting)(SAMPLES)]

    kept = scores()
    monkeypatch.setattr(one.probes.prefix, "known", dict.fromkeys(one.probes.prefix.known, NO_PREFIX))
    assert kept == scores()


def test_gradients_do_not_depend_on_what_is_kept():
    one = proxy("qwen3_vl", "last")
    encoded = [one.encoder.encode(each) for each in SAMPLES]
    keeping, plain = prepare(one, encoded, keep=True), prepare(one, encoded)
    loss, wanted = one.gradient([plain])
    for _ in range(2):  # the pass that keeps, and one that replays
        again, found = one.gradient([keeping])
        assert again == loss
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("scope", "place", "power"),
    [("last", 0, 2), ("lora", 0, 2), ("lora", -1, 1)],  # the last one of a fresh adapter is all zeros
)
def test_a_module_that_follows_the_scope_behind_autograds_back_is_not_kept(scope, place, power, monkeypatch):
    one = load_proxy(checkpoint("llava"), ScopeOptions(scope=scope, last_layers=1), LoadOptions(max_tokens=4096))
    projector = next(module for name, module in one.model.named_modules() if name.endswith("multi_modal_projector"))
    scoped, forward = list(one.parameters.values())[place], projector.forward
    assert bool(scoped.any()) == (place == 0)
    monkeypatch.setattr(
        projector, "forward", lambda *args: forward(*args) * (1 + 50 * scoped.detach().abs().pow(power).mean())
    )
    encoded = [one.encoder.encode(SAMPLES[1])]
    keeping, plain = prepare(one, encoded, keep=True), prepare(one, encoded)
    assert one.probes.prefix.known == {keeping.kind: NO_PREFIX}
    with torch.no_grad(), one.shifted(direction(one), 1.0):
        assert torch.equal(one.answer_logits(keeping).logits, one.answer_logits(plain).logits)


LOOKS = ("positions",) * 2 + ("causal",) * 2 + ("prefix",) * 4
"""What each pass over a first sample is to find out."""


@pytest.mark.parametrize("place", range(len(LOOKS)))
def test_a_sample_is_measured_where_memory_does_not_hold_what_finding_out_takes(place, monkeypatch):
    one = load_proxy(checkpoint("qwen3_vl"), ScopeOptions(scope="last", last_layers=1), LoadOptions(max_tokens=4096))
    large, small = (one.encoder.encode(sample(row)) for row in (1, 3))
    assert small.tokens < large.tokens
    forward, passes = one.model.forward, itertools.count()

    def limited(*args, **kwargs):
        if next(passes) == place:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(one.model, "forward", limited)
    batch = prepare(one, [large], keep=True)
    assert {name for name in set(LOOKS) if not getattr(one.probes, name).known} == {LOOKS[place]}
    assert all(value.requires_grad for value in one.parameters.values())
    with torch.no_grad():
        wanted = proxy("qwen3_vl", "last").token_losses(batch).loss
        torch.testing.assert_close(one.token_losses(batch).loss, wanted, rtol=1e-5, atol=1e-6)  # other kernels
    prepare(one, [large], keep=True)
    assert not getattr(one.probes, LOOKS[place]).known  # it would not fit now either
    prepare(one, [large, small], keep=True)
    assert all(getattr(one.probes, name).known for name in LOOKS)


def test_finding_out_keeps_nothing_of_lower_layers_to_go_back():
    one = load_proxy(checkpoint("qwen3_vl"), ScopeOptions("language"), LoadOptions(max_tokens=4096))
    encoded = [one.encoder.encode(SAMPLES[1])]
    layers = one.model.get_decoder().layers
    width = layers[0].mlp.down_proj.in_features
    weights = {value.data_ptr() for value in one.model.parameters()}

    def kept(work) -> int:
        """Tensors as wide as the inside of an MLP."""
        found = []

        def note(value: torch.Tensor) -> torch.Tensor:
            if value.shape[-1:] == (width,) and value.data_ptr() not in weights:
                found.append(value)
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            work()
        return len(found)

    finding_out = kept(lambda: prepare(one, encoded, keep=True))
    assert one.probes.prefix.known
    whole = kept(lambda: one.token_losses(prepare(one, encoded)))
    assert finding_out == 0 < whole


def test_logits_that_are_no_numbers_settle_nothing_at_first():
    one = load_proxy(checkpoint("qwen3_vl"), ScopeOptions(scope="last", last_layers=1), LoadOptions(max_tokens=4096))
    encoded = [one.encoder.encode(SAMPLES[1])]
    norm = one.model.get_decoder().norm.weight
    with torch.no_grad():
        norm *= torch.nan
    for _ in range(2):
        prepare(one, encoded, keep=True)
        assert not any(getattr(one.probes, name).known for name in LOOKS)
    kind = prepare(one, encoded, keep=True).kind
    assert [getattr(one.probes, name).of(kind) for name in dict.fromkeys(LOOKS)] == [False, False, NO_PREFIX]
    with torch.no_grad():
        norm.fill_(1)
    prepare(one, encoded, keep=True)
    assert not one.probes.causal.of(kind)  # three looks were enough


def test_a_pass_that_breaks_off_leaves_nothing_half_kept(monkeypatch):
    one = proxy("qwen3_vl", "last")
    batch = prepare(one, [one.encoder.encode(SAMPLES[1])], keep=True)
    with torch.no_grad():
        wanted = one.answer_logits(batch).logits
        broken = prepare(one, [one.encoder.encode(SAMPLES[1])], keep=True)
        with monkeypatch.context() as patch:
            patch.setattr(one.model.lm_head, "forward", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                one.answer_logits(broken)
        assert broken.plan.kept == {}
        assert torch.equal(one.answer_logits(broken).logits, wanted)


def test_texts_without_pictures_and_with_them_are_told_apart():
    one = proxy("internvl", "last")
    for rows in ([SAMPLES[0]], [SAMPLES[1]], SAMPLES):
        encoded = [one.encoder.encode(each) for each in rows]
        keeping = prepare(one, encoded, keep=True)
        with torch.no_grad():
            first = one.answer_logits(keeping).logits
            np.testing.assert_array_equal(one.answer_logits(keeping).logits.numpy(), first.numpy())
    assert len(one.probes.prefix.known) == 2
