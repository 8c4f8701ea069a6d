"""What scoring a pool will take, told from a few of its rows: time, memory and disk."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.stats import t as student

from onesteptrain.data.pool import Pool, Sample, draw_rows
from onesteptrain.errors import ConfigError, PoolError
from onesteptrain.methods import Scorer
from onesteptrain.scoring.score import refuse_unscored
from onesteptrain.scoring.work import score_rows
from onesteptrain.storage.score_table import Record, to_table, write_table

_CHUNKS = 4
"""Groups that the drawn rows are timed in, after one that warms up caches and kernels."""

_CONFIDENCE = 0.95


class Forecast(NamedTuple):
    """What scoring all rows is expected to take on this machine, as busy as it is now."""

    rows: int
    """Of the pool."""

    tried: int
    """Rows that were scored for the forecast."""

    failed: int
    """Of these, rows with a reason in place of a score."""

    prepare_seconds: float
    """Loading the proxy and measuring the anchors."""

    seconds_per_row: float
    seconds: float
    """For all, preparation included."""

    seconds_low: float
    seconds_high: float
    """95 % interval of the mean, from how the tried groups differ; slow rows that were not drawn can exceed it."""

    memory_bytes: int
    """Highest memory of this process so far; chunks are no larger later."""

    device_memory_bytes: int | None
    """Highest memory on the GPU so far; None without one."""

    disk_bytes: int
    """At the moment of merging, when shards and table stand side by side."""


def forecast(pool: Pool, prepare: Callable[[], Scorer], *, rows: int = 80, seed: int = 0) -> Forecast:
    """Score a few rows (at least 20), drawn at random, and say what all of them will take; nothing is kept.

    Raises:
        ConfigError: too few rows to time.
        PoolError: the pool holds no row that can be read.
        ScoreError: none of the rows that are tried has a score.
    """
    if rows < 5 * _CHUNKS:
        raise ConfigError(f"a forecast from {rows} rows says little; give at least {5 * _CHUNKS}")
    total = len(pool)
    drawn = draw_rows(pool, rows, seed)
    if not drawn:
        raise PoolError(f"{pool.path} holds no row that can be read; mend the pool")
    started = time.perf_counter()
    scorer = prepare()
    prepared = time.perf_counter() - started
    timed, records = _time(scorer, drawn)
    if all(record.reason is not None for record in records):
        reasons = Counter(str(record.reason) for record in records).most_common()
        refuse_unscored(pool, reasons, len(records), "; mend the pool or the options")
    per_row = sum(timed) / len(timed)
    half_width = _half_width(timed)
    return Forecast(
        rows=total,
        tried=len(drawn),
        failed=sum(record.reason is not None for record in records),
        prepare_seconds=prepared,
        seconds_per_row=per_row,
        seconds=prepared + total * per_row,
        seconds_low=prepared + total * max(per_row - half_width, 0.0),
        seconds_high=prepared + total * (per_row + half_width),
        memory_bytes=_memory(),
        device_memory_bytes=_device_memory(),
        disk_bytes=2 * _bytes(drawn, records) * total // len(records),
    )


def _time(scorer: Scorer, drawn: Sequence[Sample]) -> tuple[list[float], list[Record]]:
    """Seconds a row of each group but the first, and all records."""
    size = max(1, len(drawn) // (_CHUNKS + 1))
    timed, records = [], []
    for start in range(0, len(drawn), size):
        group = drawn[start : start + size]
        began = time.perf_counter()
        records += score_rows(scorer, group)
        if start or len(drawn) <= size:
            timed.append((time.perf_counter() - began) / len(group))
    return timed, records


def _half_width(timed: Sequence[float]) -> float:
    """Half the width of the interval of a mean."""
    if len(timed) < 2:
        return 0.0
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(timed) - 1))
    return quantile * statistics.stdev(timed) / math.sqrt(len(timed))


def _bytes(drawn: Sequence[Sample], records: Sequence[Record]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "scores.parquet"
        write_table(to_table((row.uid, row.row, record) for row, record in zip(drawn, records, strict=True)), path)
        return path.stat().st_size


def _memory() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest  # Linux counts in kilobytes


def _device_memory() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
