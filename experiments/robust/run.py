"""The trust gate over many settings, with its defaults: which rows pass, and what it says of itself.

run.py OUT [--only digits-own a100 ...] makes data, warms proxies up, scores, and prints a line for each setting whose
name has all of these parts. What is in OUT is not made again. No option is set for a setting; the planted labels judge.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.recipe import Bench, Places, Recipe
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import ScopeOptions
from onesteptrain.selection.power import Interval
from onesteptrain.selection.trust import SIGNALS, measure_trust
from onesteptrain.storage.score_table import ScoreTable
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


def data_of(setting: Setting, out: Path) -> Path:
    """The folder of a setting's data."""
    return out / "data" / f"{setting.world}-n{round(100 * setting.noise)}-s{setting.seed}"


def score(setting: Setting, out: Path) -> Path:
    """Score the pool of a setting."""
    folder = data_of(setting, out)
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


class Judged(NamedTuple):
    """What the gate did and said in a setting, and what is true; NaN where nothing of the kind is there."""

    setting: str
    clean: float
    said: Interval | None
    clean_pass: float
    bad_pass: float
    kept_clean: float
    kept_said: Interval | None
    power: float
    order: float
    """Area under the ROC curve of nonconformity for bad rows."""

    best_signal: float
    """The same of the best single signal."""


def judge(setting: Setting, run: Path, out: Path) -> Judged:
    """Compare what the gate says with the planted labels."""
    table = ScoreTable(run / "scores.parquet")
    trust = measure_trust(table)
    truth = data_of(setting, out) / "truth.parquet"
    clean = pq.read_table(truth, columns=["clean"])["clean"].to_numpy(zero_copy_only=False).astype(bool)
    passing, verdict = trust.passing(), trust.verdict
    singles = [np.abs(table.numbers(name)) for name in SIGNALS]
    return Judged(
        setting.name,
        float(clean.mean()),
        verdict.clean,
        _mean(passing[clean]),
        _mean(passing[~clean]),
        _mean(clean[passing]),
        verdict.passing_clean,
        math.nan if verdict.power is None else verdict.power.at_cut,
        _area(~clean, trust.nonconformity),
        max(_area(~clean, signal) for signal in singles),
    )


def _shown(value: object) -> str:
    if isinstance(value, Interval):
        return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _area(bad: NDArray[np.bool_], values: NDArray[np.float64]) -> float:
    return float(roc_auc_score(bad, values)) if bad.any() else math.nan


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for setting in settings():
        if all(part in setting.name for part in asked.only):
            told = judge(setting, score(setting, asked.out), asked.out)
            print("  ".join(f"{name} {_shown(value)}" for name, value in told._asdict().items()), flush=True)
