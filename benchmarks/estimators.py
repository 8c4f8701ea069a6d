"""Rows a second of each estimator, on the same rows, in one run.

estimators.py [POOL ANCHORS PROXY]; without arguments it takes the digits world: 100 anchors, the packaged proxy. Each
estimator scores the rows in turn, several times over, and the median counts. The ratio to `exact` is what carries over
to other machines. A plain pass (the mean answer loss of every row, in batches) is the unit that cost is counted in.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.pool import Sample, open_pool
from onesteptrain.proxy import LoadOptions, Proxy, in_batches, load_proxy
from onesteptrain.worlds import checkpoint
from onesteptrain.worlds.digits import WorldOptions, make_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("anchors", type=Path, nargs="?")
    parser.add_argument("proxy", nargs="?")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--exact-rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.pool is None:
            world = make_world(WorldOptions(pool_rows=options.rows, heldout_rows=100), Path(scratch) / "world")
            options.pool, options.anchors, options.proxy = world.pool, world.heldout, str(checkpoint("proxy"))
        samples = list(itertools.islice(readable(options.pool), options.rows))
        anchors = list(itertools.islice(readable(options.anchors), 100))
        proxy = load_proxy(options.proxy, options=LoadOptions(device="cpu", max_tokens=options.max_tokens))
        measure(proxy, anchors, samples, options)


def measure(proxy: Proxy, anchors: list[Sample], samples: list[Sample], options: argparse.Namespace) -> None:
    setting = Setting(proxy, anchors)
    work = {
        "plain pass": (lambda rows: plain_pass(proxy, rows), samples),
        "fd": (OneStep(estimator="fd").prepare(setting), samples),
        "jvp": (OneStep(estimator="jvp").prepare(setting), samples),
        "exact": (OneStep(estimator="exact").prepare(setting), samples[: options.exact_rows]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.repeats):
        for name, (score, rows) in work.items():
            started = time.perf_counter()
            score(rows)
            seconds[name].append((time.perf_counter() - started) / len(rows))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{len(samples)} rows, {len(anchors)} anchors, {options.threads} thread(s), median of {options.repeats}")
    for name, value in middle.items():
        print(f"{name:10} {1 / value:8.2f} rows/s   {middle['exact'] / value:6.1f} x exact", flush=True)


def plain_pass(proxy: Proxy, rows: list[Sample]) -> None:
    """Encode and measure the loss once, as any training step does at least."""
    encoded = [proxy.encoder.encode(row) for row in rows]
    with torch.no_grad():
        for indices in in_batches(encoded, 16):
            proxy.token_losses(proxy.batch([encoded[index] for index in indices])).means()


def readable(path: Path):  # noqa: ANN201
    return (row for row in open_pool(path) if isinstance(row, Sample))


if __name__ == "__main__":
    main()
