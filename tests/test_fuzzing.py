"""Mutated rows and files: a short form of `make fuzz`, and that it notices what it is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzzing import batches
from tests.fuzzing.batches import Batch, drawn, run_batches
from tests.fuzzing.cases import KINDS, Kind, run

WITHOUT_TORCH = [name for name in KINDS if name != "checkpoints"]


def fuzz(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzzing", *map(str, arguments)]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_no_mutated_row_or_file_ends_in_a_foreign_error(tmp_path):
    done = fuzz("--cases", 300, "--batch", 150, "--workers", 1, "--findings", tmp_path, "--kinds", *WITHOUT_TORCH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases, 0 findings" in done.stdout


def test_no_mutated_checkpoint_ends_in_a_foreign_error(tmp_path):
    def use(files):
        batches.write(files, tmp_path / "case")
        run(KINDS["checkpoints"], tmp_path / "case")

    drawn(Batch("checkpoints", 0, 12), KINDS["checkpoints"], use)


def _crash(folder):
    os.abort()


def _hang(folder):
    while True:
        pass


def _fill(folder):
    bytes(b"\1" * 1_200_000_000)


def _fail(folder):
    raise KeyError("name")


@pytest.mark.parametrize(
    ("use", "what"),
    [(_crash, "SIGABRT"), (_hang, "TooLongError"), (_fill, "more than 1 GB"), (_fail, "KeyError at test_fuzzing.py")],
)
def test_a_case_that_does_what_none_may_do_is_found_with_its_files(use, what, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "SECONDS", 0.2)
    kind = Kind(st.builds(lambda number: {"a/number": str(number).encode()}, st.integers(0, 2**60)), use, 100)
    (done,) = run_batches([Batch("one kind", 3, 1)], tmp_path, kinds={"one kind": kind})
    (finding,) = done.findings
    assert what in finding.what
    assert (finding.files / "a" / "number").read_text().isdigit()


def test_cases_follow_from_the_seed():
    def cases(seed):
        made = []
        drawn(Batch("rows", seed, 20), KINDS["rows"], made.append)
        return made

    assert cases(1) == cases(1)
    assert len({str(case) for case in cases(1)} - {str(case) for case in cases(2)}) > 10


def test_edits_change_what_they_are_made_to():
    made = []
    drawn(Batch("JSON", 0, 100), KINDS["JSON"], made.append)
    contents = [content for case in made for name, content in case.items() if name.startswith("pool")]
    assert len(set(contents)) > 60
