"""Positions worked out with a batch are the model's own, and no pass works them out again."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy, prepare
from onesteptrain.utility import ExactSteps, measure_anchors, token_derivatives
from onesteptrain.utility.answers import represent
from tests.building import ARCHITECTURES, checkpoint, sample

WITH_METHOD = ("qwen3_vl", "qwen2_5_vl")
SAMPLES = [sample(row, images=1 + row % 2) for row in range(6)]


def fresh(architecture: str, scope: str = "all") -> Proxy:
    return load_proxy(checkpoint(architecture), ScopeOptions(scope, last_layers=1), LoadOptions(max_tokens=4096))


def encoded(proxy: Proxy) -> list:
    return [proxy.encoder.encode(one) for one in SAMPLES]


def counted(proxy: Proxy, monkeypatch) -> list[int]:
    """Rows of the batches whose positions are worked out, as a list that grows."""
    rows, owner = [], proxy.model.model
    own = owner.compute_3d_position_ids

    @functools.wraps(own)  # with its signature
    def noting(**given):
        rows.append(len(given["input_ids"]))
        return own(**given)

    monkeypatch.setattr(owner, "compute_3d_position_ids", noting)
    return rows


@pytest.mark.parametrize("architecture", WITH_METHOD)
def test_logits_are_those_of_positions_that_the_model_works_out_itself(architecture):
    proxy = fresh(architecture)
    batch = prepare(proxy, encoded(proxy))
    assert batch.plan.positions is not None
    with torch.no_grad():
        found, wanted = (
            proxy.answer_logits(one).logits for one in (batch, batch._replace(plan=batch.plan._replace(positions=None)))
        )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("architecture", WITH_METHOD)
@pytest.mark.parametrize("estimator", ["fd", "jvp"])
def test_positions_are_worked_out_once_a_batch(architecture, estimator, monkeypatch):
    proxy = fresh(architecture)
    samples = encoded(proxy)
    prepare(proxy, samples)  # what there is to find out is found out
    rows = counted(proxy, monkeypatch)
    direction = {name: torch.ones_like(value) for name, value in proxy.parameters.items()}
    token_derivatives(proxy, samples, [direction], estimator=estimator, epsilons=[1e-2], batch_size=3)
    assert rows == [3, 3]


def test_passes_over_kept_anchors_work_out_none(monkeypatch):
    proxy = fresh("qwen3_vl", "last")
    samples = encoded(proxy)
    (group,) = measure_anchors(proxy, {"": samples[3:]}, preconditioner={}, batch_size=3, keep=True)
    steps = ExactSteps(proxy, [group], 0.1, {})
    steps(samples[:3])  # what there is to find out is found out
    rows = counted(proxy, monkeypatch)
    assert len(steps(samples[:3])) == 3
    assert group.batches[0].plan.unmasked
    assert rows == [1, 1, 1]  # of the samples themselves, for their gradients


def test_a_representation_works_them_out_once_a_batch(monkeypatch):
    proxy = fresh("qwen3_vl")
    samples = encoded(proxy)
    prepare(proxy, samples)
    rows = counted(proxy, monkeypatch)
    found = represent(proxy, samples, batch_size=3)
    assert rows == [3, 3]
    monkeypatch.setattr(proxy.probes.positions, "known", dict.fromkeys(proxy.probes.positions.known, False))
    for one, wanted in zip(found, represent(proxy, samples, batch_size=3), strict=True):
        assert torch.equal(one, wanted)


def test_half_precision_does_not_round_positions(monkeypatch):
    """Some models give them as floating-point numbers, and bfloat16 counts to 256."""
    options = LoadOptions(max_tokens=4096, dtype="bfloat16")
    proxy = load_proxy(checkpoint("qwen3_vl"), options=options)
    owner = proxy.model.model
    own = owner.compute_3d_position_ids

    @functools.wraps(own)
    def floating(**given):
        return own(**given).float()

    monkeypatch.setattr(owner, "compute_3d_position_ids", floating)
    prepare(proxy, [proxy.encoder.encode(sample(0))])
    batch = prepare(proxy, [proxy.encoder.encode(sample(199, words=200))])
    assert batch.plan.positions.max() > 500
    with torch.no_grad():
        found, wanted = (
            proxy.answer_logits(one).logits for one in (batch, batch._replace(plan=batch.plan._replace(positions=None)))
        )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(WITH_METHOD)))
def test_other_models_number_tokens_as_ever(architecture):
    proxy = fresh(architecture)
    assert prepare(proxy, encoded(proxy)).plan.positions is None


def test_a_batch_without_images_is_numbered_as_ever():
    proxy = fresh("qwen3_vl")
    batch = prepare(proxy, [proxy.encoder.encode(sample(row, images=0)) for row in range(3)])
    assert batch.plan.positions is None


def test_positions_that_change_a_logit_are_not_relied_upon(monkeypatch):
    proxy = fresh("qwen3_vl")
    owner = proxy.model.model
    own, turns = owner.compute_3d_position_ids, itertools.count()

    @functools.wraps(own)
    def unsteady(**given):
        return own(**given) * (1 + next(turns))

    monkeypatch.setattr(owner, "compute_3d_position_ids", unsteady)
    assert prepare(proxy, encoded(proxy)).plan.positions is None


def test_a_method_that_wants_more_than_a_batch_has_is_left_to_the_model(monkeypatch):
    proxy = fresh("qwen3_vl")
    owner = proxy.model.model
    own = owner.compute_3d_position_ids

    @functools.wraps(own)
    def wanting(**given):
        return own(**given).to(given["inputs_embeds"].device)  # which there are none of before a pass

    monkeypatch.setattr(owner, "compute_3d_position_ids", wanting)
    batch = prepare(proxy, encoded(proxy))
    assert batch.plan.positions is None
    assert proxy.token_losses(batch).loss.isfinite().all()
