"""Harmful tokens out of the loss, and rows that count by their probability to be clean."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pytest

from onesteptrain.data.pool import Sample, Turn, Unreadable, open_pool, text_of
from onesteptrain.errors import ConfigError, PoolError, ScoreError
from onesteptrain.evaluation import EvaluateOptions
from onesteptrain.jobs.comparison.trials import Harm, Trial, trial_samples
from onesteptrain.jobs.reweighting import learned_as, selecting, weighed, without_harm, without_tokens
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.reporting.diagnosis.measured import Tokens
from onesteptrain.reporting.diagnosis.spans import token_scale
from onesteptrain.reporting.diagnosis.texts import load_quoter
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import ScoreTable, write_table
from onesteptrain.training import FinetuneOptions
from tests.building import checkpoint, sample, write_pool

ROWS = [sample(row, images=row % 2) for row in range(30)]


@functools.cache
def encoder():
    return load_proxy(checkpoint()).encoder


@functools.cache
def quote():
    return load_quoter(checkpoint())


def learned(one):
    """Token by token, what of a sample is in the loss."""
    encoded = encoder().encode(one)
    return encoded.inputs["input_ids"][0][encoded.answer]


def two_answers():
    """With white space that templates strip, and two answers."""
    said = [("user", "What is 3 plus 4?"), ("assistant", " It is 7.\nThe answer is 7. ")]
    said += [("user", "And which?"), ("assistant", "The answer is B.")]
    return Sample("two", 0, tuple(Turn(role, (text,)) for role, text in said))


def table_of(folder, tokens, uids, **columns):
    """A score table whose rows have these losses of tokens and no harm."""
    own = {
        "score": [0.0] * len(uids),
        "reason": pa.nulls(len(uids), pa.string()),
        "utility": [0.0] * len(uids),
        "harm": [0.0] * len(uids),
        "loss": [float(np.mean(row)) for row in tokens],
        "worst_loss": [float(np.max(row)) for row in tokens],
        "token_utility": [np.zeros(len(row), np.float32) for row in tokens],
        "token_loss": [np.asarray(row, np.float32) for row in tokens],
    }
    rows = {"uid": uids, "row": np.arange(len(uids)), **own, **columns}
    folder.mkdir(exist_ok=True)
    write_table(pa.table(rows), folder / columns.pop("name", "scores.parquet"))


@pytest.fixture
def run(tmp_path):
    """Thirty rows, of which every third has two tokens far out, and anchors with common losses."""
    generator = np.random.default_rng(0)
    tokens = [generator.exponential(0.1, len(learned(one))) for one in ROWS]
    for row in range(0, 30, 3):
        tokens[row][[1, -1]] = 50.0  # the last one is the end-of-turn mark
    anchors = [generator.exponential(0.1, 9) for _ in range(40)]
    table_of(tmp_path, anchors, [f"a{row}" for row in range(40)])
    (tmp_path / "scores.parquet").rename(tmp_path / "reference.parquet")
    table_of(tmp_path, tokens, [one.uid for one in ROWS])
    return ScoreTable(tmp_path / "scores.parquet"), tokens, anchors


@pytest.mark.parametrize("one", [*ROWS[:3], two_answers()], ids=lambda one: one.uid)
def test_exactly_the_named_tokens_are_out_of_the_loss(one):
    whole = learned(one)
    generator = np.random.default_rng(1)
    for harmful in [*np.eye(len(whole), dtype=bool), generator.random(len(whole)) < 0.5]:
        left = learned(without_tokens(one, harmful, quote()))
        assert left.tolist() == whole[~harmful].tolist()


def test_tokens_worse_than_those_of_nine_in_ten_anchors_are_masked_and_no_others(run):
    table, tokens, anchors = run
    scale = token_scale(Tokens([np.zeros(9)] * 40, anchors))
    done = without_harm(ROWS, table, quote())
    masked = 0
    for one, before, losses in zip(done.rows, ROWS, tokens, strict=True):
        harmful = np.float32(losses) / scale.loss > scale.row_limit
        assert learned(one).tolist() == learned(before)[~harmful].tolist()
        masked += int(harmful.sum())
    assert masked >= 20
    assert (done.masked, done.tokens) == (masked, sum(map(len, tokens)))


def test_each_row_counts_by_its_probability_to_be_clean(run):
    table, _, _ = run
    probability = measure_trust(table).probability
    rows = [*ROWS[::-1], Unreadable("s3", 3, "broken")][:30]
    for one in weighed(rows, table):
        if isinstance(one, Unreadable):
            assert probability[one.row] == 0
            assert "probability to be clean is 0" in one.reason
            continue
        assert {turn.weight for turn in one.turns} == {float(probability[one.row])}
        assert text_of(one, "assistant") == text_of(ROWS[one.row], "assistant")
    assert len({round(float(value), 3) for value in probability}) > 2


def test_flags_of_the_rows_own_stay(run):
    table, _, _ = run
    half = [dataclasses.replace(turn, weight=0.5) for turn in ROWS[1].turns]
    (one,) = weighed([dataclasses.replace(ROWS[1], turns=tuple(half))], table)
    assert one.turns[1].weight == 0.5 * float(measure_trust(table).probability[1])


def test_where_harmful_rows_are_masked_or_weighed_they_are_drawn_like_the_others(run):
    table, _, _ = run
    kept = {
        harmful: select_rows(table, keep="100%", options=selecting(SelectOptions(), harmful)).rows.tolist()
        for harmful in ("drop", "mask", "weigh", "drop-and-mask")
    }
    assert kept["mask"] == kept["weigh"] == list(range(30))
    assert kept["drop"] == kept["drop-and-mask"] == np.flatnonzero(measure_trust(table).passing()).tolist()
    assert len(kept["drop"]) < 30
    with pytest.raises(ConfigError, match="harmful mask takes the place of the trust gate"):
        selecting(SelectOptions(prefer="top"), "mask")


def test_what_is_dropped_stays_as_it_is_and_what_is_weighed_counts_less(run):
    table, _, _ = run
    assert learned_as(ROWS, "drop", table.path.parent) == (ROWS, "")
    rows, said = learned_as(ROWS, "weigh", table.path.parent)
    assert rows == weighed(ROWS, table)
    assert said == "each row counts by its probability to be clean"


def test_a_trial_learns_the_rows_of_its_arm_by_their_weights(run, tmp_path):
    table, _, _ = run
    pool = open_pool(write_pool(tmp_path / "pool", 30))
    harm, kept = Harm("weigh", table.path.parent), np.arange(1, 30, 4)
    options = (FinetuneOptions(), ScopeOptions(), LoadOptions(), EvaluateOptions())
    trial = Trial(pool, str(checkpoint()), tmp_path, kept, *options, harm=harm)
    samples, refused = trial_samples(trial, load_proxy(checkpoint()), LoadOptions())
    probability = np.float32(measure_trust(table).probability[kept])
    assert [set(one.weight[one.answer].tolist()) for one in samples] == [
        {value} for value in probability.tolist() if value
    ]
    assert len(refused) == (probability == 0).sum()


def test_rows_of_another_pool_are_refused(run):
    table, _, _ = run
    with pytest.raises(PoolError, match="row 'x' is not among the 30"):
        weighed([dataclasses.replace(ROWS[0], uid="x")], table)
    other = dataclasses.replace(ROWS[0], turns=ROWS[2].turns)
    with pytest.raises(PoolError, match=r"answer tokens, and .* when it was scored"):
        without_harm([other], table, quote())


def test_a_row_without_a_score_has_a_reason_and_a_repeated_id_is_refused_in_a_subset(run, tmp_path):
    _, tokens, _ = run
    uids = ["s0", "s0#2", *(one.uid for one in ROWS[2:])]
    table_of(tmp_path, tokens, uids, score=[None, *[0.0] * 29])
    table = ScoreTable(tmp_path / "scores.parquet")
    with pytest.raises(PoolError, match=r"several rows of .* have the id 's0'"):
        weighed(ROWS[:1], table)
    renamed = [dataclasses.replace(one, uid=uid) for one, uid in zip(ROWS, uids, strict=True)]
    for rows in (weighed(renamed, table), without_harm(renamed, table, quote()).rows):
        assert isinstance(rows[0], Unreadable)
        assert "it has no score" in rows[0].reason
        assert sum(isinstance(row, Sample) for row in rows) > 10


def test_scores_without_tokens_are_refused_with_what_to_do(run, tmp_path):
    table, _, _ = run
    write_table(table.read().drop_columns(["token_loss"]), tmp_path / "scores.parquet")
    with pytest.raises(ScoreError, match="has no token_loss; score again with --store-tokens"):
        without_harm(ROWS, ScoreTable(tmp_path / "scores.parquet"), quote())
