"""Drop, mask or weigh: what a target learns when harmful rows, or parts of them, are kept out of its loss.

run.py [--out runs/masking] [--worlds digits charts] [--seeds 3] makes data, scores them as `ost run` does, trains the
target by every arm for the same steps, prints the table of the README, and writes results.json beside this file. What
is in --out is not made again. No planted label decides anything; `clean` is the ceiling.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student

from onesteptrain.data.pool import open_pool
from onesteptrain.evaluation import evaluate, read_benchmark
from onesteptrain.jobs.comparison.arms import read_truth
from onesteptrain.jobs.demo import ANSWERS, CHART_ANSWERS, TARGET, WARMUP
from onesteptrain.jobs.recipe import Bench, Places, Recipe
from onesteptrain.jobs.reweighting import weighed, without_harm
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import ScopeOptions, load_proxy
from onesteptrain.reporting.diagnosis.texts import load_quoter
from onesteptrain.selection.trust import measure_trust
from onesteptrain.storage.atomic import write_json
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import MixedOptions, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import encode_all, finetune

HERE = Path(__file__).parent
ARMS = ("untuned", "full", "drop", "mask", "weigh", "drop, mask", "clean")

BUDGETS = ((1200, 40), (2400, 100))
"""Rows of the pool, and optimizer steps of 32 rows, the same for all arms."""

PREFIX = {"digits": "", "charts": "charts_", "mixed": "mixed_"}


class Setting(NamedTuple):
    """One pool, scored once."""

    world: str
    seed: int
    """Of the data, the scores and the trainings alike."""

    rows: int
    steps: int
    out: Path

    @property
    def folder(self) -> Path:
        """Of all that is made of it."""
        return self.out / f"{self.world}-{self.rows}-s{self.seed}"


def score(setting: Setting) -> ScoreTable:
    """Make and score a pool, with a second pass."""
    data = setting.folder / "data"
    if not data.exists():
        setting.folder.mkdir(parents=True, exist_ok=True)
        sizes = {"pool_rows": setting.rows, "benchmark_rows": 300, "seed": 300 + setting.seed}
        options = MixedOptions(**sizes) if setting.world == "mixed" else SyntheticOptions(noise_share=0.6, **sizes)
        make_synthetic(setting.world, options, data)
    recipe = Recipe(
        pool=data / "pool.jsonl",
        proxy=str(checkpoint(PREFIX[setting.world] + "proxy")),
        heldout=data / "heldout.jsonl",
        warmup=WARMUP,
        scope=ScopeOptions(scope="all"),
        seed=setting.seed,
    )
    bench = Bench(recipe, open_pool(recipe.pool), Places(setting.folder), print)
    return bench.score("one_step", OneStep(store_tokens=True), second_pass=True).table


def rows_of(arm: str, setting: Setting, table: ScoreTable) -> tuple[list[Any], dict[str, float]]:
    """The rows that an arm trains on, and what was done to them."""
    data = setting.folder / "data"
    rows: list[Any] = list(open_pool(data / "pool.jsonl"))
    if arm == "clean":
        return [rows[row] for row in np.flatnonzero(read_truth(data / "truth.parquet").clean)], {}
    if "drop" in arm:
        rows = [rows[row] for row in np.flatnonzero(measure_trust(table).passing())]
    facts: dict[str, float] = {"rows": len(rows)}
    if "mask" in arm:
        quote = load_quoter(setting.folder / "warmup")
        masked = without_harm(rows, table, quote)
        rows, facts["masked"] = masked.rows, masked.masked / masked.tokens
    return (weighed(rows, table) if "weigh" in arm else rows), facts


def trial(setting: Setting, arm: str) -> dict[str, Any]:
    """Train and measure one arm."""
    torch.set_num_threads(1)
    done = setting.folder / f"{arm.replace(', ', '-')}-{setting.steps}.json"
    budget = {"pool_rows": setting.rows, "steps": setting.steps}
    if done.is_file():
        return {**json.loads(done.read_text()), **budget}
    target = load_proxy(checkpoint(PREFIX[setting.world] + "target"))
    facts: dict[str, Any] = {"world": setting.world, "seed": setting.seed, "arm": arm}
    if arm != "untuned":
        rows, more = rows_of(arm, setting, ScoreTable(setting.folder / "second" / "score" / "scores.parquet"))
        encodings, refused = encode_all(target.encoder, rows)
        facts |= more | {"rows": len(encodings), "refused": len(refused)}
        finetune(target, encodings, dataclasses.replace(TARGET, steps=setting.steps, seed=setting.seed))
    answers = ANSWERS if setting.world == "digits" else CHART_ANSWERS
    graded = evaluate(target, read_benchmark(setting.folder / "data" / "benchmark.jsonl"), answers)
    facts |= budget | {"accuracy": 100 * graded.accuracy.value}
    write_json(done, facts)
    return facts


def table_of(records: Sequence[dict[str, Any]]) -> str:
    """Mean and spread of each arm, and what it brings over dropping, seed by seed."""
    lines = [
        "| data | pool, steps | arm | rows | masked | accuracy | over seeds | less drop, paired |",
        "| --- " * 8 + "|",
    ]
    for key in dict.fromkeys(map(_budget, records)):
        here = [record for record in records if _budget(record) == key]
        drop = {record["seed"]: record["accuracy"] for record in here if record["arm"] == "drop"}
        for arm in ARMS:
            own = [record for record in here if record["arm"] == arm]
            values = [record["accuracy"] for record in own]
            lead = [record["accuracy"] - drop[record["seed"]] for record in own]
            rows = np.mean([record.get("rows", 0) for record in own])
            masked = f"{np.mean([record['masked'] for record in own]):.1%}" if "masked" in own[0] else ""
            spread = f"{min(values):.1f} to {max(values):.1f}"
            cells = (*key, arm, f"{rows:.0f}", masked, f"{np.mean(values):.1f}", spread, _lead(lead))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _budget(record: dict[str, Any]) -> tuple[str, str]:
    return record["world"], f"{record['pool_rows']}, {record['steps']}"


def _lead(values: Sequence[float]) -> str:
    """Mean with its 95 % t interval over the seeds."""
    if len(values) < 2 or not any(values):
        return ""
    reach = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{np.mean(values):+.1f} ({np.mean(values) - reach:+.1f} to {np.mean(values) + reach:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/masking"))
    parser.add_argument("--worlds", nargs="+", default=["digits", "charts"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    settings = [
        Setting(world, seed, rows, steps, options.out)
        for rows, steps in BUDGETS
        for seed in range(options.seeds)
        for world in options.worlds
    ]
    records = []
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        works = []
        for setting in settings:
            score(setting)
            works += [pool.submit(trial, setting, arm) for arm in ARMS]
        for work in works:
            records.append(work.result())
            print(records[-1], flush=True)
    write_json(HERE / "results.json", records)
    print(table_of(records))


if __name__ == "__main__":
    main()
