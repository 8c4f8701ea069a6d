"""Steps side by side give what one step after the other gives, and a model that cannot be run so is found out."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn

from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, ScopeOptions, load_proxy
from onesteptrain.proxy.versions import Versions, repeated
from onesteptrain.utility import ExactSteps, exact_utility, measure_anchors
from onesteptrain.utility import candidates as candidates_module
from tests.building import ARCHITECTURES, checkpoint, sample
from tests.oracles import BruteForce

SAMPLES = [sample(row, images=row % 2) for row in range(7)]
ANCHORS = [sample(row, group="ab"[row % 2]) for row in range(30, 35)]
STEP = 1e-2
CLOSE = {"rtol": 1e-9, "atol": 1e-14}  # float64, over a difference of losses that keeps 3 to 5 digits fewer than they


def made(architecture: str, scope: str, dtype: str = "float64") -> Proxy:
    one = load_proxy(
        checkpoint(architecture), ScopeOptions(scope=scope, last_layers=2), LoadOptions("cpu", dtype, max_tokens=4096)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in one.parameters.items():
            if "lora_B" in name:  # adapters that have learned something: else only half of them take a step
                value.copy_(0.05 * torch.randn(value.shape, generator=generator))
    if dtype == "float64":
        for module in one.model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                in_float64(module)
    return one


proxy = functools.cache(made)


def in_float64(norm: nn.Module) -> None:
    """The families' norms compute in float32 whatever they are given, which would drown what is compared."""
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    norm.forward = lambda x: norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))


def groups_of(one: Proxy, *, split: bool = False) -> dict[str, list[Encoded]]:
    encoded = [one.encoder.encode(anchor) for anchor in ANCHORS]
    return {"a": encoded[::2], "b": encoded[1::2]} if split else {"": encoded}


def steps(one: Proxy, candidates: int | None = None, *, split: bool = False, scale=None, size=STEP) -> ExactSteps:
    anchors = measure_anchors(one, groups_of(one, split=split), preconditioner=scale or {}, batch_size=3, keep=True)
    return ExactSteps(Versions(one), anchors, size, scale or {}, candidates)


def encoded_by(one: Proxy, samples) -> list[Encoded]:
    return [each if isinstance(each, Encoded) else one.encoder.encode(each) for each in samples]


def measured(one: Proxy, samples, candidates: int, **options):
    return steps(one, candidates, **options)(encoded_by(one, samples))


def falls(found) -> np.ndarray:
    assert all(one.problem is None for one in found)
    return np.array([one.falls.tolist() for one in found])


@pytest.fixture
def no_single_steps(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a step was taken alone")

    monkeypatch.setattr(candidates_module, "exact_utility", refuse)


@pytest.mark.parametrize("scope", ["lora", "last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_side_by_side_are_those_of_one_after_the_other(architecture, scope, request):
    one = proxy(architecture, scope)
    alone = measured(one, SAMPLES[:6], 1)
    request.getfixturevalue("no_single_steps")
    together = measured(one, SAMPLES[:6], 3)
    np.testing.assert_allclose(falls(together), falls(alone), **CLOSE)
    np.testing.assert_allclose([a.loss for a in together], [b.loss for b in alone], rtol=1e-12)
    assert len(set(falls(together)[:, 0])) == 6


@pytest.mark.parametrize("scope", ["language", "all"])
def test_other_scopes_have_their_gradients_taken_apart_and_the_same_numbers(scope, request):
    one = proxy("qwen3_vl", scope)
    alone = measured(one, SAMPLES[:4], 1)
    request.getfixturevalue("no_single_steps")
    np.testing.assert_allclose(falls(measured(one, SAMPLES[:4], 4)), falls(alone), **CLOSE)
    assert not Versions(one).by_row


@pytest.mark.parametrize("scope", ["lora", "last"])
def test_adam_and_groups_are_those_of_single_steps(scope, request):
    one = proxy("internvl", scope)
    generator = torch.Generator().manual_seed(2)
    scale = {name: torch.rand(value.shape, generator=generator).double() for name, value in one.parameters.items()}
    alone = measured(one, SAMPLES[:6], 1, split=True, scale=scale)
    request.getfixturevalue("no_single_steps")
    found = falls(measured(one, SAMPLES[:6], 3, split=True, scale=scale))
    np.testing.assert_allclose(found, falls(alone), **CLOSE)
    assert np.abs(found[:, 0] - found[:, 1]).min() > 1e-9
    plain = falls(measured(one, SAMPLES[:6], 3, split=True))
    assert np.abs(plain / found - 1).max() > 0.1


def test_they_are_the_utilities_of_brute_force():
    one = load_proxy(checkpoint("qwen3_vl"), ScopeOptions(scope="last", last_layers=2), LoadOptions("cpu", "float64"))
    oracle = BruteForce(checkpoint("qwen3_vl"), scope=lambda name: name in one.parameters)
    wanted = [oracle.utility(each, ANCHORS, STEP) for each in SAMPLES[:3]]
    # the families' norms compute in float32
    np.testing.assert_allclose(falls(measured(one, SAMPLES[:3], 3))[:, 0], wanted, rtol=1e-3)


def test_a_score_does_not_depend_on_its_neighbours_and_a_group_has_one_result():
    one = proxy("qwen3_vl", "lora", "float32")
    scorer = OneStep("exact", step_size=STEP, candidates=4).prepare(Setting(one, ANCHORS))
    together = [record.score for record in scorer(SAMPLES)]
    alone = [scorer([each])[0].score for each in SAMPLES]
    backwards = [record.score for record in scorer(SAMPLES[::-1])][::-1]
    # a difference of float32 losses of about 5 nats: 1e-6 of noise in falls of 1e-4 and more
    np.testing.assert_allclose(together, alone, rtol=2e-2, atol=2e-6)
    np.testing.assert_allclose(together, backwards, rtol=2e-2, atol=2e-6)
    assert [record.score for record in scorer(SAMPLES)] == together


@pytest.mark.parametrize("scope", ["lora", "last"])
def test_the_proxy_is_left_as_found(scope):
    one = made("qwen3_vl", scope, "float32")
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    measured(one, SAMPLES, 4)
    assert all(torch.equal(before[name], value) for name, value in one.model.state_dict().items())
    assert {name for name, value in one.model.named_parameters() if value.requires_grad} == set(one.parameters)
    assert all(value.grad is None for value in one.model.parameters())
    assert not any("forward" in vars(module) for module in one.model.modules())


def test_a_loss_that_is_no_number_has_its_reason_and_leaves_its_neighbours_their_bits():
    one = proxy("internvl", "last", "float32")
    encoded = [one.encoder.encode(each) for each in SAMPLES[:4]]
    wanted = measured(one, encoded, 4)
    dark = {**encoded[1].inputs, "pixel_values": torch.full_like(encoded[1].inputs["pixel_values"], float("inf"))}
    found = measured(one, [encoded[0], encoded[1]._replace(inputs=dark), *encoded[2:]], 4)
    assert "the loss is nan" in found[1].problem
    for place in (0, 2, 3):
        assert found[place].problem is None
        assert torch.equal(found[place].falls, wanted[place].falls)


def test_a_sample_that_is_no_number_in_the_first_group_does_not_end_the_others_side_by_side(no_single_steps):
    one = made("internvl", "last", "float32")
    encoded = one.encoder.encode(SAMPLES[1])
    dark = encoded._replace(inputs={**encoded.inputs, "pixel_values": encoded.inputs["pixel_values"] * float("inf")})
    found = measured(one, [dark, *SAMPLES[1:6]], 6)
    assert [each.problem is None for each in found] == [False, True, True, True, True, True]


def small_memory(monkeypatch, one: Proxy, rows: int) -> list[int]:
    """Let passes over more rows fail as CUDA does; gives the rows of all that were tried."""
    tried: list[int] = []
    forward = one.model.forward

    def limited(*args, **kwargs):
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(one.model, "forward", limited)
    return tried


def test_groups_that_do_not_fit_are_split_and_no_row_is_lost_or_measured_twice(monkeypatch):
    one = made("qwen3_vl", "last")
    wanted, taken = falls(measured(one, SAMPLES, 1)), steps(one, 5)
    encoded = encoded_by(one, SAMPLES)
    tried = small_memory(monkeypatch, one, 6)  # 3 anchors a batch: two candidates fit
    np.testing.assert_allclose(falls(taken(encoded)), wanted, **CLOSE)
    assert max(tried) > 6
    assert taken.room.samples in (1, 2)  # three are tried as one and two
    tried.clear()
    np.testing.assert_allclose(falls(taken(encoded)), wanted, **CLOSE)
    assert max(tried) <= 6


def test_where_not_even_two_fit_they_go_one_by_one(monkeypatch):
    one = made("qwen3_vl", "last")
    wanted = falls(measured(one, SAMPLES, 1))
    small_memory(monkeypatch, one, 3)
    np.testing.assert_array_equal(falls(measured(one, SAMPLES, 4)), wanted)


def test_a_layer_that_reads_the_weights_of_another_is_found_out(monkeypatch):
    one = made("qwen3_vl", "last")
    layer = one.model.model.language_model.layers[-1]
    forward = layer.mlp.forward
    monkeypatch.setattr(
        layer.mlp, "forward", lambda x: forward(x) + nn.functional.linear(x, layer.self_attn.o_proj.weight[:, :64])
    )
    assert_falls_back(one)


def test_a_norm_that_decides_by_what_it_sees_is_not_mapped(monkeypatch):
    one = made("qwen3_vl", "last", "float32")
    norm = one.model.model.language_model.layers[-1].input_layernorm
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: forward(x) if x.sum() > -1e9 else x)
    assert_falls_back(one)


def test_a_model_that_gives_rows_in_another_order_is_found_out(monkeypatch):
    one = made("qwen3_vl", "last")
    layer = one.model.model.language_model.layers[-1]
    forward = layer.mlp.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda x: forward(x.flip(0)))
    encoded = [one.encoder.encode(each) for each in ANCHORS[:2]]
    assert not Versions(one).fits(one.batch(encoded))


def assert_falls_back(one: Proxy) -> None:
    """Side by side gives the bits of one by one, since that is how it is done."""
    together, encoded = steps(one, 4), encoded_by(one, SAMPLES[:4])
    found = together(encoded)
    assert not all(together.versions.known.values())
    for each, result in zip(encoded, found, strict=True):
        loss, alone = exact_utility(one, each, together.anchors, step_size=STEP, preconditioner={})
        assert result.loss == loss
        assert torch.equal(result.falls, alone)


def test_what_is_upstream_is_repeated_and_not_computed_again(monkeypatch):
    one = made("internvl", "last")
    batch = one.batch([one.encoder.encode(each) for each in ANCHORS], keep=True)
    with torch.no_grad():
        before = one.answer_logits(batch).logits
        kept = {name: [leaf.clone() for leaf in calls[0][0] if leaf is not None] for name, calls in batch.kept.items()}
        monkeypatch.setattr(type(one.model.model.vision_tower), "forward", lambda *_, **__: 1 / 0)
        monkeypatch.setattr(one.model.model.language_model.layers[0].mlp, "forward", lambda *_: 1 / 0)
        versions = Versions(one)
        with versions.at(versions.stacked(3)):
            again = one.answer_logits(repeated(batch, 3)).logits
    for part in again.chunk(3):
        torch.testing.assert_close(part, before, rtol=0, atol=1e-12)  # a product of another shape, in float64
    for name, calls in batch.kept.items():
        assert all(map(torch.equal, kept[name], [leaf for leaf in calls[0][0] if leaf is not None]))


def test_a_repeated_batch_whose_first_pass_broke_off_leaves_the_batch_alone():
    one = made("internvl", "last")
    batch = one.batch([one.encoder.encode(each) for each in ANCHORS], keep=True)
    versions = Versions(one)
    with torch.no_grad():
        wanted = one.answer_logits(batch._replace(kept=None)).logits
        with versions.at(versions.stacked(2)):
            one.answer_logits(repeated(batch, 2))  # nothing is kept of the batch yet
        assert torch.equal(one.answer_logits(batch).logits, wanted)


def test_rows_that_lie_joined_are_never_split_evenly():
    assert Versions(proxy("internvl", "lora")).by_row
    assert Versions(proxy("internvl", "last")).by_row
    for scope in ("language", "all"):
        assert not Versions(proxy("internvl", scope)).by_row


def test_how_many_go_side_by_side_by_default():
    one, everything = proxy("internvl", "last"), proxy("internvl", "all")
    few = steps(one)
    assert few.usual == 16  # of 3 rows each

    def with_rows(times: int) -> ExactSteps:
        wide = few.anchors[0]._replace(batches=[repeated(batch, times) for batch in few.anchors[0].batches])
        return dataclasses.replace(few, anchors=[wide])

    assert with_rows(4).usual == 64 // 12
    assert with_rows(50).usual == 1
    assert steps(proxy("internvl", "lora")).usual == 1  # on a CPU it does not pay
    assert steps(everything).usual == 1


def test_candidates_are_bounded_by_memory():
    one = proxy("internvl", "last")
    layer = next(iter(one.parameters.values()))
    large = Versions(dataclasses.replace(one, parameters={"w": layer.new_empty(2**25, device="meta")}))
    large.__dict__["by_row"] = True
    assert dataclasses.replace(steps(one), versions=large).usual == 2**30 // (2 * 8 * 2**25)


def test_a_step_that_moves_nothing_is_worth_exactly_nothing(no_single_steps):
    one = proxy("internvl", "last", "float32")
    assert falls(measured(one, SAMPLES[:4], 4, size=1e-30)).tolist() == [[0.0]] * 4


def test_no_candidates_are_refused():
    with pytest.raises(ConfigError, match="candidates is 0"):
        OneStep("exact", candidates=0)


def test_a_cascade_hands_the_candidates_on():
    assert OneStep("cascade", candidates=3).stages().dear.candidates == 3
