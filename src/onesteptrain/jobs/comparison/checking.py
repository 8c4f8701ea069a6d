"""Refuse a comparison that cannot work before any work is done."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from onesteptrain.data.pool import Pool
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.evaluation import read_benchmark
from onesteptrain.evaluation.results import check_columns
from onesteptrain.jobs.comparison.arms import read_truth
from onesteptrain.jobs.comparison.request import OWN_ARMS, Comparison, MethodArm
from onesteptrain.jobs.planning import check_budgets
from onesteptrain.jobs.recipe import uses_checkpoints, uses_proxy
from onesteptrain.proxy.loading import check_checkpoint


def check_request(job: Comparison, pool: Pool) -> None:
    """Check methods, budgets, benchmark, target and truth.

    Raises:
        ConfigError: a method, option, budget or column does not exist, or what a method needs is missing.
        ModelError: the target is no vision-language checkpoint.
        PoolError: the benchmark or the truth cannot be used.
    """
    rows = len(pool)
    _refuse_repeats("shares", job.shares)
    _refuse_repeats("protocols", job.protocols)
    check_budgets(job.shares, rows)
    for name, arm in job.methods.items():
        _check_arm(job, name, arm, rows)
    unknown = [name for name in job.references if name not in {*OWN_ARMS, *job.methods, *Comparison.references}]
    if unknown:
        raise ConfigError(f"references name {', '.join(unknown)}; choose from {', '.join([*OWN_ARMS, *job.methods])}")
    check_columns(read_benchmark(job.benchmark), job.evaluate.by)
    check_checkpoint(job.target, job.recipe.loading)
    if job.truth is not None:
        _check_truth(job.truth, pool)


def _check_arm(job: Comparison, name: str, arm: MethodArm, rows: int) -> None:
    method, recipe = arm.make(name), job.recipe
    if uses_proxy(method) and arm.proxy is None and recipe.proxy is None:
        raise ConfigError(f"method {name!r} needs a proxy; give proxy, or take the method out")
    if uses_proxy(method) and recipe.anchors is None and recipe.heldout is None:
        raise ConfigError(f"method {name!r} needs anchors; give anchors or heldout, or take the method out")
    if uses_checkpoints(method) and not job.warmup_checkpoints:
        raise ConfigError(f"method {name!r} looks back at the warm-up; give warmup_checkpoints, such as 4")
    _refuse_repeats(f"methods.{name}.keep", arm.keep)
    check_budgets(arm.keep, rows)


def _check_truth(truth: Path, pool: Pool) -> None:
    if not truth.is_file():
        raise ConfigError(
            f"truth {truth} does not exist; give a Parquet table with row, uid and clean, or leave it out"
        )
    told = read_truth(truth).uids
    for place, (said, row) in enumerate(itertools.zip_longest(told, pool.rows())):
        if row is None or said != row.uid:
            there = "no such row" if row is None else repr(row.uid)
            raise PoolError(
                f"truth {truth} calls row {place} {said!r} and the pool has {there}; give the pool's own truth"
            )


def _refuse_repeats(name: str, values: Sequence[str]) -> None:
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{name} names {', '.join(twice)} twice; name each once")
