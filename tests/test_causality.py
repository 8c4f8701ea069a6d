"""Padding counts as tokens where a model sees nothing that follows a token, and is hidden where it does."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy, prepare
from onesteptrain.proxy.acceleration.inputs import continued
from onesteptrain.proxy.acceleration.plan import without_mask
from onesteptrain.proxy.encoding import collate
from onesteptrain.utility import exact_utility, measure_anchors, token_derivatives
from tests.building import ARCHITECTURES, checkpoint, sample

SAMPLES = [sample(row, images=1) for row in range(6)]
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""Another kernel adds in another order; logits are of size 1."""


def fresh(architecture: str = "internvl", scope: str = "all") -> Proxy:
    return load_proxy(checkpoint(architecture), ScopeOptions(scope, last_layers=1), LoadOptions(max_tokens=4096))


def encoded(proxy: Proxy) -> list:
    """Of several lengths, so that a batch of them is padded."""
    found = [proxy.encoder.encode(one) for one in SAMPLES]
    assert len({one.tokens for one in found}) > 1
    return found


def masks(proxy: Proxy, work) -> list[torch.Tensor]:
    """The masks that a model is handed."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs["attention_mask"])

    hook = proxy.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        work()
    finally:
        hook.remove()
    return seen


@contextlib.contextmanager
def hidden(proxy: Proxy):
    """As if nothing had been found out, for batches made here."""
    known = dict(proxy.probes.causal.known)
    proxy.probes.causal.known.update(dict.fromkeys(known, False))
    try:
        yield
    finally:
        proxy.probes.causal.known.update(known)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_counts_as_tokens_and_no_logit_changes(architecture):
    proxy = fresh(architecture)
    samples = encoded(proxy)
    batch = prepare(proxy, samples)
    with torch.no_grad():
        found = proxy.answer_logits(batch)
        wanted = proxy.answer_logits(batch._replace(plan=batch.plan._replace(unmasked=False)))
        alone = torch.cat([proxy.answer_logits(prepare(proxy, [one])).logits for one in samples])
    torch.testing.assert_close(found.logits, wanted.logits, **ROUNDING)
    torch.testing.assert_close(found.logits, alone, **ROUNDING)
    assert not batch.inputs["attention_mask"].all()  # the batch itself still says what is padding
    assert all(mask.all() for mask in masks(proxy, lambda: proxy.token_losses(batch)))


def test_language_attention_is_asked_for_without_a_mask(monkeypatch):
    proxy, given = fresh(), []
    batch = prepare(proxy, encoded(proxy))
    attention = nn.functional.scaled_dot_product_attention

    def noting(*args, attn_mask=None, is_causal=False, **more):
        given.append((attn_mask is None, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noting)
    with torch.no_grad():
        proxy.token_losses(batch)
    layers = len(proxy.model.get_decoder().layers)
    assert given[-layers:] == [(True, True)] * layers


@pytest.mark.parametrize("estimator", ["fd", "jvp"])
@pytest.mark.parametrize("scope", ["all", "last"])
def test_derivatives_are_those_under_a_mask(estimator, scope):
    proxy = fresh(scope=scope)
    generator = torch.Generator().manual_seed(0)
    direction = {name: 0.05 * torch.randn(one.shape, generator=generator) for name, one in proxy.parameters.items()}
    samples = encoded(proxy)

    def derivatives() -> torch.Tensor:
        records = token_derivatives(proxy, samples, [direction], estimator=estimator, epsilons=[1e-2], batch_size=6)
        return torch.cat([record.derivative.flatten() for record in records])

    found = derivatives()
    with hidden(proxy):
        wanted = derivatives()
    # a central difference keeps three to four digits of losses of size 5
    torch.testing.assert_close(found, wanted, rtol=1e-2 if estimator == "fd" else 1e-4, atol=1e-3 * float(wanted.std()))


def test_exact_steps_are_those_under_a_mask():
    proxy = fresh()
    samples = encoded(proxy)

    def utility() -> float:
        (group,) = measure_anchors(proxy, {"": samples[1:]}, preconditioner={}, batch_size=5, keep=True)
        return float(exact_utility(proxy, samples[0], [group], step_size=0.5, preconditioner={})[1])

    found = utility()
    with hidden(proxy):
        wanted = utility()
    assert found == pytest.approx(wanted, rel=1e-3)  # a difference of losses of size 5 that is itself a hundredth


class LooksAhead(nn.Module):
    """A part that mixes a sample's tokens with those behind them."""

    def __init__(self, inner: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner(tokens + self.share * tokens.mean(1, keepdim=True))


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_model_that_sees_what_follows_keeps_its_mask(share):
    proxy = fresh()
    layer = proxy.model.get_decoder().layers[0]
    layer.mlp = LooksAhead(layer.mlp, share)
    batch = prepare(proxy, encoded(proxy))
    assert proxy.probes.causal.known == {batch.kind: False}
    (mask,) = masks(proxy, lambda: proxy.token_losses(batch))
    assert torch.equal(mask, batch.inputs["attention_mask"])


def test_a_model_in_training_keeps_its_mask():
    """Dropout draws for each weight of attention, of which a mask has more."""
    proxy = fresh()
    batch = prepare(proxy, encoded(proxy))
    proxy.model.train()
    (mask,) = masks(proxy, lambda: proxy.token_losses(batch))
    assert torch.equal(mask, batch.inputs["attention_mask"])
    again = fresh()
    again.model.train()
    prepare(again, encoded(again))
    assert again.probes.causal.known == {}


def test_where_the_model_cannot_count_so_far_nothing_is_claimed():
    proxy = fresh()
    samples = encoded(proxy)
    shortest = min(one.tokens for one in samples)
    proxy.model.config.get_text_config().max_position_embeddings = 2 * shortest - 1
    batch = prepare(proxy, samples)
    assert proxy.probes.causal.known == {}
    (mask,) = masks(proxy, lambda: proxy.token_losses(batch))
    assert torch.equal(mask, batch.inputs["attention_mask"])
    assert not mask.all()


def test_the_limit_of_a_user_does_not_count():
    proxy = fresh()
    samples = encoded(proxy)
    tight = load_proxy(checkpoint("internvl"), options=LoadOptions(max_tokens=max(one.tokens for one in samples)))
    assert prepare(tight, samples).plan.unmasked


def test_an_answer_of_one_token_shows_nothing():
    """It is followed by the same token in both turns, whatever the model sees."""
    proxy = fresh()
    layer = proxy.model.get_decoder().layers[0]
    layer.mlp = LooksAhead(layer.mlp, 1.0)
    samples = encoded(proxy)
    last = torch.zeros_like(samples[0].answer)
    last[samples[0].answer.nonzero()[-1]] = True
    assert not prepare(proxy, [samples[0]._replace(answer=last)]).plan.unmasked
    assert proxy.probes.causal.known == {}
    batch = prepare(proxy, samples)
    assert proxy.probes.causal.known == {batch.kind: False}


def test_a_batch_stays_as_it_was_made():
    """Or a loss before and one after a step would come from two kernels."""
    proxy = fresh()
    samples = encoded(proxy)
    batch = prepare(proxy, samples)
    with hidden(proxy):
        assert all(mask.all() for mask in masks(proxy, lambda: proxy.token_losses(batch)))
        masked = prepare(proxy, samples)
    assert not any(mask.all() for mask in masks(proxy, lambda: proxy.token_losses(masked)))


@pytest.mark.parametrize("architecture", ["internvl", "qwen3_vl"])
def test_what_follows_stands_where_padding_does_and_differs_everywhere_between_turns(architecture):
    for one in encoded(proxy := fresh(architecture)):
        first, second = (continued(one, turn) for turn in range(2))
        ids = [each.inputs["input_ids"][0] for each in (first, second)]
        assert all(torch.equal(each[: one.tokens], one.inputs["input_ids"][0]) for each in ids)
        assert (ids[0] != ids[1])[one.tokens :].all()
        assert torch.equal(first.answer.nonzero(), one.answer.nonzero())
        assert set(ids[0][one.tokens :].tolist()) <= set(one.inputs["input_ids"][0][one.answer].tolist())
        padded = collate([one, first], pad_token_id=proxy.encoder.processor.tokenizer.pad_token_id)
        hides_nothing = without_mask(padded.inputs)
        for name, value in hides_nothing.items():
            if name != "input_ids" and value.shape == (2, first.tokens):
                assert torch.equal(value[:1], first.inputs[name])
