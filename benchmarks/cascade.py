"""What a cascade saves against exact steps for all rows, and how well the two agree on the top share.

cascade.py [--rows 1500] [--world digits] makes a built-in world with 60 % noise and 100 anchors, warms up the packaged
proxy, and scores the pool by exact steps and by cascades. What a cascade costs depends on the rows that it happens to
draw: there are --draws of them, and their medians are recorded, with the extremes. Times are processor time of scoring,
since the machine may be shared; the anchors' and the images' are included.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from recording import record

from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.steps import provide_proxy, score_into
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, ScopeOptions
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import checkpoint
from onesteptrain.synthetic.charts import ChartOptions, make_charts
from onesteptrain.synthetic.digits import WorldOptions, make_world
from onesteptrain.training import WarmupOptions

PROXIES = {"digits": "proxy", "charts": "charts_proxy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--world", choices=("digits", "charts"), default="digits")
    parser.add_argument("--agreement", type=float, default=0.99)
    parser.add_argument("--draws", type=int, default=3)
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
        cascades = {
            "cascade": OneStep("cascade", **sure),
            "cascade with gradient lengths": OneStep("cascade", agreement=True, **sure),
        }

        def scored(method: OneStep, seed: int = 0) -> Scored:
            run, started = out / f"run-{len(list(out.iterdir()))}", time.process_time()
            table = score_into(run, pool, method, anchors=world.heldout, proxy=proxy, seed=seed).table
            return Scored(time.process_time() - started, top(table), Run(run).provenance.get("cascade", {}))

        exact = scored(OneStep("exact"))
        where = f"{options.world}, {options.rows} rows"
        for name, runs in {
            "fd": [scored(OneStep("fd"))],
            **{name: [scored(method, seed) for seed in range(options.draws)] for name, method in cascades.items()},
        }.items():
            write_down(where, name, exact, runs, options.rows)


class Scored(NamedTuple):
    """What a method took, and what came out."""

    seconds: float
    top: set[int]
    did: dict[str, float]


def write_down(where: str, name: str, exact: Scored, runs: list[Scored], rows: int) -> None:
    """Medians over the draws, with the lowest and the highest."""

    def keep(what: str, key: str, unit: str, values: list[float]) -> None:
        low, middle, high = (round(f(values), 1) for f in (min, statistics.median, max))
        record("cascade", f"{where}: {what}", **{key: middle, "lowest": low, "highest": high}, unit=unit)

    keep(f"exact over {name}", "ratio", "x", [exact.seconds / one.seconds for one in runs])
    seen = [100 * len(exact.top & one.top) / len(exact.top) for one in runs]
    keep(f"top 20 % of {name} in common with exact", "value", "%", seen)
    if not runs[0].did:
        return
    steps = [100 * (one.did["drawn"] + one.did["doubtful"]) / rows for one in runs]
    keep(f"exact steps of {name}", "value", "% of the rows", steps)
    told = [100 * one.did["expected_agreement"] for one in runs]
    keep(f"agreement expected by {name}", "value", "%", told)


def top(table: ScoreTable) -> set[int]:
    values = table.numbers("score")
    return set(np.argsort(-values, kind="stable")[: len(values) // 5].tolist())


if __name__ == "__main__":
    main()
