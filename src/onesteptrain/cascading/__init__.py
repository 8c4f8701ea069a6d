"""A cascade: score all rows cheaply, and dearly those whose place in the top share is in doubt.

A few rows, drawn at random, are scored both ways; they say how far the cheap score may be off (`doubt`). Then the rows
that most likely stand on the wrong side of the cut are scored dearly, until the rest is expected to leave no more wrong
places in the top share than are allowed. Every stage is a scoring of its own in the run directory and continues after a
kill.
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
import pyarrow as pa
from numpy.typing import NDArray

from onesteptrain.cascading.doubt import FEWEST, Doubt, Values, learn_doubt
from onesteptrain.errors import ScoreError
from onesteptrain.methods import Method, Scorer, Stages
from onesteptrain.methods.uniform import uniform
from onesteptrain.pool import Pool, Sample, Unreadable
from onesteptrain.runs import Run
from onesteptrain.scores import REFERENCE, ScoreTable, write_table
from onesteptrain.scoring import Ahead, Progress, ScoringOptions, ScoringResult, failures, nothing_ahead, score_pool

FEATURES = ("utility", "harm", "gain", "worst_utility", "loss", "worst_loss")
"""First-order columns that the doubt is learned from; with --agreement, the squared length of the gradient too: what
the first order leaves out grows with it."""

_DRAWN_SHARE, _MOST_DRAWN = 0.02, 1000
"""Of the pool's rows, scored both ways; between these and the fewest that a line can be fitted to."""

Positions = NDArray[np.int64]


class Cascaded(NamedTuple):
    """What a cascade did; the run's provenance keeps it as `cascade`."""

    drawn: int
    """Rows scored both ways to learn the doubt."""

    doubtful: int
    """Rows scored dearly because they stood near the cut."""

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
        return (
            dataclasses.replace(one, row=places[one.row])
            for one in self.pool.rows(self.chosen[start] if start < len(self.chosen) else 0)
            if places.get(one.row, -1) >= start
        )


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
    cheap = work.stage("cheap", work.stages.cheap, work.pool)
    if missing := [name for name in FEATURES if name not in cheap.names]:
        raise ScoreError(f"{cheap.path} has no column {missing[0]!r}; a cascade begins with estimator fd or jvp")
    columns = [cheap.numbers(name) for name in FEATURES]
    if "gradient_norm" in cheap.names:
        columns.append(np.square(cheap.numbers("gradient_norm")))
    features = np.stack(columns, axis=1)
    usable = np.flatnonzero(np.isfinite(features).all(1))
    exact, asked = np.full(len(features), np.nan), np.zeros(len(features), bool)

    def measure(name: str, rows: Positions) -> None:
        if not len(rows):
            return
        exact[rows] = work.stage(name, work.stages.dear, Part(work.pool, tuple(rows.tolist()))).numbers("score")
        asked[rows] = True

    drawn = _draw(cheap, usable, seed)
    measure("drawn", drawn)
    if np.isfinite(exact[drawn]).sum() < FEWEST:  # a small pool, or one whose rows cannot be scored dearly
        measure("rest", np.setdiff1d(usable, drawn))
    known = np.flatnonzero(np.isfinite(exact))
    top, expected, wrong = max(1, round(work.stages.share * len(usable))), features[:, 0], 0.0
    if not asked[usable].all() and len(known) >= FEWEST:
        doubt = learn_doubt(features, features[:, 0], known, exact[known])
        wrong, expected = _settle(doubt, exact, asked, usable, (top, work.stages.agreement), measure), doubt.expected
    utility = np.where(np.isfinite(exact), exact, expected)
    did = Cascaded(len(drawn), int(asked.sum()) - len(drawn), 1 - wrong / top)
    work.run.record(cascade=did._asdict(), seconds=work.seconds)
    if cheap.reference is not None:
        shutil.copyfile(cheap.reference.path, final.with_name(REFERENCE))
    write_table(_table(cheap, utility, features[:, 0], exact), final)  # last: where it is, all is there


def _settle(
    doubt: Doubt,
    exact: Values,
    asked: NDArray[np.bool_],
    usable: Positions,
    aim: tuple[int, float],
    measure: Callable[[str, Positions], None],
) -> float:
    """Score the most doubtful rows dearly, round by round; how many places are then expected to be wrong.

    The doubt stays what the drawn rows have taught: learned anew after each round, it would end the rounds whenever it
    happened to be too sure.
    """
    (top, agreement), number = aim, 0
    while True:
        chances = np.zeros(len(exact))
        chances[usable] = doubt.crossing(doubt.cut(exact, usable, top))[usable]
        chances[asked] = 0.0  # its place is known, or it failed and would fail again
        more = _most_doubtful(chances, 2 * (1 - agreement) * top)  # one that leaves lets another in
        if not len(more):
            return float(chances.sum()) / 2
        measure(f"doubtful-{number}", more)
        number += 1  # ends: every round leaves fewer rows that were not asked for


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

    def stage(self, name: str, method: Method, rows: Pool | Part) -> ScoreTable:
        """Score some rows in a folder of their own."""
        (self.run.path / name).mkdir(exist_ok=True)
        part = Run(self.run.path / name)
        kind = "cheap" if name == "cheap" else "dear"

        def scorer() -> Scorer:  # the anchors are measured once for all stages of a kind
            if kind not in self.scorers:
                self.scorers[kind] = self.prepare(method)
            return self.scorers[kind]

        done = score_pool(rows, scorer, part, self.options, self.progress, self.ahead)
        self.seconds += part.provenance.get("seconds", 0.0)
        self.scored_now += done.scored_now
        return done.table


def _draw(table: ScoreTable, usable: Positions, seed: int) -> Positions:
    """Rows at random, whatever their order."""
    count = min(max(round(_DRAWN_SHARE * len(usable)), 2 * FEWEST), _MOST_DRAWN, len(usable))
    uids = table.read(["uid"])["uid"].take(usable).to_pylist()
    keys = np.array([uniform(seed, f"cascade:{uid}") for uid in uids])
    return np.sort(usable[np.argsort(keys, kind="stable")[:count]])


def _most_doubtful(chances: Values, allowed: float) -> Positions:
    """The fewest rows without which the chances of all others add up to no more than is allowed."""
    order = np.argsort(-chances, kind="stable")
    left = chances.sum() - np.cumsum(chances[order])
    needed = 0 if chances.sum() <= allowed else 1 + int(np.argmax(left <= allowed))
    return np.sort(order[:needed])


def _table(cheap: ScoreTable, utility: Values, first_order: Values, exact: Values) -> pa.Table:
    """The cheap table with the utilities of the cascade; rows without a cheap score keep their reason."""
    table = cheap.read()
    scored = table["reason"].is_null().to_numpy(zero_copy_only=False)
    columns = {name: table[name] for name in table.column_names}
    for name in ("score", "utility"):
        columns[name] = pa.array(utility, mask=~scored)
    columns |= {"first_order": pa.array(first_order, mask=~scored), "exact": pa.array(exact, mask=~np.isfinite(exact))}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)
