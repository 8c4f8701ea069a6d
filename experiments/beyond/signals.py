"""Do the signals find the planted bad rows? AUROC by kind, and what the trust gate makes of them.

signals.py [--out runs/beyond] reads the planted labels of the worlds that run.py has made, to judge what no method is
told.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from onesteptrain.selection.trust import SECOND_SIGNALS, can_trust, measure_trust
from onesteptrain.storage.atomic import write_text
from onesteptrain.storage.score_table import ScoreTable

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


class Scored(NamedTuple):
    """Scores of a world's pool with a trust gate, and the kind of noise in each row."""

    look: str
    table: ScoreTable
    kinds: np.ndarray


def tables(out: Path, name: str) -> list[Scored]:
    """What the first pass and the second one have written."""
    places = {"first": f"{name}/scores/one_step-*/scores.parquet", "second": f"{name}/looks/*/score/scores.parquet"}
    (world,) = out.glob(f"worlds/{name}-[0-9]*")
    kinds = np.array(pq.read_table(world / "truth.parquet").sort_by("row")["kind"].to_pylist())
    found = [(look, ScoreTable(path)) for look, place in places.items() for path in sorted(out.glob(place))]
    return [Scored(look, table, kinds) for look, table in found if can_trust(table)]


def found(out: Path, name: str) -> str:
    """AUROC of each signal, in all and by kind."""
    lines: list[str] = []
    for look, table, kinds in tables(out, name):
        names = sorted(set(kinds) - {"clean"})
        if not lines:
            lines = [
                f"| {name}: AUROC of | all bad rows | " + " | ".join(names) + " |",
                "| --- " * (2 + len(names)) + "|",
            ]
        signals = SIGNALS if look == "first" else SECOND_SIGNALS[1:]
        values = {one: np.nan_to_num(table.numbers(one), nan=-np.inf) for one in signals}
        values |= {one: -value for one, value in values.items() if "loss" in one}
        values[f"nonconformity, {look} look"] = -np.nan_to_num(measure_trust(table).nonconformity, nan=np.inf)
        for signal, each in values.items():
            bad = [auroc(each[kinds == "clean"], each[kinds == kind]) for kind in names]
            total = auroc(each[kinds == "clean"], each[kinds != "clean"])
            lines.append(f"| {signal} | {total:.3f} | " + " | ".join(f"{one:.2f}" for one in bad) + " |")
    return "\n".join(lines)


def gates(out: Path) -> str:
    """What the gate thinks of pools with more or less noise, and what it lets pass."""
    lines = [
        "| world | look | clean rows | estimated | passed | of them clean | of the clean rows passed |",
        "| --- " * 7 + "|",
    ]
    for folder in sorted(path for path in out.iterdir() if path.name.partition("-")[0] in ("digits", "charts")):
        for look, table, kinds in tables(out, folder.name):
            trust = measure_trust(table)
            clean, passed = kinds == "clean", trust.passing()
            shares = [clean.mean(), trust.clean_share, passed.mean(), clean[passed].mean(), passed[clean].mean()]
            lines.append(f"| {folder.name} | {look} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
