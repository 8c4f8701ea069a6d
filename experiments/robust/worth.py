"""Does the proxy know beforehand whether training is worth it? What warm-ups say, beside what targets then learned.

worth.py WORK [--seeds 2] [--worlds digits charts mixed] makes the data of downstream.py where they are missing, warms
the packaged proxies up on 5 % of the pool as it is and, for as many steps, on four times as many clean rows (by the
planted labels: the best that a second pass could do), and prints what each says of training, seed by seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch

from onesteptrain.data.pool import open_pool, write_subset
from onesteptrain.jobs.recipe import Bench, Places, Recipe
from onesteptrain.proxy import ScopeOptions
from onesteptrain.selection.learning import Learning, learning_of
from onesteptrain.storage.learning_record import read_learning_record
from onesteptrain.synthetic import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from downstream import Place
from run import BRIEF
from settings import clean_rows

PROXIES = {"digits": "proxy", "charts": "charts_proxy", "mixed": "mixed_proxy"}
MORE_ROWS = 4
"""Times the rows of the first warm-up, as in a second pass."""


def learned(place: Place, *, clean: bool) -> Learning:
    """What a warm-up says, on rows as they are or on clean ones."""
    folder, pool, warmup = place.folder / ("worth-clean" if clean else "worth"), place.data / "pool.jsonl", BRIEF
    if clean:
        facts = json.loads((place.folder / "worth" / "warmup" / "warmup.json").read_text(encoding="utf-8"))
        whole, rows = open_pool(pool), np.flatnonzero(clean_rows(place.data))
        count = round(MORE_ROWS * BRIEF.share * len(whole))
        pool = place.data / "clean.jsonl"  # beside the pool, so that its pictures are found
        if not pool.exists():
            write_subset(whole, np.sort(np.random.default_rng(place.seed).choice(rows, count, replace=False)), pool)
        tuning = dataclasses.replace(BRIEF.finetune, steps=facts["steps"])
        warmup = dataclasses.replace(BRIEF, share=1.0, finetune=tuning)
    recipe = Recipe(
        pool=pool,
        proxy=str(checkpoint(PROXIES[place.world])),
        heldout=place.data / "heldout.jsonl",
        warmup_share=warmup.share,
        warmup=warmup.finetune,
        scope=ScopeOptions(scope="all"),
        seed=place.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    Bench(recipe, open_pool(pool), Places(folder), lambda text: print(text, file=sys.stderr)).warmed()
    record = read_learning_record(folder / "warmup")
    assert record is not None, f"{folder} has no learning.json"  # noqa: S101
    return learning_of(record, passing=clean)


def line(place: Place, what: str, found: Learning) -> str:
    """A row of the table."""
    low, high = -found.fall.high, -found.fall.low
    cells = (
        place.world,
        what,
        str(place.seed),
        str(found.rows),
        f"{found.known.value:.0%}",
        f"{-found.fall.value:+.0%} ({low:+.0%} to {high:+.0%})",
        f"{-found.own_fall.value:+.0%}",
        found.verdict,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--worlds", nargs="+", default=list(PROXIES), choices=list(PROXIES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | warm-up on | seed | rows | answers known before | loss of anchors | of its own rows | training |")
    print("| --- " * 8 + "|")
    for seed in range(asked.seeds):
        for world in asked.worlds:
            place = Place(asked.work, world, "own", seed)
            for what, clean in (("the pool as it is", False), ("clean rows", True)):
                print(line(place, what, learned(place, clean=clean)), flush=True)


if __name__ == "__main__":
    main()
