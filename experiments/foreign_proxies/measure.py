"""What does a proxy learn of a pool that it was not pretrained for, from the noisy pool alone?

measure.py KIND PROXY [--shares 0 0.05 0.5] [--rate 1e-3] makes data of a kind, 40 % of it bad, warms the proxy (a
packaged name, or a folder) up on shares of the pool, and prints after each the loss of clean held-out rows, how many of
their answers have every token right given the true tokens before it, and how well a row's loss tells bad rows of the
pool from clean ones (AUROC): its mean over the answer, and its worst token.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from onesteptrain.data.pool import open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, in_batches, load_proxy
from onesteptrain.synthetic import MixedOptions, SyntheticData, SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import FinetuneOptions, encode_all, finetune
from onesteptrain.training.warmup import draw

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds_common"))
from pretraining import all_tokens_right
from separating import auroc


class Losses(NamedTuple):
    """Of each row, in nats per answer token."""

    mean: np.ndarray
    worst: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("digits", "charts", "mixed"))
    parser.add_argument("proxy", help="name of a packaged model, or a folder")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.5])
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--rate", type=float, default=WARMUP.learning_rate, help="learning rate of the warm-up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warmup = dataclasses.replace(WARMUP, learning_rate=options.rate)
    print("| data | proxy | warm-up | held-out loss | right | AUROC of the mean loss | of the worst token |")
    with tempfile.TemporaryDirectory() as scratch:
        data = make(options.kind, options.rows, Path(scratch) / "data")
        for share in options.shares:
            loss, right, mean, worst = measure(data, options.proxy, share, warmup)
            found = f"{loss:.2f} | {100 * right:.0f} % | {mean:.3f} | {worst:.3f}"
            print(
                f"| {options.kind} | {Path(options.proxy).name} | {share:g} at {options.rate:g} | {found} |", flush=True
            )


def make(kind: str, rows: int, folder: Path) -> SyntheticData:
    if kind == "mixed":
        return make_synthetic("mixed", MixedOptions(rows, 200, 1), folder)
    return make_synthetic("digits" if kind == "digits" else "charts", SyntheticOptions(rows, 200, 1, 0.4), folder)


def measure(data: SyntheticData, name: str, share: float, warmup: FinetuneOptions) -> tuple[float, float, float, float]:
    """Held-out loss, answers with every token right, and both AUROCs, after a warm-up on a share of the pool."""
    proxy = load_proxy(Path(name) if Path(name).exists() else checkpoint(name), options=LoadOptions(device="cpu"))
    pool, heldout = (list(encode_all(proxy.encoder, open_pool(path))[0]) for path in (data.pool, data.heldout))
    if share:
        finetune(proxy, encode_all(proxy.encoder, draw(open_pool(data.pool), share, seed=warmup.seed))[0], warmup)
    clean = pq.read_table(data.truth, columns=["clean"])["clean"].to_numpy(zero_copy_only=False)
    areas = (auroc(values[~clean], values[clean]) for values in losses(proxy, pool))
    return losses(proxy, heldout).mean.mean(), all_tokens_right(proxy, heldout), *areas


@torch.no_grad()
def losses(proxy: Proxy, encoded: Sequence[Encoded]) -> Losses:
    """Losses of rows."""
    proxy.model.eval()
    mean, worst = np.empty(len(encoded)), np.empty(len(encoded))
    for indices in in_batches(encoded, 100):
        one = proxy.token_losses(proxy.batch([encoded[index] for index in indices]))
        mean[indices] = one.means().numpy()
        worst[indices] = [float(part.max()) for part in one.loss.split(list(one.lengths))]
    return Losses(mean, worst)


if __name__ == "__main__":
    main()
