"""Look at a scored pool a second time, with a proxy that has learned from rows that passed the trust gate.

The second proxy starts where the first one started and takes as many steps, over up to four times as many rows: all of
them pass the gate, drawn without preference. It costs one more warm-up and one pass over the pool. Measured in
experiments/beyond.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from onesteptrain.data.pool import Pool, open_pool
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, provide_proxy, score_into
from onesteptrain.jobs.steps import AnchorOptions, Tell
from onesteptrain.methods import Scorer, Setting
from onesteptrain.scoring.score import ScoringOptions
from onesteptrain.scoring.second_pass import second_pass_scorer
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.selection.trust import can_trust
from onesteptrain.storage.run_directory import Run
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.training import WarmupOptions
from onesteptrain.training.warmup import FACTS

_MORE_ROWS = 4
"""Times the rows of the first warm-up; more rows tell more than more passes over a few."""


class FirstLook(NamedTuple):
    """A pool that method one_step has scored, and how its proxy came about."""

    run: Path
    """Run directory of the scores."""

    pool: Pool
    anchors: Path
    proxy: ProxyOptions
    """What the first proxy was before its warm-up."""

    warmup: Path
    """Folder of that warm-up."""

    warmed: WarmupOptions
    """How it was done."""


class SecondLooked(NamedTuple):
    """A pool that was looked at again."""

    run: Path
    """Run directory of the scores: those of the first, and the losses of the second proxy."""

    seconds: float
    """What it took, the second warm-up included."""


@dataclasses.dataclass(frozen=True)
class SecondPass:
    """A second pass in the place of a method."""

    first: str
    """The scores.parquet of the first scoring."""

    def prepare(self, setting: Setting, /) -> Scorer:
        """Open the first scores."""
        proxy, anchors = setting.need_proxy("second pass"), setting.need_anchors("second pass")
        return second_pass_scorer(ScoreTable(Path(self.first)), proxy, anchors)


def look_again(
    first: FirstLook,
    out: Path,
    *,
    working: ScoringOptions,
    checking: AnchorOptions,
    seed: int,
    tell: Tell,
) -> SecondLooked | None:
    """Warm up the proxy anew on rows that pass, and measure the losses of all rows and anchors with it.

    Args:
        first: The first look.
        out: Folder for the rows, the proxy and the scores; what is there is not done again.
        working: How the pool is worked through.
        checking: How the anchors were read.
        seed: Draws the rows.
        tell: Told in a line what each step has done.

    Returns:
        The second scores; None where the first have no trust gate, as with few anchors or the exact estimator.

    Raises:
        PoolError: the pool has changed since it was scored.
        ScoreError: no row passes the gate.
    """
    table = ScoreTable(first.run / "scores.parquet")
    if not can_trust(table):
        tell("no second look: the scores have no trust gate (it needs estimator fd or jvp, and 20 anchors)")
        return None
    out.mkdir(parents=True, exist_ok=True)
    trusted = out / f"trusted{first.pool.path.suffix}"
    if not trusted.exists():
        keep = f"{min(100.0, 100 * _MORE_ROWS * first.warmed.share):g}%"
        selection = select_rows(table, keep=keep, options=SelectOptions(draw_seed=seed), pool=first.pool)
        selection.write(trusted)
        tell(f"drew {len(selection)} rows that pass the trust gate: {trusted}")
    steps = json.loads((first.warmup / FACTS).read_text(encoding="utf-8"))["steps"]
    tuning = dataclasses.replace(first.warmed.finetune, steps=steps)
    subset = open_pool(trusted, format=first.pool.format, image_root=first.pool.image_root)
    options = WarmupOptions(share=1.0, finetune=tuning)
    proxy, warming = provide_proxy(out / "warmup", first.proxy, subset, options, tell)
    request = ScoreRequest(
        first.pool,
        SecondPass(str(table.path)),
        "second_pass",
        anchors=first.anchors,
        anchor_reading=checking,
        proxy=proxy,
        scoring=working,
        seed=seed,
    )
    scored = score_into(out / "score", request)
    tell(f"looked again at {scored.rows - scored.failed} of {scored.rows} rows: {scored.table.path}")
    return SecondLooked(out / "score", warming + Run(out / "score").provenance["seconds"])
