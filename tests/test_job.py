"""The main job from one YAML file, and again from the config that it leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from onesteptrain.cli import main
from onesteptrain.errors import ConfigError, ScoreError
from onesteptrain.jobs.job import Job, read_job
from onesteptrain.jobs.planning import plan
from onesteptrain.jobs.recipe import Recipe
from onesteptrain.storage.score_table import Record, read_scores, to_table, write_table
from tests import running_page
from tests.building import checkpoint, write_pool


@pytest.fixture
def job(tmp_path):
    pool = write_pool(tmp_path / "pool", 12)
    heldout = write_pool(tmp_path / "heldout", 8, start=50)
    benchmark = tmp_path / "pool" / "benchmark.jsonl"
    rows = [json.loads(line) for line in pool.read_text().splitlines()[:3]]
    for row in rows:
        row |= {"messages": row["messages"][:1], "answer": "7"}
    benchmark.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = {
        "pool": str(pool),
        "heldout": str(heldout),
        "anchor_count": 4,
        "anchor_by": ["group"],
        "proxy": str(checkpoint("qwen3_vl")),
        "out": str(tmp_path / "out"),
        "warmup_share": 0.5,
        "warmup": {"steps": 2, "batch_size": 2},
        "score": {"optimizer": "adam", "step_size": 1e-4, "group_by": "group"},
        "keep": ["25%", "6"],
        "target": str(checkpoint("internvl")),
        "train": {"steps": 2, "batch_size": 2},
        "benchmark": str(benchmark),
        "evaluate": {"max_new_tokens": 2},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(request))
    return path, tmp_path / "out"


def test_all_steps_run_from_one_file_and_are_not_done_again(job, capsys):
    path, out = job
    assert main(["run", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 12
    assert [len((out / f"subset-{name}.jsonl").read_text().splitlines()) for name in ("25percent", "6rows")] == [3, 6]
    assert set(facts["targets"]) == {"25%", "6"}
    assert (out / "report.html").is_file()
    scores = (out / "score" / "scores.parquet").stat().st_mtime_ns
    target = (out / "target-25percent").stat().st_mtime_ns
    assert main(["run", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert (out / "score" / "scores.parquet").stat().st_mtime_ns == scores
    assert (out / "target-25percent").stat().st_mtime_ns == target


def test_a_run_says_whether_training_was_worth_it(job, capsys):
    path, out = job
    assert main(["run", str(path)]) == 0
    last = capsys.readouterr().out
    facts = json.loads((out / "results.json").read_text())
    (said,) = facts["worth"]  # tiny models that never trained answer nothing rightly, before and after
    assert said.endswith("may be chance on 25%, +0.0 (+0.0 to +0.0); 6, +0.0 (+0.0 to +0.0)")
    assert said in last
    assert said[1:] in (out / "report.html").read_text()
    assert {one["against_untuned"]["verdict"] for one in facts["targets"].values()} == {"cannot tell"}
    assert facts["untuned"]["accuracy"]["questions"] == 3


def test_a_target_learns_its_subset_without_harmful_tokens(job, tmp_path):
    path, out = job
    request = yaml.safe_load(path.read_text())
    for key in ("benchmark", "evaluate", "anchor_by"):
        del request[key]
    write_pool(tmp_path / "heldout", 24, start=50)
    request |= {"anchor_count": 20, "keep": ["6"], "harmful": "mask", "second_pass": False}
    request["score"] |= {"store_tokens": True, "corrupted": 0}
    path.write_text(yaml.safe_dump(request))
    assert main(["run", str(path)]) == 0
    train = ["train", str(out / "subset-6rows.jsonl"), "--image-root", str(tmp_path / "pool")]
    train += ["--target", request["target"], "--steps", "2", "--batch-size", "2"]
    weights = {}
    for name, more in {"masked": ["--mask-harmful", str(out)], "whole": []}.items():
        assert main([*train, "--out", str(tmp_path / name), *more]) == 0
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["masked"] != weights["whole"]
    assert (out / "target-6rows" / "model.safetensors").read_bytes() == weights["masked"]


def test_the_config_of_a_run_replays_to_the_same_scores(job, tmp_path):
    path, out = job
    assert main(["run", str(path)]) == 0
    again = tmp_path / "again"
    assert main(["run", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "subset-25percent.jsonl").read_bytes() == (out / "subset-25percent.jsonl").read_bytes()
    assert (again / "anchors.jsonl").read_bytes() == (out / "anchors.jsonl").read_bytes()


def test_another_request_in_the_same_directory_is_refused(job, capsys):
    path, _ = job
    assert main(["run", str(path)]) == 0
    capsys.readouterr()
    assert main(["run", str(path), "--score.step-size", "1e-5"]) == 1
    message = capsys.readouterr().err.splitlines()
    assert len(message) == 1
    assert "step_size" in message[0]


def test_a_wrong_key_in_the_file_is_named(job, capsys):
    path, _ = job
    path.write_text(path.read_text().replace("anchor_count", "anchor_cuont"))
    assert main(["run", str(path)]) == 1
    assert (
        "anchor_cuont: Unexpected keyword argument; its options are anchor_by, anchor_count" in capsys.readouterr().err
    )


def test_anchors_or_heldout_is_needed_but_not_both(tmp_path):
    with pytest.raises(ConfigError, match="either anchors"):
        Job(recipe=Recipe(pool=tmp_path, proxy="p"), out=tmp_path)
    with pytest.raises(ConfigError, match="not both"):
        Recipe(pool=tmp_path, anchors=tmp_path, heldout=tmp_path)


def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("pool: [1, 2")
    assert main(["run", str(path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_budgets_that_are_added_later_are_selected_from_the_scores_that_are_there(job):
    path, out = job
    request = yaml.safe_load(path.read_text())
    del request["target"], request["benchmark"]
    path.write_text(yaml.safe_dump({**request, "keep": ["25%"]}))
    assert main(["run", str(path)]) == 0
    before = {file: file.stat().st_mtime_ns for file in (*out.glob("score/*"), out / "subset-25percent.jsonl")}
    assert main(["run", str(path), "--keep", "6", "50%"]) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    facts = json.loads((out / "results.json").read_text())
    assert list(facts["subsets"]) == ["25%", "6", "50%"]
    assert [len(Path(file).read_text().splitlines()) for file in facts["subsets"].values()] == [3, 6, 6]
    assert read_job(out / "config.yaml").keep == ("25%", "6", "50%")


def test_options_on_the_command_line_win_over_the_file(job):
    path, _ = job
    words = [
        "--score.step-size",
        "1e-5",
        "--second-pass",
        "false",
        "--keep",
        "40%",
        "--loading.device=cpu",
        "--seed",
        "3",
    ]
    asked = read_job(path, words)
    assert (asked.score.step_size, asked.score.optimizer) == (1e-5, "adam")
    assert (asked.second_pass, asked.keep, asked.recipe.loading.device, asked.recipe.seed) == (
        False,
        ("40%",),
        "cpu",
        3,
    )
    with pytest.raises(ConfigError, match="'3' belongs to no option"):
        read_job(path, ["3"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep": ["half"]}, "keep is 'half'"),
        ({"keep": ["13"]}, "the pool has 12 rows"),
        ({"anchor_by": ["colour"]}, "no row has the column 'colour'; there are group"),
        ({"score": {"group_by": "colour"}}, "score.group_by of .* no row has the column 'colour'"),
        ({"select": {"quota": "colour"}}, "select.quota of .* no row has the column 'colour'"),
        ({"select": {"prefer": "cover"}}, "select.prefer cover needs score.representation: true"),
        ({"select": {"prefer": "setwise"}}, "select.prefer setwise needs score.sketch"),
        ({"harmful": "mask"}, "harmful mask needs the harm of every token; give score.store_tokens: true"),
        ({"harmful": "weigh", "select": {"by": "loss"}}, "harmful weigh takes the place of the trust gate"),
        ({"harmful": "burn"}, "harmful"),
        ({"warmup_share": 0}, "score.optimizer adam needs a warm-up"),
        ({"evaluate": {"by": ["colour"]}}, "no question has a column 'colour'"),
        ({"target": "/no/such/model"}, "does not exist"),
        ({"proxy": "/no/such/model"}, "does not exist"),
        ({"prefer": "top"}, "prefer is now select.prefer"),
        ({"second_look": False}, "second_look is now second_pass"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_any_work(job, capsys, changes, said):
    path, out = job
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    assert main(["run", str(path)]) == 1
    message = capsys.readouterr().err
    assert re.search(said, message), message
    assert len(message.splitlines()) == 1
    assert not out.exists()


def test_a_place_that_cannot_be_made_is_refused(job, capsys):
    path, out = job
    out.write_text("in the way")
    for place in (out, out / "inside"):
        assert main(["run", str(path), "--out", str(place)]) == 1
        assert f"output {place}" in capsys.readouterr().err


def test_a_plan_says_what_each_step_will_take_and_makes_nothing(job):
    path, out = job
    request = yaml.safe_load(path.read_text())
    expected = plan(read_job(path))
    assert not out.exists()
    visits = {step.name: step.rows for step in expected.steps}
    trained = {f"train on {keep}": 4 for keep in request["keep"]}
    assert visits == {"warm-up": 4, "score": 12, "second warm-up": 4, "second pass": 12} | trained
    assert expected.seconds == sum(step.seconds for step in expected.steps)
    told = {step.name: step.how for step in expected.steps}
    assert told["score"] == "measured on 12 rows"
    assert all("guess" in how for name, how in told.items() if name != "score")


def test_the_page_lists_every_key_as_it_is():
    page = running_page.PAGE.read_text(encoding="utf-8")
    assert page.endswith(running_page.tables()), "python -m tests.running_page writes it anew"
    lines = [*running_page.rows(Job), *running_page.rows(Recipe)]
    assert not [row for row in lines if row.endswith("|  |")]  # each says what it is


def test_the_scores_of_a_run_are_those_of_its_second_pass_if_it_took_one(tmp_path):
    for parts in ("score", "second/score"):
        folder = tmp_path / "run" / parts
        folder.mkdir(parents=True)
        write_table(to_table([("u", 0, Record(1.0))]), folder / "scores.parquet")
        assert read_scores(tmp_path / "run").path == folder / "scores.parquet"
    assert read_scores(tmp_path / "run" / "score").path == tmp_path / "run" / "score" / "scores.parquet"
    assert read_scores(tmp_path / "run" / "score" / "scores.parquet").path.parent.name == "score"
    (tmp_path / "run" / "second" / "score" / "scores.parquet").unlink()
    with pytest.raises(ScoreError, match="let the scoring finish"):
        read_scores(tmp_path / "run")
