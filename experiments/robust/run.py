"""Score the settings that the trust gate is judged on; judge.py judges what is stored, as often as the gate changes.

run.py WORK [--only digits-own a100 ...] makes data, warms proxies up and scores, all options at their defaults, for
each setting whose name has all of these parts. What is in WORK is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from onesteptrain.data.anchors import draw_anchors
from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.scoring import ProxyOptions, ScoreRequest, provide_proxy, score_into
from onesteptrain.jobs.steps import AnchorOptions
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import ScopeOptions
from onesteptrain.storage.score_table import SCORES
from onesteptrain.synthetic import MixedOptions, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.synthetic.mixed import SOURCES
from onesteptrain.training import WarmupOptions

sys.path.insert(0, str(Path(__file__).parent))
from settings import SEEDS, WRONG_SHARE, Setting, clean_rows, settings

ROWS, HELDOUT_ROWS = 800, 600

OWN = {"digits": "proxy", "charts": "charts_proxy", "mixed": "mixed_proxy"}
FOREIGN = {"digits": "digits_foreign", "charts": "charts_foreign", "mixed": "senses"}
"""Models of experiments/foreign_proxies."""

BRIEF = WarmupOptions(0.05, WARMUP)
LONG = WarmupOptions(0.5, dataclasses.replace(WARMUP, learning_rate=1e-3))
"""Of a foreign proxy, chosen by experiments/foreign_proxies/measure.py."""

PRETRAIN = Path(__file__).parents[1] / "foreign_proxies" / "pretrain.py"


def score(setting: Setting, work: Path) -> None:
    """Score the pool of a setting."""
    out = work / "runs" / setting.name
    if (out / "score" / SCORES).is_file():
        return
    print(setting.name, flush=True)
    pool = open_pool(data_of(setting, work) / "pool.jsonl")
    warmup = LONG if setting.proxy == "foreign" else BRIEF
    warmup = dataclasses.replace(warmup, finetune=dataclasses.replace(warmup.finetune, seed=setting.seed))
    start = ProxyOptions(str(model_of(setting, work)), ScopeOptions(scope="all"))
    warmed = provide_proxy(work / "warmups" / setting.warmup, start, pool, warmup, print)
    request = ScoreRequest(
        pool,
        OneStep(store_tokens=True),
        anchors=anchors_of(setting, work),
        anchor_reading=AnchorOptions(anchor_image_root=work / "data"),
        proxy=warmed.proxy,
        seed=setting.seed,
    )
    score_into(out / "score", request)


def data_of(setting: Setting, work: Path) -> Path:
    """The folder of a setting's data."""
    folder, noise_share, seed = work / "data" / setting.data, setting.noise_percent / 100, 100 + setting.seed
    if folder.exists():
        return folder
    if setting.world == "mixed":  # its own shares of noise are 40 % in all
        shares = {} if setting.noise_percent == 40 else dict.fromkeys(SOURCES, noise_share)
        make_synthetic("mixed", MixedOptions(ROWS, HELDOUT_ROWS, 1, noise_shares=shares, seed=seed), folder)
    else:
        make_synthetic(setting.world, SyntheticOptions(ROWS, HELDOUT_ROWS, 1, noise_share, seed=seed), folder)
    return folder


def model_of(setting: Setting, work: Path) -> Path:
    """The checkpoint that the warm-up starts from."""
    if setting.proxy == "own":
        return checkpoint(OWN[setting.world])
    models = work / "models"
    if not (models / FOREIGN[setting.world]).exists():
        subprocess.run([sys.executable, str(PRETRAIN), str(models)], check=True)
    return models / FOREIGN[setting.world]


def anchors_of(setting: Setting, work: Path) -> Path:
    """The anchors, drawn from held-out rows; where some are to be wrong, bad rows of another pool stand in for them."""
    path, data = work / "runs" / setting.name / "anchors.jsonl", data_of(setting, work)
    if path.exists():
        return path
    drawn = draw_anchors(open_pool(data / "heldout.jsonl"), count=setting.anchors, seed=setting.seed)
    rows = read_rows(data / "heldout.jsonl", drawn)
    if setting.wrong:
        other = data_of(setting._replace(seed=(setting.seed + 1) % SEEDS), work)
        count = round(WRONG_SHARE * setting.anchors)
        bad = np.random.default_rng(setting.seed).choice(np.flatnonzero(~clean_rows(other)), count, replace=False)
        rows[:count] = read_rows(other / "pool.jsonl", bad)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(file: Path, places: np.ndarray) -> list[dict[str, object]]:
    """Some rows of a file; their pictures are found from the folder of all data."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[place]) for place in places]
    return [row | {"images": [f"{file.parent.name}/{image}" for image in row["images"]]} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for setting in settings():
        if all(part in setting.name for part in asked.only):
            score(setting, asked.work)
