"""The worlds that causes are judged on: data with planted errors, scored with tokens and other pictures, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onesteptrain.data.pool import Pool, open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, provide_proxy, score_into
from onesteptrain.jobs.steps import AnchorDraw, AnchorOptions, provide_anchors
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions
from onesteptrain.storage.score_table import SCORES, ScoreTable
from onesteptrain.synthetic import MixedOptions, SyntheticData, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import WarmupOptions

World = Literal["digits", "charts", "mixed"]

PROXIES: dict[World, str] = {"digits": "proxy", "charts": "charts_proxy", "mixed": "mixed_proxy"}

ROWS, HELDOUT_ROWS, NOISE_SHARE, ANCHORS, WARMUP_SHARE = 1200, 500, 0.5, 100, 0.05


class Scored(NamedTuple):
    """A scored world, with what was planted in each row."""

    table: ScoreTable
    pool: Pool
    anchors: Pool
    kinds: NDArray[np.str_]
    """What was planted; "clean" where nothing was."""


def scored_world(work: Path, world: World, seed: int) -> Scored:
    """Make a world and score it, unless it is there."""
    home = work / f"{world}-{seed}"
    data = SyntheticData.at(home / "world")
    if not data.pool.exists():
        home.mkdir(parents=True, exist_ok=True)
        options = (
            MixedOptions(ROWS, HELDOUT_ROWS, 1, seed=seed)
            if world == "mixed"
            else SyntheticOptions(ROWS, HELDOUT_ROWS, 1, NOISE_SHARE, seed=seed)
        )
        make_synthetic(world, options, home / "world")
    pool, anchors = open_pool(data.pool), home / "anchors.jsonl"
    if not (home / "run" / SCORES).is_file():
        draw = AnchorDraw(ANCHORS, ("skill", "level"), seed)
        reading = provide_anchors(anchors, pool, data.heldout, draw, AnchorOptions(), print)
        start = ProxyOptions(str(checkpoint(PROXIES[world])), loading=LoadOptions(device="cpu"))
        proxy = provide_proxy(home / "proxy", start, pool, WarmupOptions(WARMUP_SHARE, finetune=WARMUP), print).proxy
        method = OneStep(store_tokens=True, ablate=True)
        score_into(
            home / "run", ScoreRequest(pool, method, anchors=anchors, anchor_reading=reading, proxy=proxy, seed=seed)
        )
    truth = pq.read_table(data.truth)["kind"].to_pylist()
    table = ScoreTable(home / "run" / SCORES)
    return Scored(table, pool, open_pool(anchors, image_root=home), np.array([kind or "clean" for kind in truth]))
