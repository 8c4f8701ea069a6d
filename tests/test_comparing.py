"""The comparison: arms keep the rows that selection keeps, trials give what training and evaluating give."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onesteptrain.comparing import Comparison, MethodArm, compare, read_comparison
from onesteptrain.errors import ConfigError, PoolError, RunError
from onesteptrain.evaluation import EvaluateOptions, evaluate
from onesteptrain.finetuning import FinetuneOptions
from onesteptrain.pool import open_pool
from onesteptrain.scores import ScoreTable
from onesteptrain.selection import select_rows
from onesteptrain.steps import content_id
from onesteptrain.training import TrainOptions, train
from tests.building import checkpoint, write_pool
from tests.commands import ost, refusal, world

SEEDS = 2
KEYS = {"method", "share", "protocol", "seed", "accuracy", "accuracy_by_skill"}
KEYS |= {"scoring_seconds", "training_seconds", "rows"}


def write_benchmark(folder: Path) -> Path:
    """Questions of which a tiny model gets none right, and one that only asks it to say anything at all."""
    path = write_pool(folder / "benchmark", 6, start=200)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place, row in enumerate(rows):
        row |= {"answer": str(place), "skill": "ab"[place % 2]}
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def write_truth(folder: Path, rows: int) -> Path:
    table = {
        "uid": [f"s{row}" for row in range(rows)],
        "row": range(rows),
        "clean": [row % 3 > 0 for row in range(rows)],
    }
    pq.write_table(pa.table(table), folder / "truth.parquet")
    return folder / "truth.parquet"


def request(folder: Path, **changes) -> Comparison:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "pool": world().pool,
        "anchors": world().anchors,
        "benchmark": write_benchmark(folder),
        "truth": write_truth(folder, 18),
        "target": str(checkpoint("qwen3_vl")),
        "proxy": str(world().proxy),
        "out": folder / "out",
        "warmup_share": 0.0,
        "methods": {"ost": MethodArm(), "random": MethodArm(), "loss": MethodArm(keep=(">=-100",))},
        "shares": ("50%",),
        "protocols": ("A", "B"),
        "train": FinetuneOptions(steps=2, epochs=1.0, batch_size=4, learning_rate=1e-3),
        "evaluate": EvaluateOptions(max_new_tokens=6, by=("skill",)),
        "seeds": SEEDS,
        "references": ("full", "random"),
    }
    return Comparison(**settings | changes)


@functools.cache
def compared():
    """One comparison that the tests share and must not change, and what it told."""
    told: list[str] = []
    job = request(Path(tempfile.mkdtemp(prefix="ost-test-")))
    return job, compare(job, workers=1, tell=told.append), told


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
        "oracle": ["50%", "clean"],
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


def test_an_arm_keeps_the_rows_that_select_keeps():
    job, done, _ = compared()
    kept = select_rows(ScoreTable(done.scores["ost"] / "scores.parquet"), keep="50%").rows
    trial = trial_of(job, done, "ost", "50%", "B", 0)
    assert trial["outcome"]["rows"] == len(kept) == 9
    assert {one["share"] for one in of(done.records, method="loss", budget=">=-100")} == {1.0}
    assert {one["share"] for one in of(done.records, method="ost")} == {0.5}


def trial_of(job, done, method, budget, protocol, seed):
    (record,) = of(done.records, method=method, budget=budget, protocol=protocol, seed=seed)
    return json.loads((job.out / "trials" / record["trial"] / "trial.json").read_text())


def test_a_trial_gives_what_training_and_evaluating_the_subset_give(tmp_path):
    job, done, _ = compared()
    kept = set(select_rows(ScoreTable(done.scores["ost"] / "scores.parquet"), keep="50%").rows.tolist())
    samples = [row for row in open_pool(job.pool) if row.row in kept]
    options = TrainOptions(FinetuneOptions(steps=2, batch_size=4, learning_rate=1e-3, seed=1))
    target = train(job.target, samples, options, tmp_path / "target").checkpoint
    expected = evaluate(target, job.benchmark, job.evaluate)
    (record,) = of(done.records, method="ost", budget="50%", protocol="B", seed=1)
    answers = job.out / "trials" / record["trial"] / "answers" / "results.jsonl"
    said = [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]
    assert said == [one.prediction for one in expected.graded]
    assert record["accuracy"] == 100 * expected.accuracy.value


def test_protocol_a_takes_steps_in_proportion_and_b_the_same_for_all():
    _, done, _ = compared()
    assert {one["steps"] for one in of(done.records, protocol="B") if one["method"] != "untuned"} == {2}
    assert {one["steps"] for one in of(done.records, protocol="A", method="full")} == {5}  # 18 rows in fours
    assert {one["steps"] for one in of(done.records, protocol="A", method="ost")} == {3}  # 9 rows in fours


def test_chance_draws_anew_for_each_seed_and_oracles_keep_clean_rows_only():
    _, done, _ = compared()
    assert {one["clean_share"] for one in of(done.records, method="oracle")} == {1.0}
    assert {one["rows"] for one in of(done.records, method="oracle", budget="clean")} == {12}
    random = of(done.records, method="random", budget="50%", protocol="B")
    assert len({one["trial"] for one in random}) == SEEDS
    assert {one["rows"] for one in random} == {9}


def test_arms_that_keep_the_same_rows_share_a_trial():
    _, done, _ = compared()
    full = of(done.records, method="full", protocol="A", seed=0)
    all_rows = of(done.records, method="loss", budget=">=-100", protocol="A", seed=0)
    assert full[0]["trial"] == all_rows[0]["trial"]


def test_scoring_costs_what_the_run_says_and_chance_next_to_nothing():
    _, done, _ = compared()
    recorded = json.loads((done.scores["ost"] / "provenance.json").read_text())["seconds"]
    assert {one["scoring_seconds"] for one in of(done.records, method="ost")} == {recorded}  # no warm-up here
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
    more = Comparison(**{**vars(job), "methods": {**job.methods, "harm": MethodArm("one_step", by="harm")}})
    larger = compare(more, workers=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert of(larger.records, method="ost") == of(done.records, method="ost")
    assert len(of(larger.records, method="harm")) == 2 * SEEDS
    compare(job, workers=1)  # put results.json back as the other tests know it


def test_a_comparison_that_was_cut_off_keeps_what_it_has_trained(tmp_path):
    class CutError(Exception):
        pass

    def cut(text):
        if "accuracy" in text:
            raise CutError

    job = request(tmp_path, methods={"random": MethodArm()}, protocols=("B",), seeds=1, truth=None)
    with pytest.raises(CutError):
        compare(job, workers=1, tell=cut)
    kept = {path: path.stat().st_mtime_ns for path in job.out.glob("trials/*/trial.json")}
    assert kept
    done = compare(job, workers=1)
    assert [(one["method"], one["rows"]) for one in done.records] == [("untuned", 0), ("full", 18), ("random", 9)]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_another_pool_in_the_same_directory_is_refused(tmp_path):
    job, _, _ = compared()
    other = write_pool(tmp_path / "other", 4)
    with pytest.raises(RunError, match="holds a run with other"):
        compare(Comparison(**{**vars(job), "pool": other, "truth": None}), workers=1)


def test_a_truth_of_another_pool_is_refused(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(PoolError, match="tells of 5 rows and the pool has 18"):
        compare(request(tmp_path, truth=write_truth(other, 5)), workers=1)


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
    text = "methods: {ost: {options: {optimizer: adam, step_size: 1.0e-4}, by: harm}, random: {}}\nshares: [10%, 300]\n"
    job = read_comparison(yaml_of(tmp_path, text), seeds=7)
    assert (job.pool, job.seeds, job.shares, job.train.steps) == (Path("p"), 7, ("10%", "300"), 3)
    made = job.methods["ost"].make("ost")
    assert (type(made).__name__, made.optimizer, made.step_size) == ("OneStep", "adam", 1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("share: [20%]\n", "job.yaml: share: Unexpected keyword argument; its options are pool, target"),
        ("seeds: many\n", "job.yaml: seeds: Input should be a valid integer"),
        ("methods: {ost: {budget: 20%}}\n", r"job.yaml: methods.ost.budget: Unexpected"),
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


def test_what_a_method_lacks_is_said_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="method 'ost' needs a proxy"):
        compare(request(tmp_path, proxy=None))
    with pytest.raises(ConfigError, match="there is no method 'nonsense'"):
        compare(request(tmp_path, methods={"nonsense": MethodArm()}))
    with pytest.raises(ConfigError, match=r"methods\.ost\.options: step: Unexpected"):
        compare(request(tmp_path, methods={"ost": MethodArm(options={"step": 1})}))
    with pytest.raises(ConfigError, match="protocol B fixes the optimizer steps"):
        request(tmp_path, train=FinetuneOptions())
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_table_and_writes_the_figures():
    job, done, _ = compared()
    outcome = ost("compare", job.out / "comparison.yaml", "--workers", 1)
    assert outcome.status == 0, outcome.err
    assert "| ost 50% | 9 |" in outcome.out
    assert {"table.md", "accuracy-by-cost.svg", "accuracy-by-share.svg"} <= {path.name for path in job.out.iterdir()}
    facts = json.loads(ost("compare", job.out / "comparison.yaml", "--workers", 1, "--json").out)
    assert facts["results"] == done.records
    assert "does not exist" in refusal("compare", job.out / "no.yaml")
