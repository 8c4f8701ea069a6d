"""How time and memory of `fd` grow with rows, answer length, image tokens, model size, anchors and groups.

growth.py [--repeats 3] varies one thing at a time, each size in a process of its own, on models of the InternVL
architecture with random weights. Records hold milliseconds a row of processor time, since the machine may be shared,
peak memory, and the exponent of the growth (1 is in proportion); those of `extrapolation` say what 351k rows with a
proxy of a billion parameters would take by arithmetic alone.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recording import record

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.methods import Setting
from onesteptrain.methods.one_step import OneStep
from onesteptrain.proxy import LoadOptions, load_proxy
from onesteptrain.scoring.options import ScoringOptions
from onesteptrain.synthetic.architectures import ModelSize, build_checkpoint

USUAL = {"rows": 64, "answer": 32, "side": 32, "hidden": 128, "layers": 4, "anchors": 32, "groups": 1}
VARIED = {
    "rows": (128, 1024, 8192, 100_000),
    "answer": (32, 128, 512),
    "side": (32, 64, 128),
    "hidden": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
    "anchors": (10, 100, 1000),
    "groups": (1, 4, 16),
}
_ONCE = 10_000
"""More rows are measured once."""

UNITS = {"answer": "words of the answer", "side": "pixels of the image's side"}
WORDS = ["the", "sum", "of", "three", "and", "four", "is", "seven", "so", "that", "we", "get", "nine", "minus", "two"]

PAPER_ROWS, PARAMETERS, TOKENS = 351_000, 1e9, 1000
"""What is extrapolated to: the paper's pool, a proxy of a billion parameters, and tokens of a row with its image."""

ASSUMED = {"fd, float32 without tensor cores": (2, 0.5 * 60e12), "jvp, bfloat16": (3, 0.4 * 990e12)}
"""Passes, and operations a second that an H100 is taken to reach: a share of its published peak."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--one", type=json.loads, help="measure one case and print it, for the program itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(measure(**{**USUAL, **options.one}, repeats=options.repeats)))
        return
    for name in options.only:
        grow(name, options.repeats)
    extrapolate()


def grow(name: str, repeats: int) -> None:
    """Measure all sizes of one thing, and how the time grows with it."""
    found = []
    for size in VARIED[name]:
        command = [sys.executable, __file__, "--repeats", str(repeats), "--one", json.dumps({name: size})]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    what = UNITS.get(name, name)
    for size, one in zip(VARIED[name], found, strict=True):
        record("growth", f"{what}: {size}", unit="ms/row, MB, tokens/row, ms to prepare", **one)
    quantity = "prepare_ms" if name == "anchors" else "row_ms"
    logs = np.log([[size, one[quantity]] for size, one in zip(VARIED[name], found, strict=True)])
    slope = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    kind = "time to prepare" if name == "anchors" else "time a row"
    record("growth", f"exponent of {kind} in {what}", value=round(slope, 2), unit="power")


def measure(  # noqa: PLR0913  the sizes of one case
    rows: int, answer: int, side: int, hidden: int, layers: int, anchors: int, groups: int, repeats: int
) -> dict[str, float]:
    """Time and memory of one case."""
    size = ModelSize(hidden=hidden, layers=layers, mlp=3 * hidden, image_size=side, vision_hidden=32)
    with tempfile.TemporaryDirectory() as scratch:
        model = build_checkpoint("internvl", Path(scratch) / "model", size=size, texts=[" ".join(WORDS)] * 20)
        proxy = load_proxy(model, options=LoadOptions(device="cpu", max_tokens=100_000))
    trusted = [made(1_000_000 + row, 32, side, str(row % groups)) for row in range(anchors)]
    started = time.process_time()
    method = OneStep("fd", fd_epsilon=1e-3, reference_folds=0, group_by="group" if groups > 1 else None)
    scorer = method.prepare(Setting(proxy, trusted))
    prepared = time.process_time() - started
    chunk = ScoringOptions().chunk_rows
    scorer([made(row, answer, side) for row in range(16)])
    seconds = []
    for _ in range(repeats if rows <= _ONCE else 1):
        spent = 0.0
        for start in range(0, rows, chunk):
            samples = [made(row, answer, side) for row in range(start, min(rows, start + chunk))]
            started = time.process_time()
            scorer(samples)
            spent += time.process_time() - started
        seconds.append(spent)
    return {
        "row_ms": round(1000 * statistics.median(seconds) / rows, 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "tokens": proxy.encoder.encode(made(0, answer, side)).tokens,
        "prepare_ms": round(1000 * prepared, 1),
    }


def made(row: int, words: int, side: int, group: str = "") -> Sample:
    """A row with a picture of noise and an answer of so many words."""
    generator = np.random.default_rng(row)
    stream = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(stream, "PNG")
    answer = " ".join(generator.choice(WORDS, words))
    turns = (Turn("user", (ImageRef(stream.getvalue(), f"{row}"), "what is it")), Turn("assistant", (answer,)))
    return Sample(f"s{row}", row, turns, {"group": group})


def extrapolate() -> None:
    """Two operations a parameter, token and pass, at the rates that are assumed."""
    for name, (passes, rate) in ASSUMED.items():
        hours = passes * 2 * PARAMETERS * TOKENS * PAPER_ROWS / rate / 3600
        subject = f"{PAPER_ROWS} rows of {TOKENS} tokens, 1e9 parameters, one H100: {name} at {rate / 1e12:.0f} Tflop/s"
        record("extrapolation", subject, value=round(hours, 1), unit="hours, assumed not measured")


if __name__ == "__main__":
    main()
