"""What one_step says beside the utility, against brute force and other routes to the same numbers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import t as student

from onesteptrain.data.corruption import corrupt
from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.errors import AnchorError, ConfigError
from onesteptrain.methods import Referenced, Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.utility.anchoring import in_parts
from onesteptrain.utility.answers import represent
from tests.building import checkpoint, png, sample
from tests.oracles import BruteForce

ANCHORS = [sample(row, group="ab"[row % 2]) for row in range(30, 37)]
SAMPLES = [sample(row) for row in range(4)]
# forward mode in float64: what is left is the float32 in which the model's norms and softmax compute
CLOSE = {"rtol": 1e-4, "atol": 1e-9}


@functools.cache
def proxy():
    return load_proxy(checkpoint("qwen3_vl"), options=LoadOptions("cpu", "float64"))


def setting(anchors=ANCHORS, seed: int = 0) -> Setting:
    return Setting(proxy(), anchors, None, seed)


def scored(samples=SAMPLES, anchors=ANCHORS, **options):
    return OneStep(estimator="jvp", **options).prepare(setting(anchors))(samples)


def column(records, name: str) -> np.ndarray:
    return np.array([record.columns[name] for record in records], dtype=float)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-4])
def test_the_shift_is_the_one_that_was_asked_for(epsilon):
    """A larger shift shows: what a central difference adds grows with its square."""
    scores = [one.score for one in OneStep("fd", fd_epsilon=epsilon, reference_folds=0).prepare(setting())(SAMPLES)]
    oracle = BruteForce(checkpoint("qwen3_vl"))
    for one in ANCHORS:
        (oracle.loss(one) / len(ANCHORS)).backward()
    ends = []
    for sign in (1, -1):
        shifted = copy.deepcopy(oracle.model)
        with torch.no_grad():
            for moved, there in zip(shifted.parameters(), oracle.model.parameters(), strict=True):
                moved += 0 if there.grad is None else sign * epsilon * there.grad
            ends.append(np.array([float(oracle.loss(one, shifted)) for one in SAMPLES]))
    wanted = 1e-3 * (ends[0] - ends[1]) / (2 * epsilon)
    # norms and softmax compute in float32, whose rounding is divided by the shift
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-6 * np.abs(wanted).max() / epsilon)
    small = np.array([one.score for one in scored()])
    assert (np.abs(scores - small).max() > 1e-3 * np.abs(small).max()) == (epsilon == 1e-3)


def test_losses_are_those_of_the_brute_force_tokens():
    oracle = BruteForce(checkpoint("qwen3_vl"))
    losses = [oracle.token_losses(one).detach().numpy() for one in SAMPLES]
    records = scored(store_tokens=True)
    np.testing.assert_allclose(column(records, "loss"), [one.mean() for one in losses], **CLOSE)
    np.testing.assert_allclose(column(records, "worst_loss"), [one.max() for one in losses], **CLOSE)
    np.testing.assert_allclose(column(records, "relative"), column(records, "utility") / column(records, "loss"))
    for record, loss in zip(records, losses, strict=True):
        np.testing.assert_allclose(record.columns["token_loss"], loss, rtol=1e-5)


def test_token_utilities_give_back_utility_harm_gain_and_the_worst():
    for record in scored(store_tokens=True):
        tokens = np.array(record.columns["token_utility"], dtype=float)
        scale = np.abs(tokens).max() * 1e-6  # the list is kept in float32
        assert tokens.dtype == np.float64
        assert record.columns["utility"] == pytest.approx(tokens.mean(), abs=scale)
        assert record.columns["harm"] == pytest.approx(np.minimum(tokens, 0).mean(), abs=scale)
        assert record.columns["gain"] == pytest.approx(np.maximum(tokens, 0).mean(), abs=scale)
        assert record.columns["worst_utility"] == pytest.approx(tokens.min(), rel=1e-6)


def test_an_anchor_is_measured_by_the_others_alone():
    scorer = OneStep(estimator="jvp", reference_folds=3).prepare(setting())
    assert isinstance(scorer, Referenced)
    found = {anchor.uid: record for anchor, record in scorer.reference().anchors}
    assert sorted(found) == sorted(anchor.uid for anchor in ANCHORS)
    for fold in in_parts(ANCHORS, 3, seed=0):
        others = [anchor for anchor in ANCHORS if anchor not in fold]
        alone = scored(fold, others, reference_folds=0)
        for anchor, record in zip(fold, alone, strict=True):
            assert found[anchor.uid].score == pytest.approx(record.score, rel=1e-4)
            assert found[anchor.uid].columns["harm"] == pytest.approx(record.columns["harm"], rel=1e-3, abs=1e-9)


def test_a_corrupted_anchor_is_measured_by_the_anchors_of_other_folds():
    reference = OneStep(estimator="jvp", reference_folds=3, corrupted=40).prepare(setting()).reference()
    assert [anchor.uid for anchor, _ in reference.anchors] == [anchor.uid for anchor in ANCHORS]
    assert [copy for copy, _ in reference.corrupted] == corrupt(ANCHORS, count=40, seed=0)
    for fold in in_parts(ANCHORS, 3, seed=0):
        mine = [(copy, record) for copy, record in reference.corrupted if copy.anchor in {one.uid for one in fold}]
        others = [anchor for anchor in ANCHORS if anchor not in fold]
        alone = scored([copy.sample for copy, _ in mine], others, reference_folds=0)
        for (_, record), wanted in zip(mine, alone, strict=True):
            assert record.score == pytest.approx(wanted.score, rel=1e-4)  # as of an anchor, above
            assert record.columns["loss"] == pytest.approx(wanted.columns["loss"], rel=1e-6)


def test_groups_change_no_reference():
    plain = OneStep(estimator="jvp").prepare(setting()).reference().anchors
    grouped = OneStep(estimator="jvp", group_by="group").prepare(setting()).reference().anchors
    for (one, first), (two, second) in zip(plain, grouped, strict=True):
        assert one.uid == two.uid
        assert first.score == pytest.approx(second.score, rel=1e-4)


def test_without_folds_or_with_one_anchor_there_is_no_reference():
    assert not isinstance(OneStep(estimator="jvp", reference_folds=0).prepare(setting()), Referenced)
    assert not isinstance(OneStep(estimator="jvp").prepare(setting(ANCHORS[:1])), Referenced)


def test_parts_add_up_to_the_utility_and_their_spread_is_the_interval():
    records, whole = scored(intervals=3), scored()
    np.testing.assert_allclose(column(records, "utility"), column(whole, "utility"), **CLOSE)
    np.testing.assert_allclose(column(records, "harm"), column(whole, "harm"), rtol=1e-3, atol=1e-9)
    parts = in_parts(ANCHORS, 3, seed=0)
    alone = np.array([column(scored(anchors=part), "utility") for part in parts])
    shares = np.array([len(part) for part in parts])[:, None] / len(ANCHORS)
    np.testing.assert_allclose(np.array([r.columns["part_utility"] for r in records]).T, alone, rtol=1e-3, atol=1e-7)
    mean = (shares * alone).sum(0)
    reach = student.ppf(0.975, 2) * np.sqrt((shares**2 * (alone - mean) ** 2).sum(0) * 3 / 2)
    np.testing.assert_allclose(column(records, "utility_low"), mean - reach, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(column(records, "utility_high"), mean + reach, rtol=1e-3, atol=1e-7)


def test_the_interval_of_harm_is_the_jackknife_over_parts():
    records = scored(intervals=3)
    parts = in_parts(ANCHORS, 3, seed=0)
    left = [[anchor for anchor in ANCHORS if anchor not in part] for part in parts]
    harms = np.array([column(scored(anchors=others), "harm") for others in left])
    reach = student.ppf(0.975, 2) * np.sqrt(((harms - harms.mean(0)) ** 2).sum(0) * 2 / 3)
    harm = column(records, "harm")
    np.testing.assert_allclose(column(records, "harm_low"), harm - reach, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(column(records, "harm_high"), np.minimum(0, harm + reach), rtol=1e-3, atol=1e-7)


def test_more_parts_than_anchors_are_refused():
    with pytest.raises(AnchorError, match="8 parts of 7 anchors"):
        scored(intervals=8)


def gradient(oracle: BruteForce, samples) -> torch.Tensor:
    oracle.model.zero_grad()
    (sum(oracle.loss(one) for one in samples) / len(samples)).backward()
    return torch.cat([p.grad.flatten() for p in oracle.model.parameters() if p.grad is not None])


def test_cosine_and_length_are_those_of_brute_force_gradients():
    oracle = BruteForce(checkpoint("qwen3_vl"))
    anchor = gradient(oracle, ANCHORS)
    for one, record in zip(SAMPLES, scored(agreement=True), strict=True):
        mine = gradient(oracle, [one])
        assert record.columns["gradient_norm"] == pytest.approx(float(mine.norm()), rel=1e-4)
        assert record.columns["cosine"] == pytest.approx(float(mine @ anchor / mine.norm() / anchor.norm()), rel=1e-3)


def test_a_sketch_as_long_as_the_gradient_keeps_inner_products():
    size = sum(value.numel() for value in proxy().parameters.values())
    sketches = np.array([record.columns["sketch"] for record in scored(sketch=size)], dtype=float)
    oracle = BruteForce(checkpoint("qwen3_vl"))
    gradients = torch.stack([gradient(oracle, [one]) for one in SAMPLES]).numpy()
    np.testing.assert_allclose(
        sketches @ sketches.T, gradients @ gradients.T, rtol=1e-4
    )  # sketches are kept in float32


def test_the_representation_is_the_last_hidden_state():
    wanted = represent(proxy(), [proxy().encoder.encode(one) for one in SAMPLES], batch_size=16)
    for record, vector in zip(scored(representation=True), wanted, strict=True):
        np.testing.assert_allclose(record.columns["representation"], vector.numpy(), rtol=1e-6)


def with_picture(one: Sample, picture: bytes) -> Sample:
    turn = one.turns[0]
    parts = tuple(ImageRef(picture, "other") if isinstance(part, ImageRef) else part for part in turn.parts)
    return dataclasses.replace(one, turns=(Turn("user", parts), *one.turns[1:]))


def test_a_blanked_sample_scores_like_one_with_a_grey_picture():
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(stream, "PNG")
    one = with_picture(SAMPLES[0], png(1, 32))
    (record,) = scored([one], ablate=True)
    (grey,) = scored([with_picture(one, stream.getvalue())])
    assert record.columns["blank_utility"] == pytest.approx(grey.score, rel=1e-4)
    assert record.columns["blank_loss"] == pytest.approx(grey.columns["loss"], rel=1e-4)
    assert record.columns["blank_loss"] != record.columns["loss"]


def test_a_swapped_sample_scores_like_one_with_an_anchors_picture():
    (record,) = scored([SAMPLES[0]], ablate=True)
    pictures = [anchor.images[0].source for anchor in ANCHORS]
    scores = [scored([with_picture(SAMPLES[0], picture)])[0].score for picture in pictures]
    assert np.isclose(scores, record.columns["swapped_utility"], rtol=1e-4).sum() == 1


def test_a_sample_without_a_picture_has_no_ablation():
    (record,) = scored([sample(1, images=0)], ablate=True)
    assert record.columns["blank_utility"] is None
    assert record.columns["swapped_loss"] is None
    assert record.score is not None


def test_extras_go_past_a_sample_that_cannot_be_read():
    broken = dataclasses.replace(SAMPLES[1], turns=with_picture(SAMPLES[1], b"no picture").turns)
    records = scored([SAMPLES[0], broken, SAMPLES[2]], ablate=True, agreement=True, representation=True, sketch=8)
    alone = scored([SAMPLES[2]], ablate=True, agreement=True, representation=True, sketch=8)[0]
    assert records[1].reason is not None
    assert records[2].columns["cosine"] == pytest.approx(alone.columns["cosine"], rel=1e-4)
    assert records[2].columns["blank_utility"] == pytest.approx(alone.columns["blank_utility"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"intervals": 1}, "intervals is 1"),
        ({"reference_folds": -1}, "reference_folds is -1"),
        ({"sketch": -2}, "sketch is -2"),
        ({"estimator": "exact", "ablate": True}, "use fd or jvp with ablate"),
    ],
)
def test_options_that_cannot_be_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        OneStep(**options)


@pytest.mark.parametrize("estimator", ["cascade", "landmarks"])
def test_estimators_that_are_gone_say_what_to_use(estimator):
    with pytest.raises(ConfigError, match=rf"estimator {estimator} is gone; use auto, and `ost audit`"):
        OneStep(estimator)
