import json
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import f_oneway, spearmanr

from onesteptrain.data.pool import Sample, Turn, open_pool, text_of
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, score_into
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import load_proxy
from onesteptrain.reporting.diagnosis.bias import associations, column_keys, corrected, eta_squared
from onesteptrain.reporting.diagnosis.causes import CAUSES, Signs, likely_causes, unusual
from onesteptrain.reporting.diagnosis.measured import Means, Tokens, blind_rows, harmful_rows, help_limit, read_means
from onesteptrain.reporting.diagnosis.spans import TokenSpan, badness, first_span, token_scale
from onesteptrain.reporting.diagnosis.texts import answer_form, load_quoter, quoted, token_places
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import SyntheticOptions, make_synthetic
from onesteptrain.synthetic import checkpoint as packaged
from tests.building import checkpoint, sample, write_pool
from tests.commands import done, refusal, scored

# --- where the harm sits


def usual_tokens(generator, rows, length=20):
    """Answers as anchors give them: small losses, utilities of either sign."""
    losses = [generator.exponential(0.1, length) for _ in range(rows)]
    return Tokens([generator.normal(0, 1e-3, length) for _ in range(rows)], losses)


def test_the_span_is_the_segment_with_the_largest_sum_of_all_that_start_where_the_limit_is_first_passed():
    generator = np.random.default_rng(0)
    for _ in range(200):
        bad = generator.exponential(1.0, generator.integers(1, 12))
        limit = float(np.quantile(bad, 0.6)) if len(bad) > 1 else 0.5 * float(bad[0])
        start = next(place for place, one in enumerate(bad) if one > limit)
        sums = {end: sum(bad[start:end] - limit) for end in range(start + 1, len(bad) + 1)}
        assert first_span(bad, limit) == (start, max(sums, key=sums.get))


def test_without_a_token_beyond_the_limit_the_span_is_the_worst_token():
    assert first_span(np.array([0.1, 0.4, 0.2]), 1.0) == (1, 2)


@pytest.mark.parametrize("sign", ["loss", "harm"])
def test_a_planted_span_is_found_whether_its_loss_or_its_harm_shows_it(sign):
    generator = np.random.default_rng(1)
    anchors, rows = usual_tokens(generator, 200), usual_tokens(generator, 100)
    scale = token_scale(anchors)
    found = 0
    for utility, loss in zip(*rows, strict=True):
        place = int(generator.integers(0, 18))
        (loss if sign == "loss" else utility)[place : place + 2] = 20.0 if sign == "loss" else -0.2
        (bad,) = badness(Tokens([utility], [loss]), scale)
        found += first_span(bad, scale.row_limit) == (place, place + 2)
    # one answer in ten has a token beyond the limit of its own, half of them before the planted one: 95 are expected,
    # with a standard deviation of 2
    assert found >= 88


def test_the_limit_is_passed_by_a_tenth_of_the_anchors():
    anchors = usual_tokens(np.random.default_rng(2), 200)
    scale = token_scale(anchors)
    passed = [one.max() > scale.row_limit for one in badness(anchors, scale)]
    assert sum(passed) == 20  # the quantile interpolates between two of 200 maxima


def test_another_unit_of_utility_changes_nothing():
    generator = np.random.default_rng(3)
    anchors, rows = usual_tokens(generator, 50), usual_tokens(generator, 50)
    smaller = [Tokens([1e-6 * one for one in tokens.utility], tokens.loss) for tokens in (anchors, rows)]
    for one, two in zip(badness(rows, token_scale(anchors)), badness(smaller[1], token_scale(smaller[0])), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)  # round-off
    means = [_means(tokens) for tokens in (rows, anchors, smaller[1], smaller[0])]
    np.testing.assert_array_equal(harmful_rows(means[0], means[1]), harmful_rows(means[2], means[3]))


def _means(tokens, swapped=None):
    utility = np.array([one.mean() for one in tokens.utility])
    loss = np.array([one.mean() for one in tokens.loss])
    harm = np.array([np.minimum(one, 0).mean() for one in tokens.utility])
    worst = np.array([one.max() for one in tokens.loss])
    return Means(utility, np.stack([harm, loss, worst], axis=1), loss, swapped)


def test_harmful_are_rows_unlike_the_anchors_and_about_one_in_a_hundred_of_those_like_them():
    generator = np.random.default_rng(4)
    anchors, clean, bad = (usual_tokens(generator, rows) for rows in (400, 400, 100))
    for loss in bad.loss:
        loss[7] = 15.0
    assert harmful_rows(_means(bad), _means(anchors)).all()
    # two rules, each at 1 %: at most 2 % are expected, and 400 rows scatter by 0.7 %
    assert harmful_rows(_means(clean), _means(anchors)).mean() < 0.045


def test_a_row_without_a_score_is_not_harmful():
    anchors = _means(usual_tokens(np.random.default_rng(5), 50))
    rows = _means(usual_tokens(np.random.default_rng(6), 3))
    rows.signals[1] = rows.utility[1] = np.nan
    assert not harmful_rows(rows, anchors)[1]


# --- from tokens to characters


@pytest.mark.parametrize("architecture", ["qwen3_vl", "internvl", "smolvlm"])
def test_tokens_and_characters_belong_together_as_in_the_scoring(architecture):
    turns = (
        Turn("user", (*sample(0).images, "What is 3 plus 4?")),
        Turn("assistant", (" It is 7.\nThe answer is 7. ",)),
        Turn("user", ("And which is larger?",)),
        Turn("assistant", ("The answer is B.",)),
    )
    one = Sample("s", 0, turns)
    encoded = load_proxy(checkpoint(architecture)).encoder.encode(one)
    places = load_quoter(checkpoint(architecture))(one)
    assert len(places) == int(encoded.answer.sum())
    answer = text_of(one, "assistant")
    read = "".join(answer[place.start : place.end] for place in places)
    assert "".join(read.split()) == "".join(answer.split())
    ends = {place.start for place in places if place.start == place.end}
    assert len(ends) == 2
    assert min(ends) in (len(turns[1].text.rstrip()), len(turns[1].text))  # some templates trim
    assert max(ends) == len(answer)


def test_a_quotation_leaves_out_the_space_that_its_first_token_begins_with():
    one = sample(3)
    quote = load_quoter(checkpoint())
    places = quote(one)
    spaced = next(place for place, at in enumerate(places) if text_of(one, "assistant")[at.start] == " ")
    found = quoted(one, TokenSpan(spaced, spaced + 1), quote)
    assert found.text == found.text.strip() != ""
    assert text_of(one, "assistant")[found.start : found.end] == found.text
    assert f"{found.before}{found.text}{found.after}" in text_of(one, "assistant")
    assert found.question in one.turns[0].text


def test_an_answer_that_the_template_rewrites_is_not_quoted():
    class Rewriting:
        def __init__(self, processor):
            self.tokenizer = processor.tokenizer
            self.processor = processor

        def apply_chat_template(self, *arguments, **options):
            return self.processor.apply_chat_template(*arguments, **options).replace("seven", "7")

    processor = load_proxy(checkpoint()).encoder.processor
    found = quoted(sample(0), TokenSpan(0, 1), lambda one: token_places(Rewriting(processor), one.turns))
    assert found[:3] == (None, None, None)
    assert found.question


# --- how likely a sign is one


def test_the_probability_is_that_of_the_two_groups_that_rows_were_made_of():
    anchors = np.arange(99.0)
    usual = np.repeat(np.arange(99.0) + 0.5, 10)  # every p-value from 0.01 to 0.99 ten times
    rows = np.concatenate([usual, np.full(110, 1000.0)])
    probability = unusual(rows, anchors)
    # with the anchors counted in, 121 rows have the smallest p-value, and 11 have each of the others
    assert probability[-1] == pytest.approx(110 / 121, abs=0.005)  # Storey reads the usual share off in whole steps
    assert probability[:980].max() < 0.05


def test_a_single_row_convinces_nobody():
    assert unusual(np.array([1e9]), np.arange(99.0))[0] <= 0.51  # itself against one anchor


def test_a_row_without_the_sign_is_not_unusual():
    assert unusual(np.array([np.nan, 1e9]), np.arange(99.0))[0] == 0
    assert unusual(np.array([1.0]), np.full(3, np.nan))[0] == 0


# --- causes


def signs(tokens, *, form="stated number", kept=0.1):
    rows = len(tokens.loss)
    return Signs(tokens, [form] * rows, np.full(rows, kept))


def causes_of(spoil, *, rows=60, **changes):
    generator = np.random.default_rng(7)
    anchors, bad = usual_tokens(generator, 100), usual_tokens(generator, rows)
    for utility, loss in zip(*bad, strict=True):
        spoil(utility, loss)
    usual = signs(anchors)._replace(kept_loss=generator.uniform(0.05, 0.15, 100))
    return likely_causes(signs(bad, **changes), usual, token_scale(anchors))


def nothing(utility, loss):
    pass


def one_step_wrong(utility, loss):
    loss[5] = 12.0


def last_token_wrong(utility, loss):
    loss[-1] = 12.0


def all_wrong(utility, loss):
    loss += 6.0


@pytest.mark.parametrize(
    ("spoil", "changes", "cause"),
    [
        (one_step_wrong, {}, "wrong_step"),
        (last_token_wrong, {}, "cut_off"),
        (all_wrong, {}, "off_topic"),
        (all_wrong, {"kept": 1.0}, "off_topic"),
        (one_step_wrong, {"kept": 0.9}, "image_mismatch"),
        (one_step_wrong, {"form": "unstated text"}, "format"),
        (nothing, {}, "unknown"),
    ],
)
def test_each_cause_is_named_for_what_it_describes(spoil, changes, cause):
    found = causes_of(spoil, **changes)
    right = sum(one == cause for one in found.named)
    assert right >= 0.9 * len(found.named)  # an answer in ten has an unusual token of its own


def test_the_probabilities_of_all_causes_add_up_to_one_and_the_confidence_is_that_of_the_named_one():
    found = causes_of(one_step_wrong, kept=0.5)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-12)
    for cause, confidence, row in zip(found.named, found.confidence, found.probabilities, strict=True):
        if cause != "unknown":
            assert confidence == row[CAUSES.index(cause)] >= 0.5


def test_without_other_pictures_no_picture_is_blamed():
    found = causes_of(one_step_wrong, kept=np.nan)
    assert "image_mismatch" not in found.named
    assert found.probabilities[:, CAUSES.index("image_mismatch")].max() == 0


def test_no_harmful_row_is_no_trouble():
    assert causes_of(nothing, rows=0).named == []


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("3+4=7. The answer is 7.", "stated number"),
        ("So it is \\boxed{7}", "boxed number"),
        ("Because of that. The answer is (B).", "stated choice"),
        ("7.", "unstated number"),
        ("The bird is flying over the lake, and nothing else can be seen in the whole wide picture.", "unstated text"),
    ],
)
def test_the_form_of_an_answer_says_how_it_is_stated_and_what(text, form):
    assert answer_form(text) == form


# --- pictures


def test_the_limit_of_help_makes_the_fewest_mistakes_of_all_limits():
    generator = np.random.default_rng(8)
    helped = np.concatenate([generator.normal(0, 0.3, 80), generator.normal(1.5, 0.4, 200)])

    def mistakes(limit):
        missed = (helped < -limit).sum()
        return missed + ((helped > 0) & (helped <= limit)).sum() - ((helped < 0) & (helped >= -limit)).sum()

    assert mistakes(help_limit(helped)) == min(mistakes(limit) for limit in [0.0, *np.abs(helped)])


def test_rows_that_need_no_picture_are_told_from_those_that_do():
    generator = np.random.default_rng(9)
    loss = np.full(4000, 0.2)
    helped = np.concatenate([generator.normal(0, 0.2, 1000), generator.normal(1.5, 0.4, 3000)])
    rows = Means(loss, np.stack([loss] * 3, axis=1), loss, loss + helped)
    harmful = np.arange(4000) % 10 == 0
    blind = blind_rows(rows, harmful)
    assert np.isnan(blind[harmful]).all()
    # the two bells cross near 0.5, beyond which lie under 1 % of either
    assert np.nanmean(blind[:1000]) > 0.95
    assert np.nanmean(blind[1000:]) < 0.05


def test_where_every_picture_helps_no_row_is_blind():
    loss = np.full(50, 0.2)
    rows = Means(loss, np.stack([loss] * 3, axis=1), loss, loss + 1.0)
    assert not blind_rows(rows, np.zeros(50, bool)).any()


def test_in_a_built_world_the_rows_that_can_be_answered_without_the_picture_are_blind(tmp_path):
    world = make_synthetic(
        "digits", SyntheticOptions(pool_rows=240, heldout_rows=60, noise_share=0.0, seed=5), tmp_path / "world"
    )
    plain = {path: _make_plain(path) for path in (world.pool, world.heldout)}
    proxy = ProxyOptions(str(packaged("proxy")))
    request = ScoreRequest(open_pool(world.pool), OneStep(ablate=True), anchors=world.heldout, proxy=proxy)
    score_into(tmp_path / "run", request)
    table = ScoreTable(tmp_path / "run" / "scores.parquet")
    blind = blind_rows(read_means(table), np.zeros(table.rows, bool)) == 1
    # half of these rows are helped by another picture rather than hurt, so that the limit cannot be far off; the
    # distributions overlap a little, as docs/diagnosing.md shows
    assert blind[plain[world.pool]].mean() > 0.7
    assert blind[~plain[world.pool]].mean() < 0.1


def _make_plain(path):
    """Let every third row ask what no picture is needed for."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = np.arange(len(rows)) % 3 == 0
    for place in np.flatnonzero(chosen):
        one, two = place % 7, place % 9
        rows[place]["messages"][0]["content"] = f"<image>What is {one}+{two}?"
        rows[place]["messages"][1]["content"] = f"{one}+{two}={one + two}. The answer is {one + two}."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return chosen


# --- what a score goes by


def test_eta_squared_is_the_share_that_analysis_of_variance_gives():
    generator = np.random.default_rng(10)
    groups = generator.integers(0, 4, 300)
    values = generator.normal(groups * 0.3, 1.0)
    f = f_oneway(*(values[groups == one] for one in range(4))).statistic
    assert eta_squared(values, groups) == pytest.approx(3 * f / (3 * f + 296), rel=1e-9)  # round-off


def test_the_panel_puts_the_strongest_first_and_leaves_out_what_says_nothing():
    generator = np.random.default_rng(11)
    length = generator.uniform(0, 100, 400)
    score = length + generator.normal(0, 5, 400)
    columns = {
        "noise": generator.normal(size=400),
        "length": length,
        "source": ["web" if one > 50 else "book" for one in length],
        "same": ["x"] * 400,
        "name": [str(row) for row in range(400)],
    }
    found = associations(score, columns)
    assert {one.column for one in found} == {"noise", "length", "source"}
    assert found[-1].column == "noise"
    assert [one.notable for one in found] == [True, True, False]
    assert found[[one.column for one in found].index("length")].size == pytest.approx(
        spearmanr(score, length).statistic
    )


def test_a_correction_takes_the_rank_correlation_out_and_keeps_the_order_of_equal_rows():
    generator = np.random.default_rng(12)
    length = generator.integers(5, 60, 2000).astype(float)
    score = np.log(length) + generator.normal(0, 0.3, 2000)
    score[17] = length[18] = np.nan
    left = corrected(score, [length])
    known = np.isfinite(score) & np.isfinite(length)
    assert abs(spearmanr(score[known], length[known]).statistic) > 0.8
    # what is left lies within the 20 bins, each a twentieth of the range
    assert abs(spearmanr(left[known], length[known]).statistic) < 0.05
    assert np.isnan(left[17])
    assert left[18] == score[18]
    for value in np.unique(length[known]):
        same = known & (length == value)
        np.testing.assert_array_equal(np.argsort(score[same]), np.argsort(left[same]))


def test_a_correction_for_two_columns_leaves_medians_of_groups_alike_and_the_trend_gone():
    generator = np.random.default_rng(13)
    length = generator.uniform(0, 1, 3000)
    source = ["web" if one else "book" for one in generator.random(3000) < length]
    score = 2 * length + np.array([one == "web" for one in source]) + generator.normal(0, 0.2, 3000)
    left = corrected(score, [length, source])
    keys = column_keys(source)
    assert abs(np.median(left[keys == 0]) - np.median(left[keys == 1])) < 0.02  # five rounds; of a gap of 1.7
    assert abs(spearmanr(left, length).statistic) < 0.05


# --- the command


@cache
def explained():
    """A run with tokens and other pictures, and 24 anchors."""
    folder = Path(tempfile.mkdtemp(prefix="ost-test-"))
    pool, anchors = write_pool(folder, 60), write_pool(folder / "anchors", 24, name="anchors.jsonl", start=100)
    given = ["--anchors", anchors, "--proxy", checkpoint(), "--out", folder / "run"]
    done("score", pool, *given, "--store-tokens", "--ablate")
    return folder / "run"


def test_explain_writes_a_line_for_each_row_whose_quotations_stand_in_the_answers():
    outcome = done("explain", explained(), "--rows", 3)
    rows = pq.read_table(explained() / "explanations.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(60))
    assert f"{sum(row['harmful'] for row in rows)} of 60 rows look harmful" in outcome.out
    texts = {one.uid: text_of(one, "assistant") for one in open_pool(explained().parent / "pool.jsonl")}
    for row in rows:
        assert (row["cause"] is None) == (row["confidence"] is None) == (not row["harmful"])
        if row["harmful"]:
            assert row["span_text"] == texts[row["uid"]][row["span_start"] : row["span_end"]]
            assert 0 <= row["confidence"] <= 1


def test_explain_as_json_says_the_same_as_its_file(tmp_path):
    found = json.loads(done("explain", explained(), "--json", "--out", tmp_path / "e.parquet").out)
    table = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert found["harmful"] == sum(row["harmful"] for row in table) == sum(found["causes"].values())
    assert {one["row"] for one in found["worst"]} <= {row["row"] for row in table if row["harmful"]}


def test_a_corrected_score_can_be_selected_by(tmp_path):
    done("explain", explained(), "--correct", "answer_tokens")
    table = ScoreTable(explained() / "scores.parquet")
    expected = corrected(table.numbers("score"), [table.numbers("answer_tokens")])
    np.testing.assert_array_equal(table.numbers("corrected"), expected)
    assert table.metadata["pool"] == open_pool(explained().parent / "pool.jsonl").fingerprint
    done("select", explained(), "--by", "corrected", "--keep", "5", "--out", tmp_path / "best.jsonl")
    kept = [json.loads(line)["id"] for line in (tmp_path / "best.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {int(one[1:]) for one in kept} == set(np.argsort(-expected, kind="stable")[:5].tolist())


def test_scores_without_tokens_are_refused_with_what_to_do():
    assert "score again with --store-tokens" in refusal("explain", scored())


def test_a_column_to_correct_for_that_is_not_there_is_named_with_those_that_are():
    line = refusal("explain", explained(), "--correct", "legnth")
    assert "'legnth'" in line
    assert "answer_tokens" in line


def test_an_output_that_exists_is_kept(tmp_path):
    (tmp_path / "e.parquet").write_bytes(b"mine")
    assert "exists" in refusal("explain", explained(), "--out", tmp_path / "e.parquet")
    assert (tmp_path / "e.parquet").read_bytes() == b"mine"


def test_another_pool_in_the_place_of_the_scored_one_is_refused():
    run = explained()
    pool = run.parent / "pool.jsonl"
    before = pool.read_bytes()
    try:
        pool.write_bytes(b"".join(before.splitlines(keepends=True)[1:]))
        assert "has changed since" in refusal("explain", run)
    finally:
        pool.write_bytes(before)


def test_the_pictures_of_a_run_without_ablations_are_not_judged(tmp_path):
    pool, anchors = write_pool(tmp_path, 8), write_pool(tmp_path / "anchors", 20, name="anchors.jsonl", start=100)
    given = ["--anchors", anchors, "--proxy", checkpoint(), "--out", tmp_path / "run"]
    done("score", pool, *given, "--store-tokens")
    assert "score again with --ablate" in done("explain", tmp_path / "run").out
    assert pq.read_table(tmp_path / "run" / "explanations.parquet")["blind"].null_count == 8


def test_a_target_is_trained_without_harmful_tokens_and_with_weights(tmp_path):
    pool, given = explained().parent / "pool.jsonl", ["--target", checkpoint(), "--steps", 1, "--batch-size", 60]
    plain = done("train", pool, *given, "--out", tmp_path / "plain", "--json")
    masked = done("train", pool, *given, "--out", tmp_path / "masked", "--mask-harmful", explained())
    found = re.search(r"(\d+) of (\d+) answer tokens are out of the loss", masked.out)
    table = ScoreTable(explained() / "scores.parquet")
    assert int(found[2]) == int(table.numbers("answer_tokens").sum())
    assert 0 < int(found[1]) < int(found[2])
    facts = json.loads((tmp_path / "masked" / "train.json").read_text(encoding="utf-8"))
    assert facts["losses"] < json.loads(plain.out)["losses"]  # without the worst tokens
    # an untrained proxy cannot tell: its gate is blind, and no weight is made up
    assert "the gate is blind" in refusal("train", pool, *given, "--out", tmp_path / "w", "--weigh", explained())
