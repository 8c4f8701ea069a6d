"""How long choosing takes, and what it needs: selecting.py [--rows 1000000] makes a score table and selects from it."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from onesteptrain.scores import ScoreTable, write_table
from onesteptrain.selection import SelectOptions, select_rows

CHOICES = {
    "top": SelectOptions(prefer="top", gate="none"),
    "trust gate and draw": SelectOptions(),
    "trust gate, draw, quotas": SelectOptions(quota="skill"),
    "max-min over four groups": SelectOptions(prefer="maxmin", gate="none"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as scratch:
        write_table(made(rows, 0), Path(scratch) / "scores.parquet")
        write_table(made(100, 1), Path(scratch) / "reference.parquet")
        table = ScoreTable(Path(scratch) / "scores.parquet")
        for name, options in CHOICES.items():
            began = time.perf_counter()
            kept = len(select_rows(table, keep="20%", options=options).rows)
            print(f"{name}: {kept} of {rows} rows in {time.perf_counter() - began:.1f} s")
    print(f"{1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.2f} GB at most")


def made(rows: int, seed: int) -> pa.Table:
    """Scores drawn at random, with the columns that choosing reads."""
    generator = np.random.default_rng(seed)
    columns = {"uid": [f"row-{row}" for row in range(rows)], "row": np.arange(rows)}
    columns |= {"score": generator.normal(size=rows), "reason": pa.nulls(rows, pa.string())}
    columns |= {name: np.exp(generator.normal(size=rows)) for name in ("loss", "worst_loss")}
    columns |= {"harm": -np.exp(generator.normal(size=rows)), "utility": columns["score"]}
    columns |= {f"utility.{name}": generator.normal(size=rows) for name in "abcd"}
    columns |= {"tokens": generator.integers(50, 500, rows), "skill": generator.choice(list("wxyz"), rows)}
    return pa.table(columns)


if __name__ == "__main__":
    main()
