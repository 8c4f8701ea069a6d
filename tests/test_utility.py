"""The three estimators against a brute-force loop in float64 that shares no code with them."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.utility import choose_shift, exact_utility, measure_anchors, token_derivatives
from onesteptrain.utility.shift import RELATIVE_SHIFTS, lowest
from tests.building import ARCHITECTURES, checkpoint, sample
from tests.oracles import BruteForce

STEP_SIZE = 1e-2
SAMPLES = [sample(row, images=row % 3) for row in range(5)]
ANCHORS = [sample(row, images=1) for row in range(20, 23)]


@functools.cache
def proxy_of(architecture: str, dtype: str = "float64", scope: str = "all"):
    options = ScopeOptions(scope=scope, last_layers=1)
    return load_proxy(checkpoint(architecture), options, LoadOptions(dtype=dtype, max_tokens=4096))


@functools.cache
def brute_force(architecture: str, step_size: float = STEP_SIZE) -> np.ndarray:
    oracle = BruteForce(checkpoint(architecture))
    return np.array([oracle.utility(one, ANCHORS, step_size) for one in SAMPLES])


def anchor_groups(proxy, preconditioner=None):
    encoded = [proxy.encoder.encode(one) for one in ANCHORS]
    return measure_anchors(proxy, {"": encoded}, preconditioner=preconditioner or {}, batch_size=2, keep=True)


def exact(proxy, step_size: float = STEP_SIZE, preconditioner=None) -> np.ndarray:
    groups = anchor_groups(proxy, preconditioner)
    falls = [
        exact_utility(
            proxy,
            proxy.encoder.encode(one),
            groups,
            step_size=step_size,
            preconditioner=preconditioner or {},
        )[1]
        for one in SAMPLES
    ]
    return torch.cat(falls).numpy()


def first_order(proxy, estimator: str, epsilon: float | None = None, batch_size: int = 4) -> np.ndarray:
    """Utility for step size 1."""
    (group,) = anchor_groups(proxy)
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    if epsilon is None:
        epsilon = choose_shift(proxy, encoded[:2], group.direction, batch_size=2)
        assert epsilon is not None  # the gradient says otherwise than every shift
    records = token_derivatives(
        proxy, encoded, [group.direction], estimator=estimator, epsilons=[epsilon], batch_size=batch_size
    )
    return np.array([float(record.derivative.mean()) for record in records])


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_equals_a_brute_force_loop(architecture):
    # Both routes are float64: what differs is padding and batching, which is round-off (seen below 1e-11).
    np.testing.assert_allclose(exact(proxy_of(architecture)), brute_force(architecture), rtol=1e-8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("estimator", ["fd", "jvp"])
def test_first_order_ranks_like_brute_force_for_small_steps(architecture, estimator):
    step_size = 1e-5
    truth = brute_force(architecture, step_size)
    found = step_size * first_order(proxy_of(architecture), estimator)
    assert spearmanr(found, truth).statistic >= 0.999
    # what is left is the second-order term, which is of the order of the step times the curvature
    assert relative_error(found, truth) < 0.05


@pytest.mark.parametrize("architecture", ["internvl", "qwen3_vl", "llava"])
def test_first_order_error_falls_in_proportion_to_the_step(architecture):
    slope = first_order(proxy_of(architecture), "jvp")
    errors = [relative_error(size * slope, brute_force(architecture, size)) for size in (1e-4, 1e-5)]
    # The error is O(step**2) and the utility O(step), so that the relative error falls tenfold with the step. The
    # third-order term adds up to a quarter at the larger step; smaller steps meet the round-off of transformers, whose
    # norms and softmax compute in float32 even in a float64 model.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.25)


@pytest.mark.parametrize("architecture", ["internvl", "qwen3_vl", "llava"])
def test_central_difference_error_falls_with_the_square_of_epsilon(architecture):
    proxy = proxy_of(architecture)
    truth = first_order(proxy, "jvp")
    (group,) = anchor_groups(proxy)
    length = float(torch.stack([value.square().sum() for value in group.direction.values()]).sum().sqrt())
    errors = [relative_error(first_order(proxy, "fd", share / length), truth) for share in (1e-2, 1e-3)]
    # central differences leave the third derivative times epsilon**2; a quarter is left for the fifth derivative
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.25)


@pytest.mark.parametrize("estimator", ["fd", "jvp"])
def test_token_derivatives_are_the_derivatives_of_the_brute_force_token_losses(estimator):
    architecture = "qwen3_vl"
    proxy = proxy_of(architecture)
    (group,) = anchor_groups(proxy)
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    epsilon = choose_shift(proxy, encoded, group.direction, batch_size=2)
    records = token_derivatives(
        proxy, encoded, [group.direction], estimator=estimator, epsilons=[epsilon], batch_size=3
    )
    oracle = BruteForce(checkpoint(architecture))
    sum(oracle.loss(anchor) for anchor in ANCHORS).div(len(ANCHORS)).backward()
    gradient = {name: parameter.grad.clone() for name, parameter in oracle.model.named_parameters()}
    for one, record in list(zip(SAMPLES, records, strict=True))[:3]:
        losses = oracle.token_losses(one)
        torch.testing.assert_close(record.loss, losses.detach(), rtol=1e-6, atol=1e-9)
        for place, loss in enumerate(losses):
            oracle.model.zero_grad()
            loss.backward(retain_graph=True)
            expected = sum(
                float((parameter.grad * gradient[name]).sum())
                for name, parameter in oracle.model.named_parameters()
                if parameter.grad is not None and gradient[name] is not None
            )
            # Float32 norms inside the float64 model leave round-off over epsilon, the same for small and large values.
            slack = 2e-4 * float(record.derivative.abs().max()) if estimator == "fd" else 1e-5
            assert float(record.derivative[0, place]) == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_the_same_bits_afterwards(architecture):
    proxy = proxy_of(architecture, "float32")
    before = {name: value.detach().clone() for name, value in proxy.model.state_dict().items()}
    exact(proxy)
    for estimator in ("fd", "jvp"):
        first_order(proxy, estimator)
    after = proxy.model.state_dict()
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)
    assert not proxy.model.training
    assert all(parameter.grad is None for parameter in proxy.model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_agrees_with_float64(architecture):
    wide = first_order(proxy_of(architecture), "jvp")
    # float32 keeps 7 digits; a central difference loses 3 to 4 of them to cancellation
    assert relative_error(first_order(proxy_of(architecture, "float32"), "jvp"), wide) < 1e-4
    assert relative_error(first_order(proxy_of(architecture, "float32"), "fd"), wide) < 5e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_do_not_depend_on_batch_size_or_padding(architecture):
    proxy = proxy_of(architecture)
    alone = first_order(proxy, "jvp", batch_size=1)
    together = first_order(proxy, "jvp", batch_size=len(SAMPLES))
    np.testing.assert_allclose(together, alone, rtol=1e-9)  # float64: only the order of sums differs


@pytest.mark.parametrize("scope", ["language", "last", "lora"])
def test_each_scope_steps_on_its_parameters_alone(scope):
    proxy = proxy_of("qwen3_vl", "float64", scope)
    if scope == "lora":
        assert proxy.parameters
        assert all("lora_" in name for name in proxy.parameters)
        slope = first_order(proxy, "jvp")
        np.testing.assert_allclose(first_order(proxy, "fd"), slope, rtol=1e-3)  # round-off over epsilon
        np.testing.assert_allclose(exact(proxy, 1e-4), 1e-4 * slope, rtol=2e-2)  # the second-order term
        return
    oracle = BruteForce(checkpoint("qwen3_vl"), scope=lambda name: name in proxy.parameters)
    truth = np.array([oracle.utility(one, ANCHORS, STEP_SIZE) for one in SAMPLES])
    np.testing.assert_allclose(exact(proxy), truth, rtol=1e-8)
    last = [name for name in proxy.parameters if "layers.2." in name]
    assert len(last) == len(proxy.parameters) if scope == "last" else len(last) < len(proxy.parameters)
    assert not any("visual" in name for name in proxy.parameters)


def test_adam_step_equals_brute_force_with_the_same_multipliers():
    proxy = proxy_of("internvl")
    generator = torch.Generator().manual_seed(0)
    scale = {
        name: 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
        for name, value in proxy.parameters.items()
    }
    oracle = BruteForce(checkpoint("internvl"))
    truth = np.array([oracle.utility(one, ANCHORS, STEP_SIZE, scale) for one in SAMPLES])
    np.testing.assert_allclose(exact(proxy, STEP_SIZE, scale), truth, rtol=1e-8)
    (group,) = anchor_groups(proxy, scale)
    encoded = [proxy.encoder.encode(one) for one in SAMPLES]
    records = token_derivatives(proxy, encoded, [group.direction], estimator="jvp", epsilons=[0.0], batch_size=4)
    slope = np.array([float(record.derivative.mean()) for record in records])
    tiny = 1e-6
    truth = np.array([oracle.utility(one, ANCHORS, tiny, scale) for one in SAMPLES])
    np.testing.assert_allclose(tiny * slope, truth, rtol=1e-2)  # second order is of the size of the step


def test_a_step_that_moves_nothing_is_worth_exactly_nothing():
    proxy = proxy_of("internvl", "float32")
    encoded = proxy.encoder.encode(SAMPLES[1])
    groups = anchor_groups(proxy)
    exact = exact_utility(proxy, encoded, groups, step_size=1e-30, preconditioner={})
    assert exact.falls.tolist() == [0.0]


@pytest.mark.parametrize("architecture", ["internvl", "llava"])
def test_the_chosen_shift_is_the_one_that_looking_at_all_would_choose(architecture):
    proxy = proxy_of(architecture)
    (group,) = anchor_groups(proxy)
    probes = [proxy.encoder.encode(one) for one in SAMPLES]
    sizes = [
        float(torch.stack([value.double().square().sum() for value in values]).sum().sqrt())
        for values in ([proxy.parameters[name].detach() for name in group.direction], list(group.direction.values()))
    ]
    shifts = [share * sizes[0] / sizes[1] for share in RELATIVE_SHIFTS]
    measured = [
        torch.cat(
            [
                one.derivative[0]
                for one in token_derivatives(
                    proxy, probes, [group.direction], estimator="fd", epsilons=[shift], batch_size=2
                )
            ]
        )
        for shift in shifts
    ]
    changes = [float((one - other).norm()) for one, other in itertools.pairwise(measured)]
    chosen = choose_shift(proxy, probes, group.direction, batch_size=2)
    assert chosen == pytest.approx(shifts[1 + int(np.argmin(changes))], rel=1e-6)  # norms in float32


@pytest.mark.parametrize(
    ("heights", "place"),
    [
        ([1, 2, 3, 4, 5], 0),
        ([5, 4, 3, 2, 1], 4),
        ([9, 1, 2, 3, 9], 1),
        ([7.0], 0),
        ([math.inf, 3, math.inf, math.inf, math.inf], 1),  # no slope in the middle
        ([math.inf, math.inf, math.inf, math.inf, 2], 4),
    ],
)
def test_the_way_downhill_ends_at_the_lowest(heights, place):
    assert lowest(heights.__getitem__, len(heights), start=len(heights) // 2) == place
