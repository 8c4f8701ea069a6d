"""A cascade: score all rows cheaply, and dearly those whose place in the top share is in doubt.

A few rows, drawn at random, are scored both ways; they say how far the cheap score may be off (`doubt`). Then the rows
that most likely stand on the wrong side of the cut are scored dearly, until the rest is expected to leave no more wrong
places in the top share than are allowed, or until as many rows have been scored as may be. Every stage is a scoring of
its own in the run directory and continues after a kill.

The cheap stage need not be a score. With landmarks it is a glimpse of each row, and the rows that are drawn are
landmarks: a line is fitted to them that tells the score from the glimpse (`seeing`).
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onesteptrain.cascading.doubt import FEWEST, Doubt, Features, Values, learn_doubt
from onesteptrain.cascading.seeing import Positions, Seen, see
from onesteptrain.cascading.tables import cascade_table, landmark_table
from onesteptrain.data.pool import Pool, Sample, Unreadable
from onesteptrain.methods import Method, Scorer, Stages
from onesteptrain.scoring.score import (
    Ahead,
    Progress,
    ScoringOptions,
    ScoringResult,
    failures,
    nothing_ahead,
    score_pool,
)
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import REFERENCE, ScoreTable, write_table
from onesteptrain.storage.seeds import uniform

_MOST_DRAWN = 1000

_NEAR = 2
"""Where the cut may be: among so many times as many rows as the top share holds, the best by the cheap score."""

_ALLOWED_UNSEEN = 0.5
"""Of the wrong places that are allowed: those of rows that are judged by the cheap stage alone."""


class Cascaded(NamedTuple):
    """What a cascade did; the run's provenance keeps it as `cascade`, or as `landmarks`."""

    drawn: int
    """Rows scored both ways to learn the doubt."""

    doubtful: int
    """Rows scored dearly because they stood near the cut."""

    between: int
    """Rows whose second order was measured."""

    expected_agreement: float
    """Share of the top rows that scoring all rows dearly would have chosen too, as it is expected."""


@dataclass(frozen=True)
class Part:
    """Some rows of a pool, numbered anew, as `score_pool` reads them."""

    pool: Pool
    chosen: tuple[int, ...]
    """Positions, ascending."""

    @property
    def path(self) -> Path:
        """Where the rows come from."""
        return self.pool.path

    @property
    def fingerprint(self) -> str:
        """Of the whole pool."""
        return self.pool.fingerprint

    def count(self) -> int:
        """How many rows there are."""
        return len(self.chosen)

    def rows(self, start: int = 0) -> Iterator[Sample | Unreadable]:
        """The rows from `start`, with their place among the chosen as row."""
        places = {row: place for place, row in enumerate(self.chosen)}
        rows = self.pool.rows(self.chosen[start], self.chosen[-1] + 1) if start < len(self.chosen) else iter(())
        return (dataclasses.replace(one, row=places[one.row]) for one in rows if one.row in places)


def score_cascade(  # noqa: PLR0913  the parts of one request
    pool: Pool,
    stages: Stages,
    prepare: Callable[[Method], Scorer],
    run: Run,
    seed: int,
    options: ScoringOptions | None = None,
    progress: Progress | None = None,
    ahead: Ahead = nothing_ahead,
) -> ScoringResult:
    """Score a pool in stages into RUN/scores.parquet; what is on disk is not scored again.

    The score of a row that was scored dearly is what came out; that of another row is what the drawn rows make one
    expect of its cheap columns. Column `first_order` has the cheap utility of every row, `exact` the dear one of those
    that have it; `utility` is the score.

    Args:
        pool: The samples.
        stages: The two methods, and which top share is to be right.
        prepare: Makes the scorer of a method; called when there is something to score by it.
        run: Where everything goes.
        seed: Draws the rows that are scored both ways.
        options: Sizes and limits.
        progress: Told how far each stage is.
        ahead: As for `score_pool`.

    Raises:
        PoolError: the pool holds no rows.
        ScoreError: too many rows cannot be scored, or the cheap columns are missing.
    """
    started = time.monotonic()
    work = _Work(pool, stages, prepare, run, options or ScoringOptions(), progress, ahead)
    final = run.path / "scores.parquet"
    if not final.exists():
        _cascade(work, seed, final)
    table = ScoreTable(final)
    failed, reasons = failures(table)
    return ScoringResult(table, table.rows, failed, reasons, work.scored_now, time.monotonic() - started)


def _cascade(work: _Work, seed: int, final: Path) -> None:
    stages = work.stages
    if not (work.run.path / "cheap" / "scores.parquet").exists():
        work.scorer("dear", stages.dear)  # what it refuses, it refuses before all rows have been looked at
    seen = see(work.stage("cheap", stages.cheap, work.pool))
    usable = seen.usable
    measured = Measured(work, np.full(len(seen.columns), np.nan), np.zeros(len(seen.columns), bool))
    top, wrong = max(1, round(stages.share * len(usable))), 0.0
    drawn = _draw(seen, stages.drawn_share, top, seed)
    measured.measure("drawn", drawn)
    if np.isfinite(measured.score[drawn]).sum() < FEWEST:  # a small pool, or one whose rows cannot be scored dearly
        measured.measure("rest", np.setdiff1d(usable, drawn))
    known = np.flatnonzero(np.isfinite(measured.score))
    expected = np.full(len(seen.columns), np.nan) if seen.glimpsed else seen.columns[:, 0]
    if not measured.asked[usable].all() and len(known) >= FEWEST:
        base = seen.expect(known, measured.score[known])
        doubt = learn_doubt(seen.features(base), base, known, measured.score[known])
        if seen.glimpsed:  # the line from the glimpses is all there is to learn; another one adds noise
            doubt = doubt._replace(expected=base)
        doubt = _look_between(doubt, seen.features(base), measured, (usable, known, top))
        wrong, expected = _settle(doubt, measured, usable, top), doubt.expected
    utility = np.where(np.isfinite(measured.score), measured.score, expected)
    did = Cascaded(len(drawn), int(measured.asked.sum()) - len(drawn), measured.between, 1 - wrong / top)
    work.run.record(**{"landmarks" if seen.glimpsed else "cascade": did._asdict()}, seconds=work.seconds)
    reference = next((one for one in (seen.table, *measured.tables()) if one.reference is not None), None)
    if reference is not None:
        shutil.copyfile(reference.path.with_name(REFERENCE), final.with_name(REFERENCE))
    if seen.glimpsed:
        table = landmark_table(seen, utility, measured.parts, drawn)
    else:
        table = cascade_table(seen, utility, measured.score)
    write_table(table, final)  # last: where it is, all is there


def _look_between(
    doubt: Doubt, features: Features, measured: Measured, rows: tuple[Positions, Positions, int]
) -> Doubt:
    """Measure rows in doubt, and the drawn ones to learn from, by what stands between cheap and dear, if it pays.

    Half of the wrong places that are allowed may come from the rows that are not looked at.
    """
    stages, (usable, known, top) = measured.work.stages, rows
    allowed = 2 * (1 - stages.agreement) * top
    chances = _chances(doubt, measured, usable, top)
    pays = len(_most_doubtful(chances, allowed, len(chances))) >= stages.between_pays
    if stages.between is None or not pays:
        return doubt
    wanted = np.union1d(known, _most_doubtful(chances, _ALLOWED_UNSEEN * allowed, len(chances)))
    table = measured.work.stage("between", stages.between, Part(measured.work.pool, tuple(wanted.tolist())))
    more = np.full((len(features), 2), np.nan)
    more[wanted] = np.stack([table.numbers(name) for name in ("second_order", "step_squared")], axis=1)
    looked = np.isfinite(more).all(1)
    learned = known[looked[known]]
    if len(learned) < FEWEST:
        return doubt
    measured.between = len(wanted)
    base = features[:, 0] + more[:, 0]
    return doubt.where(looked, learn_doubt(np.hstack([features, more]), base, learned, measured.score[learned]))


def _chances(doubt: Doubt, measured: Measured, usable: Positions, top: int) -> Values:
    """Of every row, that it stands on the wrong side of the cut; none for rows that were measured."""
    chances = np.zeros(len(measured.score))
    chances[usable] = doubt.crossing(doubt.cut(measured.score, usable, top))[usable]
    chances[measured.asked] = 0.0  # its place is known, or it failed and would fail again
    return chances


def _settle(doubt: Doubt, measured: Measured, usable: Positions, top: int) -> float:
    """Score the most doubtful rows dearly, round by round; how many places are then expected to be wrong.

    The doubt stays what the drawn rows have taught: learned anew after each round, it would end the rounds whenever it
    happened to be too sure.
    """
    number, stages = 0, measured.work.stages
    while True:
        chances = _chances(doubt, measured, usable, top)
        left = int(stages.budget * len(usable)) - int(measured.asked.sum())
        more = _most_doubtful(chances, 2 * (1 - stages.agreement) * top, left)  # one that leaves lets another in
        if not len(more):
            return float(chances.sum()) / 2
        measured.measure(f"doubtful-{number}", more)
        number += 1  # ends: every round leaves fewer rows that were not asked for


@dataclass
class Measured:
    """What is known of the dear score."""

    work: _Work
    score: Values
    """Of every row; NaN where it is not known."""

    asked: NDArray[np.bool_]
    """Rows that were measured, or failed to be."""

    parts: list[tuple[Positions, ScoreTable]] = field(default_factory=list)
    """Rows of each scoring, and what came out."""

    between: int = 0
    """Rows that were measured by what stands between cheap and dear."""

    def measure(self, name: str, rows: Positions) -> None:
        """Score some rows dearly, in a folder of that name."""
        if not len(rows):
            return
        table = self.work.stage(name, self.work.stages.dear, Part(self.work.pool, tuple(rows.tolist())))
        self.score[rows] = table.numbers("score")
        self.asked[rows] = True
        self.parts.append((rows, table))

    def tables(self) -> list[ScoreTable]:
        """The tables alone."""
        return [table for _, table in self.parts]


@dataclass
class _Work:
    """What all stages share, and what they have cost."""

    pool: Pool
    stages: Stages
    prepare: Callable[[Method], Scorer]
    run: Run
    options: ScoringOptions
    progress: Progress | None
    ahead: Ahead
    seconds: float = 0.0
    scored_now: int = 0
    scorers: dict[str, Scorer] = field(default_factory=dict)

    def scorer(self, kind: str, method: Method) -> Scorer:
        """The scorer of a kind of stage; the anchors are measured once for all of them."""
        if kind not in self.scorers:
            self.scorers[kind] = self.prepare(method)
        return self.scorers[kind]

    def stage(self, name: str, method: Method, rows: Pool | Part) -> ScoreTable:
        """Score some rows in a folder of their own."""
        (self.run.path / name).mkdir(exist_ok=True)
        part = Run(self.run.path / name)
        kind = name if name in ("cheap", "between") else "dear"

        def scorer() -> Scorer:
            found = self.scorer(kind, method)
            # what the anchors look like is wanted once: a plain function says nothing of them
            return found if name in ("cheap", "drawn") else lambda samples: found(samples)

        done = score_pool(rows, scorer, part, self.options, self.progress, self.ahead)
        self.seconds += part.provenance.get("seconds", 0.0)
        self.scored_now += done.scored_now
        return done.table


def _draw(seen: Seen, share: float, top: int, seed: int) -> Positions:
    """Rows at random, whatever their order: some from the whole pool, and the others from where the cut may be.

    Which those are is told by the cheap score alone: what is learned is the dear score given the cheap columns, which
    does not depend on how a row was drawn.
    """
    usable = seen.usable
    count = min(max(round(share * len(usable)), 2 * FEWEST), _MOST_DRAWN, len(usable))
    uids = seen.table.read(["uid"])["uid"].take(usable).to_pylist()
    keys = np.array([uniform(seed, f"cascade:{uid}") for uid in uids])
    order = usable[np.argsort(keys, kind="stable")]
    anywhere, others = order[: 2 * FEWEST], order[2 * FEWEST :]
    if not seen.glimpsed:
        cheap = seen.columns[:, 0]
        near = cheap[others] >= np.sort(cheap[usable])[-min(_NEAR * top, len(usable))]
        others = np.concatenate([others[near], others[~near]])
    return np.sort(np.concatenate([anywhere, others])[:count])


def _most_doubtful(chances: Values, allowed: float, most: int) -> Positions:
    """The fewest rows without which the chances of all others add up to no more than is allowed; or so many at most."""
    order = np.argsort(-chances, kind="stable")
    left = chances.sum() - np.cumsum(chances[order])
    needed = 0 if chances.sum() <= allowed else 1 + int(np.argmax(left <= allowed))
    return np.sort(order[: max(0, min(needed, most))])
