"""Half precision: what is added up, how small a direction may be, and models that forward mode does not see through."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd import forward_ad
from transformers import AutoConfig, AutoProcessor, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods import one_step as module
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, Proxy, load_proxy, prepare
from onesteptrain.utility import (
    check_direction,
    check_forward_mode,
    first_order,
    measure_anchors,
    token_derivatives,
)
from onesteptrain.utility.anchoring import read_preconditioner
from onesteptrain.utility.gradients import gradient_norm
from tests.building import ARCHITECTURES, checkpoint, sample

ANCHORS = [sample(row, images=1) for row in range(20, 44)]
SAMPLES = [sample(row, images=row % 3) for row in range(5)]


def load(dtype: str, architecture: str = "qwen3_vl") -> Proxy:
    return load_proxy(checkpoint(architecture), options=LoadOptions(dtype=dtype, max_tokens=4096))


proxy_of = functools.cache(load)


def direction(proxy: Proxy, batch_size: int = 8) -> dict[str, torch.Tensor]:
    encoded = [proxy.encoder.encode(one) for one in ANCHORS]
    return measure_anchors(proxy, {"": encoded}, preconditioner={}, batch_size=batch_size)[0].direction


def derivatives(proxy: Proxy, along: dict[str, torch.Tensor]) -> torch.Tensor:
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    found = token_derivatives(proxy, encoded, [along], estimator="jvp", epsilons=[0.0], batch_size=4)
    return torch.cat([one.derivative[0] for one in found])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_anchor_gradient_does_not_depend_on_how_many_batches_it_is_added_up_from(dtype):
    proxy = proxy_of(dtype)
    one, many = direction(proxy, 24), direction(proxy, 1)
    assert {value.dtype for value in many.values()} == {torch.float32}
    # each batch's own rounding remains; sums in bfloat16 were 2 to 3 % too long
    assert gradient_norm(many) == pytest.approx(gradient_norm(one), rel=5e-3)
    apart = gradient_norm({name: many[name] - value for name, value in one.items()})
    assert apart < 2e-2 * gradient_norm(one)
    assert all(value.grad is None for value in proxy.parameters.values())


def test_a_direction_may_be_smaller_than_float16_can_say():
    proxy = proxy_of("float16")
    along = direction(proxy)
    whole = derivatives(proxy, along)
    small = derivatives(proxy, {name: 1e-9 * value for name, value in along.items()})
    # the ratio of the lengths is rounded otherwise, and with it every product
    torch.testing.assert_close(1e9 * small, whole, rtol=0, atol=5e-3 * float(whole.abs().max()))


def test_second_moments_may_be_smaller_than_float16_can_say(tmp_path):
    proxy = proxy_of("float16")
    save_file({name: torch.full(value.shape, 1e-10) for name, value in proxy.parameters.items()}, tmp_path / "moments")
    for value in read_preconditioner(tmp_path / "moments", proxy).values():
        torch.testing.assert_close(value, torch.full_like(value, 1 / (1e-5 + 1e-8)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_forward_mode_sees_through_the_models(architecture, dtype):
    proxy = load(dtype, architecture)
    probes = [proxy.encoder.encode(one) for one in ANCHORS[:4]]
    check_forward_mode(proxy, probes, direction(proxy))


@functools.cache
def with_experts() -> Path:
    """A tiny checkpoint whose layers hold four experts, of which a token sees two."""
    plain = AutoConfig.from_pretrained(checkpoint("qwen3_vl"))
    text = {name: value for name, value in plain.text_config.to_dict().items() if name != "model_type"}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {name: value for name, value in plain.vision_config.to_dict().items() if name != "model_type"}
    marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLMoeConfig(
        text_config=text | experts | {"decoder_sparse_step": 1, "mlp_only_layers": []},
        vision_config=vision,
        **{name: getattr(plain, name) for name in marks},
    )
    torch.manual_seed(0)
    model = Qwen3VLMoeForConditionalGeneration(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(0, 0.1)  # so large that experts matter
    folder = Path(tempfile.mkdtemp(prefix="ost-test-experts-"))
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(checkpoint("qwen3_vl")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_forward_mode_sees_through_experts_and_leaves_them_as_they_were(dtype, allowed):
    proxy = load_proxy(with_experts(), options=LoadOptions(dtype=dtype, max_tokens=4096))
    before = proxy.model.get_experts_implementation()
    along = direction(proxy)
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    found = token_derivatives(proxy, encoded, [along], estimator="jvp", epsilons=[0.0], batch_size=4)
    for one, record in zip(encoded, found, strict=True):
        _, gradient = proxy.gradient([prepare(proxy, [one])])
        wanted = sum(float((value.double() * along[name].double()).sum()) for name, value in gradient.items())
        size = gradient_norm(gradient) * gradient_norm(along)
        assert float(record.derivative.mean()) == pytest.approx(wanted, abs=allowed * size)  # rounding of its type
    assert proxy.model.get_experts_implementation() == before
    assert "grouped_mm" in before.values()
    check_forward_mode(proxy, encoded[:2], along)


class Blind(torch.autograd.Function):
    """A kernel with a backward pass and no forward mode."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (Blind.apply, "does not see through this model: .*jvp"),
        (lambda values: forward_ad.unpack_dual(values).primal, "it gives .* where their gradient gives"),
    ],
)
def test_a_kernel_that_knows_no_forward_mode_or_drops_it_is_refused(dtype, kernel, said, monkeypatch):
    proxy = load(dtype)
    for layer in proxy.model.get_decoder().layers:
        forward = layer.mlp.forward
        monkeypatch.setattr(layer.mlp, "forward", lambda states, forward=forward: kernel(forward(states)))
    with pytest.raises(ConfigError, match=said):
        OneStep("jvp").prepare(Setting(proxy, ANCHORS))
    OneStep("fd").prepare(Setting(load("float32"), ANCHORS))


def test_a_block_that_lacks_its_derivative_is_refused_where_the_others_hide_it(monkeypatch):
    proxy = load("float32")
    probes = [proxy.encoder.encode(one) for one in ANCHORS[:2]]
    inside = {"language_model.layers.1.": 1e-4, "language_model.layers.2.": 1.0}
    along = {
        name: share * value
        for name, value in direction(proxy).items()
        for part, share in inside.items()
        if part in name
    }
    check_forward_mode(proxy, probes, along)
    mlp = proxy.model.get_decoder().layers[1].mlp
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda states: forward_ad.unpack_dual(forward(states)).primal)
    monkeypatch.setattr(first_order, "_FEW_BLOCKS", 1)  # the lowest alone
    with pytest.raises(ConfigError, match=r"it gives .* where their gradient gives"):
        check_forward_mode(proxy, probes, along)
    monkeypatch.setattr(first_order, "_blocks", lambda _: [])
    check_forward_mode(proxy, probes, along)  # the whole shows nothing


@pytest.mark.parametrize("method", [OneStep("jvp"), OneStep("fd"), OneStep("fd", fd_epsilon=1e-3)])
@pytest.mark.parametrize("factor", [0.0, float("inf")])
def test_anchors_without_a_direction_are_refused(method, factor, monkeypatch):
    measure = module.measure_anchors

    def without(*args, **kwargs):
        groups = measure(*args, **kwargs)
        return [one._replace(direction={n: v * factor for n, v in one.direction.items()}) for one in groups]

    monkeypatch.setattr(module, "measure_anchors", without)
    with pytest.raises(ConfigError, match="the anchor gradient has length"):
        method.prepare(Setting(proxy_of("float32"), ANCHORS))


def test_the_length_of_a_direction_is_given():
    assert check_direction({"a": torch.full((3,), 2.0), "b": torch.full((4,), 1.0)}) == pytest.approx(4.0)
