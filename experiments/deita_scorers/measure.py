"""What DEITA's miniature scorers find on the digits data, and what its filter passes over at several thresholds.

measure.py --scorers FOLDER [--rows 4000] makes digits data, scores its pool with the scorers that make.py has left
in FOLDER, and writes measured.md. The planted labels only judge what no method was told.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, score_into
from onesteptrain.methods.deita import Deita
from onesteptrain.selection import SelectOptions, select_rows
from onesteptrain.storage.atomic import write_text
from onesteptrain.storage.score_table import ScoreTable
from onesteptrain.synthetic import SyntheticOptions, checkpoint, make_synthetic

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from separating import auroc

THRESHOLDS = (None, 0.9999, 0.999, 0.99, 0.95, 0.9)
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scorers", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        world = make_synthetic("digits", SyntheticOptions(pool_rows=options.rows), Path(scratch) / "world")
        method = Deita(str(options.scorers / "complexity"), str(options.scorers / "quality"))
        request = ScoreRequest(open_pool(world.pool), method, "deita", proxy=ProxyOptions(str(checkpoint("proxy"))))
        table = score_into(Path(scratch) / "run", request).table
        truth = pq.read_table(world.truth).sort_by("row")
        cosines = similarities(table)
        kinds, rows = np.array(truth["kind"].to_pylist()), truth.to_pylist()
        text = "\n\n".join([found(table, kinds), alike(cosines), filtered(table, cosines, rows)])
    write_text(HERE / "measured.md", text + "\n")
    print(text)


def found(table: ScoreTable, kinds: np.ndarray) -> str:
    """How well the score ranks clean rows above planted ones."""
    score, clean = table.numbers("score"), kinds == "clean"
    lines = [
        "| planted | AUROC of clean rows |",
        "| --- | --- |",
        f"| all | {auroc(score[clean], score[~clean]):.2f} |",
    ]
    for kind in sorted(set(kinds) - {"clean"}):
        lines.append(f"| {kind} | {auroc(score[clean], score[kinds == kind]):.2f} |")
    return "\n".join(lines)


def alike(cosines: np.ndarray) -> str:
    """How alike two rows are, and neighbours."""
    between = float(np.median(cosines[np.triu_indices(len(cosines), 1)]))
    others = cosines - 3 * np.eye(len(cosines), dtype=cosines.dtype)
    nearest = float(np.median(others.max(1)))
    return f"Median similarity of two rows: {between:.2f}; of a row and its nearest neighbour: {nearest:.3f}."


def similarities(table: ScoreTable) -> np.ndarray:
    """Cosine similarities of the rows' representations."""
    vectors = np.array(table.read(["representation"])["representation"].to_pylist(), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def filtered(table: ScoreTable, cosines: np.ndarray, truth: list[dict[str, object]]) -> str:
    """What the filter keeps of the ranking at each threshold, and which planted pairs it leaves."""
    clean = np.array([row["kind"] == "clean" for row in truth])
    places = {row["uid"]: place for place, row in enumerate(truth)}
    pairs = [(places[row["duplicate_of"]], place) for place, row in enumerate(truth) if row["duplicate_of"]]
    best = set(select_rows(table, keep="20%", options=SelectOptions(prefer="top", gate="none")).rows.tolist())
    near = [pair for pair in pairs if set(pair) <= best]
    names = [
        "threshold",
        *(f"{share}: {what}" for share in ("20%", "50%") for what in ("kept", "passed over", "clean")),
    ]
    lines = [f"| {' | '.join(names)} | planted pairs left |", "| --- " * 8 + "|"]
    for threshold in THRESHOLDS:
        cells, left = [], 0
        for share in ("20%", "50%"):
            chosen = SelectOptions(prefer="top", gate="none", distinct=threshold)
            kept = select_rows(table, keep=share, options=chosen)
            cells += [f"{len(kept.rows)}", f"{kept.skipped_similar or 0}", f"{100 * clean[kept.rows].mean():.0f} %"]
            if share == "20%":
                left = sum(set(pair) <= set(kept.rows.tolist()) for pair in near)
        lines.append(f"| {threshold or 'none'} | {' | '.join(cells)} | {left} of {len(near)} |")
    low = np.quantile([cosines[pair] for pair in pairs], 0.25)
    return "\n".join(
        [*lines, "", f"A quarter of the pool's {len(pairs)} planted pairs have a similarity below {low:.3f}."]
    )


if __name__ == "__main__":
    main()
