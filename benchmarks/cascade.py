"""What a cascade saves against exact steps for all rows, and how well the two agree on the top share.

cascade.py [--rows 1500] [--world digits] makes a built-in world with 60 % noise and 100 anchors, warms up the packaged
proxy, and scores the pool by exact steps and by cascades. Times are processor time of scoring, since the machine may be
shared; the anchors' and the images' are included.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from recording import record

from onesteptrain.demo import WARMUP
from onesteptrain.methods.one_step import OneStep
from onesteptrain.pool import open_pool
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.runs import Run
from onesteptrain.scores import ScoreTable
from onesteptrain.steps import provide_proxy, score_into
from onesteptrain.warmup import WarmupOptions
from onesteptrain.worlds import checkpoint
from onesteptrain.worlds.charts import ChartOptions, make_charts
from onesteptrain.worlds.digits import WorldOptions, make_world

PROXIES = {"digits": "proxy", "charts": "charts_proxy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--world", choices=("digits", "charts"), default="digits")
    parser.add_argument("--agreement", type=float, default=0.99)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        size = {"pool_rows": options.rows, "heldout_rows": 100, "noise_share": 0.6}
        world = (
            make_world(WorldOptions(**size), out / "world")
            if options.world == "digits"
            else make_charts(ChartOptions(**size), out / "world")
        )
        pool, loading = open_pool(world.pool), (ScopeOptions(), LoadOptions(device="cpu"))
        warmup = WarmupOptions(share=min(1.0, 400 / options.rows), finetune=dataclasses.replace(WARMUP, seed=0))
        proxy, _ = provide_proxy(out / "warm", str(checkpoint(PROXIES[options.world])), pool, warmup, loading, print)
        sure = {"cascade_agreement": options.agreement}
        methods = {
            "exact": OneStep("exact"),
            "fd": OneStep("fd"),
            "cascade": OneStep("cascade", **sure),
            "cascade with gradient lengths": OneStep("cascade", agreement=True, **sure),
        }
        tables, seconds = {}, {}
        for name, method in methods.items():
            started = time.process_time()
            tables[name] = score_into(out / name, pool, method, anchors=world.heldout, proxy=proxy).table
            seconds[name] = time.process_time() - started
        where = f"{options.world}, {options.rows} rows"
        for name in list(methods)[1:]:
            figure = round(seconds["exact"] / seconds[name], 1)
            record("cascade", f"{where}: exact over {name}", ratio=figure, unit="x")
            seen = round(100 * len(top(tables["exact"]) & top(tables[name])) / len(top(tables["exact"])), 1)
            record("cascade", f"{where}: top 20 % of {name} in common with exact", value=seen, unit="%")
        for name in list(methods)[2:]:
            did = Run(out / name).provenance["cascade"]
            share = round(100 * (did["drawn"] + did["doubtful"]) / options.rows, 1)
            record("cascade", f"{where}: exact steps of {name}", value=share, unit="% of the rows")
            told = round(100 * did["expected_agreement"], 1)
            record("cascade", f"{where}: agreement expected by {name}", value=told, unit="%")


def top(table: ScoreTable) -> set[int]:
    values = table.numbers("score")
    return set(np.argsort(-values, kind="stable")[: len(values) // 5].tolist())


if __name__ == "__main__":
    main()
