"""Which rows each arm trains on, and what choosing them took."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool
from onesteptrain.errors import PoolError
from onesteptrain.jobs.comparison.request import Comparison, MethodArm
from onesteptrain.jobs.recipe import Bench, Places, Scored
from onesteptrain.jobs.reweighting import Harmful
from onesteptrain.jobs.steps import Tell
from onesteptrain.selection import parse_budget, parse_floor, select_rows
from onesteptrain.storage.seeds import uniform

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """One line of the table, before it is trained."""

    method: str
    budget: str
    """What was asked for, such as 20%; the whole pool is 100%."""

    share: float
    """Of the pool's rows: as asked for, or what a rejection has left."""

    rows: Callable[[int], Rows]
    """Positions in the pool, ascending, for a seed; none for the untuned target."""

    scoring_seconds: float
    """Time to score the pool, the warm-up of the proxy included."""

    run: Path | None = None
    """Run directory of the scores."""

    harmful: Harmful = "drop"
    """What becomes of rows that the trust gate drops."""


def make_arms(job: Comparison, pool: Pool, tell: Tell) -> Iterator[Arm]:
    """Score the pool by each method, and say what each arm keeps; scores that are there are used again.

    Raises:
        ConfigError: a method, its options or what it needs is missing.
    """
    count = len(pool)
    bench = Bench(job.recipe, pool, Places(job.out, by_content=True), tell)
    yield Arm("untuned", "0%", 0.0, lambda seed: np.empty(0, np.int64), 0.0)
    yield Arm("full", "100%", 1.0, lambda seed: np.arange(count), 0.0)
    if job.truth is not None:
        yield from _oracle(job, job.truth, count)
    for name, arm in job.methods.items():
        yield from _method_arms(job, bench, name, arm)


def _method_arms(job: Comparison, bench: Bench, name: str, arm: MethodArm) -> Iterator[Arm]:
    redrawn = arm.method == "random"  # chance alone: each seed draws anew
    seeds = range(job.seeds) if redrawn else [bench.recipe.seed]
    scored = [_scored(job, bench, name, arm, seed) for seed in seeds]
    tables = [result.table for result in scored]

    @functools.cache
    def chosen(budget: str, seed: int) -> Rows:
        options = dataclasses.replace(arm.selecting, draw_seed=seed)
        return select_rows(tables[seed if redrawn else 0], keep=budget, options=options, pool=bench.pool).rows

    for budget in arm.keep or job.shares:
        kept = len(chosen(budget, 0)) / tables[0].rows
        share = float(budget.strip()[:-1]) / 100 if budget.strip().endswith("%") else kept
        varies = redrawn or arm.selecting.draws
        rows = functools.partial(lambda budget, varies, seed: chosen(budget, seed if varies else 0), budget, varies)
        yield Arm(name, budget, share, rows, scored[0].seconds, scored[0].run, arm.harmful)


def _scored(job: Comparison, bench: Bench, name: str, arm: MethodArm, seed: int) -> Scored:
    """Score the pool by one method, by the recipe with what the arm has of its own."""
    recipe = bench.recipe
    share = recipe.warmup_share if arm.warmup_share is None else arm.warmup_share
    own = dataclasses.replace(recipe, proxy=arm.proxy or recipe.proxy, warmup_share=share)
    telling = dataclasses.replace(bench, recipe=own, tell=lambda text: bench.tell(f"{name}: {text}"))
    return telling.score(
        arm.method, arm.make(name), seed=seed, second_pass=arm.second_pass, checkpoints=job.warmup_checkpoints
    )


def _oracle(job: Comparison, truth: Path, count: int) -> Iterator[Arm]:
    """Clean rows drawn at random, at every share that they can fill, and all of them: the ceiling."""
    labels = read_truth(truth)
    clean, uids = np.flatnonzero(labels.clean), labels.uids

    def drawn(size: int, seed: int) -> Rows:
        # not the hash that `random` draws by: the two draws are to be independent
        order = np.argsort([uniform(seed, f"oracle:{uids[row]}") for row in clean])
        return np.sort(clean[order[:size]])

    for budget in job.shares:
        if parse_floor(budget) is not None:
            continue  # a floor of a score means nothing here
        size = parse_budget(budget, count)
        if size < len(clean):
            yield Arm("oracle", budget, size / count, functools.partial(drawn, size), 0.0)
    yield Arm("oracle", "clean", len(clean) / count, lambda seed: clean, 0.0)


def clean_share(job: Comparison, rows: Rows) -> float | None:
    """Share of the rows that the planted labels call clean; None where there are none."""
    if job.truth is None or not len(rows):
        return None
    return float(np.mean(read_truth(job.truth).clean[rows]))


class Truth(NamedTuple):
    """The planted labels of a pool, row by row."""

    uids: list[str]
    clean: NDArray[np.bool_]


def read_truth(path: Path) -> Truth:
    """Read planted labels.

    Raises:
        PoolError: it is no Parquet table with row, uid and clean for the rows 0, 1, 2, ...
    """
    return _read_truth(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read_truth(path: Path, changed: int) -> Truth:
    needed = "needed is a Parquet table with row (0, 1, 2, ...), uid and clean: give the pool's own truth"
    try:
        table: Any = pq.read_table(path, columns=["uid", "row", "clean"]).sort_by("row")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise PoolError(f"truth {path} cannot be read ({str(error).splitlines()[0]}); {needed}") from error
    if table["row"].to_pylist() != list(range(len(table))):
        raise PoolError(f"truth {path} does not number its rows from 0 up; {needed}")
    return Truth(table["uid"].to_pylist(), np.asarray(table["clean"].to_numpy(zero_copy_only=False)))
