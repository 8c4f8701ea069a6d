"""Exact steps side by side against one after the other: 1, 4 and 16 candidates, on two architectures and two widths.

candidates.py [--repeats 2] scores the same rows of the digits world with 100 anchors, with 8 layers and random weights,
for the scopes lora and last (two layers). Records hold how many times as fast they are, by turns within one process on
one thread, and the peak memory of a process that does nothing else. What a device does that one candidate does not fill
cannot be seen on a processor.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, by_turns, ratio, record

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import Encoded, LoadOptions, ScopeOptions, load_proxy
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint
from onesteptrain.synthetic.digits import WorldOptions, make_world
from onesteptrain.utility import ExactSteps

ARCHITECTURES = ("internvl", "qwen3_vl")
WIDTHS = (64, 256)
SCOPES = ("lora", "last")
CANDIDATES = (1, 4, 16)
ANCHORS = 100
UNIT = "x of one by one, ms/row, MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--scopes", nargs="+", default=SCOPES)
    parser.add_argument("--anchors", type=int, default=ANCHORS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", type=json.loads, help="measure one case and print it, for the program itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(peak(**options.one) if "count" in options.one else compare(**options.one)))
        return
    for architecture in options.architectures:
        for width in options.widths:
            for scope in options.scopes:
                case = {"architecture": architecture, "width": width, "scope": scope, "anchors": options.anchors}
                name = f"{architecture}, width {width}, scope {scope}, {options.anchors} anchors"
                times = in_a_process(**case, repeats=options.repeats)
                for count in CANDIDATES:
                    figures = {**times[str(count)], "memory_mb": in_a_process(**case, count=count)}
                    subject = f"{name}: {count} side by side"
                    record("candidates", subject, unit=UNIT, path=options.results, **figures)


def in_a_process(**case: Any) -> Any:
    """What a process of its own finds; a process has one peak, and its children begin with it."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(repeats: int, **case: Any) -> dict[int, dict[str, float]]:
    """Time of one model and scope, for each number of candidates."""
    steps, samples = prepared(**case, candidates=CANDIDATES)
    seconds = by_turns({str(k): lambda take=take: take(samples) for k, take in steps.items()}, repeats)
    return {
        k: {
            "times_as_fast": round(ratio(seconds, "1", str(k)), 2),
            "row_ms": round(1000 * statistics.median(seconds[str(k)]) / len(samples), 1),
        }
        for k in CANDIDATES
    }


def peak(architecture: str, width: int, scope: str, anchors: int, count: int) -> int:
    """Peak memory of this process, in MB, with one group of candidates."""
    steps, samples = prepared(architecture, width, scope, anchors, (count,))
    steps[count](samples[:count])
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def prepared(
    architecture: str, width: int, scope: str, anchors: int, candidates: tuple[int, ...]
) -> tuple[dict[int, ExactSteps], list[Encoded]]:
    """What takes the steps, for each number of candidates, and the rows."""
    with tempfile.TemporaryDirectory() as scratch:
        world = make_world(WorldOptions(pool_rows=max(CANDIDATES), heldout_rows=anchors), Path(scratch) / "world")
        samples, trusted = ([row for row in open_pool(path) if isinstance(row, Sample)] for path in world[:2])
        size = ModelSize(hidden=width, layers=8, mlp=3 * width)
        texts = [turn.text for one in samples for turn in one.turns]
        model = build_checkpoint(architecture, Path(scratch) / "model", size=size, texts=texts)
        proxy = load_proxy(model, ScopeOptions(scope=scope, last_layers=2), LoadOptions(device="cpu"))
        setting = Setting(proxy, trusted)
        steps = {count: OneStep("exact", candidates=count).prepare(setting).steps for count in candidates}
        return steps, [proxy.encoder.encode(sample) for sample in samples]


if __name__ == "__main__":
    main()
