"""The example of a method in a package of one's own: installed, found, run, and true to the contract."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onesteptrain.methods import method_class
from onesteptrain.storage.score_table import read_scores
from tests.commands import done, refusal
from tests.methods import test_contract as contract
from tests.pool_files import qa, write_jsonl

ROOT = Path(__file__).parents[1]
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder that the example is installed into; built from a copy, since building leaves files."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin_method", folder / "source")
    target = folder / "site"
    command = [sys.executable, *PIP, "--no-build-isolation", "--target", str(target), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def scores(run: Path) -> list[float]:
    return read_scores(run).numbers("score").tolist()


def test_another_seed_of_its_own_is_another_run(site, tmp_path, monkeypatch):
    pool = write_jsonl(tmp_path / "pool.jsonl", [qa(str(row)) for row in range(6)])
    given = ("score", pool, "--method", "answer_length", "--out")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-m", "tests.methods.run_ost", *map(str, given), str(tmp_path / "first")]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    monkeypatch.syspath_prepend(site)  # what a process of its own can do, this one can do too, and faster
    assert "answer_length: Number of words" in done("methods").out
    done(*given, tmp_path / "second", "--method-seed", 1)
    first, second = scores(tmp_path / "first"), scores(tmp_path / "second")
    assert [int(score) for score in first] == [int(score) for score in second]  # the words
    assert first != second
    refused = refusal(*given, tmp_path / "first", "--method-seed", 1)
    assert "holds a run with other score method options seed (0, now 1)" in refused
    assert scores(tmp_path / "first") == first
    done("score", "--config", tmp_path / "second" / "config.yaml", "--out", tmp_path / "replayed")
    assert scores(tmp_path / "replayed") == second
    refused = refusal(*given, tmp_path / "first", "--seed", 1)
    assert "holds a run with other score seed (0, now 1)" in refused  # the run's own, which is another option


def test_it_keeps_the_contract(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    name = "answer_length"
    contract.test_a_method_is_a_frozen_dataclass_with_defaults(name)
    contract.test_a_score_does_not_depend_on_its_neighbours(name)
    contract.test_order_is_kept(name)
    contract.test_same_seed_gives_the_same_bits(name)
    assert method_class(name)(max_words=1).prepare(None)([contract.SAMPLES[0]])[0].reason is not None
