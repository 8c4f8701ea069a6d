"""Where the top layer works for answers only, no logit changes, and nothing is spared that others read."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn

from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy
from onesteptrain.utility import token_derivatives
from tests.building import ARCHITECTURES, checkpoint, sample

SAMPLES = [sample(row, images=row % 2) for row in range(6)]
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""A matrix product may add in another order for fewer rows; logits are of size 1."""


@functools.cache
def loaded(architecture: str, scope: str = "all") -> Proxy:
    return load_proxy(checkpoint(architecture), ScopeOptions(scope=scope), LoadOptions(max_tokens=4096))


def fresh(architecture: str) -> Proxy:
    """One whose model a test may change."""
    return load_proxy(checkpoint(architecture), options=LoadOptions(max_tokens=4096))


@contextlib.contextmanager
def in_full(proxy: Proxy):
    """For batches made here."""
    known = dict(proxy._spared.known)
    proxy._spared.known.update(dict.fromkeys(known, ()))
    try:
        yield
    finally:
        proxy._spared.known.update(known)


def spared(proxy: Proxy, encoded) -> set[str]:
    """Which parts, as named in their layer."""
    batch = proxy.batch(encoded)
    names = proxy._spared.known[batch.kind]
    top = f".{len(proxy.model.get_decoder().layers) - 1}."
    assert all(top in name for name in names)
    return {name.split(top)[1] for name in names}


@pytest.mark.parametrize("scope", ["all", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_but_keys_and_values_work_for_answers_only(architecture, scope):
    proxy = loaded(architecture, scope)
    encoded = [proxy.encoder.encode(each) for each in SAMPLES]
    assert spared(proxy, encoded) == {"mlp", "self_attn.q_proj", "self_attn.o_proj"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_a_full_pass(architecture):
    proxy = loaded(architecture)
    batch = proxy.batch([proxy.encoder.encode(each) for each in SAMPLES])
    with torch.no_grad():
        found = proxy.answer_logits(batch).logits
        wanted = proxy.answer_logits(batch._replace(spared=())).logits
    torch.testing.assert_close(found, wanted, **ROUNDING)


@pytest.mark.parametrize("estimator", ["fd", "jvp"])
def test_derivatives_are_those_of_full_passes(estimator):
    proxy = loaded("internvl")
    generator = torch.Generator().manual_seed(0)
    direction = {name: 0.05 * torch.randn(one.shape, generator=generator) for name, one in proxy.parameters.items()}
    encoded = [proxy.encoder.encode(each) for each in SAMPLES]

    def derivatives():
        return token_derivatives(proxy, encoded, [direction], estimator=estimator, epsilons=[1e-2], batch_size=4)

    found = derivatives()
    with in_full(proxy):
        wanted = derivatives()
    # round-off of the losses over the shift: 1e-7 / 1e-2
    torch.testing.assert_close(
        torch.cat([one.derivative for one in found], 1),
        torch.cat([one.derivative for one in wanted], 1),
        rtol=1e-4,
        atol=1e-4,
    )


def test_spared_parts_see_no_other_tokens_unless_gradients_are_taken():
    proxy = loaded("qwen3_vl")
    batch = proxy.batch([proxy.encoder.encode(each) for each in SAMPLES])
    rows = []
    linear = proxy.model.get_decoder().layers[-1].mlp.down_proj
    hook = linear.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[:-1].numel()))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            proxy.answer_logits(batch)
    hook.remove()
    assert rows == [int(batch.answer.sum()), batch.answer.numel()]
    assert rows[0] < rows[1]


class Around(nn.Module):
    """Stands in the place of a module and changes what it gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Mixes(Around):
    """Adds to each token a part of the one before."""

    def forward(self, x):
        out = self.inner(x)
        before = torch.roll(out, 1, dims=-2)
        return out + 0.1 * before


class Reads(Around):
    """Lets all tokens read the mean of what a linear layer gives for them."""

    def forward(self, x):
        out = self.inner(x)
        return out + 0.1 * out.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("around", "part", "left"),
    [
        (Mixes, "mlp", set()),  # it reads other tokens, and so what attention gave for them
        (Reads, "mlp", set()),
        (Reads, "self_attn.o_proj", {"mlp"}),
    ],
)
def test_what_other_tokens_are_read_from_is_run_in_full(around, part, left):
    proxy = fresh("internvl")
    owner, _, name = part.rpartition(".")
    holder = proxy.model.get_decoder().layers[-1].get_submodule(owner)
    setattr(holder, name, around(getattr(holder, name)))
    encoded = [proxy.encoder.encode(each) for each in SAMPLES]
    assert spared(proxy, encoded) == left
    batch = proxy.batch(encoded)
    with torch.no_grad():
        logits = proxy.answer_logits(batch).logits
        torch.testing.assert_close(logits, proxy.answer_logits(batch._replace(spared=())).logits, **ROUNDING)


class StandsAside(Around):
    """Adds what a table says of each token, whatever it is given."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__(inner)
        self.project = nn.Linear(width, width)

    def forward(self, x):
        table = torch.linspace(-1, 1, x.numel()).view_as(x)
        return self.inner(x) + self.project(table)


def test_a_part_that_does_not_follow_the_layers_input_is_run_in_full():
    proxy = fresh("internvl")
    layer = proxy.model.get_decoder().layers[-1]
    layer.mlp = StandsAside(layer.mlp, proxy.model.config.get_text_config().hidden_size)
    encoded = [proxy.encoder.encode(each) for each in SAMPLES]
    assert spared(proxy, encoded) == {"mlp.inner", "self_attn.q_proj", "self_attn.o_proj"}


def test_a_layer_that_is_not_run_spares_nothing():
    proxy = fresh("internvl")
    top = proxy.model.get_decoder().layers[-1]
    proxy.model.get_decoder().forward = without(proxy.model.get_decoder(), top)
    assert spared(proxy, [proxy.encoder.encode(SAMPLES[0])]) == set()


def without(decoder, layer):
    """A decoder that leaves out its highest layer, which it keeps."""
    forward, layers = decoder.forward, decoder.layers

    def run(*args, **kwargs):
        decoder.layers = layers[:-1]
        try:
            return forward(*args, **kwargs)
        finally:
            decoder.layers = layers

    return run


def test_what_would_change_a_logit_is_not_relied_on(monkeypatch):
    proxy = fresh("internvl")
    (keys,) = (name for name, _ in proxy.model.named_modules() if name.endswith("layers.1.self_attn.k_proj"))
    monkeypatch.setattr("onesteptrain.proxy.model.find_spared", lambda *_: [keys])
    assert not spared(proxy, [proxy.encoder.encode(SAMPLES[0])])


def test_a_sample_without_a_question_teaches_nothing():
    """In it no token that predicts nothing is read, as if keys and values were wanted at answers only."""
    proxy = fresh("internvl")
    texts = [proxy.encoder.encode(sample(row, images=0)) for row in range(3)]
    answer = torch.ones(texts[0].tokens, dtype=torch.bool)
    answer[0] = False
    proxy.batch([texts[0]._replace(answer=answer)])
    assert not proxy._spared.known
    assert spared(proxy, texts) == {"mlp", "self_attn.q_proj", "self_attn.o_proj"}


def test_a_model_in_training_is_run_in_full():
    proxy = fresh("internvl")
    proxy.model.train()
    proxy.batch([proxy.encoder.encode(SAMPLES[0])])
    assert not proxy._spared.known
