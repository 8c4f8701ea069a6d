"""The second pass, from the first scores to the rows that are kept, against other routes to the same numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.assembling import assemble
from onesteptrain.jobs.comparison import Comparison, MethodArm
from onesteptrain.jobs.comparison.arms import make_arms
from onesteptrain.jobs.job import Job, run_job
from onesteptrain.jobs.recipe import Bench, Places
from onesteptrain.methods.one_step import OneStep
from onesteptrain.selection import select_rows
from onesteptrain.selection.trust import SECOND_SIGNALS, SIGNALS, measure_trust
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable, write_table
from onesteptrain.training import FinetuneOptions
from tests.building import checkpoint, write_pool
from tests.test_trust import ANCHORS, ROWS, mixture, signals, table_of

POOL, ANCHOR_ROWS = 40, 24


@functools.cache
def looked() -> tuple[Job, list[str]]:
    """A main job with a second pass, and what it told; made once."""
    folder = Path(tempfile.mkdtemp(prefix="ost-look-"))
    values = {
        "pool": write_pool(folder / "pool", POOL),
        "anchors": write_pool(folder / "anchors", ANCHOR_ROWS, start=100),
        "proxy": str(checkpoint("qwen3_vl")),
        "warmup_share": 0.1,
        "warmup": FinetuneOptions(steps=3, batch_size=2, learning_rate=1e-3),
    }
    job = assemble(Job, values | {"out": folder / "out", "score": OneStep(store_tokens=True), "keep": ("25%",)})
    told: list[str] = []
    run_job(job, tell=told.append)
    return job, told


def first() -> ScoreTable:
    return ScoreTable(looked()[0].out / "score" / "scores.parquet")


def second() -> ScoreTable:
    return ScoreTable(looked()[0].out / "second" / "score" / "scores.parquet")


def test_the_second_proxy_learns_as_long_from_more_rows_that_pass():
    job, told = looked()
    facts = [json.loads((job.out / name / "warmup.json").read_text()) for name in ("warmup", "second/warmup")]
    trust = measure_trust(first())
    passing = trust.passing() | trust.verdict.blind  # a blind gate, as of random weights, lets all pass
    trusted = [one.uid for one in open_pool(job.out / "second" / "trusted.jsonl", image_root=job.recipe.pool.parent)]
    uids = first().read(["uid"])["uid"].to_pylist()
    assert facts[0]["steps"] == facts[1]["steps"] == job.recipe.warmup.steps
    assert len(trusted) == facts[1]["used"] == min(round(4 * job.recipe.warmup_share * POOL), passing.sum())
    assert set(trusted) <= {uid for uid, passed in zip(uids, passing, strict=True) if passed}
    assert any("second_pass: scored 40 of 40 rows" in line for line in told)


def test_rows_that_the_gate_drops_teach_the_second_proxy_nothing(tmp_path):
    job, _ = looked()
    table, bad = first().read(), np.arange(POOL) % 2 == 0
    for name in SIGNALS:
        values = np.where(bad, 1e6, 1.0) * table[name].to_numpy()
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    for made in ("warmup", "score"):
        shutil.copytree(job.out / made, tmp_path / made)
    write_table(table, tmp_path / "score" / "scores.parquet")
    Run(tmp_path / "score").record(files={})  # or the table would be refused as changed
    (tmp_path / "score" / "corrupted.parquet").unlink()  # of random weights: it would say that the gate is blind
    bench = Bench(job.recipe, open_pool(job.recipe.pool), Places(tmp_path), lambda text: None)
    assert bench.score("one_step", job.score, second_pass=True).run == tmp_path / "second" / "score"
    taught = {one.uid for one in open_pool(tmp_path / "second" / "trusted.jsonl", image_root=job.recipe.pool.parent)}
    assert len(taught) == 16
    assert not taught & {f"s{row}" for row in np.flatnonzero(bad)}


def test_the_subset_goes_by_the_second_pass():
    job, _ = looked()
    kept = [one.uid for one in open_pool(job.out / "subset-25percent.jsonl", image_root=job.recipe.pool.parent)]
    uids = second().read(["uid"])["uid"].to_pylist()
    assert kept == [uids[row] for row in select_rows(second(), keep="25%").rows]


def test_without_a_second_pass_the_first_decides_and_nothing_is_made_again(tmp_path):
    job, _ = looked()
    told: list[str] = []
    run_job(job, tell=told.append)
    assert not [line for line in told if "warmed" in line or "drew" in line]
    plain = dataclasses.replace(job, second_pass=False, out=tmp_path / "out")
    run_job(plain)
    assert not (plain.out / "second").exists()
    rows = select_rows(ScoreTable(plain.out / "score" / "scores.parquet"), keep="25%").rows
    assert len((plain.out / "subset-25percent.jsonl").read_text().splitlines()) == len(rows)


def test_an_arm_of_a_comparison_takes_the_second_pass_that_a_run_takes(tmp_path):
    job, _ = looked()
    tokens = {"store_tokens": True}
    asked = Comparison(
        recipe=job.recipe,
        target=str(job.recipe.proxy),
        benchmark=job.recipe.pool,
        out=tmp_path,
        train=FinetuneOptions(steps=1),
        methods={"twice": MethodArm("one_step", tokens, second_pass=True), "once": MethodArm("one_step", tokens)},
        shares=("25%",),
    )
    told: list[str] = []
    arms = {arm.method: arm for arm in make_arms(asked, open_pool(job.recipe.pool), told.append)}
    assert arms["twice"].rows(0).tolist() == select_rows(second(), keep="25%").rows.tolist()
    assert set(SECOND_SIGNALS) <= set(ScoreTable(arms["twice"].run / "scores.parquet").names)
    assert arms["once"].rows(0).tolist() == select_rows(first(), keep="25%").rows.tolist()
    looks = [Run(path).provenance["seconds"] for path in (tmp_path / "scores").iterdir()]
    assert arms["twice"].scoring_seconds > min(looks)
    before = len(told)
    list(make_arms(asked, open_pool(job.recipe.pool), told.append))
    assert not [line for line in told[before:] if "warmed" in line or "drew" in line]


def test_too_few_anchors_for_the_gate_means_no_second_pass(tmp_path):
    job, _ = looked()
    few = dataclasses.replace(
        job,
        recipe=dataclasses.replace(job.recipe, anchors=write_pool(tmp_path / "few", 5, start=200)),
        out=tmp_path / "out",
    )
    told: list[str] = []
    run_job(few, tell=told.append)
    assert any("no second pass" in line for line in told)
    assert (few.out / "subset-25percent.jsonl").is_file()


def test_the_trust_gate_goes_by_the_second_losses_where_they_are(tmp_path):
    rows, clean = mixture(0.5)
    blurred, theirs = signals(ROWS, 5), signals(ANCHORS, 6)  # the first pass tells nothing
    sharp = dict(zip(SECOND_SIGNALS[1:], rows[:, 1:].T, strict=True))
    table = table_of(tmp_path / "both", blurred, theirs, **sharp)
    reference = signals(ANCHORS, 7)
    anchors = dict(zip(SECOND_SIGNALS[1:], reference[:, 1:].T, strict=True))
    table_of(tmp_path / "anchors", theirs, None, **anchors).path.rename(tmp_path / "both" / "reference.parquet")
    trust = measure_trust(table)
    alike = table_of(tmp_path / "plain", np.c_[blurred[:, :1], rows[:, 1:]], np.c_[theirs[:, :1], reference[:, 1:]])
    np.testing.assert_array_equal(trust.nonconformity, measure_trust(alike).nonconformity)
    first_alone = measure_trust(table_of(tmp_path / "first", blurred, theirs))
    assert clean[trust.passing()].mean() > 0.7 > clean[first_alone.passing()].mean()


def test_only_one_step_takes_a_second_pass():
    with pytest.raises(ConfigError, match="needs method one_step, not loss"):
        MethodArm("loss", second_pass=True)
