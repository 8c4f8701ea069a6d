"""Pretrain a model of a world on clean rows, and stop early: the part that all worlds have in common.

The model is to be competent, not finished, as a real model is that goes into fine-tuning: the learning rate begins to
fall once the share of answers with every token right passes a mark, and reaches zero some steps later.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from onesteptrain.data.pool import ImageRef, Sample, Turn
from onesteptrain.proxy import Encoded, LoadOptions, Proxy, in_batches, load_proxy
from onesteptrain.synthetic.architectures import Architecture, ModelSize, build_checkpoint

CHECKPOINTS = Path(__file__).parents[2] / "src/onesteptrain/synthetic/checkpoints"


class Recipe(NamedTuple):
    """How one model is made."""

    architecture: Architecture
    size: ModelSize
    learning_rate: float
    until: float
    """Held-out share right at which the learning rate begins to fall."""

    anneal: int
    """Steps in which it falls to zero."""

    parts: tuple[Any, ...] = ("pretrain",)
    """Parts of the world whose pictures it sees."""

    check: Any = "heldout"
    """Part that progress is measured on."""

    awake: bool = False
    """Whether a fresh model starts from weights as large as its width asks for, not from the families' small ones."""


class Lesson(NamedTuple):
    """One clean row."""

    picture: bytes | None
    question: str
    answer: str


class Course(NamedTuple):
    """What a world has to teach."""

    problems: Callable[[int, Any, np.random.Generator], list[Any]]
    """Draw so many clean problems of a part."""

    lesson: Callable[[Any, Any], Lesson]
    """Show a problem of a part."""

    texts: Callable[[Sequence[Any]], list[str]]
    """What the tokenizer is trained on, given the problems."""


def run(description: str, models: Mapping[str, Recipe], course: Course) -> None:
    """The command line: make one of the models."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("name", choices=models)
    parser.add_argument("--out", type=Path)
    options = asked(parser)
    make(models[options.name], course, options.out or CHECKPOINTS / options.name, options)


def asked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What is asked for, with how much is learned."""
    parser.add_argument("--most-steps", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser.parse_args()


def make(recipe: Recipe, course: Course, out: Path, options: argparse.Namespace, *, start: Path | None = None) -> None:
    """Make a model.

    Args:
        recipe: How.
        course: What it learns.
        out: Its folder.
        options: How much it learns.
        start: Folder of a model to go on from, in place of fresh weights.
    """
    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    drawn = [(row, part) for part in recipe.parts for row in course.problems(options.rows, part, generator)]
    check = course.problems(300, recipe.check, generator)
    if start is None:
        proxy = fresh(recipe, course.texts([row for row, _ in drawn]))
    else:
        proxy = load_proxy(start, options=LoadOptions(device="cpu"))
    count = sum(parameter.numel() for parameter in proxy.parameters.values())
    print(f"{out.name}: {recipe.architecture}, {count:,} parameters", flush=True)
    rows = [encode(proxy, course.lesson(row, part)) for row, part in drawn]
    pretrain(proxy, rows, [encode(proxy, course.lesson(row, recipe.check)) for row in check], recipe, options)
    save(proxy, out)


def fresh(recipe: Recipe, texts: Sequence[str]) -> Proxy:
    """A model with random weights, and a tokenizer that is trained on texts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_checkpoint(recipe.architecture, Path(scratch) / "fresh", size=recipe.size, texts=texts)
        proxy = load_proxy(folder, options=LoadOptions(device="cpu"))
    if recipe.awake:
        waken(proxy)
    return proxy


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
def waken(proxy: Proxy) -> None:
    """Draw the weights of a fresh model anew, so that each layer passes on as much as it is given.

    The families draw them with a deviation of 0.02, and InternVL scales the layers of its tower to a tenth, which is
    made for models a hundred times as wide: at a width of 64, words of one kind, such as the colours, become one word
    while the model learns when to say them, and it takes thousands of steps to tell them apart again.
    """
    torch.manual_seed(0)
    words = proxy.model.get_input_embeddings().weight
    for name, parameter in proxy.parameters.items():
        if name.endswith(("lambda_1", "lambda_2")):
            parameter.fill_(1.0)
        elif parameter is words or "position" in name or "pos_embed" in name:
            parameter.normal_(std=0.1)
        elif parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)


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


def encode(proxy: Proxy, lesson: Lesson) -> Encoded:
    """A row as the model reads it."""
    pictures = () if lesson.picture is None else (ImageRef(lesson.picture, "drawing"),)
    turns = (Turn("user", (*pictures, lesson.question)), Turn("assistant", (lesson.answer,)))
    return proxy.encoder.encode(Sample("", 0, turns))


def save(proxy: Proxy, out: Path) -> None:
    """Save a model at half its size; loading in float32 gives the same model on every machine."""
    shutil.rmtree(out, ignore_errors=True)
    proxy.model.half()
    proxy.save(out)
    print(f"saved to {out}: {(out / 'model.safetensors').stat().st_size / 1e6:.2f} MB")
