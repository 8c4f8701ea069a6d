"""The oracle tests of the utility notice what they must: each is run on a planted error and has to fail."""

from __future__ import annotations

import contextlib

import pytest
import torch

import onesteptrain.methods.one_step.scorers as one_step
import onesteptrain.utility.exact as exact_module
import onesteptrain.utility.first_order as first_order_module
from onesteptrain.proxy import Proxy
from onesteptrain.proxy.encoding import Encoder
from tests import test_utility
from tests.methods import test_contract

ARCHITECTURE = "qwen3_vl"


@pytest.fixture(autouse=True)
def fresh_proxies():
    """Proxies are kept between tests; a mutant must not leave its mark on them."""
    test_utility.proxy_of.cache_clear()
    yield
    test_utility.proxy_of.cache_clear()


def fails(test, *arguments) -> None:
    with pytest.raises(AssertionError):
        test(*arguments)


def test_wrong_sign_of_the_step_is_noticed(monkeypatch):
    shifted = Proxy.shifted
    monkeypatch.setattr(Proxy, "shifted", lambda self, direction, size: shifted(self, direction, -size))
    fails(test_utility.test_exact_equals_a_brute_force_loop, ARCHITECTURE)
    fails(test_utility.test_first_order_ranks_like_brute_force_for_small_steps, ARCHITECTURE, "fd")


def test_dropped_step_is_noticed(monkeypatch):
    monkeypatch.setattr(Proxy, "shifted", lambda self, direction, size: contextlib.nullcontext())
    fails(test_utility.test_exact_equals_a_brute_force_loop, ARCHITECTURE)
    fails(test_utility.test_first_order_ranks_like_brute_force_for_small_steps, ARCHITECTURE, "fd")


def test_dropped_step_size_is_noticed(monkeypatch):
    precondition = exact_module.precondition
    monkeypatch.setattr(
        exact_module,
        "precondition",
        lambda gradient, scale: {name: 2 * value for name, value in precondition(gradient, scale).items()},
    )
    fails(test_utility.test_exact_equals_a_brute_force_loop, ARCHITECTURE)


def test_one_sided_difference_is_noticed(monkeypatch):
    def one_sided(self):
        passed = here(self)
        return passed._replace(derivative=(self.above.double() - passed.loss.roll(1)) / self.epsilon)

    here = first_order_module._Ends.here
    monkeypatch.setattr(first_order_module._Ends, "here", one_sided)
    fails(test_utility.test_central_difference_error_falls_with_the_square_of_epsilon, ARCHITECTURE)


@pytest.mark.parametrize("shift", [-1, 1])
def test_mask_shifted_by_one_token_is_noticed(monkeypatch, shift):
    encode = Encoder.encode

    def shifted(self, sample):
        encoded = encode(self, sample)
        return encoded._replace(answer=encoded.answer.roll(shift))

    monkeypatch.setattr(Encoder, "encode", shifted)
    fails(test_utility.test_exact_equals_a_brute_force_loop, ARCHITECTURE)
    fails(test_utility.test_token_derivatives_are_the_derivatives_of_the_brute_force_token_losses, "jvp")


def test_weights_left_moved_are_noticed(monkeypatch):
    @contextlib.contextmanager
    def leaky(self, direction, size):
        with torch.no_grad():
            for name, step in direction.items():
                self.parameters[name].add_(step, alpha=size)
        yield
        with torch.no_grad():
            for name, step in direction.items():
                self.parameters[name].sub_(step, alpha=size)

    monkeypatch.setattr(Proxy, "shifted", leaky)
    fails(test_utility.test_weights_are_the_same_bits_afterwards, ARCHITECTURE)


def test_scores_centred_within_a_batch_are_noticed(monkeypatch):
    token_derivatives = one_step.token_derivatives

    def centred(*arguments, **options):
        records = token_derivatives(*arguments, **options)
        mean = torch.stack([record.derivative.mean() for record in records]).mean() if records else 0
        return [record._replace(derivative=record.derivative - mean) for record in records]

    monkeypatch.setattr(one_step, "token_derivatives", centred)
    fails(test_contract.test_a_score_does_not_depend_on_its_neighbours, "one_step")
