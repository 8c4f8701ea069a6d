"""What an answer counts in the loss: flags of messages and rows, in scores and in training alike."""

from __future__ import annotations

import dataclasses
import functools
import re

import datasets
import pytest
import torch

from onesteptrain.data.corruption import corrupt
from onesteptrain.data.pool import Sample, Turn, Unreadable, open_pool, text_of
from onesteptrain.errors import SampleError
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.reporting.diagnosis.texts import load_quoter
from onesteptrain.training import FinetuneOptions, finetune
from onesteptrain.training.warmup import StateKeeper
from onesteptrain.utility import exact_utility, measure_anchors, token_derivatives
from onesteptrain.utility.answers import answer_means, token_loss
from tests.building import checkpoint, sample
from tests.oracles import BruteForce
from tests.pool_files import write_jsonl

FIRST, SECOND = "I do not want to say.", "It is seven.\nThe answer is 7."


def row(first=None, second=None, **columns):
    """Two exchanges, with flags for the first and for the second answer."""
    said = [("user", "How many?", {}), ("assistant", FIRST, first or {})]
    said += [("user", "Please do.", {}), ("assistant", SECOND, second or {})]
    return {"messages": [{"role": role, "content": text, **flags} for role, text, flags in said], **columns}


def read(tmp_path, *rows):
    return list(open_pool(write_jsonl(tmp_path / "pool.jsonl", rows)))


def weights_of(one):
    assert isinstance(one, Sample), one
    return [turn.weight for turn in one.turns if turn.role == "assistant"]


def dialogue(*weights, unlearned=(), uid="d", images=1):
    """The same two exchanges as a sample."""
    turns = [Turn("user", (*sample(0, images=images).images, "How many?")), Turn("assistant", (FIRST,), weights[0])]
    turns += [Turn("user", ("Please do.",)), Turn("assistant", (SECOND,), weights[1], tuple(unlearned))]
    return Sample(uid, 0, tuple(turns))


@functools.cache
def proxy():
    return load_proxy(checkpoint(), ScopeOptions("all"), LoadOptions(dtype="float64"))


@functools.cache
def brute_force():
    return BruteForce(checkpoint())


def losses(*samples):
    encoded = [proxy().encoder.encode(one) for one in samples]
    with torch.no_grad():
        return proxy().token_losses(proxy().batch(encoded))


def mean_of(one):
    return float(losses(one).means())


def manual_losses(one):
    """Losses of the tokens of both answers, by slices of one plain pass."""
    upto = [dataclasses.replace(one, turns=one.turns[: place + 1]) for place in (1, 3)]
    return [brute_force().token_losses(each) for each in upto]


# --- reading


@pytest.mark.parametrize(
    ("flags", "weight"),
    [
        ({"loss": False}, 0),  # ms-swift
        ({"loss": True}, 1),
        ({"loss_scale": 0.25}, 0.25),
        ({"loss": True, "loss_scale": 2.0}, 2),
        ({"loss": False, "loss_scale": 2.0}, 0),
        ({"weight": 0}, 0),  # OpenAI
        ({"weight": 1}, 1),
        ({"weight": 3}, 3),
        ({"train": False}, 0),  # axolotl
        ({"train": True}, 1),
        ({"training": False}, 0),
        ({"loss_weight": 0.5}, 0.5),  # LLaMA-Factory
        ({"trainable": False}, 0),
        ({"loss_mask": 0}, 0),
        ({"loss": "false"}, 0),
        ({"train": "True"}, 1),
        ({"weight": "0"}, 0),
        ({"weight": " 0.5 "}, 0.5),
        ({"loss": None, "weight": "", "train": float("nan")}, 1),  # no values, as columns of tables have them
        ({"train_detail": []}, 1),
        ({"note": 0, "losses": False}, 1),
    ],
)
def test_a_flag_of_an_answer_is_its_weight(flags, weight, tmp_path):
    (one,) = read(tmp_path, row(flags))
    assert weights_of(one) == [weight, 1]


@pytest.mark.parametrize("flags", [{"loss": False}, {"train": True}, {"weight": "much"}, {"loss_scale": -1}])
def test_flags_of_questions_say_nothing(flags, tmp_path):
    asked = row()
    for message in asked["messages"]:
        if message["role"] == "user":
            message.update(flags)
    (one,) = read(tmp_path, asked)
    assert weights_of(one) == [1, 1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"loss_scale": -1}, "message 4 has loss_scale -1; a loss weight is true, false, or a number from 0"),
        ({"weight": float("inf")}, "message 4 has weight inf"),
        ({"weight": 10**400}, "message 4 has weight 1000"),
        ({"weight": "nan"}, "message 4 has weight 'nan'"),
        ({"loss": "maybe"}, "message 4 has loss 'maybe'"),
        ({"loss": [True]}, r"message 4 has loss \[True\]"),
        ({"train_detail": [{"begin_offset": 3, "train": True}]}, "each needs begin_offset and end_offset"),
        ({"train_detail": [{"begin_offset": 3, "end_offset": 2, "train": True}]}, "each needs begin_offset"),
        ({"train_detail": "x"}, "message 4 has train_detail 'x'"),
    ],
)
def test_a_flag_that_means_nothing_is_a_reason(flags, words, tmp_path):
    bad, good = read(tmp_path, row(None, flags), row())
    assert isinstance(bad, Unreadable)
    assert re.search(words, bad.reason)
    assert weights_of(good) == [1, 1]


@pytest.mark.parametrize(
    "nothing",
    [
        row({"loss": False}, {"weight": 0}),
        row({"train": False}, {"train_detail": [{"begin_offset": 0, "end_offset": 5, "train": False}]}),
        row(weight=0),
    ],
)
def test_a_row_with_nothing_left_to_learn_has_a_reason(nothing, tmp_path):
    (bad,) = read(tmp_path, nothing)
    assert isinstance(bad, Unreadable)
    assert "nothing is left to learn" in bad.reason


def test_the_weight_of_a_row_is_a_factor_of_its_answers_weights(tmp_path):
    plain, half, other = read(tmp_path, row(weight=1), row({"loss_scale": 3}, weight=0.5), row(weight="3 kg"))
    assert [weights_of(one) for one in (plain, half, other)] == [[1, 1], [1.5, 0.5], [1, 1]]
    (bad,) = read(tmp_path, row(weight=-2))
    assert "the row has weight -2" in bad.reason


def test_flags_are_read_from_any_format_and_container(tmp_path):
    sharegpt = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "No.", "weight": 0}] * 2}
    sharegpt["conversations"][3] = {"from": "gpt", "value": "Seven."}
    completion = {"prompt": row()["messages"][:3], "completion": row(None, {"loss_scale": 0.5})["messages"][3:]}
    asked = {**row({"loss": False}), "system": "Be brief."}
    assert [weights_of(read(tmp_path, one)[0]) for one in (sharegpt, completion, asked)] == [[0, 1], [0, 0.5], [0, 1]]
    table = datasets.Dataset.from_list([row({"loss": False}), row(None, {"loss": True})])  # the others become null
    assert [weights_of(one) for one in open_pool(table)] == [[0, 1], [1, 1]]


# --- scoring


def test_weight_0_leaves_an_answer_as_context_alone():
    """Against the loss that transformers computes on the same ids, with labels of -100 elsewhere."""
    one = dialogue(0, 1)
    inputs, first, end = brute_force()._inputs(one)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, first:end] = inputs["input_ids"][0, first:end]
    with torch.no_grad():
        wanted = float(brute_force().model(**inputs, labels=labels).loss)
    # transformers takes the loss in float32: its round-off is 6e-8
    assert mean_of(one) == pytest.approx(wanted, rel=1e-6)
    ours, manual = losses(one).loss, manual_losses(one)[1]
    torch.testing.assert_close(ours, manual, rtol=1e-9, atol=1e-9)  # float64 round-off of two orders of sums


def test_weights_of_one_change_no_bit():
    encoded = [proxy().encoder.encode(one) for one in (dialogue(1, 1), sample(1), sample(2, images=2))]
    assert all(one.weight is None for one in encoded)
    ones = [one._replace(weight=one.answer.float()) for one in encoded]
    plain, weighed = (proxy().token_losses(proxy().batch(batch)) for batch in (encoded, ones))
    assert torch.equal(plain.loss, weighed.loss)
    assert torch.equal(plain.means(), weighed.means())


def test_only_the_shares_of_the_weights_matter_in_the_mean_of_a_row():
    assert mean_of(dialogue(1, 0.25)) == mean_of(dialogue(2, 0.5))  # powers of 2: the same bits
    assert mean_of(dialogue(8, 8)) == mean_of(dialogue(1, 1))
    pair = losses(dialogue(1, 0.25), dialogue(1, 1)).means()  # and a neighbour's weights do not
    assert pair.tolist() == pytest.approx([mean_of(dialogue(1, 0.25)), mean_of(dialogue(1, 1))], rel=1e-12)


def test_the_loss_of_a_row_is_the_mean_of_its_tokens_by_their_weights():
    first, second = (each.detach() for each in manual_losses(dialogue(1, 1)))
    wanted = (0.3 * first.sum() + 2 * second.sum()) / (0.3 * len(first) + 2 * len(second))
    one = dialogue(0.3, 2)
    assert mean_of(one) == pytest.approx(float(wanted), rel=1e-7)  # weights are kept in float32
    encoded = [proxy().encoder.encode(each) for each in (one, dialogue(0, 1))]
    means = answer_means(proxy(), encoded, [token_loss], batch_size=2)[:, 0]
    assert means.tolist() == pytest.approx([float(wanted), float(second.mean())], rel=1e-7)


class Weighted(BruteForce):
    """Takes the mean of the tokens of two answers by weights of one's own; others are plain."""

    def loss(self, one, model=None):
        if one.uid != "d":
            return super().loss(one, model)
        upto = [dataclasses.replace(one, turns=one.turns[: place + 1]) for place in (1, 3)]
        first, second = (self.token_losses(each, model) for each in upto)
        return (0.25 * first.sum() + 2 * second.sum()) / (0.25 * len(first) + 2 * len(second))


@pytest.mark.parametrize("estimator", ["exact", "jvp", "fd"])
def test_the_utility_is_that_of_a_step_on_the_weighted_loss(estimator):
    one, anchors, step_size = dialogue(0.25, 2), [sample(row) for row in (20, 21)], 1e-4
    wanted = Weighted(checkpoint()).utility(one, anchors, step_size)
    encoded = [proxy().encoder.encode(each) for each in (one, *anchors)]
    groups = measure_anchors(proxy(), {"": encoded[1:]}, preconditioner={}, batch_size=2, keep=True)
    if estimator == "exact":
        got = float(exact_utility(proxy(), encoded[0], groups, step_size=step_size, preconditioner={}).falls[0])
        assert got == pytest.approx(wanted, rel=1e-6)  # a difference of losses of 1e-5 of their size, in float64
        return
    (record,) = token_derivatives(
        proxy(), encoded[:1], [groups[0].direction], estimator=estimator, epsilons=[1e-4], batch_size=1
    )
    # a first-order estimate of a step of 1e-4 is off by its second order, about as large a share
    assert step_size * float(record.derivative.mean()) == pytest.approx(wanted, rel=1e-2)


def test_anchors_count_by_their_weights_too():
    groups = measure_anchors(
        proxy(), {"": [proxy().encoder.encode(dialogue(0, 1))]}, preconditioner={}, batch_size=1, keep=True
    )
    second = manual_losses(dialogue(1, 1))[1].detach()
    assert groups[0].loss == pytest.approx(float(second.mean()), rel=1e-9)  # round-off


# --- a part of an answer


def test_all_but_one_token_out_of_the_loss_is_the_loss_of_that_token():
    whole = losses(dialogue(0, 1)).loss
    places = load_quoter(checkpoint())(dialogue(0, 1))
    shift = len(FIRST) + 1
    for place in (0, 2, len(places) - 2):
        start, end = places[place].start - shift, places[place].end - shift
        alone = dialogue(0, 1, unlearned=[(0, start), (end, len(SECOND) + 1)])
        assert losses(alone).loss.tolist() == pytest.approx([float(whole[place])], rel=1e-12)  # the same pass


def test_a_range_beyond_the_text_takes_the_end_of_turn_mark_along():
    whole = losses(dialogue(0, 1)).loss
    assert torch.equal(losses(dialogue(0, 1, unlearned=[(len(SECOND), len(SECOND) + 1)])).loss, whole[:-1])
    assert torch.equal(losses(dialogue(0, 1, unlearned=[(0, len(SECOND))])).loss, whole[-1:])
    with pytest.raises(SampleError, match="nothing is left to learn"):
        proxy().encoder.encode(dialogue(0, 1, unlearned=[(0, len(SECOND) + 1)]))


def test_train_detail_learns_what_it_names_as_axolotl_does(tmp_path):
    details = [(0, 2, True), (3, 11, False), (13, 15, True), (16, 90, False)]  # ends are the last character
    named = [{"begin_offset": start, "end_offset": end, "train": train} for start, end, train in details]
    (one,) = read(tmp_path, row({"loss": False}, {"train_detail": named}))
    encoded = proxy().encoder.encode(one)
    ids = encoded.inputs["input_ids"][0][encoded.answer]
    text = proxy().encoder.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert (SECOND[:3], SECOND[13:16]) == ("It ", "The")
    assert "".join(text.split()) == "ItThe"


@pytest.mark.parametrize("weights", [(1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("unlearned", [[], [(3, 12)]])
def test_places_in_the_text_are_those_of_the_tokens_in_the_loss(weights, unlearned):
    one = dialogue(*weights, unlearned=unlearned)
    encoded = proxy().encoder.encode(one)
    places = load_quoter(checkpoint())(one)
    assert len(places) == int(encoded.answer.sum())
    answer, tokenizer = text_of(one, "assistant"), proxy().encoder.processor.tokenizer
    read = "".join(answer[place.start : place.end] for place in places)
    wanted = tokenizer.decode(encoded.inputs["input_ids"][0][encoded.answer], skip_special_tokens=True)
    assert "".join(read.split()) == "".join(wanted.split())


def test_anchors_are_corrupted_in_an_answer_that_is_learned():
    turns = dialogue(1, 1).turns
    anchor = Sample("a", 0, (*turns[:2], turns[2], dataclasses.replace(turns[3], weight=0)))
    swapped = Sample("a", 0, (turns[0], turns[3], turns[2], dataclasses.replace(turns[1], weight=0)))
    for own, learned in ((anchor, FIRST), (swapped, SECOND)):
        for copy in corrupt([own, sample(1), sample(2)], count=30):
            if copy.anchor == "a" and copy.span is not None:
                assert copy.sample.turns[3] == own.turns[3]
                assert copy.sample.turns[1].text != learned
                assert 0 <= copy.span[0] <= copy.span[1] <= len(copy.sample.turns[1].text)


# --- training


def test_training_takes_the_first_step_on_the_weighted_mean_over_the_step(tmp_path):
    rows = [dialogue(0, 1), dialogue(0.25, 4), sample(1), dialogue(1, 1, unlearned=[(3, 12)], images=0)]
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trained = load_proxy(checkpoint(), ScopeOptions("all"), LoadOptions(dtype="float64"))
        keeper = StateKeeper(trained, tmp_path, 0)
        options = FinetuneOptions(
            steps=1, batch_size=batch_size, gradient_accumulation=accumulation, max_grad_norm=0, learning_rate=1e-12
        )
        encoded = [trained.encoder.encode(one) for one in rows]
        result = finetune(trained, encoded, options, callbacks=[keeper])
        mean = manual_step_loss(trained, encoded)
        assert result.losses == pytest.approx([float(mean)], rel=1e-7)  # weights are float32
        gradients = torch.autograd.grad(mean, list(trained.parameters.values()), allow_unused=True)
        for name, gradient in zip(trained.parameters, gradients, strict=True):
            # after one step Adam's second moment, bias removed, is the squared gradient
            wanted = torch.zeros_like(keeper.second_moments[name]) if gradient is None else gradient.square()
            # norms of the model compute in float32, so that a gradient is right to some 1e-7 of the largest
            least = 1e-6 * float(wanted.max())
            torch.testing.assert_close(keeper.second_moments[name], wanted, rtol=1e-3, atol=least)


def manual_step_loss(trained, encoded):
    """Sum of weight times loss over sum of weights, by a plain pass over each row."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for one in encoded:
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in one.inputs.items()}
        chances = trained.model(**inputs).logits[0, :-1].log_softmax(-1)
        each = -chances.gather(1, one.inputs["input_ids"][0, 1:, None])[:, 0]
        weight = (one.answer.double() if one.weight is None else one.weight.double())[1:]
        total, weights = total + (weight * each).sum(), weights + float(weight.sum())
    return total / weights


def test_training_with_weights_of_one_is_training_without_bit_for_bit():
    results = []
    for weigh in (False, True):
        trained = load_proxy(checkpoint(), ScopeOptions("last", last_layers=1))
        encoded = [trained.encoder.encode(one) for one in (dialogue(1, 1), sample(1))]
        if weigh:
            encoded = [one._replace(weight=one.answer.float()) for one in encoded]
        results.append(finetune(trained, encoded, FinetuneOptions(steps=2, batch_size=2)).losses)
    assert results[0] == results[1]
