"""Gradients of all samples of a batch in one pass, against one backward pass for each sample alone."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy, prepare
from onesteptrain.proxy.acceleration.probes import ModelProbes
from onesteptrain.utility import per_sample as package
from onesteptrain.utility.per_sample import (
    Measure,
    both,
    checking,
    coordinates,
    inner_products,
    layers,
    ownership,
    per_sample,
    sketches,
    squares,
    watching,
)
from onesteptrain.utility.sketch import make_sketch
from tests.building import ARCHITECTURES, checkpoint, sample

SCOPES = ("all", "language", "last", "lora")

MIXED = [sample(0, images=1), sample(1, images=0), sample(2, images=2), sample(5, images=1)]
"""Mixed lengths; one picture, none, two, and one of another size. As many pictures as samples, on purpose."""

EVEN = [sample(row) for row in (0, 3, 6, 12)]
TEXTS = [sample(row, images=0) for row in (0, 1, 5)]

# One float64 computation in two batchings. The norms of the models compute in float32, and yet row by row.
TIGHT = 1e-9


def fresh(architecture: str = "qwen3_vl", scope: str = "all", dtype: str = "float64") -> Proxy:
    """A proxy of which nothing is known; adapters are moved away from zero, where half of their gradients are."""
    options = ScopeOptions(scope=scope, last_layers=1)
    proxy = load_proxy(checkpoint(architecture), options, LoadOptions("cpu", dtype, max_tokens=4096))
    if scope == "lora":
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in proxy.parameters.values():
                value.add_(0.05 * torch.randn(value.shape, generator=generator).to(value.dtype))
    return proxy


@functools.cache
def kept(architecture: str, scope: str) -> Proxy:
    return fresh(architecture, scope)


def encoded(proxy: Proxy, samples=MIXED):
    return [proxy.encoder.encode(one) for one in samples]


def alone(proxy: Proxy, one) -> dict[str, torch.Tensor]:
    """The gradient by one backward pass; what does not enter the loss is zero."""
    _, gradient = proxy.gradient([prepare(proxy, [one])])
    return {name: gradient.get(name, torch.zeros_like(value)).detach() for name, value in proxy.parameters.items()}


def counting(monkeypatch) -> list[int]:
    """How many samples each call of Proxy.gradient was for."""
    calls: list[int] = []
    gradient = Proxy.gradient

    def count(self, batches):
        calls.append(sum(batch.answer.shape[0] for batch in batches))
        return gradient(self, batches)

    monkeypatch.setattr(Proxy, "gradient", count)
    return calls


def whole(proxy: Proxy, samples, batch_size: int = 8) -> list[dict[str, torch.Tensor]]:
    """The gradient of each sample, by parameter."""
    found = per_sample(proxy, samples, coordinates(proxy), batch_size=batch_size)
    sizes = [value.numel() for value in proxy.parameters.values()]
    assert all(one.problem is None for one in found)
    return [
        {
            name: part.view(value.shape)
            for (name, value), part in zip(proxy.parameters.items(), one.numbers.split(sizes), strict=True)
        }
        for one in found
    ]


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = TIGHT) -> None:
    """Parameter by parameter, so that a small one cannot hide; what is zero but for rounding by the whole length."""
    length = float(sum(value.square().sum() for value in wanted.values()) ** 0.5)
    for name, value in wanted.items():
        off = float((found[name] - value).norm())
        assert off <= tolerance * (float(value.norm()) + 1e-6 * length), name


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_each_sample_alone(architecture, scope):
    proxy = kept(architecture, scope)
    samples = encoded(proxy)
    assert checking.plan_for(proxy, samples) is not None  # the batched route is taken
    for one, found in zip(samples, whole(proxy, samples), strict=True):
        close(found, alone(proxy, one))


@pytest.mark.parametrize("samples", [EVEN, TEXTS, [MIXED[2], *TEXTS], [*TEXTS, MIXED[2]]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_does_not_matter_where_pictures_stand_in_a_batch(architecture, samples):
    proxy = kept(architecture, "all")
    rows = encoded(proxy, samples)
    assert checking.plan_for(proxy, rows) is not None
    for one, found in zip(rows, whole(proxy, rows), strict=True):
        close(found, alone(proxy, one))


def test_a_check_takes_two_backward_passes_and_nothing_after_it_any(monkeypatch):
    proxy = fresh("internvl")
    rows = encoded(proxy)
    for row in rows:
        prepare(proxy, [row])  # looks at what its answers need
    calls = counting(monkeypatch)
    for _ in range(2):
        per_sample(proxy, rows, squares(), batch_size=4)
    assert calls == [1, 1]


def test_the_backward_pass_computes_no_gradient_of_a_weight():
    proxy = kept("qwen3_vl", "language")
    rows = encoded(proxy, EVEN)
    plan = checking.plan_for(proxy, rows)
    forwards = []
    for module in proxy.model.modules():
        if type(module) is nn.Linear:
            forwards.append(module.register_forward_hook(lambda *_: made.append(1)))
    made: list[int] = []
    slopes = torch.autograd.grad
    products: list[int] = []

    def profiled(*arguments, **options):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            found = slopes(*arguments, **options)
        products.append(sum(one.count for one in profile.key_averages() if one.key in ("aten::mm", "aten::addmm")))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", profiled)
        watching.take_apart(proxy, rows, plan, lambda *_: None)
    for hook in forwards:
        hook.remove()
    # one product for each linear layer that the loss reaches through, to what it was given
    assert 0 < products[0] <= len(made)


@pytest.mark.parametrize("scope", ["last", "language", "lora"])
def test_no_backward_pass_goes_to_what_lies_upstream(scope):
    proxy = kept("qwen3_vl", scope)
    plan = checking.plan_for(proxy, encoded(proxy))
    tower = next(module for name, module in proxy.model.named_modules() if name.endswith("merger"))
    seen: list[bool] = []
    hook = tower.register_forward_hook(lambda module, given, output: seen.append(output.requires_grad))
    watching.take_apart(proxy, encoded(proxy), plan, lambda *_: None)
    hook.remove()
    assert seen == [False]


def test_numbers_are_sums_over_all_parameters():
    proxy = kept("internvl", "all")
    rows = encoded(proxy)
    generator = torch.Generator().manual_seed(0)
    directions = {
        name: torch.randn(3, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in proxy.parameters.items()
    }
    size = sum(value.numel() for value in proxy.parameters.values())
    sketch = make_sketch(size, 50, seed=1, device=torch.device("cpu"))
    measure = both(both(inner_products(directions), squares()), sketches(sketch, proxy))
    for one, found in zip(rows, per_sample(proxy, rows, measure, batch_size=3), strict=True):
        gradient = alone(proxy, one)
        vector = torch.cat([value.flatten() for value in gradient.values()])
        products = torch.cat([value.flatten(1) for value in directions.values()], dim=1) @ vector
        wanted = torch.cat([products, (vector @ vector)[None], sketch(vector)])
        torch.testing.assert_close(found.numbers, wanted, rtol=1e-9, atol=1e-9 * float(vector.norm()))
        loss, _ = proxy.gradient([prepare(proxy, [one])])
        assert found.loss == pytest.approx(loss, rel=1e-12)


def test_a_direction_that_moves_few_parameters_leaves_out_the_others():
    proxy = kept("internvl", "all")
    rows = encoded(proxy)
    name = next(name for name in proxy.parameters if "k_proj.weight" in name)
    direction = {name: torch.ones(1, *proxy.parameters[name].shape, dtype=torch.float64)}
    for one, found in zip(rows, per_sample(proxy, rows, inner_products(direction), batch_size=4), strict=True):
        assert float(found.numbers) == pytest.approx(float(alone(proxy, one)[name].sum()), rel=1e-9)


def test_samples_that_do_not_enter_a_parameter_are_left_out():
    proxy = kept("qwen3_vl", "all")
    rows = encoded(proxy)
    seen: dict[str, set[int]] = {}

    def note(members, piece):
        assert len(members) == len(piece.values)
        seen.setdefault(piece.name, set()).update(members)

    watching.take_apart(proxy, rows, checking.plan_for(proxy, rows), note)
    for place, one in enumerate(rows):
        _, gradient = proxy.gradient([prepare(proxy, [one])])
        assert {name for name, members in seen.items() if place in members} == set(gradient)


def test_large_parameters_are_measured_a_few_samples_at_a_time(monkeypatch):
    proxy = kept("llava", "all")
    rows = encoded(proxy)
    wanted = whole(proxy, rows)
    monkeypatch.setattr(watching, "NUMBERS_AT_ONCE", 3000)
    most: list[int] = []
    measure = coordinates(proxy)
    noting = measure._replace(of=lambda piece: (most.append(len(piece.values)), measure.of(piece))[1])
    found = per_sample(proxy, rows, noting, batch_size=4)
    assert {1, 4} <= set(most)
    for one, gradient in zip(found, wanted, strict=True):
        assert torch.equal(one.numbers, torch.cat([value.flatten() for value in gradient.values()]))


@pytest.mark.parametrize("architecture", ["internvl", "qwen3_vl", "llava"])
def test_half_precision_gives_the_gradient_of_the_sample_alone(architecture):
    proxy = fresh(architecture, dtype="bfloat16")
    rows = encoded(proxy)
    assert checking.plan_for(proxy, rows) is not None
    for one, found in zip(rows, per_sample(proxy, rows, squares(), batch_size=4), strict=True):
        length = float(sum(value.double().square().sum() for value in alone(proxy, one).values()))
        # eight bits a number, and many numbers
        assert float(found.numbers) == pytest.approx(length, rel=1e-2)


def test_squared_lengths_keep_very_small_and_very_large_numbers():
    for size in (1e-30, 1e25):
        values = torch.full((2, 3, 4), size)
        found = squares().of(package.Piece("a", values))
        torch.testing.assert_close(found[:, 0], torch.full((2,), 12 * size**2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_weights_mode_and_parameters_are_left_as_found():
    proxy = fresh("internvl")
    rows = encoded(proxy)
    proxy.answer_logits(prepare(proxy, rows))  # a model puts in some hooks of its own when it first runs
    before = {name: value.detach().clone() for name, value in proxy.model.state_dict().items()}
    hooks = [[*module._forward_hooks, *module._forward_pre_hooks] for module in proxy.model.modules()]
    per_sample(proxy, rows, squares(), batch_size=4)
    assert all(torch.equal(before[name], value) for name, value in proxy.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in proxy.parameters.values())
    for module in proxy.model.modules():
        assert not set(module.__dict__).intersection(module._parameters)  # no copy stands in the way of a parameter
    assert hooks == [[*module._forward_hooks, *module._forward_pre_hooks] for module in proxy.model.modules()]


# What goes wrong is noticed, and the numbers stay right.


def broken_bounds(monkeypatch):
    """Every sample but the last is given the rows of the next one."""
    bounds = ownership.Shares.bounds

    def wrong(self, rows, count):
        right = bounds(self, rows, count)
        return (
            right
            if rows.kind != "images"
            else [*right[:1], *(min(right[-1], one + 1) for one in right[1:-1]), right[-1]]
        )

    monkeypatch.setattr(ownership.Shares, "bounds", wrong)


def forgotten_use(monkeypatch):
    """Of a table that is also the head, only the first use counts."""
    hand_over = watching._hand_over
    monkeypatch.setattr(
        watching, "_hand_over", lambda parameter, uses, slopes, take: hand_over(parameter, uses[:1], slopes, take)
    )


def wrong_norm(monkeypatch):
    """The scale of a layer norm gets the gradient of its shift."""
    monkeypatch.setattr(layers, "layer_norm", lambda given, *_, **__: torch.ones_like(given))


def raising(monkeypatch):
    """No module can be taken apart."""

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(watching, "rule_of", fail)


@pytest.mark.parametrize("mutant", [broken_bounds, forgotten_use, wrong_norm, raising])
def test_a_wrong_route_is_noticed_and_samples_go_one_by_one(mutant, monkeypatch):
    proxy = fresh("internvl")
    assert proxy.model.get_input_embeddings().weight is proxy.model.get_output_embeddings().weight
    rows = encoded(proxy)
    wanted = [alone(proxy, one) for one in rows]
    mutant(monkeypatch)
    assert checking.plan_for(proxy, rows) is None
    calls = counting(monkeypatch)
    for gradient, found in zip(wanted, whole(proxy, rows), strict=True):
        close(found, gradient)
    assert calls == [1] * len(rows)


@pytest.mark.parametrize("mutant", [broken_bounds, forgotten_use, wrong_norm])
def test_a_wrong_route_that_nobody_checks_fails_the_test_above(mutant, monkeypatch):
    monkeypatch.setattr(checking, "disagreeing", lambda *_: set())
    mutant(monkeypatch)
    kept.cache_clear()
    with pytest.raises(AssertionError):
        test_gradients_are_those_of_each_sample_alone("internvl", "all")
    kept.cache_clear()


def test_a_batch_unlike_the_one_that_was_checked_goes_one_by_one(monkeypatch):
    proxy = fresh("qwen3_vl")
    rows = encoded(proxy)
    wanted = [alone(proxy, one) for one in rows]
    assert checking.plan_for(proxy, rows) is not None
    raising(monkeypatch)
    calls = counting(monkeypatch)
    for gradient, found in zip(wanted, whole(proxy, rows), strict=True):
        close(found, gradient)
    assert calls == [1] * len(rows)


class Scaled(nn.Module):
    """A linear map of no usual type, whose parameter cannot be spread out over rows."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.weight = inner.weight

    def forward(self, given):
        return nn.functional.linear(given, self.weight)


class Twice(nn.Module):
    """A module that is called twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given):
        return self.inner(given) + 0.5 * self.inner(2 * given)


class Overwriting(nn.Module):
    """Writes over what the layer inside gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given):
        return self.inner(given).mul_(3)


def altered(wrapper) -> Proxy:
    """A proxy in which one layer of the language model is of another kind."""
    proxy = fresh("qwen3_vl")
    attention = proxy.model.model.language_model.layers[1].self_attn
    attention.o_proj = wrapper(attention.o_proj)
    named = dict(proxy.model.named_parameters())
    scope = {name: value for name, value in named.items() if value.requires_grad}
    return replace(proxy, parameters=scope, probes=ModelProbes())


@pytest.mark.parametrize("wrapper", [Scaled, Twice, Overwriting])
def test_unusual_modules_are_taken_apart_too(wrapper):
    proxy = altered(wrapper)
    rows = encoded(proxy)
    plan = checking.plan_for(proxy, rows)
    assert plan is not None
    assert ("model.language_model.layers.1.self_attn.o_proj" in plan.alone) == (wrapper is Scaled)
    for one, found in zip(rows, whole(proxy, rows), strict=True):
        close(found, alone(proxy, one))


def test_a_convolution_with_overlap_and_padding_is_a_linear_layer_on_patches():
    torch.manual_seed(0)
    for module, shape in (
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 9, 7)),
        (nn.Conv1d(3, 4, 5, stride=1, padding="valid"), (3, 11)),
        (nn.Conv3d(2, 4, (2, 3, 3), stride=(2, 3, 3)), (2, 4, 6, 6)),
    ):
        module = module.double()
        given = torch.randn(2, 3, *shape, dtype=torch.float64)  # two samples of three rows
        output = module(given.flatten(0, 1))
        slope = torch.randn_like(output)
        for name, parameter in module.named_parameters():
            found = layers.rule_of(module)(module, name, given, slope.unflatten(0, (2, 3)))
            for one in range(2):
                mine = slice(3 * one, 3 * one + 3)
                (wanted,) = torch.autograd.grad(output[mine], parameter, slope[mine], retain_graph=True)
                torch.testing.assert_close(found[one], wanted)


def test_an_embedding_with_a_padding_entry_learns_nothing_there():
    torch.manual_seed(0)
    module = nn.Embedding(7, 3, padding_idx=2).double()
    given = torch.tensor([[1, 2, 2, 5], [5, 5, 6, 1]])
    output = module(given)
    slope = torch.randn_like(output)
    rows = given.unique()
    found = layers.embedding_gradient(module, given, slope, rows)
    for one in range(2):
        (wanted,) = torch.autograd.grad(output[one], module.weight, slope[one], retain_graph=True)
        torch.testing.assert_close(found[one], wanted[rows])


def test_a_sample_that_is_not_finite_has_its_reason_and_touches_no_neighbour():
    proxy = fresh("qwen3_vl", dtype="float32")
    rows = encoded(proxy, EVEN)
    wanted = per_sample(proxy, rows, squares(), batch_size=4)
    pixels = rows[1].inputs["pixel_values"]
    rows[1] = rows[1]._replace(inputs={**rows[1].inputs, "pixel_values": torch.full_like(pixels, float("nan"))})
    found = per_sample(proxy, rows, squares(), batch_size=4)
    assert "the loss is nan" in found[1].problem
    for place in (0, 2, 3):
        # batched before, alone now: sums in another order
        assert float(found[place].numbers) == pytest.approx(float(wanted[place].numbers), rel=1e-4)


def test_a_first_batch_that_is_not_finite_does_not_condemn_the_model():
    proxy = fresh("qwen3_vl", dtype="float32")
    rows = encoded(proxy, EVEN)
    pixels = rows[-1].inputs["pixel_values"]
    bad = rows[-1]._replace(inputs={**rows[-1].inputs, "pixel_values": torch.full_like(pixels, float("nan"))})
    assert per_sample(proxy, [*rows[:-1], bad], squares(), batch_size=4)[-1].problem is not None
    assert checking.plan_for(proxy, rows) is not None


def test_batches_that_do_not_fit_are_split_and_nothing_is_lost(monkeypatch):
    proxy = fresh("qwen3_vl", dtype="float32")
    rows = encoded(proxy)
    wanted = per_sample(proxy, rows, squares(), batch_size=1)
    forward = proxy.model.forward
    lengths = [one.tokens for one in rows]

    def limited(*args, **kwargs):
        count, length = kwargs["input_ids"].shape
        if count > 2 or length == max(lengths):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, **kwargs)

    limited.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(proxy.model, "forward", limited)
    found = per_sample(proxy, rows, squares(), batch_size=4)
    for one, length, before in zip(found, lengths, wanted, strict=True):
        if length == max(lengths):
            assert "do not fit into memory" in one.problem
        else:
            assert float(one.numbers) == pytest.approx(float(before.numbers), rel=1e-4)  # float32 sums
    assert proxy.memory.tokens == proxy.memory.most_tokens  # forward passes may hold more than those that go back
    assert proxy.backward_memory.tokens < proxy.memory.most_tokens


def test_no_samples_give_no_records():
    assert per_sample(kept("qwen3_vl", "all"), [], Measure(1, lambda _: torch.zeros(0, 1)), batch_size=4) == []
