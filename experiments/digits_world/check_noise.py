"""Is the digits world useful? Fine-tune the target on clean rows, on the full noisy pool and on half of it.

check_noise.py [--rates 3e-4 1e-3] [--steps 120] [--seeds 2] prints accuracy on the held-out part, which the learning
rate of the demo is chosen on; the benchmark is not touched. It reads the planted labels: the clean arm is the ceiling.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from onesteptrain.encodings import encode_all
from onesteptrain.evaluation import EvaluateOptions, evaluate, read_benchmark
from onesteptrain.finetuning import FinetuneOptions, finetune
from onesteptrain.pool import open_pool
from onesteptrain.proxy import load_proxy
from onesteptrain.worlds import checkpoint
from onesteptrain.worlds.digits import World, WorldOptions, make_world

OPTIONS = FinetuneOptions(batch_size=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="target")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 2e-3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pool-rows", type=int, default=4000)
    parser.add_argument("--noise-share", type=float, default=0.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        asked = WorldOptions(pool_rows=options.pool_rows, noise_share=options.noise_share, seed=7)
        world = make_world(asked, Path(scratch) / "world")
        tasks = [("untuned", 0.0, 0)]
        tasks += list(itertools.product(("clean", "full", "half"), options.rates, range(options.seeds)))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            2, mp_context=context, initializer=functools.partial(torch.set_num_threads, 1)
        ) as pool:
            found = list(
                pool.map(functools.partial(accuracy, world, options.model, options.steps), *zip(*tasks, strict=True))
            )
    for arm, rate in dict.fromkeys(task[:2] for task in tasks):
        values = [value for task, value in zip(tasks, found, strict=True) if task[:2] == (arm, rate)]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        print(f"{arm:8} rate {rate:.0e}: {statistics.mean(values):.1f}{spread}", flush=True)


def accuracy(world: World, model: str, steps: int, arm: str, rate: float, seed: int) -> float:
    proxy = load_proxy(checkpoint(model))
    if arm != "untuned":
        rows, clean = encoded(world.pool, model), pq.read_table(world.truth)["clean"].to_numpy(zero_copy_only=False)
        chosen = {"clean": np.flatnonzero(clean), "full": range(len(rows)), "half": range(0, len(rows), 2)}[arm]
        tuning = dataclasses.replace(OPTIONS, steps=steps, learning_rate=rate, seed=seed)
        finetune(proxy, [rows[index] for index in chosen], tuning)
    questions = read_benchmark(world.heldout)
    return 100 * evaluate(proxy, questions, EvaluateOptions(max_new_tokens=48, batch_size=250)).accuracy.value


@functools.cache
def encoded(path: Path, model: str):  # noqa: ANN201
    return encode_all(load_proxy(checkpoint(model)).encoder, open_pool(path))[0]


if __name__ == "__main__":
    main()
