"""The main job from one YAML file, and again from the config that it leaves behind."""

from __future__ import annotations

import json

import pytest
import yaml

from onesteptrain.cli import main
from onesteptrain.errors import ConfigError
from onesteptrain.jobs.pipeline import Pipeline
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
        "evaluate": {"max_new_tokens": 4},
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
    assert main(["run", str(path)]) == 2
    assert "anchor_cuont" in capsys.readouterr().err


def test_anchors_or_heldout_is_needed_but_not_both(tmp_path):
    with pytest.raises(ConfigError, match="either anchors"):
        Pipeline(pool=tmp_path, proxy="p", out=tmp_path)


def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("pool: [1, 2")
    assert main(["run", str(path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
