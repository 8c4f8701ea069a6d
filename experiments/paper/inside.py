"""What is in the subsets of the main table: clean rows, kinds of noise, skills; inside.py [--out runs/paper].

It reads the planted labels, to explain the table; no method sees them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.atomic import write_text
from onesteptrain.storage.score_table import ScoreTable

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from separating import auroc

TABLES = Path(__file__).parent / "tables"
PAPER = SelectOptions(prefer="top", gate="none")
ARMS = {"oracle 20%": ("oracle", "20%"), "random 20%": ("random", "20%")}
ARMS |= {f"{name} {share}": (name, share) for share in ("20%", "50%") for name in ("ost", "ost-harm", "less", "loss")}
ARMS |= {"judge >=0.5": ("judge", ">=0.5"), "deita 20%": ("deita", "20%"), "ifd 20%": ("ifd", "20%")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    out = parser.parse_args().out
    (world,) = (out / "worlds").glob("main-*")
    truth = pq.read_table(world / "truth.parquet").sort_by("row")
    kinds = np.array(truth["kind"].to_pylist())
    skills = np.array([row.fields["skill"] for row in open_pool(world / "pool.jsonl") if isinstance(row, Sample)])
    text = composition(out, kinds, skills) + "\n\n" + separation(out, kinds)
    write_text(TABLES / "inside.md", text + "\n")
    print(text)


def composition(out: Path, kinds: np.ndarray, skills: np.ndarray) -> str:
    """Shares of skills and of kinds of noise in what each arm keeps."""
    records = json.loads((TABLES / "main" / "records.json").read_text(encoding="utf-8"))
    names, noises = sorted(set(skills)), sorted(set(kinds) - {"clean"})
    lines = [
        "| rows of | clean | " + " | ".join([*names, *noises]) + " |",
        "| --- " * (2 + len(names) + len(noises)) + "|",
    ]
    for label, key in {"the pool": None, **ARMS}.items():
        rows = np.arange(len(kinds)) if key is None else kept(out, records, *key)
        by_skill, by_kind = Counter(skills[rows].tolist()), Counter(kinds[rows].tolist())
        shares = [by_skill[name] / len(rows) for name in names] + [by_kind[name] / len(rows) for name in noises]
        lines.append(
            f"| {label} | {by_kind['clean'] / len(rows):.0%} | " + " | ".join(f"{one:.0%}" for one in shares) + " |"
        )
    return "\n".join(lines)


def kept(out: Path, records: list[dict], method: str, budget: str) -> np.ndarray:  # type: ignore[type-arg]
    """Positions in the pool of the rows that an arm trains on, with the first seed."""
    (found,) = [r for r in records if (r["method"], r["budget"], r["seed"]) == (method, budget, 0)]
    facts = json.loads((out / "compare" / "trials" / found["trial"] / "trial.json").read_text(encoding="utf-8"))
    return np.array(facts["pool_rows"])


def separation(out: Path, kinds: np.ndarray) -> str:
    """AUROC of each score for clean rows against bad ones, in all and by kind."""
    noises = sorted(set(kinds) - {"clean"})
    lines = ["| AUROC of | all bad rows | " + " | ".join(noises) + " |", "| --- " * (2 + len(noises)) + "|"]
    records = json.loads((TABLES / "main" / "records.json").read_text(encoding="utf-8"))
    mine = kept(out, records, "ost", "20%").tolist()
    folders = {path.name.rpartition("-")[0]: path for path in sorted((out / "compare" / "scores").iterdir())}
    for path in (out / "compare" / "scores").glob("one_step-*"):  # other parts score with other proxies
        if select_rows(ScoreTable(path / "scores.parquet"), keep="20%", options=PAPER).rows.tolist() == mine:
            folders["one_step"] = path
    for folder in folders.values():
        table = ScoreTable(folder / "scores.parquet")
        for column in ("score", "harm") if folder.name.startswith("one_step") else ("score",):
            values = np.nan_to_num(table.numbers(column), nan=-np.inf)
            each = [auroc(values[kinds == "clean"], values[kinds == kind]) for kind in noises]
            total = auroc(values[kinds == "clean"], values[kinds != "clean"])
            name = folder.name.rpartition("-")[0] + (" harm" if column == "harm" else "")
            lines.append(f"| {name} | {total:.2f} | " + " | ".join(f"{one:.2f}" for one in each) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
