"""Where the time goes when rows are scored: profiling.py [--rows 128] [--scope all|last] on the digits world's proxy.

First the parts as a user sees them (reading images and texts, forward passes, the rest), then the operations inside the
passes by torch's profiler.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from recording import record
from torch.profiler import ProfilerActivity, profile

from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.pool import Sample, open_pool
from onesteptrain.proxy import LoadOptions, ScopeOptions, load_proxy
from onesteptrain.utility import measure_anchors, token_derivatives
from onesteptrain.worlds import checkpoint
from onesteptrain.worlds.digits import WorldOptions, make_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--scope", choices=("all", "last"), default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        world = make_world(WorldOptions(pool_rows=options.rows, heldout_rows=32), Path(scratch) / "world")
        rows, anchors = ([one for one in open_pool(path) if isinstance(one, Sample)] for path in world[:2])
        proxy = load_proxy(checkpoint("proxy"), ScopeOptions(options.scope, 1), LoadOptions(device="cpu"))
        scorer = OneStep("fd", reference_folds=0).prepare(Setting(proxy, anchors))
        encoded = [proxy.encoder.encode(one) for one in rows]
        (group,) = measure_anchors(
            proxy, {"": [proxy.encoder.encode(one) for one in anchors]}, preconditioner={}, batch_size=16
        )

        def passes() -> None:
            token_derivatives(proxy, encoded, [group.direction], estimator="fd", epsilons=[1e-3], batch_size=16)

        whole = timed(lambda: scorer(rows))
        parts = {
            "images and texts": timed(lambda: [proxy.encoder.encode(one) for one in rows]),
            "forward passes": timed(passes),
        }
        parts["the rest"] = max(0.0, whole - sum(parts.values()))
        for name, seconds in parts.items():
            share = round(100 * seconds / whole)
            record("profile", f"fd, scope {options.scope}: {name}", value=share, unit="% of the time")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            passes()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def timed(do) -> float:  # noqa: ANN001
    """Median seconds of five."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[2]


if __name__ == "__main__":
    main()
