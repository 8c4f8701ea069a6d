"""Warm-up: what is drawn, what is written, and that it reads back as what was trained."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from onesteptrain.data.pool import Unreadable, open_pool
from onesteptrain.errors import ConfigError, ModelError, PoolError, RunError
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, locate_checkpoints
from onesteptrain.methods.loss import Loss
from onesteptrain.proxy import ScopeOptions, load_proxy
from onesteptrain.storage.ownership import MARKER
from onesteptrain.training import FinetuneOptions, WarmupOptions, draw, warm_up
from onesteptrain.utility import read_preconditioner
from onesteptrain.utility.checkpoints import read_checkpoint
from tests.building import write_pool

TRAINING = FinetuneOptions(steps=3, batch_size=2, learning_rate=1e-3)
SCOPES = ["all", "last", "lora"]


def rows_of(make_sample, count):
    return [make_sample(row, "What is it?", f"The answer is {row}.") for row in range(count)]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_warmed_up_proxy_reads_back_with_the_same_losses_and_moments(tiny_checkpoint, make_sample, tmp_path, scope):
    options = ScopeOptions(scope, last_layers=1)
    proxy = load_proxy(tiny_checkpoint, options)
    cold = load_proxy(tiny_checkpoint, options)
    samples = rows_of(make_sample, 4)
    result = warm_up(proxy, samples, WarmupOptions(share=1.0, finetune=TRAINING), tmp_path / "warm")
    back = load_proxy(result.folder / "model", options)
    encoded = [proxy.encoder.encode(sample) for sample in samples]
    again = [back.encoder.encode(sample) for sample in samples]
    with torch.no_grad():
        trained, read = (p.token_losses(p.batch(e)).loss for p, e in ((proxy, encoded), (back, again)))
        assert torch.equal(trained, read)
        assert not torch.equal(trained, cold.token_losses(cold.batch(encoded)).loss)
    assert list(back.parameters) == list(proxy.parameters)
    diagonal = read_preconditioner(result.folder / "second_moments.safetensors", back)
    moments = load_file(result.folder / "second_moments.safetensors")
    assert set(moments) == set(proxy.parameters)
    for name, value in diagonal.items():
        torch.testing.assert_close(value, 1 / (moments[name].sqrt() + 1e-8))


def test_drawing_depends_on_seed_and_uid_and_not_on_order_or_neighbours():
    pool = [Unreadable(f"row-{number}", number, "") for number in range(4000)]
    drawn = {row.uid for row in draw(pool, 0.05, seed=0)}
    shuffled = random.Random(0).sample(pool, len(pool))
    assert {row.uid for row in draw(shuffled, 0.05, seed=0)} == drawn
    assert {row.uid for row in draw(pool[::2], 0.05, seed=0)} == drawn & {row.uid for row in pool[::2]}
    assert drawn < {row.uid for row in draw(pool, 0.1, seed=0)}  # a larger share adds rows
    other = {row.uid for row in draw(pool, 0.05, seed=1)}
    assert len(drawn & other) < 40  # 10 expected of two independent draws; 40 is nine standard deviations off
    assert abs(len(drawn) - 200) < 70  # binomial: five standard deviations of 13.8


def test_drawing_goes_through_the_pool_row_by_row():
    def endless():
        number = 0
        while True:
            yield Unreadable(f"row-{number}", number, "")
            number += 1

    assert next(draw(endless(), 0.01, seed=0)).uid


def test_rows_that_cannot_be_used_are_counted_with_their_reasons(tiny_checkpoint, make_sample, tmp_path):
    rows = [*rows_of(make_sample, 2), Unreadable("bad", 2, "pool.jsonl:3: no turns")]
    proxy = load_proxy(tiny_checkpoint, ScopeOptions("last", last_layers=1))
    result = warm_up(proxy, rows, WarmupOptions(share=1.0, finetune=TRAINING), tmp_path / "warm")
    assert (result.drawn, result.used, result.refused) == (3, 2, {"bad": "pool.jsonl:3: no turns"})
    facts = json.loads((tmp_path / "warm" / "warmup.json").read_text())
    assert facts["reasons"] == [["pool.jsonl:3: no turns", 1]]
    assert facts["losses"] == result.losses
    assert facts["options"]["share"] == 1.0


def test_a_pool_that_gives_no_usable_row_is_refused_and_nothing_is_written(tiny_checkpoint, tmp_path):
    proxy = load_proxy(tiny_checkpoint, ScopeOptions("last", last_layers=1))
    with pytest.raises(PoolError, match="draws no row"):
        warm_up(proxy, [], WarmupOptions(), tmp_path / "warm")
    with pytest.raises(PoolError, match="none of the 1 rows drawn can be used, such as 'bad': broken"):
        warm_up(proxy, [Unreadable("bad", 0, "broken")], WarmupOptions(share=1.0), tmp_path / "warm")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_warm_up_is_only_replaced_when_asked(tiny_checkpoint, make_sample, tmp_path):
    proxy = load_proxy(tiny_checkpoint, ScopeOptions("last", last_layers=1))
    options = WarmupOptions(share=1.0, finetune=TRAINING)
    warm_up(proxy, rows_of(make_sample, 2), options, tmp_path / "warm")
    before = (tmp_path / "warm" / "warmup.json").read_text()
    with pytest.raises(RunError, match="exists"):
        warm_up(proxy, rows_of(make_sample, 2), options, tmp_path / "warm")
    assert (tmp_path / "warm" / "warmup.json").read_text() == before
    warm_up(proxy, rows_of(make_sample, 2), options, tmp_path / "warm", overwrite=True)
    assert (tmp_path / "warm" / "warmup.json").read_text() != before


@pytest.mark.parametrize("scope", ["all", "lora"])
def test_checkpoints_are_evenly_spaced_states_of_the_same_training(tiny_checkpoint, make_sample, tmp_path, scope):
    options = ScopeOptions(scope, last_layers=1)
    plain, kept = (load_proxy(tiny_checkpoint, options) for _ in range(2))
    training = replace(TRAINING, steps=7, schedule="linear", rise_share=0)
    rows = rows_of(make_sample, 4)
    warm_up(plain, rows, WarmupOptions(share=1.0, finetune=training), tmp_path / "plain")
    warm_up(kept, rows, WarmupOptions(share=1.0, finetune=training, checkpoints=3), tmp_path / "kept")
    folders = locate_checkpoints(str(tmp_path / "kept"))
    checkpoints = [read_checkpoint(folder, kept) for folder in folders]
    assert [folder.name for folder in folders] == ["3", "5", "7"]  # thirds of 7, rounded up
    assert [one.step for one in checkpoints] == [3, 5, 7]
    rates = [1e-3 * (1 - step / 7) for step in range(7)]  # a linear fall from the peak
    means = [sum(rates[:3]) / 3, sum(rates[3:5]) / 2, sum(rates[5:]) / 2]
    assert [one.learning_rate for one in checkpoints] == pytest.approx(means, rel=1e-12)  # float64 round-off
    moments = load_file(tmp_path / "kept" / "second_moments.safetensors")
    for name, value in kept.parameters.items():
        assert torch.equal(value, plain.parameters[name])  # to keep states changes nothing
        assert torch.equal(value, checkpoints[-1].weights[name])
        assert torch.equal(checkpoints[-1].second_moments[name] / (1 - 0.999**7), moments[name])
    assert any((one.first_moments[name] < 0).any() for one in checkpoints for name in kept.parameters)
    assert all((one.second_moments[name] >= 0).all() for one in checkpoints for name in kept.parameters)
    assert not torch.equal(*(torch.cat([v.flatten() for v in one.weights.values()]) for one in checkpoints[:2]))


def test_without_checkpoints_a_warm_up_keeps_none(tiny_checkpoint, make_sample, tmp_path):
    proxy = load_proxy(tiny_checkpoint, ScopeOptions("last", last_layers=1))
    warm_up(proxy, rows_of(make_sample, 2), WarmupOptions(share=1.0, finetune=TRAINING), tmp_path / "warm")
    assert {path.name for path in (tmp_path / "warm").iterdir()} == {
        MARKER,
        "model",
        "second_moments.safetensors",
        "warmup.json",
    }
    assert locate_checkpoints(str(tmp_path / "warm")) == []


def test_more_checkpoints_than_steps_are_refused_and_nothing_is_written(tiny_checkpoint, make_sample, tmp_path):
    proxy = load_proxy(tiny_checkpoint, ScopeOptions("last", last_layers=1))
    options = WarmupOptions(share=1.0, finetune=TRAINING, checkpoints=4)
    with pytest.raises(ConfigError, match="4 checkpoints were asked for and the warm-up has 3 steps"):
        warm_up(proxy, rows_of(make_sample, 2), options, tmp_path / "warm")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="checkpoints is -1"):
        WarmupOptions(checkpoints=-1)


def test_a_setting_made_from_a_warm_up_has_its_checkpoints_in_the_order_of_their_steps(
    tiny_checkpoint, make_sample, tmp_path
):
    scope = ScopeOptions("last", last_layers=1)
    options = WarmupOptions(share=1.0, finetune=replace(TRAINING, steps=11), checkpoints=11)
    warm_up(load_proxy(tiny_checkpoint, scope), rows_of(make_sample, 2), options, tmp_path / "warm")
    request = ScoreRequest(
        open_pool(write_pool(tmp_path, 1)), Loss(), proxy=ProxyOptions(str(tmp_path / "warm"), scope)
    )
    setting = request.setting([])
    assert [int(folder.name) for folder in setting.checkpoints] == list(range(1, 12))  # 10 comes after 9
    broken = setting.checkpoints[0]
    (broken / "first_moments.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no first_moments\.safetensors"):
        read_checkpoint(broken, setting.proxy)
