"""What the work on speed has brought: this tree against an earlier commit by turns, and where the time goes in both.

progress.py --before COMMIT [--repeats 5] checks the commit out beside this tree and runs the same cases in both, each
turn in processes of its own: InternVL architecture, width 128, 8 layers, rows and 100 anchors of the digits data,
reading included. Counted is processor time, since the machine may be shared. Needs git.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from recording import record
from torch.profiler import ProfilerActivity, profile

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.synthetic import SyntheticOptions, make_synthetic
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint

ROOT = Path(__file__).parent.parent
SCOPES = {"all": ScopeOptions(), "last": ScopeOptions("last", last_layers=2)}
CASES = {
    "fd, scope all": ("all", OneStep("fd", reference_folds=0), 64),
    "fd, last quarter of the layers": ("last", OneStep("fd", reference_folds=0), 64),
    "fd, scope all, four anchor groups": ("all", OneStep("fd", reference_folds=0, group_by="skill"), 32),
    "jvp, scope all": ("all", OneStep("jvp", reference_folds=0), 64),
    "exact, scope all": ("all", OneStep("exact"), 2),
    "exact, last quarter of the layers": ("last", OneStep("exact"), 8),
}
"""Scope, method and rows."""

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "attention", "mkldnn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", help="commit to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", help="folder to measure in, for the program itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(measure(Path(options.one))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        earlier = Path(scratch) / "earlier"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", earlier, options.before], check=True, cwd=ROOT)
        try:
            turns = [{name: apart(tree, scratch) for name, tree in (("before", earlier), ("now", ROOT))}]
            turns = [
                {name: apart(tree, scratch) for name, tree in (("before", earlier), ("now", ROOT))}
                for _ in range(options.repeats)
            ]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], check=True, cwd=ROOT)
    for case in turns[0]["now"]:
        pairs = [(turn["before"][case], turn["now"][case]) for turn in turns]
        if case.startswith("share"):
            before, now = (round(100 * statistics.median(side)) for side in zip(*pairs, strict=True))
            record("progress", case, before=before, now=now, unit="% of the time")
        else:
            figure = round(statistics.median(before / now for before, now in pairs), 2)
            record("progress", f"{case}: before over now", ratio=figure, unit="x")


def apart(tree: Path, scratch: str) -> dict[str, float]:
    """Measure in a tree by its own copy of this program, in a process of its own: names differ between trees."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tree / "benchmarks" / Path(__file__).name), "--one", scratch]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(scratch: Path) -> dict[str, float]:
    """Seconds of each case, and of the preparation before the first row; shares of what fd does."""
    folder = scratch / "world"
    if not folder.exists():
        make_synthetic("digits", SyntheticOptions(pool_rows=256, heldout_rows=100), folder)
    pool, anchors = (readable(folder / name) for name in ("pool.jsonl", "heldout.jsonl"))
    model = scratch / "model"
    if not model.exists():
        texts = [turn.text for one in pool for turn in one.turns]
        build_checkpoint("internvl", model, size=ModelSize(hidden=128, layers=8, mlp=384, vocabulary=512), texts=texts)
    found = {}
    for name, (scope, method, rows) in CASES.items():
        proxy = load_proxy(model, SCOPES[scope], LoadOptions(device="cpu"))
        started = time.process_time()
        scorer = method.prepare(Setting(proxy, anchors))
        found[f"{name}, preparation"] = time.process_time() - started
        scorer(pool[:2])
        started = time.process_time()
        scorer(pool[:rows])
        found[name] = time.process_time() - started
        if method.estimator == "fd" and method.group_by is None:
            found |= {f"share of {what}, {name}": share for what, share in shares(proxy, scorer, pool[:rows]).items()}
    return found


def shares(proxy, scorer, rows: list[Sample]) -> dict[str, float]:  # noqa: ANN001
    """What part of the time goes into what."""
    started = time.process_time()
    for one in rows:
        proxy.encoder.encode(one)
    reading = time.process_time() - started
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        scorer(rows)
    events = profiler.key_averages()
    products = sum(one.self_cpu_time_total for one in events if any(part in one.key for part in PRODUCTS)) / 1e6
    started = time.process_time()
    scorer(rows)
    whole = time.process_time() - started
    return {
        "images and texts": reading / whole,
        "matrix products and attention": products / whole,
        "all else": max(0.0, 1 - (reading + products) / whole),
    }


def readable(path: Path) -> list[Sample]:
    return [row for row in open_pool(path) if isinstance(row, Sample)]


if __name__ == "__main__":
    main()
