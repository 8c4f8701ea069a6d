"""EL2N against one sample at a time in float64, and against closed forms."""

import math

import pytest
import torch

from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods.el2n import El2n
from onesteptrain.proxy import AnswerLogits, LoadOptions, load_proxy
from onesteptrain.utility.answers import token_error
from tests.building import checkpoint
from tests.methods.brute_force import BROKEN, SAMPLES, oracle, wide_proxy


def error_of(one) -> float:
    logits, tokens = oracle().answer_logits(one)
    errors = [
        (row.softmax(-1) - torch.nn.functional.one_hot(token, len(row))).square().sum().sqrt()
        for row, token in zip(logits.detach(), tokens, strict=True)
    ]
    return float(sum(errors) / len(errors))


def test_el2n_is_the_mean_length_of_chances_minus_one_hot():
    records = El2n(batch_size=3).prepare(Setting(wide_proxy()))(SAMPLES)
    for one, record in zip(SAMPLES, records, strict=True):
        # float64 but for the norms of the model, which compute in float32: their rounding differs with padding
        assert record.columns["el2n"] == pytest.approx(error_of(one), rel=1e-6)
        assert record.columns["loss"] == pytest.approx(oracle().loss(one).item(), rel=1e-6)
        assert record.score == record.columns["el2n"]


def found(logits: list[list[float]], target: list[int], kind=torch.float64) -> AnswerLogits:
    values = torch.tensor(logits, dtype=kind)
    return AnswerLogits(values, torch.tensor(target), torch.zeros(len(target), dtype=torch.long), [len(target)])


def test_the_error_of_equal_chances_and_of_a_certain_mistake_are_as_by_hand():
    errors = token_error(found([[0.0] * 4, [0.0, 1000.0, 0.0, 0.0]], [2, 0]))
    # 3 chances of 1/4 and one error of 3/4; all on the wrong token: the distance of two corners
    assert errors.tolist() == pytest.approx([math.sqrt(3 / 16 + 9 / 16), math.sqrt(2)], rel=1e-12)


def test_the_error_of_a_nearly_certain_token_keeps_its_digits_in_float32():
    rest = math.exp(-18.0)  # the chance of each other token, over 1 to 2e-8: 1 - p would be 0 in float32
    (error,) = token_error(found([[18.0, 0.0, 0.0]], [0], torch.float32)).tolist()
    assert error == pytest.approx(math.sqrt((2 * rest) ** 2 + 2 * rest**2), rel=1e-5)  # float32 has 7 digits


def test_the_score_follows_the_preferred_end():
    high = El2n().prepare(Setting(wide_proxy()))(SAMPLES)
    low = El2n(prefer="low").prepare(Setting(wide_proxy()))(SAMPLES)
    assert [record.score for record in low] == [-record.score for record in high]


def test_samples_that_cannot_be_encoded_or_have_no_finite_loss_have_reasons():
    records = El2n().prepare(Setting(wide_proxy()))([BROKEN, SAMPLES[1]])
    assert "broken.png" in records[0].reason
    assert records[1].score is not None
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))
    with torch.no_grad():
        proxy.model.lm_head.weight[0, 0] = torch.nan
    assert "its loss is nan" in El2n().prepare(Setting(proxy))(SAMPLES[:1])[0].reason


def test_options_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="batch_size is 0"):
        El2n(batch_size=0)
