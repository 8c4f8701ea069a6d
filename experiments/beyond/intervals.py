"""Do the intervals of the utility hold? Refit with fresh anchors, many times: intervals.py [--rows 300] [--refits 500].

The digits data (seed 5, half of it bad) gives rows, and 3,000 clean held-out samples to draw anchors from. To first
order the utility of a row by some anchors is the mean of its inner products with their gradients, so all pairs are
measured once and any number of anchor sets can be drawn. The truth is the utility by all 3,000.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from onesteptrain.data.pool import Sample, open_pool
from onesteptrain.jobs.demo import WARMUP
from onesteptrain.jobs.steps import readable
from onesteptrain.methods.one_step.signals import interval_signals
from onesteptrain.proxy import LoadOptions, Proxy, load_proxy
from onesteptrain.selection.certainty import anchor_curve
from onesteptrain.storage.atomic import write_text
from onesteptrain.synthetic import SyntheticOptions, checkpoint, make_synthetic
from onesteptrain.training import WarmupOptions, warm_up

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--refits", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        products = inner_products(Path(scratch), options.rows)
    text = coverage(products, options.refits) + "\n\n" + curve(products)
    write_text(HERE / "tables" / "intervals.md", text + "\n")
    print(text)


def inner_products(folder: Path, count: int) -> np.ndarray:
    """Gradients of pool rows times those of held-out samples, "row anchor"."""
    world = make_synthetic("digits", SyntheticOptions(pool_rows=4000, heldout_rows=3000, seed=5), folder / "world")
    loading = LoadOptions(device="cpu")
    proxy = load_proxy(checkpoint("proxy"), options=loading)
    warm_up(proxy, open_pool(world.pool), WarmupOptions(finetune=WARMUP), folder / "warm")
    rows = torch.stack([gradient(proxy, one) for one in readable(open_pool(world.pool).rows(0, count))])
    columns = [rows @ gradient(proxy, one) for one in readable(open_pool(world.heldout))]
    return torch.stack(columns, dim=1).double().numpy()


def gradient(proxy: Proxy, sample: Sample) -> torch.Tensor:
    _, found = proxy.gradient([proxy.batch([proxy.encoder.encode(sample)])])
    parts = [found.get(name, torch.zeros_like(value)) for name, value in proxy.parameters.items()]
    return torch.cat([part.detach().flatten() for part in parts])


def coverage(products: np.ndarray, refits: int) -> str:
    """How often the interval holds the truth, by number of anchors and of parts."""
    truth = products.mean(1)
    lines = [
        "| anchors | parts | coverage of the 95 % interval | half width over spread of the scores |",
        "| --- " * 4 + "|",
    ]
    for anchors in (50, 100, 200):
        for parts in (4, 8, 16):
            generator = np.random.default_rng(anchors + parts)
            held, widths = [], []
            for _ in range(refits):
                drawn = generator.permutation(products.shape[1])[:anchors]
                low, high = interval(products[:, drawn], parts)
                held.append((low <= truth) & (truth <= high))
                widths.append((high - low) / 2)
            rows = np.mean(held, axis=0)
            width = np.mean(widths) / truth.std()
            spread = f"(rows: {rows.min():.0%} to {rows.max():.0%})"
            lines.append(f"| {anchors} | {parts} | {rows.mean():.1%} {spread} | {width:.2f} |")
    return "\n".join(lines)


def interval(products: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The interval of each row, by the formula of the method."""
    split = [products[:, part::parts] for part in range(parts)]
    shares = torch.tensor([one.shape[1] / products.shape[1] for one in split], dtype=torch.float64)
    means = torch.tensor(np.stack([one.mean(1) for one in split]))
    found = [interval_signals(means[:, row : row + 1], shares) for row in range(len(products))]
    return np.array([one["utility_low"] for one in found]), np.array([one["utility_high"] for one in found])


def curve(products: np.ndarray) -> str:
    """How many anchors are enough, as eight parts of 100 tell it, beside what refits show."""
    generator = np.random.default_rng(0)
    drawn = generator.permutation(products.shape[1])[:96]
    parts = np.stack([products[:, part].mean(1) for part in drawn.reshape(8, 12)], axis=1)
    truth = products.mean(1)
    head = (
        "anchors",
        "reliability, told from 96",
        "top 20 % in common, told",
        "rank correlation with the truth",
        "seen",
    )
    lines = ["| " + " | ".join(head) + " |", "| --- " * 5 + "|"]
    for one in anchor_curve(parts, 96, 0.2, (10, 20, 50, 100, 200, 500)):
        refits = [products[:, generator.permutation(products.shape[1])[: one.anchors]].mean(1) for _ in range(100)]
        tops = [set(np.argsort(-values)[: len(truth) // 5].tolist()) for values in refits]
        common = np.mean([len(a & b) / len(a) for a, b in zip(tops[::2], tops[1::2], strict=True)])
        rank = np.mean([spearmanr(values, truth).statistic for values in refits])
        lines.append(f"| {one.anchors} | {one.reliability:.3f} | {one.top_overlap:.2f} | {rank:.3f} | {common:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
