"""Fine-tuning: the loss, the order, the steps and the moments are what they are said to be."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from onesteptrain.data.pool import Unreadable
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.training import Encodings, FinetuneOptions, encode_all, finetune, sample_order
from onesteptrain.training.trainer import Ledger
from onesteptrain.training.warmup import StateKeeper

ROWS = 6


@pytest.fixture
def load(tiny_checkpoint):
    def loaded(scope="all", dtype="float32"):
        return load_proxy(tiny_checkpoint, ScopeOptions(scope, last_layers=1), LoadOptions(dtype=dtype))

    return loaded


@pytest.fixture
def encode(make_sample):
    """Samples of unlike length, with none, one or two images."""

    def encoded(proxy, rows=ROWS):
        samples = [
            make_sample(row, "What is it?", "It is seven. " * (1 + row % 3) + f"The answer is {row}.", images=row % 3)
            for row in range(rows)
        ]
        return [proxy.encoder.encode(sample) for sample in samples]

    return encoded


def weights(proxy):
    return {name: value.detach().clone() for name, value in proxy.model.named_parameters()}


def test_the_first_loss_is_the_mean_over_all_answer_tokens_of_the_step(load, encode):
    proxy = load(dtype="float64")
    samples = encode(proxy)
    one_by_one = torch.cat([proxy.token_losses(proxy.batch([sample])).loss for sample in samples]).detach()
    for batch_size, accumulation in [(6, 1), (3, 2), (2, 3), (1, 6)]:
        options = FinetuneOptions(
            steps=1, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=1e-12
        )
        result = finetune(load(dtype="float64"), samples, options)
        # padding and the order of sums change float64 results by round-off only
        assert result.losses == pytest.approx([float(one_by_one.mean())], rel=1e-9)


def test_accumulated_small_batches_train_as_one_large_batch_does(load, encode):
    trained = []
    for batch_size, accumulation in [(6, 1), (2, 3)]:
        proxy = load(dtype="float64")
        options = FinetuneOptions(
            steps=3, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=1e-3, rise_share=0
        )
        finetune(proxy, encode(proxy), options)
        trained.append(weights(proxy))
    for name, value in trained[0].items():
        # Adam divides by the root of v, which magnifies float64 round-off of 1e-16 where gradients are near epsilon
        torch.testing.assert_close(value, trained[1][name], rtol=1e-5, atol=1e-9)


def test_the_weights_are_those_of_stock_trl_with_its_own_loss(load, encode, tmp_path):
    options = FinetuneOptions(steps=3, batch_size=3, learning_rate=1e-3, schedule="constant", rise_share=0)
    proxy, stock = load(), load()
    samples = encode(proxy)
    losses = finetune(proxy, samples, options).losses
    order = sample_order(ROWS, 9, seed=options.seed)

    def labelled(rows):
        batch = stock.batch([samples[row["at"]] for row in rows])
        return {**batch.inputs, "labels": batch.inputs["input_ids"].masked_fill(~batch.answer, -100)}

    settings = {"bf16": False, "use_cpu": True, "activation_checkpointing": False, "report_to": "none"}
    trainer = SFTTrainer(
        stock.model,
        SFTConfig(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=3,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            logging_steps=1,
            **settings,
        ),
        data_collator=labelled,
        train_dataset=Dataset.from_dict({"at": order}),
        processing_class=stock.encoder.processor,
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(theirs, rel=1e-4)  # float32, other order of sums
    for name, value in weights(proxy).items():
        # Adam's move is at most the rate a step, and depends on round-off where the gradient is near zero
        torch.testing.assert_close(value, weights(stock)[name], rtol=1e-3, atol=3e-5)


def adam_by_hand(proxy, samples, options, steps):
    """AdamW without decay, as its paper writes it, at a constant rate and without clipping."""
    order = sample_order(len(samples), steps * options.batch_size, seed=options.seed)
    first = {name: torch.zeros_like(value) for name, value in proxy.parameters.items()}
    second = {name: torch.zeros_like(value) for name, value in proxy.parameters.items()}
    for step in range(1, steps + 1):
        rows = order[(step - 1) * options.batch_size : step * options.batch_size]
        loss = proxy.token_losses(proxy.batch([samples[row] for row in rows])).loss.mean()
        named = list(proxy.parameters.items())
        grads = torch.autograd.grad(loss, [value for _, value in named], allow_unused=True)
        for (name, value), grad in zip(named, grads, strict=True):
            if grad is None:
                continue
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            move = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            value.data -= options.learning_rate * move
    return {name: value / (1 - 0.999**steps) for name, value in second.items()}


def test_weights_and_second_moments_follow_adam_written_by_hand(load, encode, tmp_path):
    options = FinetuneOptions(
        steps=4, batch_size=2, learning_rate=1e-3, schedule="constant", rise_share=0, max_grad_norm=0
    )
    proxy, oracle = load(dtype="float64"), load(dtype="float64")
    samples = encode(proxy)
    keeper = StateKeeper(proxy, tmp_path, 0)
    finetune(proxy, samples, options, callbacks=[keeper])
    wanted = adam_by_hand(oracle, samples, options, steps=4)
    assert list(keeper.second_moments) == list(proxy.parameters)
    for name, value in wanted.items():
        # the same recursion in float64: fused kernels order the sums differently
        torch.testing.assert_close(keeper.second_moments[name], value, rtol=1e-6, atol=1e-16)
        torch.testing.assert_close(proxy.parameters[name].data, oracle.parameters[name].data, rtol=1e-6, atol=1e-9)


def test_protocol_b_takes_its_steps_and_sees_every_row_equally_often(load, encode):
    proxy = load("last")
    result = finetune(proxy, encode(proxy, 3), FinetuneOptions(steps=7, batch_size=2))
    assert result.steps == len(result.losses) == 7
    seen = Counter(sample_order(3, 14, seed=0))
    assert set(seen.values()) <= {4, 5}  # 14 rows of 3


def test_protocol_a_takes_steps_in_proportion_to_the_rows(load, encode):
    proxy = load("last")
    for rows, epochs, steps in [(6, 1, 3), (3, 1, 2), (6, 0.5, 2), (3, 2, 3)]:
        result = finetune(proxy, encode(proxy, rows), FinetuneOptions(epochs=epochs, batch_size=2))
        assert result.steps == len(result.losses) == steps


def test_tokens_are_counted_without_padding(load, encode):
    proxy = load("last")
    samples = encode(proxy)
    result = finetune(proxy, samples, FinetuneOptions(epochs=2, batch_size=4))
    assert result.tokens == 2 * sum(sample.tokens for sample in samples)


def test_the_order_depends_on_the_seed_alone(load, encode):
    proxy = load("last")
    samples = encode(proxy)
    options = FinetuneOptions(steps=6, batch_size=1, learning_rate=1e-12)
    first = finetune(proxy, samples, options).losses
    torch.rand(3), random.random(), np.random.rand()
    assert finetune(proxy, samples, options).losses == pytest.approx(first, rel=1e-4)  # float32 at unmoved weights
    alone = [proxy.token_losses(proxy.batch([sample])).loss.mean().item() for sample in samples]
    assert first == pytest.approx([alone[row] for row in sample_order(ROWS, 6, seed=0)], rel=1e-4)
    assert sample_order(ROWS, 6, seed=0) != sample_order(ROWS, 6, seed=1)
    assert sorted(sample_order(ROWS, 12, seed=3)[6:]) == list(range(ROWS))


def test_only_the_scope_moves_and_all_else_is_left_as_found(load, encode):
    proxy = load("last")
    before, cache = weights(proxy), proxy.model.config.to_dict()
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    options = FinetuneOptions(steps=2, batch_size=2, learning_rate=1e-2, gradient_checkpointing=True)
    finetune(proxy, encode(proxy), options)
    moved = {name for name, value in proxy.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= set(proxy.parameters)
    assert proxy.model.config.to_dict() == cache
    assert not proxy.model.training
    assert not proxy.model.is_activation_checkpointing
    assert all(value.grad is None for value in proxy.model.parameters())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.random.get_state()[1].tolist() == states[2]


def test_gradient_checkpointing_changes_memory_and_nothing_else(load, encode):
    losses = []
    for checkpointing in (False, True):
        proxy = load(dtype="float64")
        options = FinetuneOptions(steps=3, batch_size=3, learning_rate=1e-3, gradient_checkpointing=checkpointing)
        losses.append(finetune(proxy, encode(proxy), options).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)  # the same sums, in float64


def test_autocast_computes_in_bfloat16_and_leaves_the_weights_in_float32(load, encode):
    proxy, plain = load(), load()
    samples = encode(proxy)
    options = {"steps": 1, "batch_size": 6, "learning_rate": 1e-3}
    half = finetune(proxy, samples, FinetuneOptions(**options, autocast="bfloat16")).losses[0]
    full = finetune(plain, samples, FinetuneOptions(**options)).losses[0]
    assert half != full
    assert half == pytest.approx(full, rel=2**-7)  # the precision of bfloat16
    assert {value.dtype for value in proxy.parameters.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_the_training_before_the_weights_are_touched(load, encode):
    proxy = load()
    samples = encode(proxy)
    with torch.no_grad():
        next(iter(proxy.parameters.values())).fill_(float("nan"))
    before = weights(proxy)
    with pytest.raises(ScoreError, match="step 1 is nan; lower the learning rate"):
        finetune(proxy, samples, FinetuneOptions(steps=3, batch_size=2))
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(weights(proxy).values(), before.values(), strict=True)
    )
    assert not proxy.model.training


def test_a_training_that_was_cut_off_ends_with_the_same_weights(load, encode, tmp_path):
    options = FinetuneOptions(steps=10, batch_size=2, learning_rate=1e-3)

    class CutError(Exception):
        pass

    def cut(step, steps):
        if step == 5:
            raise CutError

    whole, resumed = load(), load()
    samples = encode(whole)
    expected = finetune(whole, samples, options)
    with pytest.raises(CutError):
        finetune(load(), samples, options, workdir=tmp_path, progress=cut)
    result = finetune(resumed, samples, options, workdir=tmp_path)
    assert (result.losses, result.tokens) == (expected.losses, expected.tokens)  # those before the cut included
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_nothing_is_printed_and_no_file_is_left(load, encode, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    proxy = load("last")
    samples = encode(proxy)
    capfd.readouterr()
    finetune(proxy, samples, FinetuneOptions(steps=2, batch_size=2))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_every_step(load, encode):
    told = []
    proxy = load("last")
    finetune(proxy, encode(proxy), FinetuneOptions(steps=3, batch_size=2), progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"epochs": 0.0}, {"batch_size": 0}, {"learning_rate": float("nan")}, {"rise_share": 1.0}],
)
def test_options_that_cannot_work_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FinetuneOptions(**wrong)


def test_nothing_to_train_on_is_refused(load):
    with pytest.raises(ConfigError, match="nothing to train on"):
        finetune(load("last"), [], FinetuneOptions())


def test_samples_that_do_not_fit_in_memory_are_encoded_again_to_the_same_tensors(load, make_sample):
    proxy = load("last")
    samples = [make_sample(row, "What is it?", f"The answer is {row}.") for row in range(3)]
    roomy, tight = (Encodings(proxy.encoder, memory_gigabytes=room) for room in (4.0, 0.0))
    assert not any(encodings.add(sample) for encodings in (roomy, tight) for sample in samples)
    for kept, again in zip(roomy, tight, strict=True):
        assert torch.equal(kept.answer, again.answer)
        assert all(torch.equal(value, again.inputs[name]) for name, value in kept.inputs.items())
    assert roomy[0] is roomy[0]
    assert tight[0] is not tight[0]


def test_rows_that_cannot_be_encoded_are_left_out_with_their_reasons(load, make_sample):
    proxy = load("last")
    rows = [make_sample(0, "What?", "8"), Unreadable("u1", 1, "no turns"), make_sample(2, "What?", " ")]
    encodings, refused = encode_all(proxy.encoder, rows)
    assert len(encodings) == 1
    assert refused["u1"] == "no turns"
    assert set(refused) == {"u1", rows[2].uid}


def test_a_checkpoint_that_was_cut_off_while_it_was_written_is_passed_over(load, encode, tmp_path):
    options = FinetuneOptions(steps=10, batch_size=2, learning_rate=1e-3)

    class CutError(Exception):
        pass

    def cut(step, steps):
        if step == 5:
            raise CutError

    samples = encode(load())
    with pytest.raises(CutError):
        finetune(load(), samples, options, workdir=tmp_path, progress=cut)
    torn = tmp_path / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of the weights")
    seen = []
    proxy, whole = load(), load()
    finetune(proxy, samples, options, workdir=tmp_path, progress=lambda at, _: seen.append(at))
    finetune(whole, samples, options)
    assert seen == [5, 6, 7, 8, 9, 10]
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(proxy).items())


def test_the_time_for_checkpoints_is_not_counted_as_training(load, encode, tmp_path, monkeypatch):
    proxy = load("language")
    clock = iter(range(10_000))  # every look at the clock is a second
    monkeypatch.setattr("onesteptrain.training.trainer.time.perf_counter", lambda: float(next(clock)))
    ledger = Ledger(proxy, [], None)
    ledger.open(tmp_path)
    before = ledger.seconds
    with ledger.paused():
        for _ in range(50):
            next(clock)
    assert ledger.seconds - before < 5
