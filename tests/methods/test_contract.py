"""What every installed method promises, ours and anybody else's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.methods import Method, installed, method_class
from tests.building import sample
from tests.methods.setups import default_setting, proxy, setup

SAMPLES = [sample(row, images=row % 2) for row in range(7)]
METHODS = list(installed())


def scores(name: str, samples, seed: int = 0) -> list[float]:
    method, setting = setup(name, seed)
    return [record.score for record in method.prepare(setting)(samples)]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_dataclass_with_defaults(name):
    cls = method_class(name)
    assert isinstance(cls(), Method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().anything = 1


@pytest.mark.parametrize("name", METHODS)
def test_a_score_does_not_depend_on_its_neighbours(name):
    together = scores(name, SAMPLES)
    alone = [scores(name, [single])[0] for single in SAMPLES]
    # float32 central differences keep 3 to 4 digits, and padding changes the order of sums
    np.testing.assert_allclose(together, alone, rtol=2e-2)


@pytest.mark.parametrize("name", METHODS)
def test_order_is_kept(name):
    forward, backward = scores(name, SAMPLES), scores(name, SAMPLES[::-1])
    np.testing.assert_allclose(forward, backward[::-1], rtol=2e-2)
    assert len(set(forward)) == len(forward)


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_gives_the_same_bits(name):
    assert scores(name, SAMPLES, 3) == scores(name, SAMPLES, 3)


@pytest.mark.parametrize("name", METHODS)
def test_the_proxy_is_left_as_found(name):
    model = proxy().model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    scores(name, SAMPLES)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]
    assert not model.training


def test_a_sample_that_cannot_be_scored_has_a_reason_and_the_others_their_score():
    broken = ImageRef(b"\x89PNG\r\n broken", "broken.png")
    bad = Sample("bad", 1, (Turn("user", (broken, "What is it?")), Turn("assistant", ("7",))))
    records = method_class("one_step")().prepare(default_setting())([SAMPLES[0], bad, SAMPLES[1]])
    assert records[1].score is None
    assert "broken.png" in records[1].reason
    np.testing.assert_allclose([records[0].score, records[2].score], scores("one_step", SAMPLES[:2]), rtol=2e-2)
