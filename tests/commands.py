"""`ost` as tests call it, and a small scored world that they share and must not change."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import NamedTuple

from onesteptrain.cli import main
from onesteptrain.cli.options import RARE
from tests.building import checkpoint, write_pool

ROWS = 18


class Outcome(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


def ost(*arguments: object) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return Outcome(status, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Outcome:
    """Run a command that has to work."""
    outcome = ost(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome


def refusal(*arguments: object, status: int = 1) -> str:
    """Run a command that has to be refused; the one line that it says, which is the last one on stderr."""
    outcome = ost(*arguments)
    assert outcome.status == status, outcome
    assert outcome.out == ""
    line = outcome.err.rstrip("\n").rpartition("\n")[2]
    assert line.startswith("ost: "), outcome.err
    assert outcome.err.count("ost: ") == 1
    assert "Traceback" not in outcome.err
    return line


class World(NamedTuple):
    """A pool, anchors and a proxy."""

    pool: Path
    anchors: Path
    proxy: Path

    def scoring(self, out: Path, **changes: object) -> list[object]:
        """Arguments of `ost score`; a change of None leaves the option out."""
        options = {"anchors": self.anchors, "proxy": self.proxy, "out": out} | changes
        pool = options.pop("pool", self.pool)
        asked = {name: value for name, value in options.items() if value is not None}
        rare = [f"{name}={asked.pop(name)}" for name in RARE if name in asked]
        given = [(f"--{name.replace('_', '-')}", value) for name, value in asked.items()]
        return ["score", pool, *(part for pair in given for part in pair), *(["--set", *rare] if rare else [])]


@functools.cache
def world() -> World:
    """Pool rows of the groups a and b, six anchors, and a tiny Qwen3-VL."""
    folder = Path(tempfile.mkdtemp(prefix="ost-test-"))
    pool = write_pool(folder, ROWS)
    return World(pool, write_pool(folder / "anchors", 6, name="anchors.jsonl", start=100), checkpoint())


@functools.cache
def scored() -> Path:
    """The run directory of that pool, scored with the default options in small shards."""
    out = Path(tempfile.mkdtemp(prefix="ost-test-")) / "run"
    done(*world().scoring(out, shard_rows=5))
    return out
