"""What has to be fast besides scoring: starting up, reading a pool, choosing rows.

elsewhere.py [--pool-rows 1000000] [--score-rows 10000000] [--only start read select]; each measured in a process of its
own. Starting is compared with an interpreter that does nothing; reading with the json of the standard library over the
same lines.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recording import by_turns, ratio, record

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.score_table import ScoreTable

_AT_ONCE = 500_000
CHOICES = {
    "the best by score": SelectOptions(prefer="top", gate="none"),
    "trust gate and draw": SelectOptions(),
    "trust gate, draw and quotas": SelectOptions(quota="skill"),
    "max-min over four groups": SelectOptions(prefer="maxmin", gate="none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool-rows", type=int, default=1_000_000)
    parser.add_argument("--score-rows", type=int, default=10_000_000)
    parser.add_argument("--only", nargs="+", choices=("start", "read", "select"), default=["start", "read", "select"])
    parser.add_argument("--one", nargs=2, help="measure one case and print it, for the program itself")
    options = parser.parse_args()
    if options.one is not None:
        name, folder = options.one
        print(json.dumps(read(Path(folder)) if name == "read" else select(Path(folder), CHOICES[name])))
        return
    if "start" in options.only:
        start()
    with tempfile.TemporaryDirectory() as scratch:
        if "read" in options.only:
            write_pool(options.pool_rows, Path(scratch) / "pool.jsonl")
            found = apart("read", scratch)
            subject = f"reading a pool of {options.pool_rows} rows"
            record("elsewhere", subject, unit="s, MB, x over json alone", **found)
        if "select" in options.only:
            write_scores(options.score_rows, Path(scratch) / "scores.parquet", seed=0)
            write_scores(100, Path(scratch) / "reference.parquet", seed=1)
            write_scores(300, Path(scratch) / "corrupted.parquet", seed=2, worse=2.0)
            for name in CHOICES:
                subject = f"choosing 20 % of {options.score_rows} scores: {name}"
                record("elsewhere", subject, unit="s, MB", **apart(name, scratch))


def start() -> None:
    """`ost --help` over an interpreter that does nothing, and whether torch was loaded on the way."""
    script = Path(sys.executable).with_name("ost")
    commands = {"ost --help": [str(script), "--help"], "nothing": [sys.executable, "-c", "pass"]}
    work = {
        name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
        for name, command in commands.items()
    }
    seconds = by_turns(work, 11)
    loaded = "import sys, onesteptrain.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    record(
        "elsewhere",
        "ost --help",
        value=round(statistics.median(seconds["ost --help"]), 2),
        over_nothing=round(ratio(seconds, "ost --help", "nothing"), 1),
        torch_loaded=done.stdout.strip() == "True",
        unit="s, x",
    )


def apart(name: str, folder: str) -> dict[str, float]:
    """What one case gives in a process of its own."""
    command = [sys.executable, __file__, "--one", name, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def read(folder: Path) -> dict[str, float]:
    """Read all rows of a pool."""
    path = folder / "pool.jsonl"
    started = time.process_time()
    with path.open("rb") as lines:
        plain = sum(1 for line in lines if json.loads(line))
    alone = time.process_time() - started
    started = time.process_time()
    rows = sum(isinstance(row, Sample) for row in open_pool(path).rows())
    seconds = time.process_time() - started
    if rows != plain:
        raise RuntimeError(f"{rows} of {plain} rows were read")
    return {"value": round(seconds, 1), "peak_mb": peak(), "ratio": round(seconds / alone, 1)}


def select(folder: Path, options: SelectOptions) -> dict[str, float]:
    """Choose rows from a score table."""
    started = time.perf_counter()
    select_rows(ScoreTable(folder / "scores.parquet"), keep="20%", options=options)
    return {"value": round(time.perf_counter() - started, 1), "peak_mb": peak()}


def peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def write_pool(rows: int, path: Path) -> None:
    """Rows of a chart question with a picture by path and a chain of a hundred words."""
    words = " ".join(["so the bar of the year is higher than that of the year before"] * 8)
    with path.open("w") as file:
        for row in range(rows):
            turns = [("user", f"<image>Which bar is row {row}?"), ("assistant", f"{words}. The answer is {row}.")]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"id": f"row-{row}", "images": [f"images/{row}.png"], "messages": messages}) + "\n")


def write_scores(rows: int, path: Path, *, seed: int, worse: float = 0.0) -> None:
    """Scores drawn at random, with the columns that choosing reads, a part at a time.

    Args:
        rows: How many.
        path: The file.
        seed: Of the draw.
        worse: Standard deviations by which the signals of the trust gate are larger than of usual rows.
    """
    generator = np.random.default_rng(seed)
    writer = None
    for first in range(0, rows, _AT_ONCE):
        count = min(_AT_ONCE, rows - first)
        columns = {"uid": [f"row-{row}" for row in range(first, first + count)], "row": np.arange(first, first + count)}
        columns |= {"score": generator.normal(size=count), "reason": pa.nulls(count, pa.string())}
        columns |= {name: np.exp(worse + generator.normal(size=count)) for name in ("loss", "worst_loss")}
        columns |= {"harm": -np.exp(worse + generator.normal(size=count)), "utility": columns["score"]}
        columns |= {"kind": np.repeat("cut_off", count)} if worse else {}
        columns |= {f"utility.{name}": generator.normal(size=count) for name in "abcd"}
        columns |= {"tokens": generator.integers(50, 500, count), "skill": generator.choice(list("wxyz"), count)}
        part = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main()
