"""Make DEITA's two scorers in miniature for the digits data.

make.py --out FOLDER [--seed N] writes FOLDER/complexity, FOLDER/quality and FOLDER/report.json.

The recipe is DEITA's (arXiv:2312.15685): a question is made more complex step by step, an answer better step by step,
the six variants of a set are ranked, and a language model is trained to write the rank. Where DEITA asks ChatGPT to
rewrite and to rank, a program does both here: it knows the operators of evolution that are written out below, and the
rank is the number of operators that went into a variant. Seeds are right answers to fresh problems; nothing is read
from a pool, so that no scorer has seen a planted label.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)

from onesteptrain.errors import RunError
from onesteptrain.methods.deita import COMPLEXITY_PROMPT, QUALITY_PROMPT, load_text_scorer
from onesteptrain.synthetic.digits import QUESTIONS, SKILLS, DigitProblem, Skill, read, solve
from onesteptrain.synthetic.making import problems
from onesteptrain.synthetic.tokenizer import train_tokenizer

HARDER: dict[Skill, Skill] = {"count": "difference", "difference": "sum", "product": "sum"}
"""In-depth evolution, more reasoning steps: the question of the world that takes a longer chain on the same digits."""

OPERATORS: dict[str, tuple[str, ...]] = {
    "add a constraint": (
        "Leave out every digit below {}.",
        "Take a digit that comes twice only once, and no digit above {}.",
        "Do so without using the digit {}.",
    ),
    "deepen": (
        "Explain why each step is allowed.",
        "Say how the result would change if the last digit were {}.",
        "Show that no other result is possible.",
    ),
    "concretise": (
        "Read the handwritten digits row by row, from left to right.",
        "Take the digits of the upper row of the picture first, then those of the lower row.",
        "Name the place of each handwritten digit in the picture.",
    ),
    "more reasoning steps": (
        "Then multiply the result by {} and say whether it is even.",
        "Then subtract {} and compare what is left with the first digit.",
        "Then do the same for the digits in reverse order and add {}.",
    ),
    "rewrite the case": (
        "Suppose the first digit were {} instead.",
        "Assume that a hidden digit {} stands behind the last one.",
        "Imagine that every digit grew by {}.",
    ),
}
"""In-depth evolution of a question: each operator adds one sentence."""

REMARKS = (
    "Thanks for the picture, I like it.",
    "The weather will be fine in {} days.",
    "My train leaves from platform {} at noon.",
    "There are {} chairs in the room.",
    "Once upon a time there was a king with {} horses.",
    "Please send {} boxes to the usual address.",
    "I am not sure what you mean.",
    "Music is played at {} in the evening.",
)
"""Answers that are not about the question; none of them is a sentence of the world's noise."""

SIZE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
VOCABULARY = 512
MOST_TOKENS = 512


class Variant(NamedTuple):
    """One text to be scored."""

    prompt: str
    rank: int
    """From 1, the seed, to 6."""


Evolution = Callable[[DigitProblem, np.random.Generator], list[Variant]]


def evolve_question(problem: DigitProblem, generator: np.random.Generator) -> list[Variant]:
    """Six questions of rising complexity: the seed, and five steps of in-depth evolution in random order."""
    question = problem.question
    operators = [str(name) for name in generator.permutation(list(OPERATORS))]
    asked = [question]
    harder = HARDER.get(problem.skill)
    if harder is not None and generator.random() < 0.5:
        asked.append(QUESTIONS[harder][int(generator.integers(len(QUESTIONS[harder])))])
        operators.pop()
    for operator in operators:
        sentences = OPERATORS[operator]
        sentence = sentences[int(generator.integers(len(sentences)))].format(int(generator.integers(1, 10)))
        asked.append(f"{asked[-1]} {sentence}")
    return [Variant(COMPLEXITY_PROMPT.format(question=one), rank) for rank, one in enumerate(asked, 1)]


def evolve_answer(problem: DigitProblem, generator: np.random.Generator) -> list[Variant]:
    """Six answers of rising quality to one question: each step adds what the one before lacks."""
    result, digits = problem.right.result, problem.digits
    working = problem.right.chain[1]
    answers = [
        _beside_the_point(problem, generator),
        # more relevant: about this question, though it breaks off
        f"{read(digits)} {working}"[: int(generator.integers(8, len(read(digits)) + len(working)))],
        # more helpful: the result
        (f"The answer is {result}.", f"{result}", f"It is {result}.")[int(generator.integers(3))],
        # deeper: where the result comes from
        f"{read(digits)} The answer is {result}.",
        # more detail: every step, as the world's answers have it
        problem.answer,
        # more detail still: a second look at the picture
        problem.answer + (f" Checked: {working}", f" I read {read(digits)[4:-1]} twice.")[int(generator.integers(2))],
    ]
    return [
        Variant(QUALITY_PROMPT.format(question=problem.question, answer=one), rank)
        for rank, one in enumerate(answers, 1)
    ]


def _beside_the_point(problem: DigitProblem, generator: np.random.Generator) -> str:
    """A remark, or the right answer to another question about the same picture."""
    if generator.random() < 0.5:
        return REMARKS[int(generator.integers(len(REMARKS)))].format(int(generator.integers(2, 60)))
    others = [skill for skill in SKILLS if skill != problem.skill]
    return solve(others[int(generator.integers(len(others)))], problem.digits).text


EVOLUTIONS: dict[str, Evolution] = {"complexity": evolve_question, "quality": evolve_answer}


def make_scorers(
    folder: Path, *, seed: int = 0, sets: int = 3500, epochs: float = 1.0, tell: Callable[[str], None] = print
) -> tuple[Path, Path]:
    """Train both scorers from fresh weights and measure them on sets that they have not seen.

    Args:
        folder: A new folder; it appears whole or not at all.
        seed: Fixes the seeds of the sets, their evolution, the weights and the order of training.
        sets: Sets of six variants to train on, for each scorer; a tenth as many more are held out.
        epochs: Passes over them.
        tell: Told in a line how each scorer came out.

    Returns:
        Checkpoint folders of the complexity scorer and of the quality scorer.

    Raises:
        RunError: the folder exists.
    """
    if folder.exists():
        raise RunError(f"{folder} exists; give a new folder for the scorers")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    report = {}
    for name, evolve in EVOLUTIONS.items():
        generator = np.random.default_rng([seed, len(name)])
        evolved = [
            evolve(one, generator) for one in problems(DigitProblem, sets + max(2, sets // 10), "pretrain", generator)
        ]
        started = time.monotonic()
        train_scorer(part / name, [variant for one in evolved[:sets] for variant in one], epochs=epochs, seed=seed)
        report[name] = {**measure(part / name, evolved[sets:]), "seconds": round(time.monotonic() - started, 1)}
        tell(f"{name}: {json.dumps(report[name])}")
    (part / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder)
    return folder / "complexity", folder / "quality"


def train_scorer(folder: Path, variants: Sequence[Variant], *, epochs: float, seed: int) -> None:
    """Train a small causal language model to write the rank after the prompt, and save it with its tokenizer."""
    texts = [variant.prompt for variant in variants[:3000]]
    tokenizer = train_tokenizer(
        texts, vocabulary=VOCABULARY, named={"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    )
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=MOST_TOKENS,
        tie_word_embeddings=True,
        initializer_range=SIZE["hidden_size"] ** -0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZE,
    )
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        trainer = Trainer(
            model=model,
            args=_arguments(Path(scratch), epochs=epochs, seed=seed),
            train_dataset=[_encode(tokenizer, variant) for variant in variants],
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _arguments(folder: Path, *, epochs: float, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        adam_beta2=0.98,
        warmup_steps=50,
        lr_scheduler_type="cosine",
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _encode(tokenizer: Any, variant: Variant) -> dict[str, list[int]]:
    """The loss is on the rank and the end, as in instruction tuning: the prompt is masked."""
    prompt = tokenizer(variant.prompt)["input_ids"]
    written = [tokenizer.convert_tokens_to_ids(str(variant.rank)), tokenizer.eos_token_id]
    return {"input_ids": prompt + written, "labels": [-100] * len(prompt) + written}


def measure(scorer: Path, sets: Sequence[list[Variant]]) -> dict[str, float]:
    """How well the expected scores order the variants of each set, and all of them together (Spearman)."""
    loaded = load_text_scorer(str(scorer), device=torch.device("cpu"), dtype=torch.float32)
    scores = loaded.expected_scores((variant.prompt for one in sets for variant in one), batch_size=64)
    within = [spearmanr([v.rank for v in one], [scores[v.prompt] for v in one]).statistic for one in sets]
    every = [variant for one in sets for variant in one]
    over_all = spearmanr([v.rank for v in every], [scores[v.prompt] for v in every]).statistic
    return {
        "held_out_sets": len(sets),
        "spearman_within_a_set": round(float(np.mean(within)), 4),
        "spearman_over_all": round(float(over_all), 4),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_scorers(options.out, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
