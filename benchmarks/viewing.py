"""How long `ost view` takes on a large pool, and how much memory: first page after start, sorted pages, filters.

python benchmarks/viewing.py --rows 2000000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

from onesteptrain.storage.score_table import CORRUPTED, REFERENCE, SCORES, read_scores, write_table
from onesteptrain.viewing.app import make_app
from onesteptrain.viewing.rows import open_rows

HOST = "http://127.0.0.1:8123"
PAGES = {
    "filter": {"where": "harm < -0.0002 AND answer_tokens > 20"},
    "sorted": {"sort": "harm"},
    "facet": {"f.decision": "dropped"},
    "deep page": {"page": "30000"},
}


def made(rows: int, seed: int, *, wrong: float, prefix: str) -> pa.Table:
    """Scores as one_step writes them, a share of them of rows that stand out."""
    generator = np.random.default_rng(seed)
    shift = 1.5 * (generator.random(rows) < wrong)
    harm, loss = (-scale * np.exp(generator.normal(shift, 0.5)) for scale in (1e-4, -0.5))
    columns = {"harm": harm, "loss": loss, "worst_loss": 3 * loss, "utility": harm + 1e-4, "gain": np.abs(harm)}
    return pa.table(
        {
            "uid": [f"{prefix}{row}" for row in range(rows)],
            "row": np.arange(rows),
            "score": harm,
            "reason": pa.nulls(rows, pa.string()),
            **columns,
            "answer_tokens": generator.integers(1, 60, rows),
        }
    )


def write_run(folder: Path, rows: int) -> Path:
    """A run directory with anchors and corrupted anchors."""
    run = folder / "run"
    run.mkdir()
    write_table(made(rows, 0, wrong=0.3, prefix="row"), run / SCORES)
    write_table(made(300, 1, wrong=0.0, prefix="a"), run / REFERENCE)
    copies = made(300, 2, wrong=1.0, prefix="c")
    kinds = {"anchor": [f"a{row}" for row in range(300)], "kind": ["number", "swap", "picture"] * 100}
    spans = {name: pa.nulls(300, pa.int64()) for name in ("span_start", "span_end")}
    for name, values in {**kinds, **spans}.items():
        copies = copies.append_column(name, pa.array(values))
    write_table(copies, run / CORRUPTED)
    return run


def peak() -> float:
    """Peak memory of this process, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--run", type=Path, help="a run that was made before; measured in this process alone")
    parser.add_argument(
        "--make", type=Path, help="only make a run in this folder, so that measuring has its own memory"
    )
    given = parser.parse_args()
    if given.make is not None:
        print(write_run(given.make, given.rows))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or write_run(Path(folder), given.rows)
        print(f"loaded: peak {peak():.2f} GB")
        start = time.perf_counter()
        table = read_scores(run)
        rows = open_rows(table, Path(folder))
        client = TestClient(make_app(rows, table, run, token="t", port=8123), base_url=HOST)
        client.get("/", params={"token": "t"}).raise_for_status()
        print(
            f"first page: {time.perf_counter() - start:.2f} s, peak {peak():.2f} GB, columns {', '.join(rows.columns)}"
        )
        for name, asked in PAGES.items():
            start = time.perf_counter()
            client.get("/", params=asked).raise_for_status()
            print(f"{name}: {time.perf_counter() - start:.2f} s, peak {peak():.2f} GB")
        for path in ("/cut?cut=0.4", "/draw", "/marks"):
            start = time.perf_counter()
            client.get(path, follow_redirects=False)
            print(f"{path}: {time.perf_counter() - start:.2f} s, peak {peak():.2f} GB")


if __name__ == "__main__":
    main()
