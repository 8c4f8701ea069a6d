import json
import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import f_oneway, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from onesteptrain.data.corruption import KINDS
from onesteptrain.data.pool import Sample, Turn, open_pool, text_of
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, score_into
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import load_proxy
from onesteptrain.reporting.diagnosis.bias import associations, column_keys, corrected, eta_squared
from onesteptrain.reporting.diagnosis.causes import KINDS_OF, Examples, likely_causes
from onesteptrain.reporting.diagnosis.measured import Means, Tokens, blind_rows, help_limit, read_means
from onesteptrain.reporting.diagnosis.profiles import NAMES, Measured, profiles
from onesteptrain.reporting.diagnosis.spans import TokenSpan, badness, first_span, token_scale
from onesteptrain.reporting.diagnosis.texts import answer_form, load_quoter, quoted, token_places
from onesteptrain.selection.trust import measure_trust
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


# --- what answers look like


def profile_of(utility, loss, pictures=(None, None), loss_mean=0.1):
    """By name, beside anchors of ten tokens."""
    others = (None if one is None else np.array([one]) for one in pictures)
    row = Measured(Tokens([utility], [loss]), Means(utility.mean(keepdims=True), np.array([loss_mean]), *others))
    scale = token_scale(usual_tokens(np.random.default_rng(7), 50))
    return dict(zip(NAMES, profiles(row, scale, 10.0)[0], strict=True))


def test_a_profile_says_where_an_answer_is_bad():
    loss = np.full(21, 0.05)
    loss[[5, 8]] = 6.0, 9.0
    found = profile_of(np.zeros(21), loss)
    assert found["first_bad"] == 5 / 20  # the end stands for itself
    assert found["worst"] == 8 / 20
    assert found["bad_share"] == 2 / 20
    assert found["length"] == pytest.approx(np.log(2.1))
    assert found["quarter_2"] > found["quarter_1"] == found["quarter_4"] == found["end_loss"]


def test_a_profile_says_what_the_own_picture_is_worth():
    tokens = np.zeros(4), np.full(4, 0.1)
    found = profile_of(*tokens, pictures=(0.54, np.nan))
    assert found["swapped_picture"] == pytest.approx(np.log(0.11 / 0.55))
    assert found["blank_picture"] == found["no_picture"] == 0
    assert profile_of(*tokens)["no_picture"] == 1


def test_an_answer_of_one_token_has_a_profile_without_gaps():
    assert np.isfinite(list(profile_of(np.zeros(1), np.array([3.0])).values())).all()


# --- causes


CENTRES = {"": (0, 0, 0), "wrong_step": (6, 0, 0), "wrong_result": (6, 0, 3), "cut_off": (0, 6, 0)}


def clusters(generator, count, *, apart=1.0):
    """Anchors and copies of three kinds, in three numbers with a spread of one."""
    drawn = [generator.normal(apart * np.array(centre), 1.0, (count, 3)) for centre in CENTRES.values()]
    anchors = [f"a{place}" for place in range(count)] * len(CENTRES)
    return Examples(np.concatenate(drawn), np.repeat(list(CENTRES), count), anchors)


def test_every_kind_of_corruption_is_an_example_of_one_cause():
    assert sorted(kind for kinds in KINDS_OF.values() for kind in kinds) == sorted(KINDS)


def test_a_cause_is_named_for_rows_like_its_copies_and_none_for_rows_like_anchors():
    generator = np.random.default_rng(8)
    rows = clusters(generator, 50)
    found = likely_causes(rows.profiles, clusters(generator, 40))
    expected = np.repeat(["unsure", "wrong_step", "wrong_step", "cut_off"], 50)
    named = np.array(found.named)
    known = np.isin(named, list(KINDS_OF))
    assert (named[known] == expected[known]).mean() > 0.97  # centres are six spreads apart
    assert known[expected != "unsure"].mean() > 0.85  # one in twenty lies too far out, and some lie too near to anchors
    np.testing.assert_array_equal(np.isfinite(found.confidence), known)
    assert found.confidence[known].min() >= found.level >= 2 / 3


def test_the_confidence_is_the_probability_of_a_multinomial_regression():
    generator = np.random.default_rng(9)
    examples, rows = clusters(generator, 30, apart=0.5), clusters(generator, 30, apart=0.5).profiles
    found = likely_causes(rows, examples)
    causes = np.array([{"wrong_result": "wrong_step"}.get(kind, kind) for kind in examples.labels])
    scaler = StandardScaler().fit(examples.profiles)
    # the penalty: 1 / (2 C n) for a loss that is a mean, and for each weight 5 / 3 over n
    oracle = LogisticRegression(C=0.3, class_weight="balanced", tol=1e-8, max_iter=1000)
    oracle.fit(scaler.transform(examples.profiles), causes)
    known = np.isfinite(found.confidence)
    assert known.sum() > 5
    expected = oracle.predict_proba(scaler.transform(rows)).max(1)[known]
    np.testing.assert_allclose(found.confidence[known], expected, atol=1e-3)  # where the two minimisers stop


def test_rows_unlike_all_examples_are_of_a_new_kind_however_sure_the_regression_is():
    generator = np.random.default_rng(10)
    far = np.array([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]])
    found = likely_causes(far, clusters(generator, 40))
    assert found.named == ["new_kind", "new_kind"]
    assert np.isnan(found.confidence).all()


def test_causes_that_cannot_be_told_apart_are_not_named():
    generator = np.random.default_rng(11)
    found = likely_causes(clusters(generator, 100, apart=0.0).profiles, clusters(generator, 40, apart=0.0))
    assert np.mean([cause in KINDS_OF for cause in found.named]) < 0.05


def test_without_corrupted_anchors_every_row_is_unsure():
    examples = clusters(np.random.default_rng(12), 20)
    alone = Examples(examples.profiles[:20], examples.labels[:20], examples.anchors[:20])
    found = likely_causes(examples.profiles, alone)
    assert set(found.named) == {"unsure"}
    assert np.isnan(found.level)


def test_no_harmful_row_is_no_trouble():
    assert likely_causes(np.empty((0, 3)), clusters(np.random.default_rng(13), 20)).named == []


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
    rows = Means(loss, loss, loss + helped)
    harmful = np.arange(4000) % 10 == 0
    blind = blind_rows(rows, harmful)
    assert np.isnan(blind[harmful]).all()
    # the two bells cross near 0.5, beyond which lie under 1 % of either
    assert np.nanmean(blind[:1000]) > 0.95
    assert np.nanmean(blind[1000:]) < 0.05


def test_where_every_picture_helps_no_row_is_blind():
    loss = np.full(50, 0.2)
    rows = Means(loss, loss, loss + 1.0)
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


@cache
def judged():
    """A digits run whose proxy knows what it sees, and half of whose rows are bad; and what was planted in each."""
    folder = Path(tempfile.mkdtemp(prefix="ost-test-"))
    options = SyntheticOptions(pool_rows=160, heldout_rows=40, benchmark_rows=1, noise_share=0.5, seed=6)
    world = make_synthetic("digits", options, folder / "world")
    method = OneStep(store_tokens=True, ablate=True, corrupted=200)
    proxy = ProxyOptions(str(packaged("proxy")))
    score_into(folder / "run", ScoreRequest(open_pool(world.pool), method, anchors=world.heldout, proxy=proxy))
    return folder / "run", pq.read_table(world.truth)["kind"].to_pylist()


def test_explain_writes_a_line_for_each_row_whose_quotations_stand_in_the_answers(tmp_path):
    run, _ = judged()
    outcome = done("explain", run, "--rows", 3, "--out", tmp_path / "e.parquet")
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(160))
    assert f"{sum(row['harmful'] for row in rows)} of 160 rows look harmful" in outcome.out
    texts = {one.uid: text_of(one, "assistant") for one in open_pool(run.parent / "world" / "pool.jsonl")}
    for row in rows:
        assert (row["cause"] is None) == (not row["harmful"])
        assert (row["confidence"] is None) == (row["cause"] not in KINDS_OF)
        if row["harmful"]:
            assert row["span_text"] == texts[row["uid"]][row["span_start"] : row["span_end"]]


def test_what_is_harmful_is_what_the_trust_gate_drops(tmp_path):
    run, _ = judged()
    done("explain", run, "--out", tmp_path / "e.parquet")
    harmful = pq.read_table(tmp_path / "e.parquet")["harmful"].to_numpy(zero_copy_only=False)
    trust = measure_trust(ScoreTable(run / "scores.parquet"))
    assert not trust.verdict.blind
    np.testing.assert_array_equal(harmful, ~trust.passing())


def test_planted_causes_are_named_in_a_built_world(tmp_path):
    run, planted = judged()
    done("explain", run, "--out", tmp_path / "e.parquet")
    named = np.array([cause or "" for cause in pq.read_table(tmp_path / "e.parquet")["cause"].to_pylist()])
    kinds = np.array([kind or "clean" for kind in planted])
    right = {"cut_off": "cut_off", "swapped_image": "mismatch"}
    right |= dict.fromkeys(("misread", "slip", "wrong_operation"), "wrong_step")
    for kind in ("cut_off", "swapped_image", "slip"):  # the others are mostly left unsure: experiments/causes
        assert (named[kinds == kind] == right[kind]).any()
    told = np.isin(named, list(KINDS_OF)) & np.isin(kinds, list(right))
    assert (named[told] == [right[kind] for kind in kinds[told]]).mean() >= 0.85  # what is promised of larger pools


def test_explain_as_json_says_the_same_as_its_file(tmp_path):
    found = json.loads(done("explain", judged()[0], "--json", "--out", tmp_path / "e.parquet").out)
    table = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert found["harmful"] == sum(row["harmful"] for row in table) == sum(found["causes"].values()) > 0
    assert {one["row"] for one in found["worst"]} <= {row["row"] for row in table if row["harmful"]}
    assert found["cause_level"] >= 2 / 3


def test_a_blind_gate_calls_no_row_harmful_and_says_so(tmp_path):
    outcome = done("explain", explained(), "--out", tmp_path / "e.parquet")
    assert "no row is called harmful: the gate is blind" in outcome.out
    assert not any(pq.read_table(tmp_path / "e.parquet")["harmful"].to_pylist())


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
