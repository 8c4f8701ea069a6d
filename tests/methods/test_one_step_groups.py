"""The utilities by groups of anchors, by passes and by one gradient a row, against brute force and each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import CROSSOVER, OneStep
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.utility.per_sample import Measured
from tests.building import checkpoint, sample
from tests.methods.test_one_step import column, proxy, scored, setting
from tests.oracles import BruteForce

GROUPS = "abcd"
ANCHORS = [sample(row, group=GROUPS[row % 3 if row % 5 else 3]) for row in range(30, 39)]
"""Groups of unlike size."""

SAMPLES = [sample(row, images=row % 3) for row in range(5)]
STEP_SIZE = OneStep().step_size
# float64; what is left is the float32 in which the norms of the model compute, in forward mode and backwards alike
CLOSE = {"rtol": 1e-4, "atol": 1e-10}


def by_group(samples=SAMPLES, anchors=ANCHORS, **options) -> dict[str, np.ndarray]:
    records = scored(samples, anchors, group_by="group", **options)
    return {name: column(records, f"utility.{name}") for name in GROUPS}


def gradient(oracle: BruteForce, samples) -> torch.Tensor:
    oracle.model.zero_grad()
    (sum(oracle.loss(one) for one in samples) / len(samples)).backward()
    return torch.cat([(0 * p if p.grad is None else p.grad).flatten() for p in oracle.model.parameters()]).detach()


def test_a_group_measures_by_the_inner_product_with_its_gradient():
    oracle = BruteForce(checkpoint("qwen3_vl"))
    rows = [gradient(oracle, [one]) for one in SAMPLES]
    found = by_group(group_route="gradient")
    for name in GROUPS:
        anchors = gradient(oracle, [one for one in ANCHORS if one.fields["group"] == name])
        wanted = STEP_SIZE * np.array([float(row @ anchors) for row in rows])
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-12)  # float64 but for the norms


def test_both_routes_give_the_same_records():
    passes, grads = (scored(SAMPLES, ANCHORS, group_by="group", group_route=one) for one in ("passes", "gradient"))
    for one, other in zip(passes, grads, strict=True):
        assert set(one.columns) == set(other.columns)
        for name, value in one.columns.items():
            assert other.columns[name] == pytest.approx(value, rel=CLOSE["rtol"], abs=CLOSE["atol"]), name


def test_the_utility_is_the_mean_of_the_groups_weighted_by_their_shares():
    for estimator, tolerance in (("jvp", 1e-4), ("fd", 1e-3)):  # central differences keep fewer digits
        method = OneStep(estimator, group_by="group", group_route="gradient")
        records = method.prepare(setting(ANCHORS))(SAMPLES)
        shares = {name: np.mean([one.fields["group"] == name for one in ANCHORS]) for name in GROUPS}
        mean = sum(shares[name] * column(records, f"utility.{name}") for name in GROUPS)
        scale = np.abs(mean).max()
        np.testing.assert_allclose(column(records, "utility"), mean, rtol=tolerance, atol=tolerance * scale)


def test_the_route_is_chosen_by_the_number_of_groups():
    def scorer(anchors, **options):
        return OneStep("jvp", group_by="group", reference_folds=0, **options).prepare(setting(anchors))

    few = [one for one in ANCHORS if one.fields["group"] in GROUPS[: CROSSOVER - 1]]
    enough = [one for one in ANCHORS if one.fields["group"] in GROUPS[:CROSSOVER]]
    assert scorer(few).by_gradient is None
    assert len(scorer(few).directions.groups) == CROSSOVER - 1
    assert scorer(enough).by_gradient.names == list(GROUPS[:CROSSOVER])
    assert [one.name for one in scorer(enough).directions.groups] == [""]
    assert scorer(few, group_route="gradient").by_gradient is not None
    assert scorer(enough, group_route="passes").by_gradient is None
    alone = OneStep("jvp", reference_folds=0, group_route="gradient").prepare(setting(ANCHORS))
    assert alone.by_gradient is None  # there is no group to measure


def test_intervals_stand_beside_groups_on_either_route():
    passes, grads = (
        scored(SAMPLES, ANCHORS, group_by="group", group_route=one, intervals=3) for one in ("passes", "gradient")
    )
    for name in ("utility", "harm", "harm_low", "utility_high", *(f"utility.{group}" for group in GROUPS)):
        np.testing.assert_allclose(column(grads, name), column(passes, name), rtol=1e-3, atol=1e-9)


def test_anchors_as_reference_need_no_groups():
    grouped = OneStep("jvp", group_by="group", group_route="gradient", reference_folds=3).prepare(setting(ANCHORS))
    plain = OneStep("jvp", reference_folds=3).prepare(setting(ANCHORS))
    for (one, found), (other, wanted) in zip(grouped.reference().anchors, plain.reference().anchors, strict=True):
        assert one.uid == other.uid
        assert found.score == pytest.approx(wanted.score, rel=1e-4)
        assert not any(name.startswith("utility.") for name in found.columns)


def test_adams_step_is_the_same_on_either_route(tmp_path):
    generator = torch.Generator().manual_seed(0)
    moments = {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1
        for name, value in proxy().parameters.items()
    }
    save_file(moments, tmp_path / "moments.safetensors")
    warm = dataclasses.replace(setting(ANCHORS), second_moments=tmp_path / "moments.safetensors")
    found = {}
    for route in ("passes", "gradient"):
        method = OneStep("jvp", optimizer="adam", group_by="group", group_route=route)
        found[route] = method.prepare(warm)(SAMPLES)
    plain = by_group(group_route="gradient")
    for name in GROUPS:
        column_name = f"utility.{name}"
        np.testing.assert_allclose(
            column(found["gradient"], column_name), column(found["passes"], column_name), **CLOSE
        )
        assert not np.allclose(column(found["gradient"], column_name), plain[name], rtol=0.1)


def test_bfloat16_takes_the_gradient_route():
    half = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions("cpu", "bfloat16"))
    found = OneStep(group_by="group").prepare(Setting(half, ANCHORS))(SAMPLES)
    wanted = by_group(group_route="gradient")
    for name in GROUPS:
        mine = column(found, f"utility.{name}")
        assert np.linalg.norm(mine - wanted[name]) < 0.05 * np.linalg.norm(wanted[name])  # eight bits a number


def test_a_gradient_that_cannot_be_used_is_a_reason_and_the_others_have_their_score(monkeypatch):
    scorer = OneStep("jvp", group_by="group", reference_folds=0).prepare(setting(ANCHORS))
    wanted = scorer(SAMPLES)
    from onesteptrain.methods.one_step import extras

    measure = extras.per_sample

    def spoilt(*arguments, **options):
        found = measure(*arguments, **options)
        found[1] = found[1]._replace(numbers=found[1].numbers * torch.inf)
        found[2] = Measured(0.0, found[2].numbers, "it does not fit")
        return found

    monkeypatch.setattr(extras, "per_sample", spoilt)
    records = scorer(SAMPLES)
    assert "gradient is not finite" in records[1].reason
    assert records[2].reason == "it does not fit"
    assert [records[place] for place in (0, 3, 4)] == [wanted[place] for place in (0, 3, 4)]


def test_exact_steps_know_no_route():
    passes, grads = (
        OneStep("exact", group_by="group", group_route=one).prepare(setting(ANCHORS))(SAMPLES[:1])
        for one in ("passes", "gradient")
    )
    assert passes == grads
