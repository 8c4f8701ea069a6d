"""Anchors looked at: are wrong ones found, and do rows that were suggested, checked and accepted help?

run.py OUT wrong     plants ten wrong anchors among a hundred and prints how many `ost anchors --check` names
run.py OUT suggest   scores mixed data by anchors that lack a source, lets the planted labels stand in for the person
                     who checks rows, and prints what the gate makes of the same pool before and after

What is in OUT is not made again. No option is set for a setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from onesteptrain.data.anchors import ACCEPTED
from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.anchor_files import CHECKED, accept_file, suggest_file
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.recipe import Bench, Places, Recipe
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import ScopeOptions
from onesteptrain.selection.odd_anchors import find_odd_anchors
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import MixedOptions, SyntheticOptions, checkpoint, make_synthetic

PROXIES = {
    ("digits", "own"): "proxy",
    ("charts", "own"): "charts_proxy",
    ("digits", "foreign"): "charts_proxy",
    ("charts", "foreign"): "proxy",
}
GOOD, WRONG, SPOILED = 90, 10, 60
LACKING = ("charts", "short")
ANCHORS, ROWS, CHECKS = 100, 600, 50

Row = dict[str, Any]


def score(data: Path, anchors: Path, **recipe: Any) -> ScoreTable:
    """Score a pool by anchors whose pictures stand beside it; the warmed-up proxy serves all anchors."""
    made = Recipe(pool=data / "pool.jsonl", anchors=anchors, scope=ScopeOptions(scope="all"), **recipe)
    return (
        Bench(made, open_pool(made.pool), Places(data / "work", by_content=True), print)
        .score("one_step", OneStep())
        .table
    )


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(rows: Iterable[Row], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def find_wrong(out: Path, world: str, proxy: str, seed: int) -> tuple[int, int]:
    """Plant wrong anchors, one kind of noise after the other; how many are named, and how many of these are wrong."""
    data = out / "wrong" / f"{world}-{seed}"
    if not data.exists():
        sizes = {"heldout_rows": GOOD, "benchmark_rows": 1, "duplicate_share": 0.0}
        make_synthetic(world, SyntheticOptions(pool_rows=200, noise_share=0.4, seed=seed, **sizes), data)
        other = SyntheticOptions(pool_rows=SPOILED, noise_share=1.0, seed=1000 + seed, **sizes)
        spoiled = make_synthetic(world, other, data / "spoiled")
        kinds = pq.read_table(spoiled.truth)["kind"].to_pylist()
        in_turn = sorted(range(SPOILED), key=lambda row: (kinds[:row].count(kinds[row]), kinds[row]))[:WRONG]
        rows = read_rows(spoiled.pool)
        bad = [
            rows[row] | {"id": f"wrong-{row}", "images": [f"spoiled/{name}" for name in rows[row]["images"]]}
            for row in in_turn
        ]
        write_rows(read_rows(data / "heldout.jsonl") + bad, data / "anchors.jsonl")
    own = proxy == "own"
    table = score(
        data,
        data / "anchors.jsonl",
        proxy=str(checkpoint(PROXIES[world, proxy])),
        warmup_share=0.2 if own else 1.0,
        warmup=WARMUP if own else dataclasses.replace(WARMUP, epochs=20),
        seed=seed,
    )
    named = [anchor.uid for anchor in find_odd_anchors(table).anchors]
    return len(named), sum(uid.startswith("wrong-") for uid in named)


def print_wrong(out: Path, seeds: Iterable[int]) -> None:
    for world, proxy in PROXIES:
        found = [find_wrong(out, world, proxy, seed) for seed in seeds]
        named, right = (sum(counts) for counts in zip(*found, strict=True))
        share = f"{right / named:.0%} of the named are wrong" if named else "none is named"
        print(
            f"{world}, {proxy} proxy: {right} of {WRONG * len(found)} wrong anchors found, {share} ({found})",
            flush=True,
        )


class Judged(NamedTuple):
    """What the gate makes of a pool, or of a source; NaN where it has no such rows."""

    clean_pass: float
    bad_pass: float
    order: float
    """Area under the ROC curve of nonconformity for bad rows."""


def judge(table: ScoreTable, clean: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Judged:
    trust = measure_trust(table)
    passing, far = trust.passing(), trust.nonconformity
    right, wrong = rows & clean, rows & ~clean
    order = roc_auc_score(~clean[rows], far[rows]) if right.any() and wrong.any() else float("nan")
    return Judged(
        *(float(passing[part].mean()) if part.any() else float("nan") for part in (right, wrong)), float(order)
    )


def checked_arms(data: Path, anchors: Path, table: ScoreTable, clean: NDArray[np.bool_], seed: int) -> dict[str, Path]:
    """Anchor files: as they are, and with rows accepted that were suggested, or drawn at random."""
    rows = read_rows(data / "pool.jsonl")
    by_id = {row["id"]: place for place, row in enumerate(rows)}
    suggested = data / f"suggested-{anchors.stem}.jsonl"
    if not suggested.exists():
        suggest_file(table, suggested, count=CHECKS, kinds=("source",))
    chance = np.random.default_rng(seed)
    drawn = {
        "suggested, checked": [by_id[row["id"]] for row in read_rows(suggested)],
        "random, checked": chance.permutation(len(rows))[:CHECKS].tolist(),
        "random, all good": chance.permutation(np.flatnonzero(clean))[:CHECKS].tolist(),
    }
    arms = {"as they are": anchors}
    for place, (name, chosen) in enumerate(drawn.items()):
        marks = [rows[row] | {CHECKED: "good" if clean[row] else "bad", ACCEPTED: "pool.jsonl"} for row in chosen]
        marked = write_rows(marks, data / f"marked-{place}-{anchors.stem}.jsonl")
        arms[name] = data / f"accepted-{place}-{anchors.stem}.jsonl"
        accept_file(open_pool(anchors), open_pool(marked), arms[name], overwrite=True)
    return arms


def print_suggest(out: Path, seeds: Iterable[int]) -> None:
    for lacking in LACKING:
        for seed in seeds:
            data = out / "suggest" / f"mixed-{seed}"
            if not data.exists():
                sizes = MixedOptions(pool_rows=ROWS, heldout_rows=300, benchmark_rows=4, seed=seed)
                make_synthetic("mixed", sizes, data)
            known = [row for row in read_rows(data / "heldout.jsonl") if row["source"] != lacking]
            anchors = write_rows(known[:ANCHORS], data / f"without-{lacking}.jsonl")
            recipe = {"proxy": str(checkpoint("mixed_proxy")), "warmup_share": 0.1, "warmup": WARMUP, "seed": seed}
            clean = pq.read_table(data / "truth.parquet")["clean"].to_numpy(zero_copy_only=False).astype(bool)
            sources = np.array([row["source"] for row in read_rows(data / "pool.jsonl")])
            tables = {
                name: score(data, path, **recipe)
                for name, path in checked_arms(data, anchors, score(data, anchors, **recipe), clean, seed).items()
            }
            scored = [np.isfinite(table.numbers("score")) for table in tables.values()]
            common = np.logical_and.reduce(scored)  # rows that no arm has accepted
            for name, table in tables.items():
                told = {"all": judge(table, clean, common), lacking: judge(table, clean, common & (sources == lacking))}
                shown = "; ".join(
                    f"{part}: clean pass {each.clean_pass:.2f}, bad pass {each.bad_pass:.2f}, order {each.order:.3f}"
                    for part, each in told.items()
                )
                extra = table.reference.rows - ANCHORS if table.reference else 0
                print(f"without {lacking}, seed {seed}, {name} (+{extra} anchors): {shown}", flush=True)


if __name__ == "__main__":
    parts: dict[str, Callable[[Path, Iterable[int]], None]] = {"wrong": print_wrong, "suggest": print_suggest}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parts[asked.part](asked.out, asked.seeds)
