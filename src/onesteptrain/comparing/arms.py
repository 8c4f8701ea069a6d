"""Which rows each arm trains on, and what choosing them took."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.comparing.request import Comparison, MethodArm
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.methods import essential_options, method_class
from onesteptrain.methods.uniform import uniform
from onesteptrain.pool import Pool
from onesteptrain.runs import Run
from onesteptrain.scores import ScoreTable
from onesteptrain.selection import parse_budget, select_rows
from onesteptrain.steps import AnchorOptions, content_id, provide_anchors, provide_proxy, score_into
from onesteptrain.warmup import WarmupOptions

Tell = Callable[[str], None]
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


class Scored(NamedTuple):
    """A scored pool and its cost."""

    table: ScoreTable
    seconds: float


def make_arms(job: Comparison, pool: Pool, tell: Tell) -> Iterator[Arm]:
    """Score the pool by each method, and say what each arm keeps; scores that are there are used again.

    Raises:
        ConfigError: a method, its options or what it needs is missing.
    """
    count = pool.count()
    yield Arm("untuned", "0%", 0.0, lambda seed: np.empty(0, np.int64), 0.0)
    yield Arm("full", "100%", 1.0, lambda seed: np.arange(count), 0.0)
    if job.truth is not None:
        yield from _oracle(job, count)
    for name, arm in job.methods.items():
        yield from _method_arms(job, pool, name, arm, tell)


def check_methods(job: Comparison) -> None:
    """Refuse what cannot work before any work is done.

    Raises:
        ConfigError: a method or its options do not exist, or a proxy or anchors are missing.
    """
    for name, arm in job.methods.items():
        arm.make(name)
        if _uses_proxy(arm.installed(name)) and arm.proxy is None and job.proxy is None:
            raise ConfigError(f"method {name!r} needs a proxy; give proxy, or take the method out")
    if job.truth is not None and not job.truth.is_file():
        raise ConfigError(
            f"truth {job.truth} does not exist; give a Parquet table with row, uid and clean, or leave it"
        )


def _method_arms(job: Comparison, pool: Pool, name: str, arm: MethodArm, tell: Tell) -> Iterator[Arm]:
    redrawn = arm.installed(name) == "random"  # chance alone: each seed draws anew
    scored = [_score(job, pool, name, arm, seed, tell) for seed in (range(job.seeds) if redrawn else [job.seed])]
    tables = [one.table for one in scored]

    @functools.cache
    def chosen(budget: str, place: int) -> Rows:
        return select_rows(tables[place], keep=budget, by=arm.by, distinct=arm.distinct).rows

    for budget in arm.keep or job.shares:
        kept = len(chosen(budget, 0)) / tables[0].rows
        share = float(budget.strip()[:-1]) / 100 if budget.strip().endswith("%") else kept
        yield Arm(
            name,
            budget,
            share,
            lambda seed, budget=budget: chosen(budget, seed if redrawn else 0),  # type: ignore[misc]
            scored[0].seconds,
            scored[0].table.path.parent,
        )


def _score(job: Comparison, pool: Pool, name: str, arm: MethodArm, seed: int, tell: Tell) -> Scored:
    """Score the pool by one method, in a folder that the same method with the same inputs finds again."""
    method, entry = arm.make(name), arm.installed(name)
    anchors: Path | None = None
    checking = job.checking
    proxy, warming = None, 0.0
    if _uses_proxy(entry):
        anchors, checking = _anchors(job, pool, tell)
        proxy, warming = _proxy(job, pool, arm, tell)
    request = [entry, essential_options(method), proxy, anchors, job.scope, job.loading, seed]
    folder = job.out / "scores" / f"{entry}-{content_id(request)}"
    if (folder / "scores.parquet").is_file():
        return Scored(ScoreTable(folder / "scores.parquet"), Run(folder).provenance["seconds"] + warming)
    result = score_into(
        folder,
        pool,
        method,
        anchors=anchors,
        proxy=proxy,
        seed=seed,
        options=job.working,
        anchor_options=checking,
        loading=(job.scope, job.loading),
        name=entry,
    )
    seconds = Run(folder).provenance["seconds"]
    tell(f"{name}: scored {result.rows - result.failed} of {result.rows} rows in {seconds:.1f} s: {folder}")
    return Scored(result.table, seconds + warming)


def _uses_proxy(entry: str) -> bool:
    return bool(getattr(method_class(entry), "uses_proxy", True))


def _anchors(job: Comparison, pool: Pool, tell: Tell) -> tuple[Path | None, AnchorOptions]:
    if job.heldout is None:
        return job.anchors, job.checking
    asked = content_id([job.heldout, job.anchor_count, job.anchor_by, job.seed])
    out = job.out / f"anchors-{asked}{job.heldout.suffix}"
    given = job.heldout, job.anchor_count, job.anchor_by, job.seed
    return provide_anchors(out, pool, given, job.checking, tell)


def _proxy(job: Comparison, pool: Pool, arm: MethodArm, tell: Tell) -> tuple[str, float]:
    """The proxy to score with, and the seconds of its warm-up."""
    checkpoint = str(arm.proxy or job.proxy)
    share = job.warmup_share if arm.warmup_share is None else arm.warmup_share
    if not share:
        return checkpoint, 0.0
    options = WarmupOptions(share=share, finetune=job.warmup, checkpoints=job.warmup_checkpoints)
    out = job.out / "proxies" / content_id([checkpoint, options, job.scope, job.loading])
    return provide_proxy(out, checkpoint, pool, options, (job.scope, job.loading), tell)


def _oracle(job: Comparison, count: int) -> Iterator[Arm]:
    """Clean rows drawn at random, at every share that they can fill, and all of them: the ceiling."""
    truth: Any = pq.read_table(job.truth, columns=["uid", "row", "clean"]).sort_by("row")
    if len(truth) != count:
        raise PoolError(f"{job.truth} tells of {len(truth)} rows and the pool has {count}; give the pool's own truth")
    clean = np.flatnonzero(truth["clean"].to_numpy(zero_copy_only=False))
    uids = truth["uid"].to_pylist()

    def drawn(size: int, seed: int) -> Rows:
        # not the hash that `random` draws by: the two draws are to be independent
        order = np.argsort([uniform(seed, f"oracle:{uids[row]}") for row in clean])
        return np.sort(clean[order[:size]])

    for budget in job.shares:
        size = parse_budget(budget, count)
        if size < len(clean):
            yield Arm("oracle", budget, size / count, functools.partial(drawn, size), 0.0)
    yield Arm("oracle", "clean", len(clean) / count, lambda seed: clean, 0.0)


def clean_share(job: Comparison, rows: Rows) -> float | None:
    """Share of the rows that the planted labels call clean; None where there are none."""
    if job.truth is None or not len(rows):
        return None
    return float(np.mean(_labels(job.truth)[rows]))


@functools.cache
def _labels(truth: Path) -> NDArray[np.bool_]:
    table: Any = pq.read_table(truth, columns=["row", "clean"]).sort_by("row")
    return np.asarray(table["clean"].to_numpy(zero_copy_only=False))
