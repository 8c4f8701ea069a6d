"""Pretrain a model of the digits world on clean rows.

pretrain.py NAME [--out FOLDER]; NAME is proxy (InternVL architecture), target or target_large (Qwen3-VL architecture),
which the package ships, or judge or proxy_same (Qwen3-VL architecture), which the experiments make for themselves.
Pretraining sees only scans that neither pool nor anchors nor benchmark show. It is stopped early on purpose: the model
is to be competent, not finished, as a real model is that goes into fine-tuning. The judge is to know more than the
others: it is larger, is trained longer, and sees the held-out scans too. Progress is measured on the held-out part (the
judge's on new problems of the pool's scans), never on the benchmark.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from onesteptrain.pool import ImageRef, Sample, Turn
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, in_batches, load_proxy
from onesteptrain.worlds.architectures import Architecture, ModelSize, build_checkpoint
from onesteptrain.worlds.digits import OFF_TOPIC, Problem, problems
from onesteptrain.worlds.questions import QUESTIONS
from onesteptrain.worlds.scans import Part, draw

CHECKPOINTS = Path(__file__).parents[2] / "src/onesteptrain/worlds/checkpoints"

SMALL = {"hidden": 64, "layers": 3, "mlp": 192, "vision_hidden": 48, "vision_heads": 2, "vision_mlp": 96}
LARGE = {"hidden": 128, "layers": 4, "mlp": 384, "vision_hidden": 64, "vision_heads": 4, "vision_mlp": 128}


class Recipe(NamedTuple):
    """How one model is made."""

    architecture: Architecture
    size: ModelSize
    learning_rate: float
    until: float
    """Held-out share right at which the learning rate begins to fall."""

    anneal: int
    """Steps in which it falls to zero."""

    parts: tuple[Part, ...] = ("pretrain",)
    """Parts of the world whose scans it sees."""

    check: Part = "heldout"
    """Part that progress is measured on."""


MODELS = {
    "proxy": Recipe("internvl", ModelSize(vocabulary=512, **SMALL), 3e-3, 0.3, 150),
    "target": Recipe("qwen3_vl", ModelSize(vocabulary=512, **SMALL), 3e-3, 0.2, 90),
    "target_large": Recipe("qwen3_vl", ModelSize(vocabulary=512, vision_layers=3, **LARGE), 2e-3, 0.15, 60),
    "proxy_same": Recipe("qwen3_vl", ModelSize(vocabulary=512, **SMALL), 3e-3, 0.3, 150),
    "judge": Recipe(
        "qwen3_vl", ModelSize(vocabulary=512, vision_layers=3, **LARGE), 2e-3, 0.8, 400, ("pretrain", "heldout"), "pool"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--most-steps", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = MODELS[options.name]
    generator = np.random.default_rng(1)
    drawn = [(row, part) for part in recipe.parts for row in problems(options.rows, part, generator)]
    rows = [row for row, _ in drawn]
    check = problems(300, recipe.check, generator)
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_checkpoint(recipe.architecture, Path(scratch) / "fresh", size=recipe.size, texts=texts(rows))
        proxy = load_proxy(folder, options=LoadOptions(device="cpu"))
    count = sum(parameter.numel() for parameter in proxy.parameters.values())
    print(f"{options.name}: {recipe.architecture}, {count:,} parameters", flush=True)
    encoded = [encode(proxy, row, part) for row, part in drawn]
    pretrain(proxy, encoded, [encode(proxy, row, recipe.check) for row in check], recipe, options)
    out = options.out or CHECKPOINTS / options.name
    shutil.rmtree(out, ignore_errors=True)
    proxy.model.half()  # half the size; loading in float32 gives the same model on every machine
    proxy.save(out)
    print(f"saved to {out}: {(out / 'model.safetensors').stat().st_size / 1e6:.2f} MB")


def pretrain(
    proxy: Proxy, rows: list[Encoded], check: list[Encoded], recipe: Recipe, options: argparse.Namespace
) -> None:
    """AdamW with a short rise and a plateau until the model is good enough, then a linear fall to zero."""
    parameters = list(proxy.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    order = np.random.default_rng(2)
    started = time.monotonic()
    last = options.most_steps
    proxy.model.train()
    step = 0
    while step < last:
        step += 1
        rate = recipe.learning_rate * min(1.0, step / 100, (last - step + 1) / recipe.anneal)
        optimizer.param_groups[0]["lr"] = rate
        batch = proxy.batch([rows[index] for index in order.integers(len(rows), size=options.batch_size)])
        loss = proxy.token_losses(batch).loss.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == last:
            right = all_tokens_right(proxy, check)
            pace = (time.monotonic() - started) / step
            print(f"step {step}: loss {loss.item():.4f}, held-out right {right:.3f}, {pace:.3f} s/step", flush=True)
            if right >= recipe.until and last == options.most_steps:
                last = min(last, step + recipe.anneal)
    proxy.model.eval()


@torch.no_grad()
def all_tokens_right(proxy: Proxy, rows: list[Encoded]) -> float:
    """Share of answers whose every token is the most likely one given the true tokens before it."""
    proxy.model.eval()
    right = 0
    for indices in in_batches(rows, 100):
        batch = proxy.batch([rows[index] for index in indices])
        logits = proxy.model(**batch.inputs, use_cache=False).logits[:, :-1]
        wrong = (logits.argmax(-1) != batch.inputs["input_ids"][:, 1:]) & batch.answer[:, 1:]
        right += int((~wrong.any(1)).sum())
    proxy.model.train()
    return right / len(rows)


def encode(proxy: Proxy, problem: Problem, part: Part) -> Encoded:
    """A problem as the model reads it."""
    picture = ImageRef(draw(problem.digits, problem.drawing, part), "drawing")
    turns = (Turn("user", (picture, problem.question)), Turn("assistant", (problem.answer,)))
    return proxy.encoder.encode(Sample("", 0, turns))


def texts(rows: list[Problem]) -> list[str]:
    """What the tokenizer is trained on: the world's questions and answers, good and bad."""
    wordings = [wording for variants in QUESTIONS.values() for wording in variants]
    return (
        [row.answer for row in rows[:2000]] + 100 * wordings + 100 * [*OFF_TOPIC, "user\n", "assistant\n", "system\n"]
    )


if __name__ == "__main__":
    sys.exit(main())
