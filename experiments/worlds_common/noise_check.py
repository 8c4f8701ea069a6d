"""Is a world useful? Fine-tune its target on clean rows, on the full noisy pool and on a random half of it.

Accuracy is measured on the held-out part of a world of another seed, which the learning rates are chosen on; the
benchmark is not touched. It reads the planted labels: the clean arm is the ceiling.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from onesteptrain.data.pool import open_pool
from onesteptrain.evaluation import EvaluateOptions, evaluate, read_benchmark
from onesteptrain.proxy import Encoded, load_proxy
from onesteptrain.synthetic import SyntheticData, checkpoint
from onesteptrain.training import FinetuneOptions, encode_all, finetune

SEED = 7
"""Seed of the world that is measured; the experiments use others."""


class Trial(NamedTuple):
    """One model to measure."""

    arm: str
    rate: float
    seed: int


def run(description: str, model: str, max_new_tokens: int, make: Callable[[int, float, Path], SyntheticData]) -> None:
    """The command line.

    Args:
        description: What --help says.
        model: Packaged model, unless the user names another.
        max_new_tokens: Room for an answer.
        make: Makes a world of so many rows, with this share of noise, in this folder.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=model, help="name of a packaged model, or a folder")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 2e-3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pool-rows", type=int, default=4000)
    parser.add_argument("--noise-share", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    trials = [Trial("untuned", 0.0, 0)]
    trials += itertools.starmap(
        Trial, itertools.product(("clean", "full", "half"), options.rates, range(options.seeds))
    )
    context = multiprocessing.get_context("spawn")
    one_thread = functools.partial(torch.set_num_threads, 1)
    with tempfile.TemporaryDirectory() as scratch:
        world = make(options.pool_rows, options.noise_share, Path(scratch) / "world")
        with ProcessPoolExecutor(options.workers, mp_context=context, initializer=one_thread) as pool:
            tuning = FinetuneOptions(batch_size=options.batch_size, steps=options.steps)
            measure = functools.partial(accuracies, world, options.model, tuning, max_new_tokens)
            found = list(pool.map(measure, trials))
    for arm, rate in dict.fromkeys((trial.arm, trial.rate) for trial in trials):
        mine = [one for trial, one in zip(trials, found, strict=True) if (trial.arm, trial.rate) == (arm, rate)]
        values = [one["all"] for one in mine]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        skills = ", ".join(
            f"{name} {statistics.mean(one[name] for one in mine):.0f}" for name in mine[0] if name != "all"
        )
        print(f"{arm:8} rate {rate:.0e}: {statistics.mean(values):.1f}{spread}; {skills}", flush=True)


def accuracies(
    world: SyntheticData, model: str, tuning: FinetuneOptions, max_new_tokens: int, trial: Trial
) -> dict[str, float]:
    """Per cent right on the held-out part, over all and by skill."""
    proxy = load_proxy(folder(model))
    if trial.arm != "untuned":
        rows, clean = encoded(world.pool, model), pq.read_table(world.truth)["clean"].to_numpy(zero_copy_only=False)
        chosen = {"clean": np.flatnonzero(clean), "full": range(len(rows)), "half": range(0, len(rows), 2)}[trial.arm]
        asked = dataclasses.replace(tuning, learning_rate=trial.rate, seed=trial.seed)
        finetune(proxy, [rows[index] for index in chosen], asked)
    asking = EvaluateOptions(max_new_tokens=max_new_tokens, batch_size=250, by=("skill",))
    found = evaluate(proxy, read_benchmark(world.heldout), asking)
    by_skill = {name: 100 * one.value for name, one in found.by["skill"].items()}
    return {"all": 100 * found.accuracy.value} | by_skill


@functools.cache
def encoded(path: Path, model: str) -> list[Encoded]:
    """The pool as the model reads it."""
    return encode_all(load_proxy(folder(model)).encoder, open_pool(path))[0]


def folder(model: str) -> Path:
    """Where a model is: the name of a packaged one may stand for it."""
    return Path(model) if Path(model).exists() else checkpoint(model)
