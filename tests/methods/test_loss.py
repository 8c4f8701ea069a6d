"""Loss and perplexity against one sample at a time in float64."""

import dataclasses
import math

import pytest
import torch

from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods.loss import Loss
from onesteptrain.proxy import LoadOptions, load_proxy
from tests.building import checkpoint
from tests.methods.brute_force import BROKEN, SAMPLES, oracle, wide_proxy


def test_the_loss_is_the_mean_over_the_answer_tokens_of_all_turns():
    records = Loss(batch_size=3).prepare(Setting(wide_proxy()))(SAMPLES)
    for row, record in zip(SAMPLES, records, strict=True):
        # float64 but for the norms of the model, which compute in float32: their rounding differs with padding
        assert record.columns["loss"] == pytest.approx(oracle().loss(row).item(), rel=1e-6)
        assert record.columns["answer_tokens"] == len(oracle().answer_logits(row)[1])


def test_the_perplexity_is_that_of_the_loss_and_the_score_follows_the_preferred_end():
    low = Loss().prepare(Setting(wide_proxy()))(SAMPLES)
    high = Loss(prefer="high").prepare(Setting(wide_proxy()))(SAMPLES)
    for row, other in zip(low, high, strict=True):
        assert row.score == -row.columns["loss"]
        assert other.score == other.columns["loss"]
        assert row.columns["perplexity"] == math.exp(row.columns["loss"])


def test_a_sample_that_cannot_be_encoded_has_its_reason_and_leaves_the_others_alone():
    scorer = Loss().prepare(Setting(wide_proxy()))
    records = scorer([SAMPLES[0], BROKEN, SAMPLES[1]])
    assert records[1].score is None
    assert "broken.png" in records[1].reason
    assert [records[0], records[2]] == scorer(SAMPLES[:2])
    assert scorer([]) == []


def test_a_loss_that_is_not_finite_is_a_reason():
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))
    with torch.no_grad():
        proxy.model.lm_head.weight[0, 0] = torch.nan
    record = Loss().prepare(Setting(proxy))(SAMPLES[:1])[0]
    assert record.score is None
    assert "its loss is nan" in record.reason


def test_a_loss_beyond_the_range_of_the_perplexity_keeps_its_score():
    record = Loss()._record(wide_proxy().encoder.encode(SAMPLES[1]), 1e4)
    assert (record.score, record.columns["perplexity"]) == (-1e4, None)


def test_options_and_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="batch_size is 0"):
        dataclasses.replace(Loss(), batch_size=0)
    with pytest.raises(ConfigError, match="'loss' needs a proxy"):
        Loss().prepare(Setting())
