"""Rows a second of each method that needs a proxy, anchors or a warm-up, on the same rows, in one run.

methods.py [--rows 512]; on the digits data, with the packaged proxy, 100 anchors and a warm-up with 4 checkpoints.
Each method scores the rows in chunks of 64, as `ost score` does, several times over; the median counts. The unit is a
plain pass: encode every row and measure its mean answer loss, in batches. The ratio to it is what carries over to other
machines. What a method prepares before the first row, such as the anchors' gradients, is given in rows of a plain pass.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest
from onesteptrain.methods import Method, Scorer, Setting
from onesteptrain.methods.el2n import El2n
from onesteptrain.methods.grand import Grand
from onesteptrain.methods.ifd import Ifd
from onesteptrain.methods.less import Less
from onesteptrain.methods.loss import Loss
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, Proxy, in_batches, load_proxy, prepare
from onesteptrain.synthetic import SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import FinetuneOptions, WarmupOptions, warm_up

CHUNK = 64
METHODS: dict[str, Method] = {
    "loss": Loss(),
    "el2n": El2n(),
    "ifd": Ifd(),
    "grand": Grand(),
    "one_step": OneStep(),
    "one_step, adam": OneStep(optimizer="adam"),
    "less, 4 checkpoints": Less(),
}


class Cost(NamedTuple):
    """Seconds of one method."""

    prepare: float
    row: float
    """Of each row, without the preparation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--anchors", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        setting, rows = prepare_world(Path(scratch), options.rows, options.anchors)
        proxy = setting.need_proxy("benchmark")
        costs = {"plain pass": measure(lambda: lambda chunk: plain_pass(proxy, chunk), rows, options.repeats)}
        for name, method in METHODS.items():
            costs[name] = measure(lambda method=method: method.prepare(setting), rows, options.repeats)
    print(f"{len(rows)} rows, {options.anchors} anchors, {options.threads} thread(s), median of {options.repeats}")
    unit = costs["plain pass"].row
    for name, cost in costs.items():
        work = f"{cost.row / unit:6.2f} plain passes a row, {cost.prepare / unit:7.0f} rows' worth before"
        print(f"{name:20} {1 / cost.row:8.2f} rows/s  {work}", flush=True)


def prepare_world(folder: Path, rows: int, anchors: int) -> tuple[Setting, list[Sample]]:
    """A pool, anchors, and the packaged proxy warmed up on a part of the pool."""
    world = make_synthetic("digits", SyntheticOptions(pool_rows=rows, heldout_rows=anchors), folder / "world")
    training = WarmupOptions(share=0.25, finetune=FinetuneOptions(learning_rate=1e-4), checkpoints=4)
    warm_up(
        load_proxy(checkpoint("proxy"), options=LoadOptions("cpu")), open_pool(world.pool), training, folder / "warm"
    )
    trusted = [row for row in open_pool(world.heldout) if isinstance(row, Sample)]
    samples = [row for row in open_pool(world.pool) if isinstance(row, Sample)]
    request = ScoreRequest(open_pool(world.pool), OneStep(), proxy=ProxyOptions(str(folder / "warm")))
    return request.setting(trusted), samples


def measure(
    prepare: Callable[[], Scorer | Callable[[Sequence[Sample]], None]], rows: list[Sample], repeats: int
) -> Cost:
    """Median seconds of some runs, each from the preparation on."""
    costs = []
    for _ in range(repeats):
        started = time.perf_counter()
        score = prepare()
        ready = time.perf_counter()
        for start in range(0, len(rows), CHUNK):
            score(rows[start : start + CHUNK])
        costs.append(Cost(ready - started, (time.perf_counter() - ready) / len(rows)))
    return Cost(*(statistics.median(parts) for parts in zip(*costs, strict=True)))


def plain_pass(proxy: Proxy, rows: Sequence[Sample]) -> None:
    """Encode and measure the loss once, as any training step does at least."""
    encoded = [proxy.encoder.encode(row) for row in rows]
    with torch.no_grad():
        for indices in in_batches(encoded, 16):
            proxy.token_losses(prepare(proxy, [encoded[index] for index in indices])).means()


if __name__ == "__main__":
    main()
