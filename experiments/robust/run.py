"""The trust gate over many settings, with its defaults: which rows pass, and what it says of itself.

run.py OUT [--only digits-own ...] makes data, warms proxies up, scores, and writes one table of all settings to
OUT/results.json. What is in OUT is not made again. No option is set for a setting; the planted labels judge only.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

import torch

from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.recipe import Bench, Places, Recipe
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import ScopeOptions
from onesteptrain.synthetic import SyntheticOptions, checkpoint, make_synthetic


class Setting(NamedTuple):
    """What is scored by what."""

    world: str
    proxy: str
    noise: float
    anchors: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.world}-{self.proxy}-n{round(100 * self.noise)}-a{self.anchors}-s{self.seed}"


PROXIES = {
    ("digits", "own"): "proxy",
    ("charts", "own"): "charts_proxy",
    ("digits", "foreign"): "charts_proxy",
    ("charts", "foreign"): "proxy",
}
ROWS = 800


def settings() -> list[Setting]:
    """All settings, those first that say most."""
    product = itertools.product(("digits", "charts"), ("own", "foreign"), (0.4, 0.0, 0.7), (100, 30, 300), (0, 1, 2))
    return [Setting(*values) for values in product]


def score(setting: Setting, out: Path) -> Path:
    """Score the pool of a setting."""
    folder = out / "data" / f"{setting.world}-n{round(100 * setting.noise)}-s{setting.seed}"
    if not folder.exists():
        options = SyntheticOptions(
            pool_rows=ROWS, heldout_rows=600, benchmark_rows=1, noise_share=setting.noise, seed=100 + setting.seed
        )
        make_synthetic(setting.world, options, folder)
    share, warmup = (0.05, WARMUP) if setting.proxy == "own" else (0.25, dataclasses.replace(WARMUP, epochs=20))
    recipe = Recipe(
        pool=folder / "pool.jsonl",
        proxy=str(checkpoint(PROXIES[setting.world, setting.proxy])),
        heldout=folder / "heldout.jsonl",
        anchor_count=setting.anchors,
        warmup_share=share,
        warmup=warmup,
        scope=ScopeOptions(scope="all"),
        seed=setting.seed,
    )
    bench = Bench(recipe, open_pool(recipe.pool), Places(out / "runs" / setting.name), print)
    (out / "runs" / setting.name).mkdir(parents=True, exist_ok=True)
    return bench.score("one_step", OneStep(store_tokens=True)).run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for setting in settings():
        if all(part in setting.name for part in asked.only):
            score(setting, asked.out)
