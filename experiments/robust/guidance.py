"""What anchors say of a ranking column, beside what planted labels say of it, in the settings that run.py has scored.

guidance.py OUT [--columns utility harm] prints a line for each scored setting with noise, and how often which verdict
was given, with the range of the areas for planted noise that it was given at.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from run import data_of, settings
from sklearn.metrics import roc_auc_score

from onesteptrain.selection.guidance import measure_guidance
from onesteptrain.storage.score_table import ScoreTable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", nargs="+", default=["utility", "harm"])
    asked = parser.parse_args()
    given = defaultdict(list)
    for setting in settings():
        scores = asked.out / "runs" / setting.name / "score" / "scores.parquet"
        if not scores.exists() or not setting.noise:
            continue
        table = ScoreTable(scores)
        clean = pq.read_table(data_of(setting, asked.out) / "truth.parquet", columns=["clean"])["clean"]
        for column in asked.columns:
            told = measure_guidance(table, column)
            planted = roc_auc_score(clean.to_numpy(zero_copy_only=False), table.numbers(column))
            print(f"{setting.name}  {column}  planted {planted:.2f}  copies {_shown(told.area)}  {told.verdict}")
            given[column, setting.proxy, told.verdict].append(planted)
    for (column, proxy, verdict), areas in sorted(given.items()):
        print(f"{column}, {proxy}: {verdict} {len(areas)} times, planted {min(areas):.2f} to {max(areas):.2f}")


def _shown(area: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*area)


if __name__ == "__main__":
    main()
