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
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, Warmed, provide_proxy, score_into
from onesteptrain.jobs.second_pass import FirstLook, look_again
from onesteptrain.jobs.steps import AnchorDraw, AnchorOptions, Tell, provide_anchors
from onesteptrain.methods import essential_options, method_class
from onesteptrain.selection import parse_budget, parse_floor, select_rows
from onesteptrain.storage.fingerprints import content_id
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.storage.seeds import uniform
from onesteptrain.training import WarmupOptions

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
    count = len(pool)
    yield Arm("untuned", "0%", 0.0, lambda seed: np.empty(0, np.int64), 0.0)
    yield Arm("full", "100%", 1.0, lambda seed: np.arange(count), 0.0)
    if job.truth is not None:
        yield from _oracle(job, job.truth, count)
    for name, arm in job.methods.items():
        yield from _method_arms(job, pool, name, arm, tell)


def _method_arms(job: Comparison, pool: Pool, name: str, arm: MethodArm, tell: Tell) -> Iterator[Arm]:
    rescored = arm.installed(name) == "random"  # chance alone: each seed draws anew
    redrawn = rescored or arm.choosing(name, 0).draws
    look = _look_again if arm.looks_again(name) else _score
    scored = [look(job, pool, name, arm, seed, tell) for seed in (range(job.seeds) if rescored else [job.seed])]
    tables = [one.table for one in scored]

    @functools.cache
    def chosen(budget: str, seed: int) -> Rows:
        return select_rows(
            tables[seed if rescored else 0], keep=budget, options=arm.choosing(name, seed), pool=pool
        ).rows

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
    if uses_proxy(entry):
        anchors, checking = _anchors(job, pool, tell)
        looks_back = getattr(method_class(entry), "uses_checkpoints", False)
        proxy, warming = _proxy(job, pool, arm, job.warmup_checkpoints if looks_back else 0, tell)
    looking = [proxy.place, anchors, job.checking, job.scope, job.loading] if proxy is not None else []
    folder = job.out / "scores" / f"{entry}-{content_id([entry, essential_options(method), seed, *looking])}"
    if (folder / "scores.parquet").is_file():
        return Scored(ScoreTable(folder / "scores.parquet"), Run(folder).provenance["seconds"] + warming)
    request = ScoreRequest(
        pool,
        method,
        entry,
        anchors=anchors,
        anchor_reading=checking,
        proxy=proxy,
        scoring=job.working,
        seed=seed,
    )
    result = score_into(folder, request)
    seconds = Run(folder).provenance["seconds"]
    tell(f"{name}: scored {result.rows - result.failed} of {result.rows} rows in {seconds:.1f} s: {folder}")
    return Scored(result.table, seconds + warming)


def _look_again(job: Comparison, pool: Pool, name: str, arm: MethodArm, seed: int, tell: Tell) -> Scored:
    """Score the pool, and look again where the scores have a trust gate and the proxy a warm-up."""
    first = _score(job, pool, name, arm, seed, tell)
    options = _warmup_options(job, arm)
    anchors, checking = _anchors(job, pool, tell)
    if options is None or anchors is None:
        return first
    warm, _ = _proxy(job, pool, arm, 0, tell)
    run = first.table.path.parent
    start = ProxyOptions(str(arm.proxy or job.proxy), job.scope, job.loading)
    look = FirstLook(run, pool, anchors, start, Path(warm.checkpoint), options)
    out = job.out / "looks" / content_id([run.name, seed])
    second = look_again(look, out, working=job.working, checking=checking, seed=seed, tell=tell)
    if second is None:
        return first
    return Scored(ScoreTable(second.run / "scores.parquet"), first.seconds + second.seconds)


def uses_proxy(entry: str) -> bool:
    """Whether an installed method works with a proxy and anchors."""
    return bool(getattr(method_class(entry), "uses_proxy", True))


def _anchors(job: Comparison, pool: Pool, tell: Tell) -> tuple[Path | None, AnchorOptions]:
    if job.heldout is None:
        return job.anchors, job.checking
    asked = content_id([job.heldout, job.anchor_count, job.anchor_by, job.seed])
    out = job.out / f"anchors-{asked}{job.heldout.suffix}"
    draw = AnchorDraw(job.anchor_count, job.anchor_by, job.seed)
    return out, provide_anchors(out, pool, job.heldout, draw, job.checking, tell)


def _proxy(job: Comparison, pool: Pool, arm: MethodArm, checkpoints: int, tell: Tell) -> Warmed:
    """The proxy to score with, and the seconds of its warm-up."""
    proxy = ProxyOptions(str(arm.proxy or job.proxy), job.scope, job.loading)
    options = _warmup_options(job, arm, checkpoints)
    if options is None:
        return Warmed(proxy, 0.0)
    out = job.out / "proxies" / content_id([proxy.place, options, job.scope, job.loading])
    return provide_proxy(out, proxy, pool, options, tell)


def _warmup_options(job: Comparison, arm: MethodArm, checkpoints: int = 0) -> WarmupOptions | None:
    """How the proxy of an arm is warmed up; None if it is not."""
    share = job.warmup_share if arm.warmup_share is None else arm.warmup_share
    tuning = dataclasses.replace(job.warmup, seed=job.seed)
    return WarmupOptions(share=share, finetune=tuning, checkpoints=checkpoints) if share else None


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
