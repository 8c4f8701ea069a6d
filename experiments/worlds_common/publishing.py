"""What the experiments with comparisons have in common: run one, and write its records and tables down."""

from __future__ import annotations

from pathlib import Path

from onesteptrain.jobs.comparison import Comparison, compare
from onesteptrain.reporting.comparison import comparison_table, write_comparison
from onesteptrain.storage.atomic import write_json


def run(name: str, job: Comparison, *, world: str, workers: int, publish: Path) -> None:
    """One comparison; its records and tables go to PUBLISH/tables/NAME."""
    print(f"== {name}", flush=True)
    done = compare(job, workers=workers, tell=lambda text: print(text, flush=True))
    folder = publish / "tables" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison(done.records, done.differences, folder)
    write_json(folder / "differences.json", done.differences)
    write_json(folder / "records.json", [{"experiment": name, "world": world, **record} for record in done.records])
    print(comparison_table(done.records, done.differences), flush=True)
