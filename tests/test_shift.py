"""The shift of the central difference: chosen where the loss is smooth, refused where it is not."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, Proxy, ScopeOptions, load_proxy
from onesteptrain.synthetic import SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.utility import choose_shift, measure_anchors, shift_is_sound, token_derivatives
from onesteptrain.utility.answers import answer_losses
from onesteptrain.utility.shift import _Probes

SMOOTH, SHARP, SHARPEST = 1.0, 100.0, 1e6


@functools.cache
def anchors(folder):
    data = make_synthetic("digits", SyntheticOptions(pool_rows=1, heldout_rows=24, benchmark_rows=1), folder)
    return list(open_pool(data.heldout))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return anchors(tmp_path_factory.mktemp("data") / "digits")


@functools.cache
def sharpened(factor: float) -> Proxy:
    """A trained model that computes the same with other weights: values grow by a factor that the next layer undoes.

    Its largest weights matter least, so that a shift small beside them is far for those that matter, and saturates.
    """
    proxy = load_proxy(checkpoint("proxy"), ScopeOptions(scope="all"), LoadOptions(device="cpu"))
    with torch.no_grad():
        for name, weight in proxy.model.named_parameters():
            if "language_model" in name and "v_proj" in name:
                weight.mul_(factor)
            if "language_model" in name and "o_proj" in name:
                weight.div_(factor)
    return proxy


def direction(proxy, encoded):
    return measure_anchors(proxy, {"": encoded}, preconditioner={}, batch_size=8)[0].direction


def means(tokens) -> np.ndarray:
    return np.array([float(values.mean()) for values in tokens])


@pytest.mark.parametrize("factor", [SMOOTH, SHARP])
def test_a_central_difference_has_the_loss_and_the_slope_of_the_model(samples, factor):
    proxy = sharpened(factor)
    encoded = [proxy.encoder.encode(one) for one in samples]
    along = direction(proxy, encoded)
    shift = choose_shift(proxy, encoded[:16], along, batch_size=8)
    assert shift is not None
    measure = functools.partial(token_derivatives, proxy, encoded, [along], batch_size=8)
    fd, jvp = (measure(estimator=name, epsilons=[shift]) for name in ("fd", "jvp"))
    np.testing.assert_allclose(
        means(one.loss for one in fd),
        means(answer_losses(proxy, encoded, batch_size=8)),
        rtol=0.02,  # what `choose_shift` lets pass
        atol=1e-4,
    )
    slopes, wanted = (torch.cat([one.derivative[0] for one in records]) for records in (fd, jvp))
    # float32: round-off over the shift (seen 3e-4 where the loss is smooth, 1e-2 where it is sharp)
    assert float((slopes - wanted).norm()) <= 0.05 * float(wanted.norm())


def test_a_shift_at_which_the_loss_saturates_is_not_sound(samples):
    """Neighbouring shifts agree there, as the differences of saturated losses are divided by ever larger shifts."""
    proxy = sharpened(SHARP)
    encoded = [proxy.encoder.encode(one) for one in samples[:16]]
    along = direction(proxy, encoded)
    large = 0.03  # 1e-2 to 1e-6 of the weights are all this far or farther from where the loss is smooth
    ends = token_derivatives(proxy, encoded, [along], estimator="fd", epsilons=[large], batch_size=8)
    assert means(one.loss for one in ends).mean() > 10 * means(answer_losses(proxy, encoded, batch_size=8)).mean()
    assert not shift_is_sound(proxy, encoded, along, large, batch_size=8)


def test_a_shift_is_sound_only_if_loss_order_and_slope_are_all_right(samples):
    proxy = sharpened(SMOOTH)
    encoded = [proxy.encoder.encode(one) for one in samples[:16]]
    along = direction(proxy, encoded)
    known = _Probes.of(proxy, encoded, along, 8)
    told = known.measure(choose_shift(proxy, encoded, along, batch_size=8))
    assert known.agree(told)
    assert not known.agree(told._replace(losses=[1.05 * values for values in told.losses]))
    assert not known.agree(told._replace(derivatives=[1.1 * values for values in told.derivatives]))
    assert not known.agree(told._replace(derivatives=[-values for values in told.derivatives]))
    near = 0.001 * torch.randn(len(known.losses), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = known._replace(losses=1 + near)  # in another order, though within the error of the mean
    assert not level.agree(told._replace(losses=[(1 - value)[None] for value in near]))
    assert level.agree(told._replace(losses=[(1 + value)[None] for value in near]))


def test_where_no_shift_is_sound_forward_mode_takes_over(samples):
    proxy = sharpened(SHARPEST)
    assert (
        choose_shift(
            proxy,
            [proxy.encoder.encode(one) for one in samples[:8]],
            direction(proxy, [proxy.encoder.encode(one) for one in samples]),
            batch_size=8,
        )
        is None
    )
    scored, forward = (
        OneStep(estimator, reference_folds=0).prepare(Setting(proxy, samples))(samples[:4])
        for estimator in ("auto", "jvp")
    )
    assert [one.columns for one in scored] == [one.columns for one in forward]
    with pytest.raises(ConfigError, match=r"no shift.*jvp"):
        OneStep("fd", reference_folds=0).prepare(Setting(proxy, samples))
    with pytest.raises(ConfigError, match=r"fd_epsilon is 0.5.*leave it out"):
        OneStep("fd", fd_epsilon=0.5, reference_folds=0).prepare(Setting(proxy, samples))
