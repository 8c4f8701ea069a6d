"""Do the signals find the planted bad rows? AUROC by kind, and what the trust gate makes of them.

signals.py [--out runs/beyond] reads the planted labels of the worlds that run.py has made, to judge what no method is
told.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from onesteptrain.runs import write_text
from onesteptrain.scores import ScoreTable
from onesteptrain.selection.trust import can_trust, measure_trust

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from separating import auroc

HERE = Path(__file__).parent
SIGNALS = ("utility", "relative", "worst_utility", "harm", "loss", "worst_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/beyond"))
    parser.add_argument("--publish", type=Path, default=HERE)
    options = parser.parse_args()
    text = "\n\n".join([*(found(options.out, name) for name in ("digits", "charts")), gates(options.out)])
    (options.publish / "tables").mkdir(parents=True, exist_ok=True)
    write_text(options.publish / "tables" / "signals.md", text + "\n")
    print(text)


def tables(out: Path, name: str) -> list[tuple[str, ScoreTable, np.ndarray]]:
    """Score tables of the one-step utility with a reference, and the kind of noise in each row."""
    scored = []
    for folder in sorted(path.parent for path in out.glob(f"{name}/scores/one_step-*/scores.parquet")):
        table = ScoreTable(folder / "scores.parquet")
        (world,) = out.glob(f"worlds/{name}-[0-9]*")
        kinds = np.array(pq.read_table(world / "truth.parquet").sort_by("row")["kind"].to_pylist())
        if can_trust(table):
            scored.append((folder.name, table, kinds))
    return scored


def found(out: Path, name: str) -> str:
    """AUROC of each signal, in all and by kind."""
    parts = []
    for _, table, kinds in tables(out, name):
        names = sorted(set(kinds) - {"clean"})
        lines = [f"| {name}: AUROC of | all bad rows | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
        values = {one: np.nan_to_num(table.numbers(one), nan=-np.inf) for one in SIGNALS}
        values |= {one: -values[one] for one in ("loss", "worst_loss")}
        values["suspicion (the trust gate)"] = -np.nan_to_num(measure_trust(table).suspicion, nan=np.inf)
        for signal, each in values.items():
            bad = [auroc(each[kinds == "clean"], each[kinds == kind]) for kind in names]
            total = auroc(each[kinds == "clean"], each[kinds != "clean"])
            lines.append(f"| {signal} | {total:.3f} | " + " | ".join(f"{one:.2f}" for one in bad) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def gates(out: Path) -> str:
    """What the gate thinks of pools with more or less noise, and what it lets pass."""
    lines = [
        "| world | clean rows | estimated | passed | of them clean | of the clean rows passed |",
        "| --- " * 6 + "|",
    ]
    for folder in sorted(path for path in out.iterdir() if path.name.partition("-")[0] in ("digits", "charts")):
        for _, table, kinds in tables(out, folder.name):
            trust = measure_trust(table)
            clean, passed = kinds == "clean", trust.passing()
            shares = [clean.mean(), trust.clean_share, passed.mean(), clean[passed].mean(), passed[clean].mean()]
            lines.append(f"| {folder.name} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
