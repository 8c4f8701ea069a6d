"""What a target learns from rows that pass the trust gate, against clean rows at random, the full pool and chance.

downstream.py WORK [--only digits own ...] makes data of five seeds, scores them with all options at their defaults,
trains the target on every arm for the same steps, measures it, and after each training writes the tables to
downstream.md beside this file. What is in WORK is not made again. The planted labels decide only what the arm `clean`
draws from.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from onesteptrain.data.pool import open_pool
from onesteptrain.evaluation import evaluate, read_benchmark
from onesteptrain.jobs.demo import CHART_ANSWERS, TARGET
from onesteptrain.jobs.recipe import Bench, Places, Recipe
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import Encoded, ScopeOptions, load_proxy
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.atomic import write_json, write_text
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import MixedOptions, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import encode_all, finetune

sys.path.insert(0, str(Path(__file__).parent))
from gains import ANY, DEFAULT, FULL, SHARES, UNTUNED, Trial, tables
from run import BRIEF, LONG, model_of
from settings import Proxy, Setting, World, clean_rows

POOL_ROWS, BENCHMARK_ROWS, STEPS, SEEDS = 3000, 400, 120, 5

NOISE_PERCENT = 50
"""Of digits and charts: clean rows just fill half of the pool. Mixed has its own by source, 40 % in all."""

PLACES: tuple[tuple[World, Proxy], ...] = (
    ("digits", "own"),
    ("charts", "own"),
    ("mixed", "own"),
    ("digits", "foreign"),
    ("charts", "foreign"),
    ("mixed", "foreign"),
)

ARMS = (UNTUNED, FULL, *((arm, share) for share in SHARES for arm in ("clean", DEFAULT, "random")))
"""And the share of the pool that each keeps, in per cent."""

TARGETS = {"digits": "target", "charts": "charts_target", "mixed": "mixed_target"}

Rows = NDArray[np.int64]


class Place(NamedTuple):
    """Data of one seed, and who scores them."""

    work: Path
    world: World
    proxy: Proxy
    seed: int
    """Of anchors, warm-up and scores."""

    @property
    def folder(self) -> Path:
        """Of the data and what both proxies share."""
        return self.work / "downstream" / f"{self.world}-s{self.seed}"

    @property
    def training_seed(self) -> int:
        """Of the target, and of all draws."""
        return 10 + self.seed

    @property
    def data(self) -> Path:
        """The data, made where they are missing."""
        folder, seed = self.folder / "data", 700 + self.seed
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            if self.world == "mixed":
                mixed = MixedOptions(pool_rows=POOL_ROWS, benchmark_rows=BENCHMARK_ROWS, seed=seed)
                make_synthetic("mixed", mixed, folder)
            else:
                plain = SyntheticOptions(
                    pool_rows=POOL_ROWS, benchmark_rows=BENCHMARK_ROWS, noise_share=NOISE_PERCENT / 100, seed=seed
                )
                make_synthetic(self.world, plain, folder)
        return folder


def score(place: Place) -> ScoreTable:
    """Scores of the pool, one pass, by a hundred anchors."""
    warmup = LONG if place.proxy == "foreign" else BRIEF
    recipe = Recipe(
        pool=place.data / "pool.jsonl",
        proxy=str(model_of(Setting(place.world, place.proxy, NOISE_PERCENT, 100, place.seed), place.work)),
        heldout=place.data / "heldout.jsonl",
        warmup_share=warmup.share,
        warmup=warmup.finetune,
        scope=ScopeOptions(scope="all"),
        seed=place.seed,
    )
    bench = Bench(recipe, open_pool(recipe.pool), Places(place.folder / place.proxy), print)
    return bench.score("one_step", OneStep()).table


def rows_of(place: Place, arm: str, share: int) -> Rows:
    """The rows that an arm trains on."""
    if arm == DEFAULT:
        options = SelectOptions(draw_seed=place.training_seed)
        return select_rows(score(place), keep=f"{share}%", options=options).rows
    clean = np.flatnonzero(clean_rows(place.data))
    among = clean if arm == "clean" else np.arange(POOL_ROWS)
    chance = np.random.default_rng([place.training_seed, ("clean", "random", "full").index(arm)])
    return np.sort(chance.choice(among, min(len(among), POOL_ROWS * share // 100), replace=False))


@functools.lru_cache(maxsize=1)
def encoded(world: World, pool: Path) -> list[Encoded]:
    """The pool as the target reads it, row by row."""
    encodings, refused = encode_all(load_proxy(checkpoint(TARGETS[world])).encoder, open_pool(pool))
    assert not refused, f"{pool} has rows that the target cannot read: {refused}"  # noqa: S101
    return list(encodings)


def train(place: Place, arm: str, share: int) -> Trial:
    """Train and measure one arm, or read what was measured."""
    mine = place.proxy if arm == DEFAULT else ANY
    done = place.folder / f"{mine}-{arm}-{share}-{STEPS}.json"
    if done.is_file():
        return Trial(**json.loads(done.read_text(encoding="utf-8")))
    target = load_proxy(checkpoint(TARGETS[place.world]))
    rows = np.arange(0)
    if arm != "untuned":
        rows = rows_of(place, arm, share)
        options = dataclasses.replace(TARGET, steps=STEPS, seed=place.training_seed)
        finetune(target, [encoded(place.world, place.data / "pool.jsonl")[row] for row in rows], options)
    by = ("source",) if place.world == "mixed" else ()
    answers = dataclasses.replace(CHART_ANSWERS, by=by)
    found = evaluate(target, read_benchmark(place.data / "benchmark.jsonl"), answers)
    sources = {name: 100 * one.value for name, one in found.by["source"].items()} if by else {}
    clean = float(clean_rows(place.data)[rows].mean()) if len(rows) else None
    trial = Trial(place.world, mine, place.seed, arm, share, len(rows), clean, 100 * found.accuracy.value, sources)
    write_json(done, trial._asdict())
    return trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="data and proxies, such as digits own; all by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    trials: dict[Any, Trial] = {}
    for world, proxy in PLACES:
        if not all(part in (world, proxy) for part in asked.only):
            continue
        for seed in range(SEEDS):
            for arm, share in ARMS:
                trial = train(Place(asked.work, world, proxy, seed), arm, share)
                trials[trial.key] = trial
                write_text(Path(__file__).with_suffix(".md"), tables(list(trials.values())))
            print(f"{world}, {proxy}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
