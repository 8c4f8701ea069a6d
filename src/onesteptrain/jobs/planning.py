"""What a job will take, and whether it can work: all that can be told before the work."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from onesteptrain.data.anchors import draw_anchors
from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.errors import ConfigError, RunError
from onesteptrain.evaluation import read_benchmark
from onesteptrain.evaluation.results import check_columns
from onesteptrain.jobs.job import Job
from onesteptrain.jobs.reweighting import refuse_untold
from onesteptrain.jobs.scoring import ScoreRequest, forecast_scoring, locate_proxy
from onesteptrain.proxy.loading import check_checkpoint
from onesteptrain.reporting.figures import need_matplotlib
from onesteptrain.scoring.forecast import Forecast
from onesteptrain.selection import parse_floor, read_budget
from onesteptrain.training import FinetuneOptions

_TRAINING_PASSES = 3
"""Forward passes that a training step on a row takes: its own, and a backward pass of twice its work."""

_SCORING_PASSES = 2
"""Forward passes that a first-order score of a row takes: a central difference."""


class PlannedStep(NamedTuple):
    """One step of a job, before it is done."""

    name: str
    rows: int
    """Rows that go through the model, each as often as it does."""

    seconds: float | None
    """None where nothing tells."""

    how: str
    """Where the time comes from: measured on rows of the pool, or guessed from that, and how."""


class Plan(NamedTuple):
    """What a job will take on this machine, as busy as it is now."""

    steps: list[PlannedStep]
    scoring: Forecast
    """What was measured: a first scoring of a few rows."""

    @property
    def seconds(self) -> float | None:
        """For all; None where the time of a step is not known."""
        known = [step.seconds for step in self.steps if step.seconds is not None]
        return sum(known) if len(known) == len(self.steps) else None


def check_job(job: Job, pool: Pool) -> None:
    """Refuse a job that cannot work, before any work.

    Raises:
        ConfigError: a budget, column, option or path cannot be used.
        MissingExtraError: a package is missing that the job needs.
        ModelError: proxy or target is no vision-language checkpoint.
        PoolError: the anchors or the benchmark cannot be read.
        RunError: the run directory cannot be made.
    """
    recipe = job.recipe
    _check_place(job.out)
    need_matplotlib()
    check_budgets(job.keep, len(pool))
    _check_signals(job)
    anchors = recipe.anchor_reading.open(recipe.anchors or recipe.heldout or Path(), pool)
    for column in recipe.anchor_by if recipe.heldout else ():
        need_column(anchors, column, f"anchor_by of {anchors.path}")
    if job.score.group_by is not None:
        need_column(anchors, job.score.group_by, f"score.group_by of {anchors.path}")
    for column in job.select.kind:
        need_column(pool, column, f"select.kind of {pool.path}")
        need_column(anchors, column, f"select.kind of {anchors.path}")
    if job.select.quota is not None:
        need_column(pool, job.select.quota, f"select.quota of {pool.path}")
    check_checkpoint(locate_proxy(str(recipe.proxy))[0], recipe.loading)
    if job.target is not None:
        check_checkpoint(job.target, recipe.loading)
    if job.benchmark is not None:
        check_columns(read_benchmark(job.benchmark), job.evaluate.by)


def _check_signals(job: Job) -> None:
    """What a selection goes by must be measured when the pool is scored."""
    score, select = job.score, job.select
    needs = {
        "select.prefer cover needs score.representation: true": select.prefer == "cover" and not score.representation,
        "select.distinct needs score.representation: true": select.distinct is not None and not score.representation,
        "select.prefer setwise needs score.sketch, such as 512": select.prefer == "setwise" and not score.sketch,
        "select.prefer maxmin needs score.group_by": select.prefer == "maxmin" and score.group_by is None,
        "score.optimizer adam needs a warm-up: give warmup_share": score.optimizer == "adam"
        and not job.recipe.warmup_share
        and locate_proxy(str(job.recipe.proxy))[1] is None,
    }
    refuse_untold(job.harmful, stores_tokens=score.store_tokens, key="score.store_tokens")
    for need, unmet in needs.items():
        if unmet:
            raise ConfigError(need)


def check_budgets(budgets: Iterable[str], rows: int) -> None:
    """Refuse a budget that cannot be read; floors of a score are not looked at.

    Raises:
        ConfigError: one cannot.
    """
    for budget in budgets:
        if parse_floor(budget) is None:
            read_budget(budget, rows)


def need_column(rows: Iterable[Sample | Unreadable], column: str, what: str) -> None:
    """Refuse a column that no row has.

    Raises:
        ConfigError: none has it.
    """
    known: set[str] = set()
    for row in rows:
        if isinstance(row, Sample):
            if column in row.fields:
                return
            known.update(row.fields)
    there = f"there are {', '.join(sorted(known))}" if known else "its rows have no other columns"
    raise ConfigError(f"{what}: no row has the column {column!r}; {there}")


def _check_place(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"output {out} is a file; give a directory")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(f"output {out} cannot be made: {above} cannot be written; give another directory")


def plan(job: Job) -> Plan:
    """Check a job, score a few rows of its pool, and say what all of it will take; nothing is written.

    What is measured is the scoring, with the proxy as it is before its warm-up. The other steps are told from it by the
    number of passes through the model, which is a guess: batches of another size, or other hardware, differ.

    Raises:
        OneStepError: the job cannot work; see `check_job`.
    """
    recipe = job.recipe
    pool = recipe.pool_reading.open(recipe.pool)
    check_job(job, pool)
    method = dataclasses.replace(job.score, optimizer="sgd")  # the moments of Adam come with the warm-up
    anchors: list[Sample] | Path | None = recipe.anchors
    if recipe.heldout is not None:
        heldout = recipe.anchor_reading.open(recipe.heldout, pool)
        drawn = set(draw_anchors(heldout, count=recipe.anchor_count, by=recipe.anchor_by, seed=recipe.seed).tolist())
        anchors = [row for row in heldout if row.row in drawn and isinstance(row, Sample)]
    asked = ScoreRequest(
        pool, method, anchors=anchors, anchor_reading=recipe.anchor_reading, proxy=recipe.start(), seed=recipe.seed
    )
    scoring = forecast_scoring(asked)
    return Plan(list(_steps(job, scoring)), scoring)


def _steps(job: Job, scoring: Forecast) -> Iterable[PlannedStep]:
    recipe, a_pass = job.recipe, scoring.seconds_per_row / _SCORING_PASSES
    guess = "guessed from the scoring, as {} times a forward pass".format
    warmup = _visits(recipe.warmup, recipe.warmup_share * scoring.rows) if recipe.warmup_share else 0
    if warmup:
        yield PlannedStep("warm-up", warmup, warmup * _TRAINING_PASSES * a_pass, guess(_TRAINING_PASSES))
    yield PlannedStep("score", scoring.rows, scoring.seconds, f"measured on {scoring.tried} rows")
    if job.passes_twice:
        yield PlannedStep("second warm-up", warmup, warmup * _TRAINING_PASSES * a_pass, guess(_TRAINING_PASSES))
        yield PlannedStep("second pass", scoring.rows, scoring.rows * a_pass, guess(1))
    if job.target is None:
        return
    for keep in job.keep:
        kept = scoring.rows if parse_floor(keep) is not None else read_budget(keep, scoring.rows).rows
        visits = _visits(job.train, kept)
        scale = _relative_size(job.target, str(recipe.proxy))
        seconds = None if scale is None else visits * _TRAINING_PASSES * a_pass * scale
        how = (
            "not known: the sizes of target and proxy are"
            if scale is None
            else guess(_TRAINING_PASSES * round(scale, 1))
        )
        yield PlannedStep(f"train on {keep}", visits, seconds, how)


def _visits(options: FinetuneOptions, rows: float) -> int:
    """Rows that a training sees, each as often as it does."""
    if options.steps is None:
        return round(options.epochs * rows)
    return options.steps * options.batch_size * options.gradient_accumulation


def _relative_size(target: str, proxy: str) -> float | None:
    """Weights of the target over those of the proxy, by their files; None where one is not on this machine."""
    sizes = [
        sum(file.stat().st_size for file in Path(place).glob("*.safetensors"))
        for place in (target, locate_proxy(proxy)[0])
    ]
    return sizes[0] / sizes[1] if all(sizes) else None
