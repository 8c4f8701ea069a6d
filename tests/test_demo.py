"""The demo on a small scale: every step of it, with real subprocesses that train."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from onesteptrain.cli import main
from onesteptrain.synthetic import checkpoint


@pytest.mark.parametrize("name", ["proxy", "target", "target_large"])
def test_packaged_models_are_small_enough_to_ship(name):
    assert (checkpoint(name) / "model.safetensors").stat().st_size <= 4e6


def test_the_demo_goes_through_every_step(tmp_path, capsys):
    out = tmp_path / "demo"
    small = {"pool-rows": 400, "benchmark-rows": 40, "seeds": 1, "steps": 2, "workers": 1}
    arguments = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert main(["demo", "--out", str(out), *arguments]) == 0
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    drawn = [one["rows"] for one in results if one["method"] == "ost-set"]
    assert drawn[0] == 80
    assert drawn[1] <= 200  # no more than pass the gate
    others = [one for one in results if one["method"] != "ost-set"]
    assert [(one["method"], one["share"], one["rows"]) for one in others] == [
        ("untuned", 0.0, 0),
        ("full", 1.0, 400),
        ("oracle", 0.2, 80),
        ("oracle", 0.5, 200),
        ("ost", 0.2, 80),
        ("ost", 0.5, 200),
        ("random", 0.2, 80),
        ("random", 0.5, 200),
    ]
    assert all(0 <= one["accuracy"] <= 100 for one in results)
    assert "| full | 400 | 50% |" in shown
    scores = pq.read_table(next((out / "comparison" / "scores").glob("one_step-*")) / "scores.parquet")
    assert scores.num_rows == 400
    assert scores["score"].null_count == 0
    assert (out / "report.html").read_text().count("ost") > 0
    assert json.loads((out / "audit.json").read_text())["rows"] == 40
    assert main(["demo", "--out", str(out), *arguments]) == 1  # not silently over an earlier one
