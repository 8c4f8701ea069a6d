"""Digits data with planted errors, scored with tokens and other pictures; kept in a folder, made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from onesteptrain.data.pool import Pool, open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, provide_proxy, score_into
from onesteptrain.jobs.steps import AnchorDraw, AnchorOptions, provide_anchors
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions
from onesteptrain.reporting.diagnosis.explaining import Explanation, Usual, explain, read_usual
from onesteptrain.reporting.diagnosis.measured import Tokens, read_tokens
from onesteptrain.reporting.diagnosis.texts import Place, load_quoter
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import SyntheticData, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import WarmupOptions


class Scored(NamedTuple):
    """One scored world, with what is wrong with each row."""

    table: ScoreTable
    explanation: Explanation
    usual: Usual
    tokens: Tokens
    """Of all rows."""

    places: Sequence[Sequence[Place]]
    kinds: np.ndarray
    errors: Sequence[tuple[int, int] | None]
    """Characters of the planted error."""


def scored_world(folder: Path, seed: int, *, rows: int = 4000, noise: float = 0.5, plain: float = 0.0) -> Scored:
    """Make a world and score it, unless it is there.

    Args:
        folder: Where worlds are kept.
        seed: Of world, anchors and scores.
        rows: Of the pool.
        noise: Share of bad rows.
        plain: Share of the rows, in pool and anchors, that are made such that the question says all there is to know.
    """
    home = folder / f"world-{seed}-{rows}-{noise:g}-{plain:g}"
    world = SyntheticData.at(home / "world")
    if not world.pool.exists():
        home.mkdir(parents=True, exist_ok=True)
        make_synthetic("digits", SyntheticOptions(pool_rows=rows, noise_share=noise, seed=seed), home / "world")
        for path in (world.pool, world.heldout):
            _make_plain(path, plain, seed)
    pool = open_pool(world.pool)
    anchors, draw = home / "anchors.jsonl", AnchorDraw(100, ("skill", "level"), seed)
    reading = provide_anchors(anchors, pool, world.heldout, draw, AnchorOptions(), print)
    warmup = WarmupOptions(200 / rows, finetune=WARMUP)
    start = ProxyOptions(str(checkpoint("proxy")), loading=LoadOptions(device="cpu"))
    proxy = provide_proxy(home / "proxy", start, pool, warmup, print).proxy
    method = OneStep(store_tokens=True, ablate=True)
    score_into(
        home / "run", ScoreRequest(pool, method, anchors=anchors, anchor_reading=reading, proxy=proxy, seed=seed)
    )
    table = ScoreTable(home / "run" / "scores.parquet")
    return _read(table, pool, proxy.checkpoint, world)


def _read(table: ScoreTable, pool: Pool, proxy: str, world: SyntheticData) -> Scored:
    quote = load_quoter(proxy)
    truth = pq.read_table(world.truth).to_pylist()
    lines: list[dict[str, Any]] = [json.loads(line) for line in world.pool.read_text(encoding="utf-8").splitlines()]
    kinds = ["plain" if line["skill"] == "plain" else one["kind"] for one, line in zip(truth, lines, strict=True)]
    errors = [None if one["error_start"] is None else (one["error_start"], one["error_end"]) for one in truth]
    return Scored(
        table,
        explain(table, pool=pool, quote=quote),
        read_usual(table.reference),
        read_tokens(table, np.arange(table.rows)),
        [quote(one) for one in pool],
        np.array(kinds),
        errors,
    )


def _make_plain(path: Path, share: float, seed: int) -> None:
    """Turn some rows into additions that need no picture, answered rightly; the picture stays."""
    generator = np.random.default_rng(seed)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if generator.random() < share:
            one, two = (int(value) for value in generator.integers(0, 10, 2))
            line["messages"][0]["content"] = f"<image>What is {one}+{two}?"
            line["messages"][1]["content"] = f"{one}+{two}={one + two}. The answer is {one + two}."
            line["skill"] = "plain"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
