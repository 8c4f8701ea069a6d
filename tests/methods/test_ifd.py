"""IFD against its formula, one sample at a time in float64."""

import dataclasses
import math

import pytest
import torch

from onesteptrain.data.pool import Turn
from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods.ifd import Ifd, _divide, without_questions
from onesteptrain.proxy import LoadOptions, load_proxy
from tests.building import checkpoint
from tests.methods.brute_force import BROKEN, SAMPLES, oracle, wide_proxy


def losses_of(row) -> tuple[float, float]:
    """The answer's loss with its question, and after empty user turns."""
    turns = tuple(Turn("user", ("",)) if turn.role == "user" else turn for turn in row.turns if turn.role != "system")
    return oracle().loss(row).item(), oracle().loss(dataclasses.replace(row, turns=turns)).item()


@pytest.mark.parametrize("ratio", ["loss", "perplexity"])
def test_ifd_is_the_ratio_of_the_answer_with_and_without_its_question(ratio):
    records = Ifd(ratio=ratio, batch_size=3, max_ifd=math.inf).prepare(Setting(wide_proxy()))(SAMPLES)
    for row, record in zip(SAMPLES, records, strict=True):
        asked, alone = losses_of(row)
        wanted = asked / alone if ratio == "loss" else math.exp(asked) / math.exp(alone)
        # float64 but for the norms of the model, which compute in float32: their rounding differs with padding
        assert record.columns["ifd"] == pytest.approx(wanted, rel=1e-6)
        assert record.columns["loss"] == pytest.approx(asked, rel=1e-6)
        assert record.columns["loss_alone"] == pytest.approx(alone, rel=1e-6)
        assert record.score == record.columns["ifd"]


def test_rows_above_the_limit_rank_below_all_others_the_furthest_last():
    free = Ifd(max_ifd=math.inf).prepare(Setting(wide_proxy()))(SAMPLES)
    ifds = sorted(record.score for record in free)
    limit = (ifds[1] + ifds[2]) / 2  # two below, three above
    records = Ifd(max_ifd=limit).prepare(Setting(wide_proxy()))(SAMPLES)
    ranked = sorted(records, key=lambda record: -record.score)
    assert [record.columns["ifd"] for record in ranked] == [ifds[1], ifds[0], *ifds[2:]]
    assert [record.score for record in ranked] == [ifds[1], ifds[0], *(-ifd for ifd in ifds[2:])]


def test_the_answer_alone_has_the_same_tokens_and_neither_question_nor_image_nor_system_turn():
    for row in SAMPLES:
        alone = without_questions(row)
        assert not alone.images
        assert {turn.text for turn in alone.turns if turn.role == "user"} == {""}
        assert {turn.role for turn in alone.turns} == {"user", "assistant"}
        encoder = wide_proxy().encoder
        both = [encoder.encode(sample) for sample in (row, alone)]
        answers = [row.inputs["input_ids"][0][row.answer] for row in both]
        assert torch.equal(*answers)


def test_ratios_that_are_no_finite_number_are_nan():
    assert math.isnan(_divide(1.0, 0.0, "loss"))
    assert math.isnan(_divide(1e4, 1.0, "perplexity"))
    assert _divide(2.0, 4.0, "loss") == 0.5
    assert _divide(2.0, 2.0 - math.log(3.0), "perplexity") == pytest.approx(3.0, rel=1e-12)


def test_samples_that_cannot_be_encoded_or_have_no_ratio_have_reasons():
    records = Ifd().prepare(Setting(wide_proxy()))([BROKEN, SAMPLES[1]])
    assert "broken.png" in records[0].reason
    assert records[1].score is not None
    proxy = load_proxy(checkpoint("qwen3_vl"), options=LoadOptions(max_tokens=4096))
    with torch.no_grad():
        proxy.model.lm_head.weight[0, 0] = torch.nan
    assert "have no ratio" in Ifd().prepare(Setting(proxy))(SAMPLES[:1])[0].reason


def test_options_that_cannot_work_are_refused():
    for options in ({"batch_size": 0}, {"max_ifd": 0.0}, {"max_ifd": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Ifd(**options)
