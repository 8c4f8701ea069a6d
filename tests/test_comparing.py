"""The comparison: arms keep the rows that selection keeps, trials give what training and evaluating give."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from onesteptrain.data.pool import open_pool
from onesteptrain.errors import ConfigError, OneStepError, PoolError, RunError
from onesteptrain.evaluation import EvaluateOptions, evaluate
from onesteptrain.jobs.assembling import flat
from onesteptrain.jobs.comparison import RANDOM, SET, TOP, Comparison, MethodArm, compare, read_comparison
from onesteptrain.jobs.comparison.trials import Harm, Trial
from onesteptrain.jobs.demo import digits_comparison
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.fingerprints import content_id
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, make_synthetic
from onesteptrain.training import FinetuneOptions, TrainOptions, train
from tests.building import write_pool
from tests.commands import ost, refusal
from tests.test_trust import ANCHORS, mixture, signals, table_of

SEEDS = 2
ROWS = 48
KEYS = {"method", "share", "protocol", "seed", "accuracy", "accuracy_by_skill"}
KEYS |= {"scoring_seconds", "training_seconds", "rows"}
TUNING = FinetuneOptions(steps=4, epochs=1.0, batch_size=8, learning_rate=2e-3)


@functools.cache
def digits() -> SyntheticData:
    """A small digits world: the packaged target answers most of it, and a few steps change what it answers."""
    folder = Path(tempfile.mkdtemp(prefix="ost-test-")) / "world"
    return make_synthetic(
        "digits", SyntheticOptions(pool_rows=ROWS, heldout_rows=30, benchmark_rows=16, duplicate_share=0), folder
    )


def request(out: Path, **changes) -> Comparison:
    settings = {
        "anchor_count": 8,
        "warmup_share": 0.2,
        "warmup": FinetuneOptions(batch_size=4, learning_rate=1e-4),
        "methods": {"ost": TOP, "random": RANDOM, "loss": MethodArm("loss", keep=(">=-100",))},
        "shares": ("50%",),
        "protocols": ("A", "B"),
        "train": TUNING,
        "evaluate": EvaluateOptions(max_new_tokens=48, by=("skill",)),
        "seeds": SEEDS,
        "references": ("full", "random"),
    }
    return digits_comparison(digits(), out, **settings | changes)


def changed(job, **changes):
    return dataclasses.replace(job, **changes)


@functools.cache
def compared():
    """One comparison that the tests share and must not change, and what it told."""
    told: list[str] = []
    job = request(Path(tempfile.mkdtemp(prefix="ost-test-")) / "out")
    return job, compare(job, workers=2, tell=told.append), told


def of(records, **wanted):
    return [one for one in records if all(one[name] == value for name, value in wanted.items())]


def test_every_arm_protocol_and_seed_has_its_record():
    job, done, _ = compared()
    assert all(record.keys() >= KEYS for record in done.records)
    assert json.loads((job.out / "results.json").read_text()) == done.records
    arms = {(one["method"], one["budget"], one["protocol"]): 0 for one in done.records}
    for one in done.records:
        arms[one["method"], one["budget"], one["protocol"]] += 1
    budgets = {
        "untuned": ["0%"],
        "full": ["100%"],
        "oracle": ["clean"],
        "ost": ["50%"],
        "random": ["50%"],
        "loss": [">=-100"],
    }
    expected = {
        (method, budget, protocol): 1 if method == "untuned" else SEEDS
        for method, names in budgets.items()
        for budget in names
        for protocol in "AB"
    }
    assert arms == expected


def trial_of(job, record):
    return json.loads((job.out / "trials" / record["trial"] / "trial.json").read_text())


def said_by(job, record):
    answers = job.out / "trials" / record["trial"] / "answers" / "results.jsonl"
    return [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]


def kept_by_ost(done):
    table = ScoreTable(done.scores["ost"] / "scores.parquet")
    return select_rows(table, keep="50%", options=TOP.select).rows.tolist()


def test_an_arm_trains_on_the_rows_that_select_keeps():
    job, done, _ = compared()
    for record in of(done.records, method="ost"):
        assert trial_of(job, record)["pool_rows"] == kept_by_ost(done)
        assert (record["rows"], record["share"]) == (ROWS // 2, 0.5)
    assert {one["share"] for one in of(done.records, method="loss", budget=">=-100")} == {1.0}


def test_arms_and_seeds_can_be_told_apart_by_what_their_targets_say():
    job, done, _ = compared()
    said = {one["trial"]: tuple(said_by(job, one)) for one in done.records}
    assert len(set(said.values())) > len(said) / 2
    assert any(0 < one["accuracy"] < 100 for one in done.records)


@pytest.mark.parametrize(("protocol", "fixed"), [("A", {"steps": None}), ("B", {"epochs": 1.0})])
def test_a_trial_gives_what_training_and_evaluating_the_subset_give(tmp_path, protocol, fixed):
    job, done, _ = compared()
    kept = set(kept_by_ost(done))
    samples = [row for row in open_pool(job.recipe.pool) if row.row in kept]
    options = TrainOptions(dataclasses.replace(TUNING, seed=1, **fixed), load=LoadOptions(device="cpu"))
    result = train(job.target, samples, options, tmp_path / "target")
    expected = evaluate(result.checkpoint, job.benchmark, job.evaluate)
    (record,) = of(done.records, method="ost", budget="50%", protocol=protocol, seed=1)
    assert said_by(job, record) == [one.prediction for one in expected.graded]
    assert record["accuracy"] == 100 * expected.accuracy.value
    by = {name: 100 * one.value for name, one in expected.by["skill"].items()}
    assert record["accuracy_by_skill"] == by
    assert (record["steps"], record["tokens"]) == (result.steps, result.tokens)


def test_protocol_a_takes_steps_in_proportion_and_b_the_same_for_all():
    _, done, _ = compared()
    assert {one["steps"] for one in of(done.records, protocol="B") if one["method"] != "untuned"} == {4}
    assert {one["steps"] for one in of(done.records, protocol="A", method="full")} == {6}  # 48 rows in eights
    assert {one["steps"] for one in of(done.records, protocol="A", method="ost")} == {3}


def test_chance_draws_anew_for_each_seed_and_oracles_keep_clean_rows_only():
    _, done, _ = compared()
    assert {one["clean_share"] for one in of(done.records, method="oracle")} == {1.0}
    assert {one["rows"] for one in of(done.records, method="oracle", budget="clean")} == {ROWS // 2}
    random = of(done.records, method="random", budget="50%", protocol="B")
    assert len({tuple(trial_of(compared()[0], one)["pool_rows"]) for one in random}) == SEEDS
    assert {one["rows"] for one in random} == {ROWS // 2}


def test_arms_that_keep_the_same_rows_share_a_trial():
    _, done, _ = compared()
    full = of(done.records, method="full", protocol="A", seed=0)
    all_rows = of(done.records, method="loss", budget=">=-100", protocol="A", seed=0)
    assert full[0]["trial"] == all_rows[0]["trial"]


def test_a_method_pays_for_its_scores_and_its_warm_up_and_the_full_pool_for_nothing():
    job, done, _ = compared()
    (warm,) = (job.out / "proxies").iterdir()
    warming = json.loads((warm / "warmup.json").read_text())["seconds"]
    for method in ("ost", "loss"):
        scoring = json.loads((done.scores[method] / "provenance.json").read_text())["seconds"]
        assert {one["scoring_seconds"] for one in of(done.records, method=method)} == {scoring + warming}
    assert {one["scoring_seconds"] for one in of(done.records, method="full")} == {0.0}


def test_the_differences_are_those_of_the_recorded_accuracies():
    _, done, _ = compared()
    for one in done.differences:
        means = [
            np.mean([r["accuracy"] for r in of(done.records, method=m, budget=b, protocol=one["protocol"])])
            for m, b in ((one["method"], one["budget"]), (one["against"], one["against_budget"]))
        ]
        assert one["value"] == pytest.approx(means[0] - means[1], abs=1e-9)  # sums of a few ratios
        assert one["low"] <= one["value"] <= one["high"]
    assert {one["against"] for one in done.differences} == {"full", "random"}


def test_a_second_run_trains_and_scores_nothing_and_a_larger_one_only_what_is_new():
    job, done, _ = compared()
    before = {path: path.stat().st_mtime_ns for path in job.out.rglob("*.parquet")}
    before |= {path: path.stat().st_mtime_ns for path in job.out.glob("trials/*/trial.json")}
    told: list[str] = []
    again = compare(job, workers=1, tell=told.append)
    assert again.records == done.records
    assert not [line for line in told if "scored" in line]
    harm = {**job.methods, "harm": MethodArm("one_step", select=SelectOptions(by="harm"))}
    larger = compare(changed(job, methods=harm, protocols=("B",)), workers=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert of(larger.records, method="ost") == of(done.records, method="ost", protocol="B")
    assert len(of(larger.records, method="harm")) == SEEDS
    compare(job, workers=1)  # put results.json back as the other tests know it


def test_one_preset_keeps_the_highest_scores_and_the_other_goes_by_the_default_rule(tmp_path):
    rows, _ = mixture(0.5)
    table = table_of(tmp_path, rows, signals(ANCHORS, 7))  # the trust gate could be used

    def kept(arm: MethodArm, seed: int = 0) -> list[int]:
        options = dataclasses.replace(arm.selecting, draw_seed=seed)
        return select_rows(table, keep="20%", options=options).rows.tolist()

    score = table.numbers("score")
    assert kept(TOP) == sorted(np.argsort(-score, kind="stable")[: len(score) // 5].tolist()) == kept(TOP, 1)
    assert kept(SET) == select_rows(table, keep="20%").rows.tolist()
    assert kept(SET, 1) != kept(SET)
    harmful = MethodArm("one_step", harmful="weigh")
    assert (
        kept(harmful) == select_rows(table, keep="20%", options=SelectOptions(gate="none", prefer="draw")).rows.tolist()
    )
    with pytest.raises(
        ConfigError, match=r"harmful mask needs the harm of every token; give options.store_tokens: true"
    ):
        MethodArm("one_step", harmful="mask")
    with pytest.raises(ConfigError, match="harmful weigh needs method one_step, not loss"):
        MethodArm("loss", harmful="weigh")
    assert (SET.second_pass, TOP.second_pass) == (True, False)


def start(job: Comparison, file: Path) -> subprocess.Popen[bytes]:
    """`ost compare` in a process of its own."""
    file.write_text(yaml.safe_dump(flat(job)))
    code = (
        f"import sys; from onesteptrain.cli import main; sys.exit(main(['compare', {str(file)!r}, '--workers', '1']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with file.with_suffix(".err").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
        )


def test_ctrl_c_waits_for_no_training_and_says_so_in_one_line(tmp_path):
    job, _, _ = compared()
    endless = dataclasses.replace(TUNING, steps=100_000)
    long = changed(job, methods={}, protocols=("B",), out=tmp_path / "out", truth=None, train=endless, seeds=1)
    process = start(long, tmp_path / "job.yaml")
    try:
        while process.poll() is None and not list((tmp_path / "out" / "trials").glob("*/trial.json")):
            time.sleep(0.05)  # the untuned target is measured first
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) == 130  # the training itself would take hours
    finally:
        process.kill()  # its trainings end with it
    lines = (tmp_path / "job.err").read_text().splitlines()
    assert lines[-1] == "ost: interrupted; the same command continues"
    assert not [line for line in lines if "Traceback" in line]


def test_ctrl_c_between_two_outcomes_ends_the_trainings_too(tmp_path):
    job, _, _ = compared()
    slow = dataclasses.replace(TUNING, steps=3000)  # a minute or more
    long = changed(job, methods={}, protocols=("B",), out=tmp_path / "out", truth=None, train=slow, seeds=1)

    def interrupt(text: str) -> None:
        if "accuracy" in text:
            raise KeyboardInterrupt

    before = set(multiprocessing.active_children())  # of other tests
    with pytest.raises(KeyboardInterrupt):
        compare(long, workers=1, tell=interrupt)
    for child in set(multiprocessing.active_children()) - before:
        child.join(20)  # one that was told to end may still be at it; the training would go on for longer
        assert child.exitcode is not None
    assert len(list((tmp_path / "out" / "trials").glob("*/trial.json"))) == 1  # the untuned target's


def test_a_comparison_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    job, done, _ = compared()
    small = changed(job, methods={"random": RANDOM}, protocols=("B",), out=tmp_path / "out", truth=None)
    process = start(small, tmp_path / "job.yaml")
    trials = tmp_path / "out" / "trials"
    while process.poll() is None and not list(trials.glob("*/trial.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in trials.glob("*/trial.json")}
    assert kept
    again = compare(small, workers=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for record in again.records:
        (same,) = of(done.records, method=record["method"], budget=record["budget"], protocol="B", seed=record["seed"])
        assert record["accuracy"] == same["accuracy"]


def test_another_pool_in_the_same_directory_is_refused(tmp_path):
    job, _, _ = compared()
    other = write_pool(tmp_path / "other", 4)
    with pytest.raises(RunError, match="holds a run with other"):
        compare(changed(job, recipe=changed(job.recipe, pool=other), truth=None), workers=1)


def truth_of(folder: Path, uids: list[str]) -> Path:
    pq.write_table(pa.table({"uid": uids, "row": range(len(uids)), "clean": [True] * len(uids)}), folder / "t.parquet")
    return folder / "t.parquet"


def test_a_truth_of_another_pool_is_refused(tmp_path):
    uids = [row.uid for row in open_pool(digits().pool)]
    for wrong in (uids[:-1], [*uids, "more"], [*uids[:-1], "other"]):
        with pytest.raises(PoolError, match="give the pool's own truth"):
            compare(request(tmp_path / "out", truth=truth_of(tmp_path, wrong)))
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(PoolError, match="needed is a Parquet table with row"):
        compare(request(tmp_path / "out", truth=tmp_path / "t.parquet"))
    assert not (tmp_path / "out").exists()


def test_the_name_of_a_request_follows_the_content_of_its_files(tmp_path):
    file = tmp_path / "a"
    file.write_text("one")
    first = content_id([file, {"x": 1}])
    assert content_id([file, {"x": 1}]) == first
    assert content_id([file, {"x": 2}]) != first
    file.write_text("another")
    assert content_id([file, {"x": 1}]) != first


def yaml_of(folder: Path, text: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(f"pool: p\ntarget: t\nbenchmark: b\nout: o\ntrain: {{steps: 3}}\n{text}")
    return file


def test_a_request_reads_from_yaml_with_the_methods_options(tmp_path):
    text = """
methods:
  mine: {method: one_step, options: {optimizer: adam, step_size: 1.0e-4}, select: {by: harm}}
  random: {}
shares: [10%, 300]
"""
    job = read_comparison(yaml_of(tmp_path, text), seeds=7)
    assert (job.recipe.pool, job.seeds, job.shares, job.train.steps) == (Path("p"), 7, ("10%", "300"), 3)
    assert job.methods["random"] == RANDOM
    made = job.methods["mine"].make("mine")
    assert (type(made).__name__, made.optimizer, made.step_size) == ("OneStep", "adam", 1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share: [20%]\n", "job.yaml: share: Unexpected keyword argument; its options are anchor_by, .* target"),
        ("seeds: many\n", "job.yaml: seeds: Input should be a valid integer"),
        ("methods: {loss: {budget: 20%}}\n", r"job.yaml: methods.loss.budget: Unexpected"),
        ("methods: {ost-set: {}}\n", r"methods.ost-set names no method; write ost-set: {method: one_step, second_pass"),
        (
            "methods: {ost: {keep: [5%]}}\n",
            r"methods.ost names no method; write ost: {method: one_step, select: {prefer",
        ),
        ("methods: {loss: {by: harm}}\n", r"methods.loss: by is now select.by"),
        ("methods: {loss: {second_look: true}}\n", r"methods.loss: second_look is now second_pass"),
        ("working: {shard_rows: 3}\n", "job.yaml: working is now scoring"),
        ("reading: {format: llava}\n", "job.yaml: reading is now pool_reading"),
        ("checking: {allow_leaks: true}\n", "job.yaml: checking is now anchor_reading"),
        ("quota: skill\n", "job.yaml: quota is now select.quota"),
        ("scoring: {shard_row: 3}\n", r"job.yaml: scoring.shard_row: Unexpected"),
        ("evaluate: {max_new_token: 3}\n", r"job.yaml: evaluate.max_new_token: Unexpected"),
        ("evaluate: {max_new_tokens: 0}\n", "max_new_tokens is 0"),
        ("protocols: [C]\n", "job.yaml: protocols.0: Input should be 'A' or 'B'"),
        ("methods: {full: {}}\n", "a method cannot be called 'full'"),
        ("seeds: 0\n", "seeds is 0; it must be at least 1"),
    ],
)
def test_a_request_that_cannot_work_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        read_comparison(yaml_of(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy": None}, "method 'ost' needs a proxy"),
        ({"heldout": None}, "method 'ost' needs anchors"),
        ({"methods": {"nonsense": MethodArm("nonsense")}}, "there is no method 'nonsense'"),
        ({"methods": {"ost": MethodArm("one_step", {"step": 1})}}, r"methods\.ost\.options: step: Unexpected"),
        ({"methods": {"less": MethodArm("less")}}, "method 'less' looks back at the warm-up; give warmup_checkpoints"),
        ({"methods": {"ost": MethodArm("one_step", keep=("5000",))}}, "the pool has 48 rows"),
        ({"shares": ("half",)}, "keep is 'half'"),
        ({"shares": ("20%", "20%")}, "shares names 20% twice"),
        ({"protocols": ("B", "B")}, "protocols names B twice"),
        ({"references": ("nobody",)}, "references name nobody"),
        ({"evaluate": EvaluateOptions(by=("colour",))}, "no question has a column 'colour'"),
        ({"target": "/no/such/target"}, "does not exist"),
        ({"truth": Path("/no/such/truth")}, "truth /no/such/truth does not exist"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(tmp_path, changes, said):
    with pytest.raises(OneStepError, match=said):
        compare(request(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_protocol_b_needs_steps_and_workers_are_counted(tmp_path):
    with pytest.raises(ConfigError, match="protocol B fixes the optimizer steps"):
        request(tmp_path, train=FinetuneOptions())
    with pytest.raises(ConfigError, match="workers is -1"):
        compare(request(tmp_path / "out"), workers=-1)


def trial(**changes) -> Trial:
    """A trial that nobody runs."""
    parts = {
        "pool": open_pool(digits().pool),
        "target": compared()[0].target,
        "benchmark": digits().benchmark,
        "rows": np.arange(4),
        "finetune": TUNING,
        "scope": ScopeOptions(),
        "load": LoadOptions(),
        "evaluate": EvaluateOptions(),
    }
    return Trial(**parts | changes)


@pytest.mark.parametrize(
    "other",
    [
        {"rows": np.arange(5)},
        {"rows": np.arange(4)[::-1].copy()},
        {"finetune": dataclasses.replace(TUNING, seed=1)},
        {"scope": ScopeOptions("language")},
        {"load": LoadOptions(dtype="bfloat16")},
        {"evaluate": EvaluateOptions(max_new_tokens=7)},
        {"target": "another/target"},
        {"harm": Harm("mask", Path("scores/one_step-1"))},
    ],
)
def test_a_trial_has_another_name_where_something_else_comes_out(other):
    assert trial(**other).name != trial().name


def test_a_trial_keeps_its_name_where_the_same_comes_out():
    assert trial(evaluate=EvaluateOptions(by=("skill",)), label="ost").name == trial().name
    untuned = np.empty(0, np.int64)
    other = dataclasses.replace(TUNING, steps=9)
    assert trial(rows=untuned, finetune=other).name == trial(rows=untuned).name


def test_the_command_prints_the_table_and_writes_the_figures():
    job, done, _ = compared()
    outcome = ost("compare", job.out / "comparison.yaml", "--workers", 1)
    assert outcome.status == 0, outcome.err
    assert "| ost 50% | 24 |" in outcome.out
    assert {"table.md", "accuracy-by-cost.svg", "accuracy-by-share.svg"} <= {path.name for path in job.out.iterdir()}
    facts = json.loads(ost("compare", job.out / "comparison.yaml", "--workers", 1, "--json").out)
    assert facts["results"] == done.records
    assert "does not exist" in refusal("compare", job.out / "no.yaml")
