"""The demo: the built-in digits world through every step, with targets trained on each subset side by side.

The same code runs as on real data and real checkpoints; what is small is the world. The planted labels are read in one
place only, to say in the table how many of the kept rows are clean.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from onesteptrain.auditing import Audit, AuditOptions
from onesteptrain.encodings import Encodings, encode_all
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.evaluation import EvaluateOptions, Question, evaluate, read_benchmark
from onesteptrain.finetuning import FinetuneOptions, finetune
from onesteptrain.methods.one_step import OneStep
from onesteptrain.methods.uniform import Random
from onesteptrain.pool import open_pool
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.reporting import write_report
from onesteptrain.runs import write_json
from onesteptrain.scores import ScoreTable
from onesteptrain.selection import select_rows
from onesteptrain.steps import audit_facts, audit_into, draw_anchor_file, make_setting, score_into, select_into
from onesteptrain.warmup import WarmupOptions, warm_up
from onesteptrain.worlds import checkpoint
from onesteptrain.worlds.digits import World, WorldOptions, make_world

Tell = Callable[[str], None]

WARMUP = FinetuneOptions(epochs=10, batch_size=32, learning_rate=3e-4)
TARGET = FinetuneOptions(batch_size=32, learning_rate=2e-3)
ANSWERS = EvaluateOptions(max_new_tokens=48, batch_size=200, by=("skill",))


@dataclass(frozen=True)
class DemoOptions:
    """How large the demo is."""

    pool_rows: int = 4000
    """Rows of the pool, half of them bad."""

    seeds: int = 3
    """Trained targets of each arm."""

    steps: int = 100
    """Optimizer steps of each target (Protocol B)."""

    shares: tuple[float, ...] = (0.2, 0.5)
    """Budgets of the subsets, as shares of the pool."""

    workers: int = 0
    """Targets that are trained at a time; 0 is one for each processor."""

    def __post_init__(self) -> None:
        if self.pool_rows < 400 or self.seeds < 1 or self.steps < 1:
            raise ConfigError("a demo needs at least 400 pool_rows, 1 of seeds and 1 of steps")


class Arm(NamedTuple):
    """One row of the table before it is filled."""

    method: str
    share: float
    rows: tuple[int, ...]
    """Positions in the pool; none for the untuned target."""


def run_demo(out: Path, options: DemoOptions, *, overwrite: bool = False, tell: Tell = print) -> list[dict[str, Any]]:
    """Take the digits world through every step.

    Args:
        out: New folder for all that is made.
        options: How large.
        overwrite: Delete the folder of an earlier demo.
        tell: Told in a line what each step has done.

    Returns:
        One record an arm and seed; also in OUT/results.json.

    Raises:
        RunError: the folder exists.
    """
    started = time.monotonic()
    _make_room(out, overwrite=overwrite)
    world = make_world(WorldOptions(pool_rows=options.pool_rows), out / "world")
    tell(f"world: {options.pool_rows} rows, half of them bad in one of six ways: {world.pool}")
    audited = _score(world, out, options, tell)
    arms = _arms(world, out, options)
    results = []
    for record in _trained(world, arms, options):
        results.append(record)
        tell(f"{record['method']} {record['share']:.0%} seed {record['seed']}: accuracy {record['accuracy']:.1f}")
    write_json(out / "results.json", results)
    report = write_report(out / "score", out / "report.html", results=results, audit=audited)
    tell("\n" + table(results, _clean_shares(world, arms)))
    tell(f"\nreport: {report}\nall of it in {time.monotonic() - started:.0f} s")
    return results


def table(results: Sequence[dict[str, Any]], clean: dict[tuple[str, float], float]) -> str:
    """Mean and spread of each arm over its seeds, as a Markdown table."""
    lines = [
        "| trained on | rows | clean rows | accuracy, mean of seeds | lowest to highest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm in dict.fromkeys((record["method"], record["share"], record["rows"]) for record in results):
        method, share, rows = arm
        values = [record["accuracy"] for record in results if (record["method"], record["share"]) == (method, share)]
        name = {"untuned": "nothing (untuned)", "full": "full pool"}.get(method, f"{method} {share:.0%}")
        quality = f"{clean[method, share]:.0%}" if (method, share) in clean else ""
        spread = f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {rows} | {quality} | {statistics.mean(values):.1f} | {spread} |")
    return "\n".join(lines)


def _make_room(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not (overwrite and ((out / "world").is_dir() or not any(out.iterdir()))):
        raise RunError(f"output folder {out} exists; choose another --out, or add --overwrite if it is an earlier demo")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _score(world: World, out: Path, options: DemoOptions, tell: Tell) -> dict[str, Any]:
    """Anchors, warm-up, scores, audit, subsets; what the audit found."""
    pool = open_pool(world.pool)
    anchors = world.heldout.parent / "anchors.jsonl"
    drawn = draw_anchor_file(
        open_pool(world.heldout), pool, anchors, count=100, by=("skill", "level"), seed=0, overwrite=False
    )
    tell(f"anchors: {drawn}, stratified by skill and level; none stands in the pool")
    warm = warm_up(load_proxy(checkpoint("proxy")), pool, WarmupOptions(finetune=WARMUP), out / "proxy")
    tell(f"warm-up: {warm.used} rows, {warm.steps} steps, loss {warm.losses[0]:.2f} to {warm.losses[-1]:.2f}")
    scored = score_into(out / "score", pool, OneStep(), anchors=anchors, proxy=str(out / "proxy"))
    tell(f"scores: {scored.rows} rows in {scored.seconds:.1f} s ({scored.rows / scored.seconds:.0f} rows/s)")
    audited = _audit(world, anchors, out)
    lines = [f"rank correlation {row.spearman.value:.3f} at step {row.step_size:.0e}" for row in audited[0].sizes]
    tell(f"audit: first order against the exact step on {audited[0].rows} rows: {', '.join(lines)}")
    score_into(out / "random", pool, Random(), anchors=None, proxy=None, name="random")
    for share in options.shares:
        subset = out / f"subset-{100 * share:.0f}percent.jsonl"
        chosen = select_into(out / "score", subset, keep=f"{share:%}")
        tell(f"selected {len(chosen.rows)} rows: {subset}")
    return audited[1]


def _audit(world: World, anchors: Path, out: Path) -> tuple[Audit, dict[str, Any]]:
    method, options = OneStep(), AuditOptions(rows=40, step_sizes=(1e-4, 1e-3))
    setting = make_setting(str(out / "proxy"), None, list(_samples(anchors)), 0)
    result = audit_into(out / "audit.json", open_pool(world.pool), method, setting, options)
    return result, audit_facts(result, method, options)


def _samples(path: Path) -> Iterator[Any]:
    return (row for row in open_pool(path) if hasattr(row, "turns"))


def _arms(world: World, out: Path, options: DemoOptions) -> list[Arm]:
    count = open_pool(world.pool).count()
    arms = [Arm("untuned", 0.0, ()), Arm("full", 1.0, tuple(range(count)))]
    for share in reversed(options.shares):
        for method, run in (("random", "random"), ("ost", "score")):
            rows = select_rows(ScoreTable(out / run / "scores.parquet"), keep=f"{share:%}").rows
            arms.append(Arm(method, share, tuple(rows.tolist())))
    return arms


def _clean_shares(world: World, arms: Sequence[Arm]) -> dict[tuple[str, float], float]:
    clean = pq.read_table(world.truth)["clean"].to_numpy(zero_copy_only=False)
    return {(arm.method, arm.share): float(np.mean(clean[list(arm.rows)])) for arm in arms if arm.rows}


def _trained(world: World, arms: Sequence[Arm], options: DemoOptions) -> Iterator[dict[str, Any]]:
    """Train and measure every arm with every seed, several at a time, in the order of the arms."""
    tasks = [(arm, seed) for arm in arms for seed in range(options.seeds if arm.rows else 1)]
    workers = options.workers or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as executor:
        work = functools.partial(_train_arm, world, options.steps)
        yield from executor.map(work, *zip(*tasks, strict=True))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _train_arm(world: World, steps: int, arm: Arm, seed: int) -> dict[str, Any]:
    target = load_proxy(checkpoint("target"), options=LoadOptions(device="cpu"))
    started = time.monotonic()
    if arm.rows:
        encoded = _encoded(world.pool)
        options = dataclasses.replace(TARGET, steps=steps, seed=seed)
        finetune(target, [encoded[row] for row in arm.rows], options)
    seconds = time.monotonic() - started
    evaluation = evaluate(target, _questions(world.benchmark), ANSWERS)
    return {
        "method": arm.method,
        "share": arm.share,
        "protocol": "B",
        "seed": seed,
        "accuracy": 100 * evaluation.accuracy.value,
        "accuracy_by_skill": {name: 100 * one.value for name, one in evaluation.by["skill"].items()},
        "training_seconds": seconds,
        "rows": len(arm.rows),
    }


@functools.cache
def _encoded(pool: Path) -> Encodings:
    """The whole pool as the target reads it: every arm of a process takes its rows from here."""
    encoder = load_proxy(checkpoint("target"), options=LoadOptions(device="cpu")).encoder
    return encode_all(encoder, open_pool(pool))[0]


@functools.cache
def _questions(benchmark: Path) -> list[Question]:
    return read_benchmark(benchmark)
