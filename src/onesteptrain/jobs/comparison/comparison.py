"""Run a comparison: score, choose, train, measure, and write down what came out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from onesteptrain.data.pool import Pool
from onesteptrain.errors import ConfigError
from onesteptrain.evaluation.paired import paired_difference
from onesteptrain.jobs.assembling import flat
from onesteptrain.jobs.comparison.arms import Arm, clean_share, make_arms
from onesteptrain.jobs.comparison.checking import check_request
from onesteptrain.jobs.comparison.request import Comparison, Protocol
from onesteptrain.jobs.comparison.trials import Harm, Outcome, Trial, accuracy_by_group, run_trials
from onesteptrain.jobs.steps import Tell, plain
from onesteptrain.storage.atomic import write_json, write_text
from onesteptrain.storage.run_directory import begin_run
from onesteptrain.training import FinetuneOptions

RESULTS = "results.json"
DIFFERENCES = "differences.json"
REQUEST = "comparison.yaml"
TRIALS = "trials"


class Compared(NamedTuple):
    """What a comparison gave."""

    records: list[dict[str, Any]]
    """One an arm, protocol and seed; see docs/comparing.md for the keys."""

    differences: list[dict[str, Any]]
    """Paired differences of the arms to each reference, in points of accuracy."""

    scores: dict[str, Path]
    """Run directory of each method's scores."""


class _Entry(NamedTuple):
    """One record before it is trained."""

    arm: Arm
    protocol: Protocol
    seed: int
    trial: Trial


def compare(job: Comparison, *, workers: int = 0, overwrite: bool = False, tell: Tell = lambda text: None) -> Compared:
    """Compare methods by what a target learns from the rows that each keeps.

    The directory may be used again: for the same request after an interruption, and for a larger one on the same pool
    (more methods, shares, seeds, another target). What is there is not scored or trained again.

    Args:
        job: What to compare.
        workers: Trainings at a time; 0 is one for each processor, or one for each GPU where there are some.
        overwrite: Delete all that an earlier comparison has made in the directory.
        tell: Told in a line what each step has done.

    Returns:
        The records, which OUT/results.json holds too, as far as they are there at any time.

    Raises:
        ConfigError: the request cannot work.
        RunError: the directory is in use for something else.
    """
    if workers < 0:
        raise ConfigError(f"workers is {workers}; it must be at least 1, or 0 for one a processor or GPU")
    pool = job.recipe.pool_reading.open_checked(job.recipe.pool, tell)
    check_request(job, pool)
    asked = {"pool": pool.path, **pool.reading._asdict()}
    with begin_run(job.out, {"compare": plain(asked)}, {"pool": pool.fingerprint}, overwrite=overwrite):
        write_text(job.out / REQUEST, yaml.safe_dump(flat(job), sort_keys=False))
        arms = list(make_arms(job, pool, tell))
        entries = [entry for arm in arms for entry in _entries(job, pool, arm)]
        tell(f"{len({entry.trial.name for entry in entries})} trainings for {len(entries)} records")
        done: dict[str, Outcome] = {}
        trials = [entry.trial for entry in entries]
        ran = run_trials(trials, job.out / TRIALS, workers=workers, keep_checkpoints=job.keep_checkpoints)
        with contextlib.closing(ran) as outcomes:  # whatever happens here, the trainings end with it
            for trial, outcome in outcomes:
                done[trial.name] = outcome
                tell(f"{trial.label}: accuracy {outcome.accuracy:.1f} in {outcome.training_seconds:.1f} s")
                write_json(job.out / RESULTS, _records(job, entries, done))
        records = _records(job, entries, done)
        differences = _differences(job, entries, done)
        write_json(job.out / DIFFERENCES, differences)
    return Compared(records, differences, {arm.method: arm.run for arm in arms if arm.run is not None})


def _entries(job: Comparison, pool: Pool, arm: Arm) -> list[_Entry]:
    """The records that an arm gives: one a protocol and seed, and a single one where nothing is trained."""
    seeds = range(job.seeds if arm.method != "untuned" else 1)
    return [
        _Entry(arm, protocol, seed, _trial(job, pool, arm, protocol, seed))
        for protocol in job.protocols
        for seed in seeds
    ]


def _trial(job: Comparison, pool: Pool, arm: Arm, protocol: Protocol, seed: int) -> Trial:
    fixed = {"steps": job.train.steps, "epochs": 1.0} if protocol == "B" else {"steps": None}
    tuning: FinetuneOptions = dataclasses.replace(job.train, seed=seed, **fixed)
    return Trial(
        pool,
        job.target,
        job.benchmark,
        arm.rows(seed),
        tuning,
        job.train_scope,
        job.recipe.loading,
        job.evaluate,
        harm=Harm(arm.harmful, arm.run) if arm.harmful != "drop" and arm.run is not None else None,
        label=f"{arm.method} {arm.budget} protocol {protocol} seed {seed}",
    )


def _records(job: Comparison, entries: Sequence[_Entry], done: dict[str, Outcome]) -> list[dict[str, Any]]:
    return [_record(job, entry, done[entry.trial.name]) for entry in entries if entry.trial.name in done]


def _record(job: Comparison, entry: _Entry, outcome: Outcome) -> dict[str, Any]:
    by = job.evaluate.by[0] if job.evaluate.by else None
    return {
        "method": entry.arm.method,
        "share": entry.arm.share,
        "protocol": entry.protocol,
        "seed": entry.seed,
        "accuracy": outcome.accuracy,
        "accuracy_by_skill": accuracy_by_group(job.out / TRIALS / entry.trial.name, by) if by is not None else {},
        "scoring_seconds": entry.arm.scoring_seconds,
        "training_seconds": outcome.training_seconds,
        "rows": len(entry.trial.rows),
        "budget": entry.arm.budget,
        "clean_share": clean_share(job, entry.trial.rows),
        "refused": outcome.refused,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "evaluation_seconds": outcome.evaluation_seconds,
        "trial": entry.trial.name,
    }


def _differences(job: Comparison, entries: Sequence[_Entry], done: dict[str, Outcome]) -> list[dict[str, Any]]:
    """Every arm against every reference arm, under one protocol, over the same questions and seeds."""
    marks: dict[tuple[Protocol, str, str], list[Any]] = {}
    for entry in entries:
        key = (entry.protocol, entry.arm.method, entry.arm.budget)
        marks.setdefault(key, []).append(np.array(done[entry.trial.name].correct))
    differences = []
    for protocol, method, budget in marks:
        for other in marks:
            if other[0] != protocol or other[1] not in job.references or other[1] == method:
                continue
            difference = paired_difference(marks[protocol, method, budget], marks[other], seed=job.recipe.seed)
            names = {"protocol": protocol, "method": method, "budget": budget}
            against = {"against": other[1], "against_budget": other[2]}
            differences.append({**names, **against, **difference._asdict()})
    return differences
