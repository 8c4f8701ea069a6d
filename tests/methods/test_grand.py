"""GraNd against one backward pass at a time in float64."""

import pytest
import torch

from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods.grand import Grand
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.utility.gradients import gradient_norm
from tests.building import checkpoint
from tests.methods.brute_force import BROKEN, SAMPLES, oracle, wide_proxy


@pytest.mark.parametrize("scope", ["all", "last"])
def test_grand_is_the_length_of_the_gradient_over_the_parameters_in_scope(scope):
    proxy = wide_proxy(scope)
    records = Grand().prepare(Setting(proxy))(SAMPLES)
    for row, record in zip(SAMPLES, records, strict=True):
        gradient = oracle().gradient(row)
        squares = [float(value.square().sum()) for name, value in gradient.items() if name in proxy.parameters]
        # the same float64 passes but for the norms of the model in float32
        assert record.columns["grand"] == pytest.approx(sum(squares) ** 0.5, rel=1e-6)
        assert record.columns["loss"] == pytest.approx(oracle().loss(row).item(), rel=1e-6)
        assert record.score == record.columns["grand"]


def test_the_length_sums_squares_in_float64():
    # in float32 the sum would stop growing at 2**24, and a square of 1e-30 would be 0
    ones = torch.ones(2**24 + 2**20)
    assert gradient_norm({"a": ones}) == pytest.approx((2**24 + 2**20) ** 0.5, rel=1e-12)
    assert gradient_norm({"a": torch.full((4,), 1e-30)}) == pytest.approx(2e-30, rel=1e-6)
    assert gradient_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0


def test_batches_give_the_lengths_of_samples_alone():
    together, alone = (
        [record.score for record in Grand(batch_size=size).prepare(Setting(wide_proxy()))(SAMPLES)] for size in (8, 1)
    )
    assert together == pytest.approx(alone, rel=1e-9)  # float64 sums in another order
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Grand(batch_size=0)


def test_the_score_follows_the_preferred_end():
    high, low = (Grand(prefer=end).prepare(Setting(wide_proxy()))(SAMPLES[:2]) for end in ("high", "low"))
    assert [record.score for record in low] == [-record.score for record in high]


def test_samples_that_cannot_be_encoded_or_have_no_finite_gradient_have_reasons():
    records = Grand().prepare(Setting(wide_proxy()))([BROKEN, SAMPLES[1]])
    assert "broken.png" in records[0].reason
    assert records[1].score is not None
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))
    with torch.no_grad():
        proxy.model.lm_head.weight[0, 0] = torch.nan
    assert "the loss is nan" in Grand().prepare(Setting(proxy))(SAMPLES[:1])[0].reason
