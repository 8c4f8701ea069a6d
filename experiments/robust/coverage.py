"""How often the gate's intervals hold the truth, over simulated pools whose errors are of the kinds that were tried.

coverage.py WORK [--pools 200] [--only charts own] scores 600 held-out rows and 3,000 corrupted copies of them, once for
each of six settings. A simulated pool takes 100 of the rows for anchors, with their copies, and is made of the others:
clean rows, and copies for bad ones, at a share of clean rows between 20 and 100 %. Its kinds of error are all, or four
of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from onesteptrain.data.corruption import STYLE
from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, provide_proxy, score_into
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import ScopeOptions
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import CORRUPTED, REFERENCE, SCORES, ScoreTable, write_table

sys.path.insert(0, str(Path(__file__).parent))
from run import BRIEF, LONG, data_of, model_of
from settings import Setting

COPIES, ANCHORS, POOL_ROWS = 3000, 100, 400


class Outcome(NamedTuple):
    """What was said of a simulated pool, against the truth."""

    blind: bool
    pool_held: bool
    passing_held: bool
    pool_off: float
    """Said less true share of clean rows."""

    passing_off: float
    power_off: float
    """Stated power at the cut less the share of bad rows that it drops."""


def bank(setting: Setting, work: Path) -> ScoreTable:
    """Scores of a clean pool by all held-out rows as anchors, with many copies."""
    out = work / "coverage" / setting.warmup
    if not (out / SCORES).is_file():
        data = data_of(setting, work)
        pool = open_pool(data / "pool.jsonl")
        start = ProxyOptions(str(model_of(setting, work)), ScopeOptions(scope="all"))
        warmup = LONG if setting.proxy == "foreign" else BRIEF
        warmed = provide_proxy(work / "warmups" / setting.warmup, start, pool, warmup, print)
        method = OneStep(corrupted=COPIES)
        score_into(
            out, ScoreRequest(pool.subset(range(40)), method, anchors=data / "heldout.jsonl", proxy=warmed.proxy)
        )
    return ScoreTable(out / SCORES)


def simulate(scored: ScoreTable, some: bool, chance: np.random.Generator, folder: Path) -> Outcome:
    """A pool of the rows that are no anchors."""
    clean, copies = scored.reference.read(), scored.corrupted.read()
    order = chance.permutation(clean.num_rows)
    uids = np.array(clean["uid"].to_pylist())
    anchors = np.sort(order[:ANCHORS])
    mine = np.isin(np.array(copies["anchor"].to_pylist()), uids[anchors])
    kinds = np.array(copies["kind"].to_pylist())
    names = [kind for kind in np.unique(kinds) if kind != STYLE]
    share = chance.uniform(0.2, 1.0)
    bad = []
    for kind in chance.choice(names, 4, replace=False) if some else names:
        there = np.flatnonzero(~mine & (kinds == kind))
        bad.append(chance.choice(there, min(len(there), round(POOL_ROWS * (1 - share) / (4 if some else len(names))))))
    wrong = np.concatenate(bad)
    right = order[ANCHORS:][: max(20, round(len(wrong) * share / (1 - share)) if len(wrong) else POOL_ROWS)]
    shared = [name for name in clean.column_names if name in copies.column_names and name not in ("uid", "row")]
    rows = pa.concat_tables(
        [clean.take(right).select(shared), copies.take(wrong).select(shared)], promote_options="permissive"
    )
    numbers = pa.array(range(rows.num_rows), pa.int64())
    rows = rows.append_column("uid", numbers.cast(pa.string())).append_column("row", numbers)
    write_table(rows, folder / SCORES)
    write_table(clean.take(anchors), folder / REFERENCE)
    write_table(copies.filter(mine), folder / CORRUPTED)
    trust = measure_trust(ScoreTable(folder / SCORES))
    verdict, is_clean = trust.verdict, np.arange(rows.num_rows) < len(right)
    if verdict.blind:
        return Outcome(True, True, True, np.nan, np.nan, np.nan)
    passing = trust.passing()
    truth, kept = is_clean.mean(), is_clean[passing].mean() if passing.any() else 1.0
    dropped = (~passing[~is_clean]).mean() if (~is_clean).any() else np.nan
    pool, passed = verdict.clean, verdict.passing_clean
    return Outcome(
        False,
        pool.low <= truth <= pool.high,
        passed.low <= kept <= passed.high,
        pool.value - truth,
        passed.value - kept,
        verdict.power.at_cut - dropped,
    )


def line(name: str, seen: list[Outcome]) -> str:
    """Of the table."""
    told = [one for one in seen if not one.blind]
    if not told:
        return f"| {name} | all | | | | | |"
    held = [f"{np.mean([getattr(one, field) for one in told]):.0%}" for field in ("pool_held", "passing_held")]
    off = [
        f"{100 * np.nanmean(values):+.1f} ± {100 * np.nanstd(values):.1f}"
        for values in ([getattr(one, field) for one in told] for field in ("pool_off", "passing_off", "power_off"))
    ]
    return f"| {name} | {len(seen) - len(told)} | {' | '.join(held + off)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[], help="data and proxies, such as charts own; all by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| data, proxy, errors | blind | pool held | passing held | pool, said less true | passing | power at the cut |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for world in ("digits", "charts", "mixed"):
        for proxy in ("own", "foreign"):
            if not all(part in (world, proxy) for part in asked.only):
                continue
            scored = bank(
                Setting(world, proxy, 0 if proxy == "own" else 40, 600, 1 if proxy == "own" else 0), asked.work
            )
            for some in (False, True):
                chance = np.random.default_rng(0)
                with tempfile.TemporaryDirectory() as folder:
                    seen = [simulate(scored, some, chance, Path(folder)) for _ in range(asked.pools)]
                print(line(f"{world}, {proxy}, {'four kinds' if some else 'all kinds'}", seen), flush=True)


if __name__ == "__main__":
    main()
