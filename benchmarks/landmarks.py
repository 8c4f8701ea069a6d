"""What landmarks cost against fd over the same rows, where a pass is dear beside reading.

landmarks.py [--hidden 256] [--layers 8] [--rows 600] builds a model of the InternVL architecture with random weights
(speed does not depend on them) and scores rows of the digits world by fd and by landmarks, reading included. How well
the two agree is not told by random weights: see experiments/landmarks.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import torch
from recording import by_turns, ratio, record

from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.steps import score_into
from onesteptrain.methods.one_step import OneStep
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint
from onesteptrain.synthetic.digits import WorldOptions, make_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        made = make_world(WorldOptions(pool_rows=options.rows, heldout_rows=20), Path(scratch) / "world")
        pool = open_pool(made.pool)
        texts = [turn.text for one in pool.rows() for turn in one.turns]
        size = ModelSize(hidden=options.hidden, layers=options.layers, mlp=3 * options.hidden, vocabulary=512)
        model = build_checkpoint("internvl", Path(scratch) / "model", size=size, texts=texts)

        def score(name: str, **chosen: object) -> None:
            # without agreement to reach, every run spends its whole budget
            method = OneStep(**chosen, reference_folds=0)
            score_into(Path(scratch) / name, pool, method, anchors=made.heldout, proxy=str(model), overwrite=True)

        most = {"estimator": "landmarks", "landmark_agreement": 1 - 1e-9}
        work = {"fd": lambda: score("fd", estimator="fd")}
        for what, layers in {"at the head": 0, "of the top layer": 1}.items():
            for budget in (0.1, 0.3):
                chosen = most | {"glimpse_layers": layers, "landmark_budget": budget}
                work[f"{what}, {budget:.0%} scored"] = functools.partial(score, f"{layers}-{budget}", **chosen)
        seconds = by_turns(work, options.repeats)
        for name in list(work)[1:]:
            record("landmarks", f"glimpse {name}: over fd", ratio=round(ratio(seconds, name, "fd"), 2), unit="x")


if __name__ == "__main__":
    main()
