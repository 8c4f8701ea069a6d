"""LESS against a float64 loop that trains with torch's AdamW itself and compares whole gradients."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from onesteptrain.errors import AnchorError, ConfigError, ModelError
from onesteptrain.jobs.scoring import locate_checkpoints
from onesteptrain.methods import Setting
from onesteptrain.methods.less import Less
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.training import FinetuneOptions, WarmupOptions, sample_order, warm_up
from onesteptrain.utility.checkpoints import read_checkpoint
from onesteptrain.utility.gradients import adam_update
from onesteptrain.utility.sketch import make_sketch
from tests.building import checkpoint, sample
from tests.methods.brute_force import BROKEN, SAMPLES, Oracle

STEPS, BATCH, RATE = 4, 2, 1e-3
POOL = [sample(row, images=row % 2) for row in range(50, 55)]
ANCHORS = [sample(row, images=1, group="ab"[row % 2]) for row in range(60, 65)]
TRAINING = FinetuneOptions(
    steps=STEPS, batch_size=BATCH, learning_rate=RATE, schedule="linear", rise_share=0, max_grad_norm=0
)


@functools.cache
def warm_setting(scope: str = "all") -> Setting:
    """A float64 warm-up with checkpoints after steps 2 and 4, and a proxy at its end."""
    proxy = load_proxy(checkpoint("qwen3_vl"), ScopeOptions(scope, last_layers=1), LoadOptions("cpu", "float64"))
    folder = Path(tempfile.mkdtemp(prefix="ost-less-")) / "warm"
    warm_up(proxy, POOL, WarmupOptions(share=1.0, finetune=TRAINING, checkpoints=2), folder)
    return Setting(proxy, ANCHORS, checkpoints=locate_checkpoints(str(folder)))


class State:
    """The model of the oracle at one checkpoint, with Adam's state."""

    def __init__(self, trained: Oracle, optimizer: torch.optim.AdamW, rate: float) -> None:
        self.weights = {name: value.detach().clone() for name, value in trained.model.named_parameters()}
        self.moments = {
            name: {key: value.clone() for key, value in optimizer.state.get(parameter, {}).items()}
            for name, parameter in trained.model.named_parameters()
        }
        self.rate = rate


@functools.cache
def trained_by_hand() -> tuple[Oracle, tuple[State, ...]]:
    """Train with torch's AdamW at the rates of a linear fall, and stop to look after steps 2 and 4."""
    oracle = Oracle(checkpoint("qwen3_vl"))
    optimizer = torch.optim.AdamW(oracle.model.parameters(), lr=RATE, weight_decay=0.0)
    order = sample_order(len(POOL), STEPS * BATCH, seed=0)
    states, rates = [], []
    for step in range(STEPS):
        rates.append(RATE * (1 - step / STEPS))
        optimizer.param_groups[0]["lr"] = rates[-1]
        batch = [oracle.answer_logits(POOL[row]) for row in order[step * BATCH : (step + 1) * BATCH]]
        logits, tokens = (torch.cat(parts) for parts in zip(*batch, strict=True))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, tokens).backward()
        optimizer.step()
        if step % 2:
            states.append(State(oracle, optimizer, sum(rates[-2:]) / 2))
    return oracle, tuple(states)


def update_by_hand(gradient: dict, state: State) -> dict:
    """What LESS calls the Adam gradient, for the parameters that have one."""
    found = {}
    for name, value in gradient.items():
        first = 0.9 * state.moments[name]["exp_avg"] + 0.1 * value
        second = 0.999 * state.moments[name]["exp_avg_sq"] + 0.001 * value**2
        found[name] = first / (second + 1e-8) ** 0.5
    return found


def cosine(one: dict, other: dict) -> float:
    product = sum(float((one[name] * other[name]).sum()) for name in one.keys() & other.keys())
    lengths = [sum(float(value.square().sum()) for value in vector.values()) ** 0.5 for vector in (one, other)]
    return product / (lengths[0] * lengths[1])


@functools.cache
def similarities_by_hand(scope: str = "all") -> np.ndarray:
    """Weighted cosine of each sample with each anchor."""
    oracle, states = trained_by_hand()
    wanted = set(warm_setting(scope).proxy.parameters)
    total = np.zeros((len(SAMPLES), len(ANCHORS)))
    for state in states:
        oracle.model.load_state_dict(state.weights, strict=False)

        def gradient(one):
            return {name: value for name, value in oracle.gradient(one).items() if name in wanted}

        anchors = [gradient(anchor) for anchor in ANCHORS]
        updates = [update_by_hand(gradient(one), state) for one in SAMPLES]
        share = state.rate / sum(other.rate for other in states)
        total += share * np.array([[cosine(update, anchor) for anchor in anchors] for update in updates])
    return total


def scores(method: Less, setting: Setting | None = None) -> np.ndarray:
    return np.array([record.score for record in method.prepare(setting or warm_setting())(SAMPLES)])


# Both trainings are float64, but the norms of the model compute in float32 inside it: should their rounding differ,
# gradients are off by 1e-7, and what they become in Adam by a little more.
TIGHT = 1e-6


def test_scores_without_projection_are_those_of_a_loop_that_trains_with_torch_itself():
    np.testing.assert_allclose(scores(Less(dimensions=0)), similarities_by_hand().mean(1), atol=TIGHT)


def test_a_warm_up_keeps_the_weights_and_moments_of_torchs_adam():
    _, states = trained_by_hand()
    setting = warm_setting()
    for folder, state in zip(setting.checkpoints, states, strict=True):
        found = read_checkpoint(folder, setting.proxy)
        assert found.learning_rate == pytest.approx(state.rate, rel=1e-12)
        for name, weight in found.weights.items():
            torch.testing.assert_close(weight, state.weights[name], rtol=0, atol=TIGHT * RATE)
            zeros = torch.zeros_like(weight)  # where no step gave a gradient
            moments = state.moments[name]
            largest = max(float(value.abs().max()) for value in (zeros, *moments.values()) if value.ndim)
            for mine, key in ((found.first_moments, "exp_avg"), (found.second_moments, "exp_avg_sq")):
                torch.testing.assert_close(mine[name], moments.get(key, zeros), rtol=TIGHT, atol=TIGHT * largest)


def test_the_score_is_the_largest_of_the_groups_mean_similarities():
    records = Less(group_by="group", dimensions=0).prepare(warm_setting())(SAMPLES)
    groups = np.array([anchor.fields["group"] for anchor in ANCHORS])
    by_hand = np.stack([similarities_by_hand()[:, groups == name].mean(1) for name in "ab"], axis=1)
    found = np.array([[record.columns[f"similarity.{name}"] for name in "ab"] for record in records])
    np.testing.assert_allclose(found, by_hand, atol=TIGHT)
    assert [record.score for record in records] == found.max(1).tolist()
    assert np.abs(found[:, 0] - found[:, 1]).min() > 100 * TIGHT  # the groups can be told apart


def test_errors_of_the_projection_stay_within_the_johnson_lindenstrauss_bound():
    exact = scores(Less(dimensions=0))
    dimensions = 1024
    errors = np.array(
        [
            scores(Less(dimensions=dimensions), dataclasses.replace(warm_setting(), seed=seed)) - exact
            for seed in range(4)
        ]
    )
    # to first order a projected cosine of c has a standard deviation of (1 - c**2) / sqrt(k) at most, and a mean of
    # such cosines no more; 4 draws of 5 samples each stay within 4 of them
    deviation = 1 / np.sqrt(dimensions)
    assert np.abs(errors).max() < 4 * deviation
    assert errors.std() > deviation / 10  # there is a projection at all


def test_batches_give_the_scores_of_samples_alone():
    # a sample without a picture takes no step in the vision tower, whoever stands beside it
    assert not all(one.images for one in SAMPLES)
    together, alone = (scores(Less(dimensions=1024, batch_size=size)) for size in (8, 1))
    np.testing.assert_allclose(together, alone, rtol=0, atol=TIGHT)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Less(batch_size=0)


def test_the_loss_is_that_at_the_end_of_the_warm_up():
    oracle, states = trained_by_hand()
    oracle.model.load_state_dict(states[-1].weights, strict=False)
    records = Less().prepare(warm_setting())(SAMPLES)
    wanted = [oracle.loss(one).item() for one in SAMPLES]
    assert [record.columns["loss"] for record in records] == pytest.approx(wanted, rel=1e-6)  # float32 norms


@pytest.mark.parametrize("scope", ["last", "lora"])
def test_checkpoints_of_other_scopes_fit_their_proxy(scope):
    setting = warm_setting(scope)
    found = scores(Less(dimensions=0), setting)
    assert np.abs(found).max() <= 1 + 1e-12
    assert len(set(found)) == len(SAMPLES)
    with pytest.raises(ModelError, match="warm up with the same --scope"):
        Less().prepare(dataclasses.replace(warm_setting(), checkpoints=setting.checkpoints))


def test_weights_are_the_same_bits_afterwards_also_where_a_sample_fails():
    cold = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions("cpu", "float64"))
    setting = dataclasses.replace(warm_setting(), proxy=cold)  # its weights are those of no checkpoint
    before = {name: value.detach().clone() for name, value in setting.proxy.model.named_parameters()}
    scorer = Less().prepare(setting)
    records = scorer([SAMPLES[0], BROKEN, SAMPLES[1]])
    assert "broken.png" in records[1].reason
    assert [records[0], records[2]] == scorer(SAMPLES[:2])
    assert all(torch.equal(before[name], value) for name, value in setting.proxy.model.named_parameters())
    assert scorer([]) == []


def test_a_loss_that_is_not_finite_is_a_reason_that_names_the_checkpoint():
    scorer = Less().prepare(warm_setting())
    (stage, *_) = scorer.stages
    next(value for name, value in stage.checkpoint.weights.items() if "embed_tokens" in name).fill_(torch.nan)
    (record,) = scorer(SAMPLES[:1])
    assert record.score is None
    assert record.reason.startswith("at step 2 of the warm-up the loss is nan")


def test_a_setting_that_cannot_work_is_refused(tmp_path):
    setting = warm_setting()
    with pytest.raises(ConfigError, match="ost warmup --checkpoints"):
        Less().prepare(dataclasses.replace(setting, checkpoints=()))
    with pytest.raises(ConfigError, match="needs anchors"):
        Less().prepare(dataclasses.replace(setting, anchors=()))
    with pytest.raises(ConfigError, match="dimensions is -1"):
        Less(dimensions=-1)
    with pytest.raises(AnchorError, match="has no column 'topic'"):
        Less(group_by="topic").prepare(setting)
    with pytest.raises(AnchorError, match=r"'bad' cannot be used: .*broken\.png"):
        Less().prepare(dataclasses.replace(setting, anchors=[BROKEN]))
    with pytest.raises(ModelError, match=r"has no checkpoint\.json"):
        Less().prepare(dataclasses.replace(setting, checkpoints=[tmp_path]))


def test_adam_update_is_torchs_own_step_but_for_bias_and_epsilon():
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=1.0, eps=0.0)
    for _ in range(3):
        parameter.grad = torch.randn(50, generator=generator, dtype=torch.float64)
        optimizer.step()
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    gradient = torch.randn(50, generator=generator, dtype=torch.float64)
    before = parameter.detach().clone()
    parameter.grad = gradient
    optimizer.step()
    found = adam_update({"w": gradient}, {"w": state["exp_avg"]}, {"w": state["exp_avg_sq"]})["w"]
    unbiased = found * (1 - 0.999**4) ** 0.5 / (1 - 0.9**4)
    # epsilon of 1e-8 under the root, beside squares of about 1e-3
    torch.testing.assert_close(before - parameter.detach(), unbiased, rtol=1e-3, atol=0)


def test_a_sketch_is_the_signed_sum_that_its_places_say():
    sketch = make_sketch(23, 5, seed=3, device=torch.device("cpu"))
    vector = torch.arange(1.0, 24.0, dtype=torch.float64)
    by_hand = torch.zeros(5, dtype=torch.float64)
    for block in range(5):
        for dimension in range(5):
            coordinate = 5 * block + int(sketch.places[block, dimension])
            if coordinate < 23:
                by_hand[dimension] += vector[coordinate] * sketch.signs[block, coordinate % 5]
    assert torch.equal(sketch(vector), by_hand)  # sums of whole numbers are exact


def test_inner_products_of_sketches_are_unbiased_and_have_the_variance_of_a_dense_projection():
    generator = torch.Generator().manual_seed(0)
    size, dimensions, draws = 400, 16, 4000
    one, other = 0.5 + torch.randn(2, size, generator=generator, dtype=torch.float64)  # signs of its own do not cancel
    one[::dimensions] *= 3  # what stands at the same place of each block is large, as in the columns of a matrix
    other[::dimensions] *= 3
    products = [float(make(one) @ make(other)) for make in sketches(size, dimensions, draws)]
    # a dense matrix of signs has the variance of all pairs of coordinates over k; here those of one block never meet
    pairs = torch.outer(one.square(), other.square()) + torch.outer(one * other, one * other)
    block = torch.arange(size) // dimensions
    variance = float(pairs[block[:, None] != block].sum()) / dimensions
    # four standard errors of a mean
    assert np.mean(products) == pytest.approx(float(one @ other), abs=4 * (variance / draws) ** 0.5)
    # a variance from n normal draws has a relative standard error of sqrt(2 / n) = 2.2 %; more with heavy tails
    assert np.var(products) == pytest.approx(variance, rel=0.12)


def sketches(size: int, dimensions: int, draws: int):
    return (make_sketch(size, dimensions, seed=seed, device=torch.device("cpu")) for seed in range(draws))


def test_a_sketch_with_room_for_all_coordinates_keeps_inner_products_exactly():
    sketch = make_sketch(30, 64, seed=0, device=torch.device("cpu"))
    vectors = torch.arange(60.0).view(2, 30)
    assert float(sketch(vectors[0]) @ sketch(vectors[1])) == float(vectors[0] @ vectors[1])


def test_a_sketch_depends_on_its_seed_and_works_in_slabs(monkeypatch):
    vector = torch.arange(1000.0)
    draws = [make_sketch(1000, 8, seed=seed, device=torch.device("cpu"))(vector) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    monkeypatch.setattr("onesteptrain.utility.sketch._COORDINATES_AT_ONCE", 20)
    assert torch.equal(make_sketch(1000, 8, seed=0, device=torch.device("cpu"))(vector), draws[0])
