"""The scorer of the second pass: what a method promises, and its losses by another route."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onesteptrain.data.pool import Pool, Sample, open_pool
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.methods import Setting, installed, method_class
from onesteptrain.methods.loss import Loss
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import Proxy, load_proxy
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.scoring.score import score_pool
from onesteptrain.scoring.second_pass import RecordsByRow, second_pass_scorer
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import BASE_COLUMNS, ScoreTable, write_table
from tests.building import checkpoint, write_pool

ROWS, ANCHOR_ROWS = 13, 5
SMALL = ScoringOptions(shard_rows=4, chunk_rows=3)


def run_in(path: Path) -> Run:
    path.mkdir()
    return Run(path)


@functools.cache
def scored_first() -> tuple[Pool, list[Sample], ScoreTable]:
    """A pool, its anchors and the scores of method one_step; made once."""
    folder = Path(tempfile.mkdtemp(prefix="ost-first-"))
    pool = open_pool(write_pool(folder / "pool", ROWS))
    anchors = list(open_pool(write_pool(folder / "anchors", ANCHOR_ROWS, start=100)))
    setting = Setting(load_proxy(checkpoint("qwen3_vl")), anchors)
    method = OneStep(store_tokens=True, reference_folds=2)
    return pool, anchors, score_pool(pool, lambda: method.prepare(setting), run_in(folder / "run"), SMALL).table


@functools.cache
def second_proxy() -> Proxy:
    """Another proxy than that of the first scores."""
    proxy = load_proxy(checkpoint("qwen3_vl"))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        weights = proxy.model.get_output_embeddings().weight
        weights += 0.1 * torch.randn(weights.shape, generator=generator)
    return proxy


def scorer(batch_size: int | None = 4):
    _, anchors, first = scored_first()
    return second_pass_scorer(first, second_proxy(), anchors, batch_size=batch_size)


@functools.cache
def second() -> ScoreTable:
    folder = Path(tempfile.mkdtemp(prefix="ost-second-"))
    return score_pool(scored_first()[0], scorer, run_in(folder / "run"), SMALL).table


def losses(records) -> list[tuple[float, float]]:
    return [(record.columns["second_loss"], record.columns["second_worst_loss"]) for record in records]


def test_the_columns_of_the_first_scoring_stand_unchanged_bit_for_bit():
    first = scored_first()[2]
    tables = ((second(), first), (second().reference, first.reference), (second().corrupted, first.corrupted))
    for now, before in tables:
        assert now.names == [*before.names, "second_loss", "second_worst_loss"]
        assert now.read(before.names).equals(before.read())


def test_the_losses_are_those_of_the_second_proxy_by_another_route():
    pool, anchors, _ = scored_first()
    for samples, table in ((list(pool), second()), (anchors, second().reference)):
        by_method = Loss().prepare(Setting(second_proxy()))(samples)
        by_uid = {sample.uid: record.columns["loss"] for sample, record in zip(samples, by_method, strict=True)}
        uids = table.read(["uid"])["uid"].to_pylist()
        # the same forward pass in batches put together otherwise: float32 sums in another order
        np.testing.assert_allclose(table.numbers("second_loss"), [by_uid[uid] for uid in uids], 1e-5)
        assert (np.abs(table.numbers("second_loss") / table.numbers("loss") - 1) > 1e-3).any()  # another proxy's


def test_the_worst_loss_is_the_highest_of_the_tokens():
    pool, anchors, _ = scored_first()
    by_tokens = OneStep(store_tokens=True, reference_folds=0).prepare(Setting(second_proxy(), anchors))(list(pool))
    highest = [float(max(record.columns["token_loss"])) for record in by_tokens]
    # a central difference takes the loss as the mean of two shifted passes, off by the square of the shift
    np.testing.assert_allclose(second().numbers("second_worst_loss"), highest, rtol=1e-3)


def test_order_is_kept_and_neighbours_do_not_matter():
    samples = list(scored_first()[0])
    together, backward = losses(scorer()(samples)), losses(scorer()(samples[::-1]))
    alone = [losses(scorer()([sample]))[0] for sample in samples[:3]]
    # float32, summed in another order where the padding is another
    np.testing.assert_allclose(together, backward[::-1], rtol=1e-4)
    np.testing.assert_allclose(together[:3], alone, rtol=1e-4)
    assert len(set(together)) == ROWS


def test_the_same_call_gives_the_same_bits_and_leaves_the_proxy_alone():
    samples, model = list(scored_first()[0]), second_proxy().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert losses(scorer()(samples)) == losses(scorer()(samples))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training


def test_a_pass_that_was_interrupted_ends_with_the_same_bytes(tmp_path):
    pool, run = scored_first()[0], run_in(tmp_path / "run")
    whole = scorer()

    class Killed:
        def __call__(self, samples):
            if samples[0].row >= 6:
                raise KeyboardInterrupt
            return whole(samples)

        def reference(self):
            return whole.reference()

    with pytest.raises(KeyboardInterrupt):
        score_pool(pool, Killed, run, SMALL)
    assert score_pool(pool, scorer, run, SMALL).scored_now == ROWS - 4
    for name in ("scores.parquet", "reference.parquet", "corrupted.parquet"):
        assert (run.path / name).read_bytes() == (second().path.parent / name).read_bytes()


def test_what_cannot_be_joined_is_refused(tmp_path):
    pool, anchors, first = scored_first()
    alone = tmp_path / "scores.parquet"
    alone.write_bytes(first.path.read_bytes())
    with pytest.raises(ScoreError, match=r"no reference\.parquet beside it"):
        second_pass_scorer(ScoreTable(alone), second_proxy(), anchors)
    other = dataclasses.replace(next(iter(pool)), uid="another")
    with pytest.raises(ScoreError, match="has 's0' in row 0, where now 'another' is"):
        scorer()([other])
    with pytest.raises(ScoreError, match=f"has None in row {ROWS}"):
        scorer()([dataclasses.replace(other, row=ROWS)])
    with pytest.raises(ScoreError, match="5 anchors that are not the 2 given"):
        second_pass_scorer(first, second_proxy(), anchors[:2]).reference()


def test_first_records_are_had_in_any_order_across_row_groups(tmp_path):
    pool, _, first = scored_first()
    pq.write_table(first.read(), tmp_path / "scores.parquet", row_group_size=3)
    samples, wanted = list(pool), first.read(["uid", "harm", "token_loss"]).to_pylist()
    records = RecordsByRow(tmp_path / "scores.parquet")
    for row in [*range(ROWS), *range(ROWS)[::-1], 12, 0, 3, 2, 6, 7]:
        record = records.record(samples[row])
        assert samples[row].uid == wanted[row]["uid"]
        assert record.columns["harm"] == wanted[row]["harm"]
        assert record.columns["token_loss"].tolist() == wanted[row]["token_loss"]


def test_a_row_without_a_score_keeps_its_reason_and_one_without_a_finite_loss_gets_one(tmp_path):
    pool, anchors, first = scored_first()
    for name in ("scores.parquet", "reference.parquet", "corrupted.parquet"):
        (tmp_path / name).write_bytes((first.path.parent / name).read_bytes())
    rows = first.read().to_pylist()
    rows[1] |= {"score": None, "reason": "its picture is gone"} | dict.fromkeys(set(rows[1]) - set(BASE_COLUMNS))
    write_table(pa.Table.from_pylist(rows, schema=first.read().schema), tmp_path / "scores.parquet")
    table, samples = ScoreTable(tmp_path / "scores.parquet"), list(pool)[:3]
    records = second_pass_scorer(table, second_proxy(), anchors)(samples)
    assert [record.reason for record in records] == [None, "its picture is gone", None]
    broken = load_proxy(checkpoint("qwen3_vl"))
    with torch.no_grad():
        broken.model.lm_head.weight[0, 0] = torch.nan
    reasons = [record.reason for record in second_pass_scorer(table, broken, anchors)(samples)]
    assert "its loss at the second pass is nan" in reasons[0]
    assert reasons[1] == "its picture is gone"


def test_the_old_method_is_refused_with_what_takes_its_place():
    assert "second_look" not in installed()
    with pytest.raises(ConfigError, match="second_look is no method any more; `ost run` takes the second pass"):
        method_class("second_look")
