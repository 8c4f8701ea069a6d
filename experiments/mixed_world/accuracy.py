"""How good a model is on the default mixed data, by source: accuracy.py [MODEL ...], packaged names or folders.

Prints accuracy of free answers on held-out rows and benchmark, in per cent.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from onesteptrain.evaluation import EvaluateOptions, evaluate, read_benchmark
from onesteptrain.proxy import load_proxy
from onesteptrain.synthetic import MixedOptions, checkpoint, make_synthetic

OPTIONS = EvaluateOptions(max_new_tokens=96, batch_size=250, by=("source",))

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data = make_synthetic("mixed", MixedOptions(pool_rows=1), Path(scratch) / "data")
        for name in sys.argv[1:] or ("mixed_proxy", "mixed_target"):
            proxy = load_proxy(Path(name) if Path(name).exists() else checkpoint(name))
            for part in (data.heldout, data.benchmark):
                found = evaluate(proxy, read_benchmark(part), OPTIONS)
                by_source = {source: f"{100 * one.value:.1f}" for source, one in found.by["source"].items()}
                print(name, part.stem, f"{100 * found.accuracy.value:.1f}", by_source, flush=True)
